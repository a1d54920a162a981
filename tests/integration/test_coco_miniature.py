"""Table 1 of the paper on the miniature of COCO: one variant trained, one with weights from `export-weights`."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import yaml

from tests.integration.project import Project
from yolov7.data.coco_names import COCO_NAMES
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec
from yolov7.weights.weight_files import save_weights

pytestmark = pytest.mark.slow


def test_table_1_is_filled_by_a_training_and_by_given_weights(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", git=False)
    torch.manual_seed(0)
    model = DetectionModel(load_spec("yolov7-tiny"), num_classes=80)
    save_weights(project.folder / "w.safetensors", model, class_names=COCO_NAMES[::-1], image_size=640, training={})
    project.run("yolov7", "export-weights", "w.safetensors", "-o", "w.pt")
    project.run("yolov7", "use", "table1", "--miniature", "--force")
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    given = {"spec": "yolov7-tiny", "weights": "w.pt", "image_size": 64, "train": None}
    trained = params["variants"]["yolov7-tiny-416"]
    project.write(params | {"variants": {"yolov7-tiny-416": trained, "yolov7-tiny-320": given}})
    ran = project.repro()
    assert len(ran) == 9
    assert project.json("train/yolov7-tiny-416/0/train.json")["epochs"] == 1
    assert project.json("train/yolov7-tiny-320/0/train.json")["given"] == "w.pt"
    with (project.folder / "artifacts/tables/table1.csv").open() as file:
        rows = {(row["model"], row["size"]): row for row in csv.DictReader(file)}
    for size in ("416", "320"):
        row = rows["YOLOv7-tiny", size]
        assert row["variant"] == f"yolov7-tiny-{size}"
        assert row["ap_val ours"]
    project.run("yolov7", "submission")
    assert list((project.folder / "artifacts/submission").glob("*.zip"))
    save_weights(project.folder / "v.safetensors", model, class_names=COCO_NAMES, image_size=640, training={})
    project.run("yolov7", "export-weights", "v.safetensors", "-o", "w.pt")
    project.run("yolov7", "resolve")
    assert "train@yolov7-tiny-320-0" in project.run("dvc", "status")
    assert "train@yolov7-tiny-416-0" not in project.run("dvc", "status")
