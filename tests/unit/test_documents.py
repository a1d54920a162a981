"""README and docs: their commands parse, their links lead somewhere, and they name what exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import yolov7
from pipeline.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(?:sh|shell|bash)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)")


def commands(page: Path) -> list[str]:
    """The lines of shell blocks that call yolov7, without comments, pipes and what follows them."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for block in BLOCK.findall(text) for line in block.splitlines()]
    return [re.split(r"\s+#|\s*(?:&&|\|)\s", line)[0] for line in lines if line.startswith("yolov7 ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_has_the_arguments_and_options_that_the_page_shows(page: Path) -> None:
    for line in commands(page):
        command: Any = typer.main.get_command(app)
        context = None
        words = shlex.split(line)
        name = words.pop(0)
        while hasattr(command, "get_command") and words and not words[0].startswith("-"):
            context = command.context_class(command, info_name=name, parent=context)
            name = words.pop(0)
            found = command.get_command(context, name)
            assert found is not None, f"{line!r}: there is no command {name!r}"
            command = found
        if not hasattr(command, "get_command"):
            context = command.context_class(command, info_name=name, parent=context)
            command.make_parser(context).parse_args(words)  # raises for an unknown option
        assert any(line.startswith(f"yolov7 {word}") for word in (name, "data", "weights", "--")), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_site_lists_every_page() -> None:
    nav = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2])
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert sorted(nav) == sorted(pages)


def test_the_reference_describes_every_public_name() -> None:
    entries = re.findall(r"^::: yolov7\.([\w.]+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(entry.rpartition(".")[2] for entry in entries) == sorted(set(yolov7.__all__) - {"__version__"})


def test_the_readme_names_every_extra_for_users() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    extras = set(re.findall(r"^(\w+) = \[", project.partition("[project.scripts]")[0], re.MULTILINE))
    for page in ("README.md", "docs/quick-start.md"):
        named = set(re.findall(r"\[(\w+)\]`", (ROOT / page).read_text(encoding="utf-8")))
        assert extras - {"dev", "docs"} <= named, page


def test_a_continuous_integration_of_the_site_treats_warnings_as_errors() -> None:
    settings = re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert yaml.safe_load(settings)["strict"] is True
