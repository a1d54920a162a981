"""The health report as one HTML page that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np

from pipeline.report.check_report import worst_first
from pipeline.report.health import HealthReport
from pipeline.report.html import render_template
from yolov7.data.augment.letterbox import letterbox
from yolov7.data.flaws import FlawKind
from yolov7.data.health.checks import CheckResult, Finding
from yolov7.data.images import Image, read_image
from yolov7.detect.drawing import draw_boxes
from yolov7.errors import DataError

_PICTURES = 3  # of a check
_LISTED = 200  # findings of a check
_SIDE = 360  # pixels of the longer side of a picture
_MARK = (226, 61, 40)  # RGB

Pictures = Mapping[str, Sequence[str]]  # for the id of a check, JPEG files in base64


def draw_examples(results: Iterable[CheckResult]) -> dict[str, list[str]]:
    """Draw the first findings of each check that have images.

    Args:
        results: The results of the checks.

    Returns:
        For the id of each check with pictures, these pictures as JPEG files in base64.
    """
    drawn: dict[str, list[str]] = {}
    for result in results:
        shown = [finding for finding in result.findings if finding.images][:_PICTURES]
        pictures = [picture for finding in shown if (picture := _draw(finding)) is not None]
        if pictures:
            drawn[result.check.id] = pictures
    return drawn


def report_html(report: HealthReport, *, pictures: Pictures, sheet: bytes = b"") -> str:
    """Return the page of a report.

    Args:
        report: The report.
        pictures: From `draw_examples`.
        sheet: The contact sheet of train, the bytes of a JPEG file; empty for none.

    Returns:
        The HTML text. All texts of the data are escaped.
    """
    return render_template(
        "health.html",
        report=report,
        outcomes={str(kind): kind.outcome for kind in FlawKind},
        found=worst_first(report.checks),
        clean=[check.id for check in report.checks if check.status == "clean"],
        pictures=pictures,
        max_listed=_LISTED,
        sheet=base64.b64encode(sheet).decode(),
    )


def _draw(finding: Finding) -> str | None:
    """Return the images of a finding beside each other; None if one of them cannot be read."""
    try:
        tiles = [_tile(read_image(path), finding if i == 0 else None) for i, path in enumerate(finding.images[:2])]
    except DataError:
        return None
    height = max(tile.shape[0] for tile in tiles)
    padded = [np.pad(tile, ((0, height - tile.shape[0]), (0, 4), (0, 0)), constant_values=255) for tile in tiles]
    content = cv2.imencode(".jpg", np.hstack(padded)[:, :-4, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])[1]
    return base64.b64encode(content.tobytes()).decode()


def _tile(image: Image, finding: Finding | None) -> Image:
    """Return a small image with the boxes of a finding, clipped to it."""
    small, geometry = letterbox(image, size=_SIDE, stride=1)
    boxes = np.array(() if finding is None else finding.boxes_xyxy, np.float64).reshape(-1, 4)
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    height, width = image.shape[:2]
    fitted = geometry.to_letterbox(np.clip(boxes, 0, (width, height, width, height)).astype(np.float32))
    return draw_boxes(small, fitted, texts=[""] * len(fitted), colours=[_MARK] * len(fitted))
