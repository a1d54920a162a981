"""Fill the page of commands with the help of the command line when the site is built."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Insert the help of all commands into the page `commands.md`.

    Args:
        markdown: The text of the page.
        page: The page.

    Returns:
        The text with the help.

    Raises:
        CalledProcessError: If the command line cannot be imported.
    """
    if page.file.src_uri != "commands.md":
        return markdown
    command = [sys.executable, "-m", "typer", "pipeline.cli.main", "utils", "docs", "--name", "yolov7"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    escaped = re.sub(r"`[^`]*`|<", lambda found: "&lt;" if found[0] == "<" else found[0], text[text.index("## ") :])
    return markdown.replace("[help of all commands]", escaped)


def on_page_content(html: str, **_: Any) -> str:
    """Leave out the entry `--help` of each command.

    Args:
        html: The page.

    Returns:
        The page without these entries.
    """
    return re.sub(r"<li><code>--help</code>: Show this message and exit\.</li>\s*", "", html)
