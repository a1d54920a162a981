"""The health report as text for a terminal."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.report.check_report import CheckReport, worst_first
from pipeline.report.health import HealthReport
from yolov7.data.health.checks import SPLIT_CHECKS, Severity
from yolov7.errors import counted, one_line

_EXAMPLES = 3  # of a check
_LONGEST = 1000  # characters of an example
_OF_SPLIT = {check.id for check in SPLIT_CHECKS}  # whose findings concern no single file


def report_text(report: HealthReport, *, root: Path) -> str:
    """Return the report: a table of what was found, then examples and remedies, then a summary.

    Args:
        report: The report.
        root: The folder of the data. Files in it are shown relative to it.

    Returns:
        Lines without a line break at the end.
    """
    found = worst_first(report.checks)
    lines = [f"{split}: {_contents(report, split)}" for split in report.splits]
    if found:
        lines += ["", *_table(found, tuple(report.splits))]
        for check in found:
            lines += ["", *_examples(check, root)]
        lines.append("")
    return "\n".join([*lines, _summary(report.checks)])


def _contents(report: HealthReport, split: str) -> str:
    health = report.splits[split]
    boxes = counted(health.boxes, "box", "boxes")
    classes = len(report.class_names)
    return f"{counted(health.images, 'image')}, {boxes}, {counted(classes, 'class', 'classes')}"


def _table(found: Sequence[CheckReport], splits: Sequence[str]) -> Iterator[str]:
    rows = [
        ("check", "severity", *splits, "finding"),
        *(
            (
                check.id,
                check.status if check.status == "crashed" else str(check.severity),
                *(f"{check.counts[split]:,}" if split in check.counts else "" for split in splits),
                check.title,
            )
            for check in found
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(splits) + 2)]
    for row in rows:
        texts = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        numbers = [text.rjust(width) for text, width in zip(row[2:-1], widths[2:], strict=True)]
        yield "  ".join([*texts, *numbers, row[-1]]).rstrip()


def _examples(check: CheckReport, root: Path) -> Iterator[str]:
    yield f"{check.id}: {check.title}"
    if check.crash is not None:
        yield f"  the check stopped with an error: {check.crash}"
    for finding in check.findings[:_EXAMPLES]:
        detail = finding.detail.replace(f"{root}{os.sep}", "")
        place = "" if check.id in _OF_SPLIT else f"{_shown(finding.file, root)}: "
        text = one_line(f"{finding.split}: {place}{detail}", limit=_LONGEST)  # names may have control characters
        yield f"  {text}"
    if check.count > _EXAMPLES:
        yield f"  ... and {check.count - _EXAMPLES:,} more"
    if check.count:
        yield f"  remedy: {check.remedy}" + (f" (--fix: {check.fix})" if check.fix is not None else "")


def _shown(file: str, root: Path) -> str:
    path = Path(file)
    inside = path.is_relative_to(root) and path != root
    return str(path.relative_to(root)) if inside else file


def _summary(checks: Sequence[CheckReport]) -> str:
    found, crashed = Counter[Severity](), sum(check.status == "crashed" for check in checks)
    for check in checks:
        found[check.severity] += check.count
    counts = ", ".join(counted(found[severity], str(severity)) for severity in Severity)
    stopped = f"; {counted(crashed, 'check')} stopped with an error" if crashed else ""
    return f"{counted(len(checks), 'check')}: {counts}{stopped}"
