"""The synthetic data are the same for the same seed and have the documented variety."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from yolov7.data.read.coco import read_coco
from yolov7.data.synthetic.scene import Scene, draw_scene, shuffle_labels, write_synthetic
from yolov7.data.synthetic.shapes import CLASS_NAMES


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(192, generator=np.random.default_rng((11, i))) for i in range(60)]


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed, split in (("a", 1, "train"), ("b", 1, "train"), ("c", 2, "train"), ("d", 1, "val")):
        write_synthetic(tmp_path / name, num_images=3, image_size=96, seed=seed, split=split)
    bytes_of = {name: [path.read_bytes() for path in sorted((tmp_path / name / "images").iterdir())] for name in "abcd"}
    assert len(bytes_of["a"]) == 3
    assert bytes_of["a"] == bytes_of["b"]
    assert bytes_of["a"] != bytes_of["c"]
    assert bytes_of["a"] != bytes_of["d"]
    assert (tmp_path / "a/annotations.json").read_bytes() == (tmp_path / "b/annotations.json").read_bytes()


def test_objects_have_several_sizes_and_hide_each_other(scenes: list[Scene]) -> None:
    boxes = np.concatenate([scene.boxes_xyxy[~scene.crowd] for scene in scenes])
    visible = np.concatenate([scene.visible[~scene.crowd] for scene in scenes])
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    assert 4 <= len(boxes) / len(scenes) <= 8
    assert (areas < 32**2).mean() >= 0.15
    assert (areas > 96**2).mean() >= 0.12
    assert (visible < 0.95).mean() >= 0.25
    assert visible.min() >= 0.3


def test_every_class_is_drawn_about_as_often(scenes: list[Scene]) -> None:
    counts = np.bincount(np.concatenate([scene.labels for scene in scenes]), minlength=len(CLASS_NAMES))
    assert len(counts) == len(CLASS_NAMES) >= 8
    assert counts.min() > 0.5 * counts.mean()


def test_there_are_crowds(scenes: list[Scene]) -> None:
    assert any(scene.crowd.any() for scene in scenes)
    assert any(np.bincount(scene.labels).max() >= 4 for scene in scenes)


def test_the_data_are_read_without_flaws(tmp_path: Path) -> None:
    write_synthetic(tmp_path, num_images=6, image_size=128, seed=0, split="train")
    index, flaws = read_coco(tmp_path / "annotations.json")
    assert flaws == ()
    assert (len(index), index.class_names) == (6, CLASS_NAMES)
    rows = json.loads((tmp_path / "annotations.json").read_text())["annotations"]
    assert all(row["area"] == row["bbox"][2] * row["bbox"][3] > 0 for row in rows)


def test_shuffled_labels_are_those_of_other_images(tmp_path: Path) -> None:
    write_synthetic(tmp_path, num_images=8, image_size=128, seed=0, split="train")
    index, _ = read_coco(tmp_path / "annotations.json")
    control = shuffle_labels(index, seed=0)
    assert control.num_boxes == index.num_boxes
    assert control.content_hash() != index.content_hash()
    assert sorted(control.labels) == sorted(index.labels)
    own = {tuple(index.boxes_of(i).ravel()) for i in range(8)}
    assert {tuple(control.boxes_of(i).ravel()) for i in range(8)} == own
    assert all(
        control.boxes_of(i).shape != index.boxes_of(i).shape or (control.boxes_of(i) != index.boxes_of(i)).any()
        for i in range(8)
    )
