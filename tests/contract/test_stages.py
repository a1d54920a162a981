"""Each stage of dvc.yaml is a command, a module and a folder of one name; its dependencies are complete."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Set
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli.main import app

ROOT = Path(__file__).parents[2]
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
WITH_CODE = [stage for stage in STAGES if stage != "resolve"]

# Code that a stage imports although an edit of it cannot change the stage's result, with the reason.
VALUES = "its values arrive through artifacts/resolve"
PLUMBING = "it names files and reads and writes them"
PLACES = "it decides where training runs and how it is followed, not what is computed"
NO_EFFECT = {
    "yolov7/errors.py": "it words messages",
    "yolov7/settings.py": VALUES,
    "yolov7/recipes.py": VALUES,
    "yolov7/spec/auxiliary.py": VALUES,
    "yolov7/spec/scaling.py": VALUES,
    "yolov7/weights/description.py": VALUES,
    "yolov7/spec/spec_files.py": VALUES,
    "yolov7/system/files.py": PLUMBING,
    "yolov7/system/locks.py": PLUMBING,
    "yolov7/system/yaml_files.py": PLUMBING,
    "pipeline/artifacts/files.py": PLUMBING,
    "pipeline/artifacts/given_weights.py": "artifacts/resolve has the digest of the code that reads given weights",
    "pipeline/artifacts/inputs.py": PLUMBING,
    "pipeline/artifacts/prepared.py": "artifacts/resolve has the digest of the recipe small, which it applies",
    "pipeline/artifacts/reports.py": PLUMBING,
    "pipeline/artifacts/stage_weights.py": "it refuses stale weights; DVC makes them anew instead",
    "pipeline/console.py": "it prints",
    "pipeline/data_settings.py": VALUES,
    "pipeline/experiment.py": VALUES,
    "pipeline/params.py": VALUES,
    "pipeline/tune_settings.py": VALUES,
    "pipeline/ray/attempt.py": PLACES,
    "pipeline/ray/cluster.py": PLACES,
    "pipeline/ray/environment.py": PLACES,
    "pipeline/ray/errors.py": PLACES,
    "pipeline/ray/follow.py": PLACES,
    "pipeline/ray/local.py": PLACES,
    "pipeline/ray/machine.py": PLACES,
    "pipeline/ray/mirror.py": PLACES,
    "pipeline/ray/parent_process.py": PLACES,
    "pipeline/ray/placement.py": PLACES,
    "pipeline/ray/reservations.py": PLACES,
    "pipeline/ray/shared_memory.py": PLACES,
    "pipeline/ray/trainer.py": PLACES,
}
LOOK = "the look of a curve is no reason to train again"
RUN_BY_RAY = {"train": {"pipeline/ray/worker.py"}}  # Ray starts it in other processes, wherever they are placed
TEMPLATES = ROOT / "pipeline" / "report" / "templates"
GIVEN_IMAGES = "the benchmark exports models with images of a split, and draws none"
NO_EFFECT_ON = {
    "train": {"pipeline/report/plots.py": LOOK, "pipeline/report/canvas.py": LOOK},
    "benchmark": {
        "yolov7/data/synthetic/scene.py": GIVEN_IMAGES,
        "yolov7/data/synthetic/shapes.py": GIVEN_IMAGES,
    },
}


def test_the_stages_are_there_in_their_order() -> None:
    assert list(STAGES) == ["resolve", "prepare", "train", "reparam", "evaluate", "benchmark", "tables"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_command(stage: str) -> None:
    assert STAGES[stage]["cmd"].split()[:2] == ["yolov7", stage]
    assert CliRunner().invoke(app, [stage, "--help"]).exit_code == 0


@pytest.mark.parametrize("stage", STAGES)
def test_no_text_of_params_yaml_reaches_a_shell(stage: str) -> None:
    assert "${" not in STAGES[stage]["cmd"]


@pytest.mark.parametrize("stage", WITH_CODE)
def test_a_stage_is_a_function_in_a_module_of_its_name(stage: str) -> None:
    module = importlib.import_module(f"pipeline.stages.{stage}")
    assert callable(getattr(module, stage))
    assert {f"pipeline/stages/{stage}.py", "pipeline/stages"} & set(STAGES[stage]["deps"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_writes_into_its_own_folder(stage: str) -> None:
    outputs = [out for kind in ("outs", "metrics", "plots") for out in STAGES[stage].get(kind, [])]
    assert outputs
    assert all(_path(out).startswith(f"artifacts/{stage}") for out in outputs)


@pytest.mark.parametrize("stage", WITH_CODE)
def test_a_stage_depends_on_resolved_settings_only(stage: str) -> None:
    assert "params" not in STAGES[stage]
    assert any(dep.startswith(f"artifacts/resolve/{stage}") for dep in STAGES[stage]["deps"])


@pytest.mark.parametrize("stage", WITH_CODE)
def test_the_code_that_a_stage_imports_is_a_dependency(stage: str) -> None:
    deps = code_of(stage)
    used = modules_used(stage)
    assert not sorted(path for path in used if not path.startswith(tuple(deps)))


@pytest.mark.parametrize("stage", WITH_CODE)
def test_every_dependency_that_is_code_is_imported(stage: str) -> None:
    used = modules_used(stage)
    assert not [dep for dep in code_of(stage) if not any(path.startswith(dep) for path in used)]


def test_the_search_depends_on_the_code_that_it_imports() -> None:
    deps = yaml.safe_load((ROOT / "tune" / "dvc.yaml").read_text())["stages"]["tune"]["deps"]
    code = [dep for dep in deps if dep.startswith(("yolov7", "pipeline"))]
    own = {str(path.relative_to(ROOT)) for path in (ROOT / "pipeline" / "tuning").rglob("*.py")}
    draws = {"yolov7/spec/auxiliary.py", "yolov7/spec/scaling.py", "pipeline/tune_settings.py"}  # models and settings
    used = followed(own, (NO_EFFECT.keys() - draws) | {"pipeline/report/canvas.py"})  # the look of its plot
    assert not sorted(path for path in used if not path.startswith(tuple(code)))
    assert not [dep for dep in code if not any(path.startswith(dep) for path in used)]


def code_of(stage: str) -> list[str]:
    return [dep for dep in STAGES[stage]["deps"] if dep.startswith(("yolov7", "pipeline"))]


def modules_used(stage: str) -> set[str]:
    """Return the paths of all modules and templates that a stage uses, without those that have no effect."""
    skipped = NO_EFFECT.keys() | NO_EFFECT_ON.get(stage, {}).keys()
    return followed({f"pipeline/stages/{stage}.py"} | RUN_BY_RAY.get(stage, set()), skipped)


def followed(waiting: set[str], skipped: Set[str]) -> set[str]:
    """Return modules and all that they import, directly or through others."""
    found: set[str] = set()
    while waiting:
        found |= waiting
        imports = {module for path in waiting for module in imported(ROOT / path)}
        waiting = imports - found - skipped
    return found


def imported(path: Path) -> set[str]:
    """Return the paths of the modules that a module imports, and of the templates that it names."""
    if path.suffix != ".py":
        return set()
    tree = list(ast.walk(ast.parse(path.read_text())))
    nodes = [node for node in tree if isinstance(node, ast.ImportFrom) and node.module]
    texts = {node.value for node in tree if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    templates = {str(file.relative_to(ROOT)) for file in TEMPLATES.iterdir() if file.name in texts}
    modules = {str(node.module) for node in nodes} | {
        f"{node.module}.{name.name}" for node in nodes for name in node.names
    }
    paths = {f"{module.replace('.', '/')}.py" for module in modules if module.startswith(("pipeline.", "yolov7."))}
    return {path for path in paths if (ROOT / path).is_file()} | templates


def _path(output: str | dict[str, Any]) -> str:
    """Return the path of a DVC output, which may be stated with options."""
    return output if isinstance(output, str) else next(iter(output))
