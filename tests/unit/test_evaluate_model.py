"""Test the evaluation of models and results files on data sets of any readable format."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from typer.testing import CliRunner

import yolov7
from pipeline.cli.main import app
from tests.artifacts import SMALL
from tests.unit.data_files import write_coco, write_voc
from yolov7.api import train as api_train
from yolov7.errors import ArtifactError, DataError, SettingError
from yolov7.evaluation.class_mapping import map_classes
from yolov7.nn.model import DetectionModel
from yolov7.settings import LossSettings, OptimSettings, TrainSettings
from yolov7.spec.spec_files import resolve_spec
from yolov7.structures import Detections
from yolov7.training.job import TrainJob
from yolov7.training.loop import fit
from yolov7.weights.weight_files import save_weights


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO file whose ids are neither consecutive nor ascending."""
    draw = random.Random(0)
    boxes = [
        {"image_id": 50 - 3 * (k % 6), "category_id": draw.choice((7, 3)), "bbox": box, "area": box[2] * box[3]}
        for k, box in enumerate([[draw.uniform(0, 30), draw.uniform(0, 20), 20.3, 15.7] for _ in range(24)])
    ]
    images = [{"id": 50 - 3 * k} for k in range(6)]
    return write_coco(tmp_path_factory.mktemp("data"), images=images, annotations=boxes)


@pytest.fixture(scope="module")
def results(truth: Path) -> list[dict[str, Any]]:
    """Shifted boxes with few different scores, so that many tie."""
    draw, content = random.Random(1), json.loads(truth.read_text())
    return [
        {
            "image_id": row["image_id"],
            "category_id": draw.choice((row["category_id"], 3)),
            "bbox": [row["bbox"][0] + draw.uniform(-3, 3), row["bbox"][1], *row["bbox"][2:]],
            "score": draw.choice((0.3, 0.6, 0.9)),
        }
        for row in content["annotations"]
        for _ in range(3)
    ]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = DetectionModel(resolve_spec(SMALL, name="small"), num_classes=3)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(path, model, class_names=("Dog", "zebra", "cat"), image_size=64, training={})
    return path


def write_results(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_a_results_file_gets_the_figures_of_pycocotools(
    truth: Path, results: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = write_results(tmp_path / "results.json", results)
    with contextlib.redirect_stdout(io.StringIO()):
        source = COCO(str(truth))
        peer = COCOeval(source, source.loadRes(str(path)), "bbox")
        peer.evaluate()
        peer.accumulate()
        peer.summarize()
    found = yolov7.evaluate_results(path, truth).figures
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    ours = [-1.0 if (value := getattr(found, name)) is None else value for name in names]
    assert ours == pytest.approx(peer.stats.tolist(), abs=1e-12)
    assert 0.1 < ours[0] < 0.99


def test_results_that_belong_to_nothing_are_counted(truth: Path, results: list[dict[str, Any]], tmp_path: Path) -> None:
    odd = [{**results[0], "image_id": 999}, {**results[0], "category_id": 8}, {**results[0], "category_id": 9}]
    path = write_results(tmp_path / "results.json", results + odd)
    assert yolov7.evaluate_results(path, truth).notes == (
        "1 detection was left out, because its image is not in the split, such as image_id 999",
        "2 detections were left out, because their class is not in the data, such as category_id 8",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "must contain a list of detections"),
        ("[", "is not valid JSON"),
        ("[3]", "detection 0 is 3; it must have image_id"),
        ('[{"image_id": 50, "category_id": 7, "score": 1}]', "detection 0 lacks bbox"),
        ('[{"image_id": 50, "category_id": 7, "score": NaN, "bbox": [0, 0, 1, 1]}]', "score=nan must be a number"),
        ('[{"image_id": 50, "category_id": 7, "score": 1, "bbox": [0, 0, 1]}]', "bbox=.* must be four numbers"),
        ('[{"image_id": 1, "category_id": 7, "score": 1, "bbox": [0, 0, 1, 1]}]', "none of its 1 detections belongs"),
    ],
)
def test_a_wrong_results_file_is_an_error(truth: Path, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        yolov7.evaluate_results(path, truth)


def test_classes_are_matched_by_name() -> None:
    mapping = map_classes(("traffic light", "zebra", "Cat"), ("cat", "Traffic_Light", "dog"))
    found = Detections(torch.arange(12.0).reshape(3, 4), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 2]))
    mapped = mapping.apply(found)
    assert mapped.labels.tolist() == [1, 0]
    assert mapped.scores.tolist() == pytest.approx([0.9, 0.7])
    assert mapping.notes() == (
        "detections of 'zebra' are left out, because the data have no such class",
        "the model has no class 'dog', so it finds no such object",
    )
    assert map_classes(("car", "Car"), ("Car", "car", "CAR")).labels == (1, 0)  # exactly equal names come first
    with pytest.raises(DataError, match="no class in common"):
        map_classes(("a",), ("b",))


