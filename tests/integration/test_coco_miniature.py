"""Table 1 of the paper on the miniature of COCO: one variant trained, one with weights from `export-weights`."""

from __future__ import annotations

import csv
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
import yaml

from pipeline.commands import run_stages as commands
from pipeline.commands.experiments import use_experiment
from pipeline.commands.submission import make_submission
from pipeline.commands.weights import export_weights
from pipeline.experiment import load_experiment
from tests.integration.project import Project, run_to_evaluate
from yolov7.data.coco_names import COCO_NAMES
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec
from yolov7.weights.weight_files import save_weights

pytestmark = pytest.mark.slow


def test_table_1_is_filled_by_a_training_and_by_given_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path / "project", git=False)
    monkeypatch.chdir(project.folder)
    torch.manual_seed(0)
    model = DetectionModel(load_spec("yolov7-tiny"), num_classes=80)
    save_weights("w.safetensors", model, class_names=COCO_NAMES[::-1], image_size=640, training={})
    export_weights(Path("w.safetensors"), output=Path("w.pt"))
    use_experiment("table1", miniature=True, force=True)
    params = yaml.safe_load(Path("params.yaml").read_text())
    given = {"spec": "yolov7-tiny", "weights": "w.pt", "image_size": 64, "train": None}
    trained = params["variants"]["yolov7-tiny-416"]
    project.write(params | {"variants": {"yolov7-tiny-416": trained, "yolov7-tiny-320": given}})
    experiment = load_experiment()
    run_to_evaluate(experiment)
    commands.run_benchmark(experiment)
    commands.run_tables(experiment)
    assert project.json("train/yolov7-tiny-416/0/train.json")["epochs"] == 1
    assert project.json("train/yolov7-tiny-320/0/train.json")["given"] == "w.pt"
    with Path("artifacts/tables/table1.csv").open() as file:
        cells = {(row["model"], row["size"], row["quantity"]): row for row in csv.DictReader(file)}
    for size in ("416", "320"):
        cell = cells["YOLOv7-tiny", size, "ap_val"]
        assert (cell["variant"], cell["origin"], cell["difference"]) == (f"yolov7-tiny-{size}", "measured here", "")
        assert cell["ours"]
    assert "given weights w.pt" in cell["note"]
    variant = experiment.variant("yolov7-tiny-416")
    message = make_submission(experiment, variant, seed=0, images="image_info_test-dev2017", output=None)
    assert message.endswith("2,400 detections on 8 images of test-dev2017")
    name = "detections_test-dev2017_yolov7-tiny-416_results"
    assert ZipFile(f"artifacts/submission/{name}.zip").namelist() == [f"{name}.json"]
