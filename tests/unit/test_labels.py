"""Readers of COCO and VOC, the flaws that they name, and the index on disk."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.unit.data_files import make_index, write_coco, write_image, write_voc
from yolov7.data.flaws import Flaw, FlawKind
from yolov7.data.index import load_index, save_index
from yolov7.data.read.coco import find_coco_file, read_coco
from yolov7.data.read.voc import read_voc
from yolov7.errors import ArtifactError, DataError


def _kinds(flaws: tuple[Flaw, ...]) -> dict[FlawKind, int]:
    return dict(Counter(flaw.kind for flaw in flaws))


def test_coco_classes_come_by_category_id(tmp_path: Path) -> None:
    path = write_coco(
        tmp_path,
        images=[{}, {}],
        annotations=[
            {"image_id": 2, "bbox": [10, 5, 20, 30]},
            {"image_id": 1, "bbox": [0, 0, 60, 40], "category_id": 3, "iscrowd": 1},
        ],
    )
    index, flaws = read_coco(path)
    assert flaws == ()
    assert index.class_names == ("dog", "cat")
    assert index.labels_of(1).tolist() == [1]
    np.testing.assert_array_equal(index.boxes_of(1), [[10, 5, 30, 35]])
    assert index.crowd_of(0).tolist() == [True]
    assert (index.widths.tolist(), index.heights.tolist()) == ([60, 60], [40, 40])


def test_coco_flaws_are_named_and_left_out(tmp_path: Path) -> None:
    boxes: list[dict[str, object]] = [
        {"image_id": 1, "bbox": [10, 5, 20, 30]},
        {"image_id": 1, "bbox": [10, 5, 20, 30]},
        {"image_id": 1, "bbox": [10, 5, 0, 30]},
        {"image_id": 1, "bbox": [70, 5, 10, 30]},
        {"image_id": 1, "bbox": [50, 5, 20, 30]},
        {"image_id": 1, "bbox": [float("nan"), 5, 20, 30]},
        {"image_id": 1, "bbox": None},
        {"image_id": 1, "bbox": [1, 1, 5, 5], "category_id": 99},
        {"image_id": 55, "bbox": [1, 1, 5, 5]},
        {"image_id": 1, "bbox": [1, 1, 5, 5], "id": 1},
    ]
    path = write_coco(tmp_path, images=[{}, {}, {"skip": True}, {"id": 1, "skip": True}], annotations=boxes)
    index, flaws = read_coco(path)
    assert _kinds(flaws) == {
        FlawKind.DUPLICATE_ID: 2,
        FlawKind.UNKNOWN_CATEGORY: 1,
        FlawKind.UNKNOWN_IMAGE: 1,
        FlawKind.DUPLICATE_BOX: 1,
        FlawKind.NO_AREA: 1,
        FlawKind.OUTSIDE: 1,
        FlawKind.CLIPPED: 1,
        FlawKind.NOT_FINITE: 2,
        FlawKind.BACKGROUND: 1,
        FlawKind.MISSING: 1,
    }
    assert len(index) == 2
    np.testing.assert_array_equal(index.boxes_of(0), [[10, 5, 30, 35], [50, 5, 60, 35], [1, 1, 6, 6]])


def test_coco_faults_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        find_coco_file(tmp_path / "nothing", "train")
    (tmp_path / "val.json").write_text("{}")
    with pytest.raises(DataError, match=r"it has: val\.json"):
        find_coco_file(tmp_path, "train")
    with pytest.raises(DataError, match="no list 'images'"):
        read_coco(find_coco_file(tmp_path, "val"))
    (tmp_path / "val.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_coco(tmp_path / "val.json")
    path = write_coco(tmp_path, images=[{"skip": True}], annotations=[])
    with pytest.raises(DataError, match="none of the first images"):
        read_coco(path)


def test_coco_classes_of_another_split(tmp_path: Path) -> None:
    path = write_coco(tmp_path, images=[{}], annotations=[{"image_id": 1, "bbox": [1, 1, 5, 5]}])
    index, flaws = read_coco(path, class_names=("cat",))
    assert (index.class_names, index.labels.tolist(), flaws) == (("cat",), [0], ())
    index, flaws = read_coco(path, class_names=("dog",))
    assert _kinds(flaws) == {FlawKind.UNKNOWN_CATEGORY: 1, FlawKind.BACKGROUND: 1}


def test_voc_counts_from_one(tmp_path: Path) -> None:
    write_voc(tmp_path, {"x": [("b", 1, 1, 60, 40), ("a", 11, 6, 30, 35), ("a", 9, 9, 9, 9)], "y": [("c", 2, 2, 9, 9)]})
    index, flaws = read_voc(tmp_path, "train")
    assert index.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(index.boxes_of(0), [[0, 0, 60, 40], [10, 5, 30, 35]])
    assert index.labels_of(0).tolist() == [1, 0]
    assert [(flaw.kind, flaw.detail) for flaw in flaws] == [(FlawKind.NO_AREA, "[9, 9, 9, 9]")]


def test_voc_faults(tmp_path: Path) -> None:
    write_voc(tmp_path, {"x": [("b", 1, 1, 60, 40)]})
    with pytest.raises(DataError, match=r"split 'val' is not in .*it has: train"):
        read_voc(tmp_path, "val")
    with pytest.raises(DataError, match="no folder Annotations"):
        read_voc(tmp_path / "JPEGImages", "train")
    (tmp_path / "ImageSets/Main/train.txt").write_text("x\nx\ngone\n")
    (tmp_path / "ImageSets/Main/empty.txt").write_text("\n")
    index, flaws = read_voc(tmp_path, "train")
    assert len(index) == 1
    assert _kinds(flaws) == {FlawKind.DUPLICATE_ID: 1, FlawKind.NO_ANNOTATION: 1}
    with pytest.raises(DataError, match="names no images"):
        read_voc(tmp_path, "empty")


def test_index_round_trip_and_move(tmp_path: Path) -> None:
    index = make_index(tmp_path / "a" / "images")
    save_index(tmp_path / "a" / "train.npz", index)
    (tmp_path / "a").rename(tmp_path / "b")
    loaded = load_index(tmp_path / "b" / "train.npz")
    assert loaded.paths[0] == tmp_path / "b" / "images" / "0.png"
    assert loaded.content_hash() == index.content_hash()
    np.testing.assert_array_equal(loaded.boxes_xyxy, index.boxes_xyxy)
    assert [len(loaded.labels_of(i)) for i in range(len(loaded))] == [0, 1, 2, 0, 1, 2, 0]


def test_damaged_index_is_told(tmp_path: Path) -> None:
    path = tmp_path / "train.npz"
    with pytest.raises(ArtifactError, match="is missing; prepare"):
        load_index(path)
    save_index(path, make_index(tmp_path))
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ArtifactError, match="is damaged"):
        load_index(path)
    np.savez(path, version=np.int64(1))
    with pytest.raises(ArtifactError, match="is damaged"):
        load_index(path)


def test_hash_follows_pixels_and_boxes(tmp_path: Path) -> None:
    path = write_coco(tmp_path, images=[{}], annotations=[{"image_id": 1, "bbox": [1, 1, 5, 5]}])
    first = read_coco(path)[0].content_hash()
    assert read_coco(path)[0].content_hash() == first
    path.write_text(json.dumps(json.loads(path.read_text().replace("[1, 1, 5, 5]", "[1, 1, 5, 6]"))))
    second = read_coco(path)[0].content_hash()
    write_image(tmp_path / "images" / "0.jpg", seed=9)
    assert len({first, second, read_coco(path)[0].content_hash()}) == 3
