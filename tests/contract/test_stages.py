"""One name per stage: each stage of dvc.yaml is a command, a module, a folder of artifacts, a key of params."""

from __future__ import annotations

import ast
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
PLUMBING = {
    f"pipeline/{name}.py" for name in ("__init__", "artifacts", "following", "params", "progress", "repro", "trained")
}
NOT_WORTH_A_TRAINING = {
    "train": {"pipeline/ray/placement.py", "pipeline/report/plots.py", "pipeline/ray/mirror.py"}
}  # other places, other looks


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


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_it_uses(stage: str) -> None:
    deps = tuple(STAGES[stage]["deps"])
    used = modules_used(ROOT / f"pipeline/stages/{stage}.py") - PLUMBING - NOT_WORTH_A_TRAINING.get(stage, set())
    assert not [path for path in used if not path.startswith(deps)]


def modules_used(path: Path) -> set[str]:
    """The modules of `pipeline` that a module imports, and what they import, as paths."""
    found: set[str] = set()
    waiting = [path]
    while waiting:
        for module in imported(waiting.pop()):
            file = (ROOT / module.replace(".", "/")).with_suffix(".py")
            name = str(file.relative_to(ROOT))
            if file.is_file() and name not in found:
                found.add(name)
                waiting.append(file)
    return found


def imported(path: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module]
    modules = {str(node.module) for node in nodes} | {
        f"{node.module}.{name.name}" for node in nodes for name in node.names
    }
    return {module for module in modules if module.startswith("pipeline.")}
