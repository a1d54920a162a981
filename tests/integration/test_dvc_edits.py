"""DVC reruns exactly the stages whose result an edit can change: edits, and the stages that `dvc status` then names.

The outputs are made up and committed to DVC, so no stage has to run. After each edit, `resolve` runs, as in
`dvc repro`, and `dvc status` names the stages whose own inputs changed. Later stages follow once outputs differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from pipeline.artifacts.files import prepared_data_lock
from tests.integration.project import Project
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec
from yolov7.weights.weight_files import save_weights

pytestmark = pytest.mark.slow

PARAMS: dict[str, Any] = {
    "data": {"format": "synthetic", "path": "yolov7/data/synthetic", "synthetic": {"train_images": 16}},
    "seeds": [0, 1],
    "variants": {
        "nano": {"spec": "nano"},
        "own": {"spec": "own.yaml"},
        "tuned": {"spec": "nano", "train": {"weights": "start.safetensors"}},
    },
    "train": {"epochs": 2, "batch_size": 8, "image_size": 128},
    "reparam": {"images": 4},
    "evaluate": {"examples": 4},
    "benchmark": {"rounds": 3},
}
TRAIN = {f"train@{variant}-{seed}" for variant in PARAMS["variants"] for seed in PARAMS["seeds"]}
REPARAM, EVALUATE = ({name.replace("train@", f"{stage}@") for name in TRAIN} for stage in ("reparam", "evaluate"))
MODEL = TRAIN | REPARAM | EVALUATE | {"benchmark"}
NOTHING: set[str] = set()


def variant(name: str) -> set[str]:
    """The trainings of a variant, and the stages that list models."""
    return {stage for stage in TRAIN if stage.startswith(f"train@{name}-")}


@dataclass(frozen=True)
class Edit:
    """An edit of the project, and the stages whose inputs it changes."""

    name: str
    apply: Callable[[Path], None]
    reruns: set[str]


def param(key: str, value: Any) -> Callable[[Path], None]:
    """Set a value of params.yaml, with dots between the levels."""

    def apply(root: Path) -> None:
        content = yaml.safe_load((root / "params.yaml").read_text())
        *parents, last = key.split(".")
        place = content
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
        (root / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    return apply


def replace(file: str, old: str, new: str) -> Callable[[Path], None]:
    """Replace text in a file, in which it must occur."""

    def apply(root: Path) -> None:
        text = (root / file).read_text()
        assert len(re.findall(old, text)) >= 1, f"{old} is not in {file}"
        (root / file).write_text(re.sub(old, new, text, count=1))

    return apply


def append(file: str, text: str = "\nADDED = 1\n") -> Callable[[Path], None]:
    """Add text to a file, which may be new."""

    def apply(root: Path) -> None:
        path = root / file
        path.write_text((path.read_text() if path.exists() else "") + text)

    return apply


def other_weights(root: Path) -> None:
    """Replace the weights that a training starts from."""
    write_start(root, bias=1.0)


EDITS = (
    # settings of each group
    Edit("data", param("data.synthetic.train_images", 17), {"prepare"}),
    Edit("flaws", param("data.flaws.max_unreadable", 0.5), {"prepare"}),
    Edit("train", param("train.epochs", 3), TRAIN),
    Edit("train, nested", param("train.optim.lr0", 0.02), TRAIN),
    Edit("a variant's training", param("variants.nano.train.epochs", 3), variant("nano") | {"tables"}),
    Edit("a variant's scale", param("variants.nano.scale.depth", 2), variant("nano") | {"tables"}),
    Edit("a recipe", param("train.recipe", "p5"), TRAIN),
    Edit("a value that is the default", param("train.augment.mosaic", 1.0), NOTHING),
    Edit("ray.workers", param("ray.workers", 2), NOTHING),
    Edit("ray.storage", param("ray.storage", "s3://bucket/runs"), NOTHING),
    Edit("a variant's ray", param("variants.nano.ray.max_failures", 7), NOTHING),
    Edit("cache", param("train.cache_images", "none"), NOTHING),
    Edit("loader workers", param("train.loader_workers", 3), NOTHING),
    Edit("checkpoints", param("train.checkpoints_kept", 5), NOTHING),
    Edit("reparam", param("reparam.images", 5), REPARAM),
    Edit("evaluate", param("evaluate.examples", 5), EVALUATE),
    Edit("evaluate, nested", param("evaluate.nms.iou", 0.6), EVALUATE),
    Edit("benchmark", param("benchmark.rounds", 4), {"benchmark"}),
    Edit("tracking", param("tracking.experiment", "other"), NOTHING),
    Edit("tune", param("tune.trials", 3), NOTHING),
    Edit("the order of seeds", param("seeds", [1, 0]), {"benchmark", "tables"}),
    Edit("a comment in params.yaml", append("params.yaml", "# a comment\n"), NOTHING),
    # defaults in code
    Edit(
        "default tolerance of reparam",
        replace(
            "pipeline/params.py",
            r"tolerance_float32: Positive = Field\(1e-4",
            "tolerance_float32: Positive = Field(2e-4",
        ),
        REPARAM,
    ),
    Edit(
        "default learning rate",
        replace("yolov7/settings.py", r"lr0: (\w+) = Field\(\s*0\.01", r"lr0: \1 = Field(0.03"),
        TRAIN,
    ),
    Edit(
        "default suppression, with which speed is measured",
        replace(
            "yolov7/settings.py", r"confidence: Probability = Field\(0\.25", "confidence: Probability = Field(0.35"
        ),
        {"benchmark"},
    ),
    Edit(
        "suppression of COCO figures",
        replace("yolov7/settings.py", r"confidence=0\.001, iou=0\.65", "confidence=0.001, iou=0.6"),
        TRAIN | EVALUATE,
    ),
    Edit("a recipe that no variant names", replace("yolov7/recipes.py", '"epochs": 50', '"epochs": 51'), NOTHING),
    # specs, weights, data
    Edit("an own spec", replace("own.yaml", "base: nano", "base: nano\nactivation: silu"), variant("own") | {"tables"}),
    Edit("a comment in an own spec", append("own.yaml", "# a comment\n"), NOTHING),
    Edit("a packaged spec in use", replace("yolov7/spec/models/nano.yaml", "0.375", "0.25"), TRAIN | {"tables"}),
    Edit("a new packaged spec", append("yolov7/spec/models/extra.yaml", "base: nano\n"), {"tables"}),
    Edit("weights to start from", other_weights, variant("tuned")),
    Edit("the code that draws the data", append("yolov7/data/synthetic/scene.py"), {"prepare"}),
    # code of each room
    Edit("a reader", append("yolov7/data/read/coco.py"), {"prepare"}),
    Edit("the health page", append("pipeline/report/health_page.py"), {"prepare", "tables"}),
    Edit("its template", append("pipeline/report/templates/health.html", "\n"), {"prepare", "tables"}),
    Edit("drawing", append("yolov7/detect/drawing.py"), {"prepare", "tables"} | EVALUATE),
    Edit("the detector", append("yolov7/detect/detector.py"), NOTHING),
    Edit("the loss", append("yolov7/criterion/loss.py"), TRAIN),
    Edit("blocks", append("yolov7/nn/blocks.py"), MODEL | {"tables"}),
    Edit("suppression", append("yolov7/inference/nms.py"), TRAIN | EVALUATE | {"benchmark"}),
    Edit("figures", append("yolov7/evaluation/figures.py"), TRAIN | EVALUATE | {"benchmark", "tables"}),
    Edit("the training loop", append("yolov7/training/loop.py"), TRAIN),
    Edit("weight files", append("yolov7/weights/weight_files.py"), MODEL),
    Edit("foreign weights", append("yolov7/weights/foreign/reference.py"), TRAIN),
    Edit("a stage", append("pipeline/stages/evaluate.py"), EVALUATE),
    Edit("plots", append("pipeline/report/plots.py"), EVALUATE | {"tables"}),
    Edit("the page of tables", append("pipeline/report/page.py"), {"tables"}),
    Edit("tracking code", append("pipeline/tracking/outbox.py"), NOTHING),
    Edit("the command line", append("pipeline/cli/main.py"), NOTHING),
    Edit("placement of workers", append("pipeline/ray/placement.py"), NOTHING),
    Edit("the search", append("pipeline/tuning/command.py"), NOTHING),
    Edit("a page of the documentation", append("README.md", "A sentence.\n"), NOTHING),
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("edits") / "project", git=False)
    root = made.folder
    (root / "own.yaml").write_text("base: nano\n")
    write_start(root, bias=0.0)
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    (root / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
    made.run("yolov7", "resolve")
    for stage in ("prepare", "benchmark", "tables"):
        write(root / "artifacts" / stage / "made-up.txt", stage)
    for name in TRAIN:
        run, _, seed = name.removeprefix("train@").rpartition("-")
        for output in _outputs(root, run, seed):
            write(root / output, output)
    made.run("dvc", "commit", "--force")
    return made


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_start(root: Path, *, bias: float) -> None:
    """Weights of nano for one class, all zero but for the biases of the head."""
    model = DetectionModel(load_spec("nano"), num_classes=1)
    for key, tensor in model.state_dict().items():
        tensor.fill_(bias if key.endswith("bias") else 0)
    save_weights(root / "start.safetensors", model, class_names=("thing",), image_size=128, training={})


def _outputs(root: Path, run: str, seed: str) -> list[str]:
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    listed = [
        output
        for stage in ("train", "reparam", "evaluate")
        for kind in ("outs", "metrics", "plots")
        for output in stages[stage].get(kind, [])
    ]
    return [output.replace("${item.variant}", run).replace("${item.seed}", seed) for output in listed]


def changed_stages(project: Project) -> set[str]:
    """The stages that `dvc status` names, apart from those that always run."""
    with chdir(project.folder), Repo() as repo:  # names are relative to the working directory
        status = repo.status()
    return {name for name, reasons in status.items() if reasons != ["always changed"] and name != "resolve"}


def test_nothing_changed_at_first(project: Project) -> None:
    project.run("yolov7", "resolve")
    assert changed_stages(project) == NOTHING


@pytest.mark.parametrize("edit", EDITS, ids=[edit.name for edit in EDITS])
def test_an_edit_reruns_exactly_what_it_affects(project: Project, edit: Edit) -> None:
    root = project.folder
    before = {path: path.read_bytes() for path in root.rglob("*") if _is_source(path, root)}
    try:
        edit.apply(root)
        project.run("yolov7", "resolve")
        assert changed_stages(project) == edit.reruns
    finally:
        for path in [path for path in root.rglob("*") if _is_source(path, root) and path not in before]:
            path.unlink()
        for path, content in before.items():
            if path.read_bytes() != content:
                path.write_bytes(content)


def _is_source(path: Path, root: Path) -> bool:
    parts = path.relative_to(root).parts
    return path.is_file() and parts[0] not in {".dvc", "artifacts", "runs"} and "__pycache__" not in parts


def test_the_command_line_names_them_too(project: Project) -> None:
    loss = project.folder / "yolov7" / "criterion" / "loss.py"
    text = loss.read_text()
    try:
        append("yolov7/criterion/loss.py")(project.folder)
        named = re.findall(r"^(\S+):$", project.run("dvc", "status"), re.MULTILINE)
        assert set(named) == TRAIN | {"resolve"}
    finally:
        loss.write_text(text)


def test_data_that_are_in_use_stay(project: Project) -> None:
    """DVC deletes the outputs of other stages before the stages start."""
    code = project.folder / "pipeline" / "stages" / "prepare.py"
    text = code.read_text()
    try:
        append("pipeline/stages/prepare.py")(project.folder)
        with (
            chdir(project.folder),
            prepared_data_lock(exclusively=False),
            pytest.raises(AssertionError, match="the folder artifacts/prepare is in use"),
        ):
            project.run("dvc", "repro", "prepare")
        assert (project.folder / "artifacts" / "prepare" / "made-up.txt").is_file()
    finally:
        code.write_text(text)
