"""The list of rooms in the documentation has every folder of the packages, with the folder's own first line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "design" / "index.md"
MOST_LINES_PER_FILE, MOST_LINES_PER_FUNCTION = 400, 60


def listed() -> dict[str, str]:
    """Each room of the page's tree by its path."""
    rooms: dict[str, str] = {}
    path: list[str] = []
    for line in PAGE.read_text(encoding="utf-8").split("```")[1].splitlines():
        if match := re.match(r"( *)(\w+)/ +(.*)", line):
            path = [*path[: len(match[1]) // 2], match[2]]
            rooms["/".join(path)] = match[3]
    return rooms


def sources() -> list[Path]:
    return [path for package in ("yolov7", "pipeline") for path in sorted((ROOT / package).rglob("*.py"))]


def test_the_page_lists_every_room_with_its_own_line() -> None:
    rooms = {
        path.parent.relative_to(ROOT).as_posix(): ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        for path in sources()
        if path.name == "__init__.py"
    }
    assert listed() == {room: text.partition("\n")[0] for room, text in rooms.items()}


def test_files_and_functions_are_short() -> None:
    long = []
    for path in sources():
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > MOST_LINES_PER_FILE:
            long.append(f"{path.relative_to(ROOT)}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > MOST_LINES_PER_FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {length} lines")
    assert not long


def test_the_packages_have_few_entries_at_their_top() -> None:
    def entries(package: str) -> int:
        return len([path for path in (ROOT / package).iterdir() if path.name not in {"__pycache__", "py.typed"}])

    assert entries("yolov7") <= 19
    assert entries("pipeline") <= 16
