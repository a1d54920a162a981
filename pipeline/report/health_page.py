"""The health report as one HTML page that needs no other file."""

from __future__ import annotations

import base64

from pipeline.report.health import MAX_LISTED, HealthReport
from pipeline.report.html import render_template
from yolov7.data.flaws import FlawKind


def report_html(report: HealthReport, *, sheet: bytes) -> str:
    """Return the page of a report.

    Args:
        report: The report.
        sheet: The contact sheet, the bytes of a JPEG file.

    Returns:
        The HTML text. All texts of the data are escaped.
    """
    return render_template(
        "health.html",
        report=report,
        outcomes={str(kind): kind.outcome for kind in FlawKind},
        max_listed=MAX_LISTED,
        sheet=base64.b64encode(sheet).decode(),
    )
