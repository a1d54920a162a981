"""The results of checks of a data set as plain values for JSON files, pages and texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from yolov7.data.health.checks import Box, CheckResult, Finding, Severity
from yolov7.system.settings_base import Settings


class ListedFinding(Settings):
    """One thing that a check found.

    Attributes:
        split: The split.
        file: The file to look at: an image, an annotation file, or the folder of the images of a split.
        detail: The value, and where it is in the file.
        boxes_xyxy: Boxes in the image, corners in pixels; without boxes that are not finite.
    """

    split: str
    file: str
    detail: str
    boxes_xyxy: tuple[Box, ...]


class CheckReport(Settings):
    """The result of a check.

    Attributes:
        id: The id of the check.
        title: What a finding is.
        severity: How serious a finding is.
        remedy: What to do about it.
        fix: What a cleaned copy of the annotations does about it; None if only a person can decide.
        status: `clean`; `found`; or `crashed` if the check stopped with an error.
        count: The number of findings.
        counts: The number of findings of each split that has some.
        findings: The first findings, or all of them.
        crash: The error with which the check stopped.
    """

    id: str
    title: str
    severity: Severity
    remedy: str
    fix: str | None
    status: Literal["clean", "found", "crashed"]
    count: int
    counts: dict[str, int]
    findings: tuple[ListedFinding, ...]
    crash: str | None


def report_checks(results: Iterable[CheckResult], *, max_listed: int | None = None) -> tuple[CheckReport, ...]:
    """Return the reports of checks.

    Args:
        results: The results.
        max_listed: The largest number of findings that are listed of each check; None lists all.
    """
    return tuple(_report(result, max_listed) for result in results)


def worst_first(reports: Iterable[CheckReport]) -> list[CheckReport]:
    """Return the checks that crashed or found something: crashes first, then by severity, then in their order.

    Args:
        reports: The reports.
    """
    order = list(Severity)
    shown = [report for report in reports if report.status != "clean"]
    return sorted(shown, key=lambda report: (report.status != "crashed", order.index(report.severity)))


def exit_code(reports: Sequence[CheckReport], *, strict: bool) -> int:
    """Return the exit code of a check of data.

    Args:
        reports: The reports of all checks.
        strict: Whether findings of every severity count.

    Returns:
        1 if a check crashed, found an error, or found anything in strict mode; otherwise 0.
    """
    is_bad = any(
        report.status == "crashed" or (report.count and (strict or report.severity is Severity.ERROR))
        for report in reports
    )
    return int(is_bad)


def _report(result: CheckResult, max_listed: int | None) -> CheckReport:
    check, found = result.check, result.findings
    return CheckReport(
        id=check.id,
        title=check.title,
        severity=check.severity,
        remedy=check.remedy,
        fix=check.fix,
        status="crashed" if result.crash is not None else "found" if found else "clean",
        count=len(found),
        counts=dict(Counter(finding.split for finding in found)),
        findings=tuple(_listed(finding) for finding in found[:max_listed]),
        crash=result.crash,
    )


def _listed(finding: Finding) -> ListedFinding:
    boxes = tuple(box for box in finding.boxes_xyxy if all(map(math.isfinite, box)))
    return ListedFinding(split=finding.split, file=finding.file, detail=finding.detail, boxes_xyxy=boxes)
