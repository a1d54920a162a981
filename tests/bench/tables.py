"""Figures of benchmarks as JSON and as tables in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.comparison import shown

PAGE = Path("docs/design/performance.md")


def date() -> str:
    """Return the date and the time in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def keep(path: Path, facts: Mapping[str, object], rows: Sequence[Mapping[str, object]]) -> None:
    """Write facts about the machine and rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Return what `keep` wrote."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def markdown_rows(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table of one measurement, with its conditions above."""
    lines = [conditions(result), "", "| case | plain | ours | ratio | |", "|---|---:|---:|---:|---|"]
    for row in result["rows"]:
        cells = [row["case"], shown(row["plain_s"]), shown(row["ours_s"]), _ratio(row), row["figure"] or ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def markdown_ratios(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table with a column of ratios for each measurement, and the conditions above."""
    lines = [f"- {conditions(result)}" for result in results]
    heads = [_load(result) for result in results]
    lines += ["", f"| case | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    cases = dict.fromkeys(row["case"] for result in results for row in result["rows"])
    for case in cases:
        found = [next((row for row in result["rows"] if row["case"] == case), None) for result in results]
        lines.append(f"| {case} | {' | '.join(_summary(row) for row in found)} |")
    return lines


def conditions(result: Mapping[str, Any]) -> str:
    """Return all facts of a measurement in one line."""
    facts = {key: value for key, value in result.items() if key not in ("rows", "busy", "date", "device")}
    first = [result["date"], *([result["device"]] if "device" in result else [_load(result)])]
    return ", ".join([*first, *(f"{key} {value}" for key, value in facts.items() if value is not None)])


def write_between(page: Path, name: str, lines: Sequence[str]) -> None:
    """Replace the lines of a page between `<!-- NAME -->` and `<!-- end of NAME -->`."""
    before, start, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    assert start, f"{page} has no mark {name}"
    assert end, f"{page} has no mark of the end of {name}"
    page.write_text("\n".join([before + start.rstrip(), *lines, end + after]), encoding="utf-8")


def _load(result: Mapping[str, Any]) -> str:
    busy = result.get("busy", 0)
    return f"beside {busy} busy process{'es' if busy > 1 else ''}" if busy else "quiet"


def _ratio(row: Mapping[str, Any]) -> str:
    return f"{row['ratio']:.2f}" if row["ratio"] else ""


def _summary(row: Mapping[str, Any] | None) -> str:
    """Return the ratio with both times, or the figure in words."""
    if row is None:
        return ""
    if not row["ratio"]:
        return row["figure"] or ""
    remark = f"; {row['figure']}" if row["figure"] else ""
    return f"{row['ratio']:.2f} ({shown(row['plain_s'])} : {shown(row['ours_s'])}{remark})"
