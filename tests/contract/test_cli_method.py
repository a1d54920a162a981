"""The commands around a training: mistakes answered in one line with exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.contract.test_cli import GOOD, fails_in_one_line, run


@pytest.fixture(autouse=True)
def params(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(GOOD))


def test_a_soup_of_what_is_not_there(tmp_path: Path) -> None:
    assert "there is no such weight file" in fails_in_one_line(run(tmp_path, "soup", "a.safetensors", "b.safetensors"))


def test_a_soup_of_one(tmp_path: Path) -> None:
    assert "two weight files" in fails_in_one_line(run(tmp_path, "soup", "a.safetensors"))


def test_inspecting_before_the_data_are_prepared(tmp_path: Path) -> None:
    assert "`yolov7 prepare`" in fails_in_one_line(run(tmp_path, "inspect"))


def test_inspecting_an_unknown_variant(tmp_path: Path) -> None:
    assert "it has: nano" in fails_in_one_line(run(tmp_path, "inspect", "nnao"))