def test_a_model_is_measured_on_coco_and_voc_data(truth: Path, weights: Path, tmp_path: Path) -> None:
    ours = yolov7.evaluate(weights, truth, precision="float32")
    assert len(ours.detections) == 6
    assert any(len(found) for found in ours.detections)
    assert {int(label) for found in ours.detections for label in found.labels} <= {0, 1}
    write_voc(tmp_path, {"one": [("cat", 1, 1, 30, 30)]}, split="val")
    result = yolov7.evaluate(weights, tmp_path)
    assert result.split == "val"
    assert result.notes[-1] == "detections of 'Dog', 'zebra' are left out, because the data have no such class"
    with pytest.raises(SettingError, match="batch_size=0"):
        yolov7.evaluate(weights, tmp_path, batch_size=0)


def test_the_command_writes_what_it_prints(
    truth: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--weights", str(weights), "--data", str(truth), "--out", "out", "--precision", "float32"]
    done = CliRunner().invoke(app, ["evaluate", *options])
    assert done.exit_code == 0, done.output
    written = json.loads(Path("out/metrics.json").read_text())
    assert f"AP    {written['AP']:.4f}" in done.output
    again = yolov7.evaluate_results("out/predictions.json", truth)
    assert written["AP"] == again.figures.AP
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    ("name", "reason"), [("none.safetensors", "No such file or directory"), ("", "Is a directory")]
)
@pytest.mark.parametrize("key", ["weights", "distil.teacher"])
def test_weights_that_cannot_be_read_are_named_before_a_training(
    truth: Path, tmp_path: Path, key: str, name: str, reason: str
) -> None:
    path = tmp_path / name
    settings = {"weights": path} if key == "weights" else {"distil": {"teacher": path}}
    expected = f"{key}={path} cannot be read ({reason}); name a weight file (.safetensors)"
    with pytest.raises(ArtifactError, match=f"^{re.escape(expected)}$"):
        yolov7.train(resolve_spec(SMALL, name="small"), truth, tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()


def other_truth(folder: Path) -> Path:
    """Write data whose box differs from that of `truth`."""
    (folder / "other data").mkdir()
    box = {"image_id": 1, "category_id": 7, "bbox": [2, 2, 9, 9], "area": 81}
    return write_coco(folder / "other data", images=[{"id": 1}], annotations=[box])


def test_a_model_is_trained_from_python(truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = []
    monkeypatch.setattr(
        api_train, "fit", lambda job, worker, **own: workers.append(worker.loader_workers) or fit(job, worker, **own)
    )
    settings = {"epochs": 1, "batch_size": 3, "image_size": 64, "precision": "float32"}
    spec = resolve_spec(SMALL, name="small")
    path = yolov7.train(spec, truth, tmp_path / "run", settings=settings, val_split=None)
    assert yolov7.Detector.load(path).class_names == ("dog", "cat")  # by their ids
    assert workers == [torch.get_num_threads()]
    assert yolov7.train(spec, truth, tmp_path / "run", settings=settings, val_split=None) == path  # nothing to do
    with pytest.raises(SettingError, match="other data or settings"):
        yolov7.train(spec, truth, tmp_path / "run", settings={**settings, "batch_size": 2}, val_split=None)
    prepared = {file.name: file.read_bytes() for file in (tmp_path / "run" / "data").iterdir()}
    with pytest.raises(SettingError, match="other data or settings"):
        yolov7.train(spec, other_truth(tmp_path), tmp_path / "run", settings=settings, val_split="train")
    assert {file.name: file.read_bytes() for file in (tmp_path / "run" / "data").iterdir()} == prepared
    with pytest.raises(SettingError, match="epoch"):
        yolov7.train(spec, truth, tmp_path / "other", settings={"epoch": 2})


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[TrainJob]:
    """Collect the jobs that `train` describes, and train nothing."""
    found: list[TrainJob] = []
    monkeypatch.setattr(api_train, "fit", lambda job, *_, **__: found.append(job))
    return found


def test_settings_have_the_image_size_of_the_specification(truth: Path, tmp_path: Path, jobs: list[TrainJob]) -> None:
    stated = {"epochs": 3, "recipe": "small", "optim": {"lr0": 0.02}}
    given = TrainSettings(epochs=3, recipe="small", optim=OptimSettings(lr0=0.02))
    spec = resolve_spec(SMALL, name="small")
    for name, settings in (("a", stated), ("b", given), ("c", given.model_copy(update={"image_size": 96}))):
        yolov7.train(spec, truth, tmp_path / name, settings=settings, val_split=None)
    assert [job.settings.image_size for job in jobs] == [64, 64, 96]
    assert jobs[0].settings == jobs[1].settings
    assert jobs[0].notes == jobs[1].notes


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"settings": {"image_size": 100}}, "image_size=100 must be a multiple of 32, the largest stride; try 96"),
        ({"settings": TrainSettings(image_size=33)}, "image_size=33 must be a multiple of 32, the largest stride; try"),
        ({"seed": -1}, "seed=-1 must be a whole number from 0 to 18446744073709551615"),
        ({"seed": "a"}, "seed='a' must be a whole number from 0 to "),
        ({"seed": 2**64}, "seed=18446744073709551616 must be a whole number from 0 to "),
    ],
)
def test_a_wrong_argument_is_named_before_a_training(
    truth: Path, tmp_path: Path, jobs: list[TrainJob], arguments: dict[str, Any], fault: str
) -> None:
    with pytest.raises(SettingError, match=f"^{re.escape(fault)}"):
        yolov7.train(resolve_spec(SMALL, name="small"), truth, tmp_path / "run", **arguments)
    assert not jobs
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "notes"),
    [
        ({"epochs": 1, "distil": {"outputs": 2.0}}, ("distil.outputs=2.0 has no effect without distil.teacher",)),
        (
            TrainSettings(recipe="p5", loss=LossSettings(box=0.2)),  # the recipe's other gains are not stated
            ("loss.box=0.2 has no effect on the head 'detect_dfl', whose loss does not use it",),
        ),
        ({"recipe": "p5"}, ()),
    ],
)
def test_stated_settings_without_effect_are_noted(
    truth: Path, tmp_path: Path, jobs: list[TrainJob], settings: TrainSettings | dict[str, Any], notes: tuple[str, ...]
) -> None:
    spec = resolve_spec({**SMALL, "head": "anchor_free"}, name="small")
    yolov7.train(spec, truth, tmp_path / "run", settings=settings, val_split=None)
    assert jobs[0].notes == notes


def test_notes_on_settings_follow_from_the_fitted_number_of_epochs(
    truth: Path, tmp_path: Path, jobs: list[TrainJob]
) -> None:
    settings = {"recipe": "small", "low_resolution_share": 0.001, "distil": {"outputs": 2.0}}
    yolov7.train(resolve_spec(SMALL, name="small"), truth, tmp_path / "run", settings=settings, val_split=None)
    epochs = jobs[0].settings.epochs
    assert epochs != TrainSettings().epochs
    expected = f"low_resolution_share=0.001 has no effect because that is less than half an epoch with epochs: {epochs}"
    assert jobs[0].notes[-2:] == (expected, "distil.outputs=2.0 has no effect without distil.teacher")
    assert jobs[0].notes.count(expected) == 1
