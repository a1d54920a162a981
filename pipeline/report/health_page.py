"""The health report as one HTML page that needs no other file."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.report.health import MAX_LISTED, HealthReport
from yolov7.data.flaws import FlawKind


def report_html(report: HealthReport, *, sheet: bytes) -> str:
    """Return the page of a report.

    Args:
        report: The report.
        sheet: The contact sheet, the bytes of a JPEG file.

    Returns:
        The HTML text. All texts of the data are escaped.
    """
    templates = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("health.html").render(
        report=report,
        outcomes={str(kind): kind.outcome for kind in FlawKind},
        max_listed=MAX_LISTED,
        sheet=base64.b64encode(sheet).decode(),
    )
