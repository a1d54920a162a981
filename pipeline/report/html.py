"""HTML pages from the templates beside this module. All values are escaped, unless a template marks them as safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_FOLDER = Path(__file__).parent / "templates"


def render_template(name: str, **values: Any) -> str:
    """Return a page.

    Args:
        name: The template's file.
        **values: The variables of the template. Text in them is escaped.

    Returns:
        The HTML text.

    Raises:
        jinja2.UndefinedError: The template uses a variable that has no value.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(values)
