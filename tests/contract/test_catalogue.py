"""The commands around specs, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.contract.test_cli import fails_in_one_line, run


def test_scale_prints_what_it_writes(tmp_path: Path) -> None:
    done = run(tmp_path, "scale", "nano", "--rule", "depth", "--depth", "2", "-o", "deep.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "deep.yaml").read_text()
    assert done.stdout.startswith("# nano depth depth 2: ")


def test_mistakes_in_scaling_are_told(tmp_path: Path) -> None:
    assert "use 'compound'" in fails_in_one_line(run(tmp_path, "scale", "nano", "--rule", "width", "--depth", "2"))


def test_the_plan_as_json(tmp_path: Path) -> None:
    lines = json.loads(run(tmp_path, "models", "--plan", "yolov7", "--json").stdout)
    assert [line["name"] for line in lines if line["planned"] == "RepConvN"] == ["r3", "r4", "r5"]
