"""One name per stage: each stage of dvc.yaml is a command, a module, a folder of artifacts, a key of params."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.params import Params

ROOT = Path(__file__).parents[2]
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_the_six_stages_are_there() -> None:
    assert list(STAGES) == ["prepare", "train", "reparam", "evaluate", "benchmark", "tables"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_command(stage: str) -> None:
    assert STAGES[stage]["cmd"].split()[:2] == ["yolov7", stage]
    assert CliRunner().invoke(app, [stage, "--help"]).exit_code == 0


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_function_in_a_module_of_its_name(stage: str) -> None:
    module = importlib.import_module(f"pipeline.stages.{stage}")
    assert callable(getattr(module, stage))
    assert f"pipeline/stages/{stage}.py" in STAGES[stage]["deps"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_writes_into_its_own_folder(stage: str) -> None:
    outputs = [out for kind in ("outs", "metrics", "plots") for out in STAGES[stage].get(kind, [])]
    assert outputs
    assert all(out.startswith(f"artifacts/{stage}") for out in outputs)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_keys_that_params_has(stage: str) -> None:
    for key in STAGES[stage].get("params", []):
        assert key.split(".")[0] in Params.model_fields


def test_what_training_depends_on_holds_no_setting_of_evaluation() -> None:
    assert STAGES["train"]["params"] == ["train", "variants.${item.variant}"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_dependencies_that_are_code_exist(stage: str) -> None:
    code = [dep for dep in STAGES[stage]["deps"] if not dep.startswith(("artifacts", "$"))]
    assert all((ROOT / dep).exists() for dep in code)
