"""The miniature of COCO has the form of the real data set, and a submission made from it that of the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO

from yolov7.data.coco_names import COCO_NAMES
from yolov7.data.loader import ValLoader
from yolov7.data.read.coco import find_coco_file, read_coco
from yolov7.data.read.coco_images import read_image_list
from yolov7.data.synthetic.coco_miniature import CATEGORY_IDS, SPLIT_SIZES, write_coco_miniature
from yolov7.errors import DataError
from yolov7.evaluation.figures import coco_results
from yolov7.evaluation.submission import write_submission
from yolov7.inference.batch import detect_batch
from yolov7.inference.engine import ModelEngine
from yolov7.nn.model import DetectionModel
from yolov7.settings import NmsSettings
from yolov7.spec.spec_files import load_spec

TEST_DEV = "image_info_test-dev2017"


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    write_coco_miniature(folder)
    return folder


def read(miniature: Path, name: str) -> Any:
    return json.loads((miniature / "annotations" / f"{name}.json").read_text())


def test_files_and_ids_are_named_as_in_coco(miniature: Path) -> None:
    names = {path.name for path in (miniature / "annotations").iterdir()}
    assert names == {"instances_train2017.json", "instances_val2017.json", f"{TEST_DEV}.json"}
    assert (miniature / "train2017" / "000000000009.jpg").is_file()
    counts = {folder: len(list((miniature / folder).iterdir())) for folder in ("train2017", "val2017", "test2017")}
    assert list(counts.values()) == list(SPLIT_SIZES.values())
    assert sum(counts.values()) == 60
    categories = read(miniature, "instances_val2017")["categories"]
    assert [row["name"] for row in categories] == list(COCO_NAMES)
    by_name = {row["name"]: (row["id"], row["supercategory"]) for row in categories}
    assert by_name["person"] == (1, "person")  # ids of COCO's own file
    assert by_name["stop sign"] == (13, "outdoor")
    assert by_name["hair drier"] == (89, "indoor")
    assert by_name["toothbrush"] == (90, "indoor")
    assert by_name["dining table"] == (67, "furniture")
    assert by_name["tv"] == (72, "electronic")
    assert "annotations" not in read(miniature, TEST_DEV)


def test_masks_areas_and_boxes_agree_as_pycocotools_reads_them(miniature: Path) -> None:
    coco = COCO(str(miniature / "annotations" / "instances_train2017.json"))
    crowds = [row for row in coco.anns.values() if row["iscrowd"]]
    assert crowds
    for row in crowds:
        encoded = coco.annToRLE(row)
        assert (rle.area(encoded), list(rle.toBbox(encoded))) == (row["area"], row["bbox"])
    for row in coco.anns.values():
        if not row["iscrowd"]:
            assert row["area"] == pytest.approx(float(rle.area(coco.annToRLE(row))), rel=0.03)
            assert row["area"] < row["bbox"][2] * row["bbox"][3]


def test_it_is_read_without_flaws_and_drawn_in_the_same_way_again(miniature: Path, tmp_path: Path) -> None:
    index, flaws = read_coco(find_coco_file(miniature, "instances_train2017"), root=miniature)
    assert flaws == ()
    assert set(index.labels.tolist()) == set(range(80))
    assert index.crowd.any()
    assert index.outlines is not None
    write_coco_miniature(tmp_path)
    files = [path.relative_to(miniature) for path in miniature.rglob("*") if path.is_file()]
    assert len(files) == 63
    assert all((tmp_path / file).read_bytes() == (miniature / file).read_bytes() for file in files)


def test_a_list_of_images_without_annotations_is_read(miniature: Path) -> None:
    names = COCO_NAMES[::-1]
    index = read_image_list(miniature / "annotations" / f"{TEST_DEV}.json", root=miniature, class_names=names)
    assert len(index) == SPLIT_SIZES["test-dev2017"]
    assert index.category_ids == CATEGORY_IDS[::-1]
    assert [path.stem for path in index.paths] == [f"{number:012d}" for number in index.image_ids]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda content: content.pop("images"), "has no images; name a file with images and categories"),
        (lambda content: content["categories"].pop(), "does not have the class 'toothbrush' of the model"),
        (lambda content: content["images"][0].pop("id"), "has an entry in images without id or file_name"),
        (lambda content: content["images"][3].update(file_name="x.jpg"), "1 of 8 images of .* are missing"),
        (lambda content: content["images"][0].update(file_name="x.jpg"), "x.jpg, the first image of"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(change: Any, fault: str, miniature: Path, tmp_path: Path) -> None:
    content = read(miniature, TEST_DEV)
    change(content)
    path = tmp_path / f"{TEST_DEV}.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=fault):
        read_image_list(path, root=miniature, class_names=COCO_NAMES)


def test_a_submission_holds_every_detection_under_the_ids_of_the_list(miniature: Path, tmp_path: Path) -> None:
    file = miniature / "annotations" / f"{TEST_DEV}.json"
    index = read_image_list(file, root=miniature, class_names=COCO_NAMES)
    torch.manual_seed(0)
    engine = ModelEngine(DetectionModel(load_spec("nano"), num_classes=80).eval(), torch.float32)
    nms = NmsSettings(confidence=1e-5, iou=0.65, multi_label=True, max_detections=5)
    name = "detections_test-dev2017_nano_results"
    path = tmp_path / f"{name}.zip"
    count = write_submission(path, engine, index, image_size=64, batch_size=3, nms=nms)
    with ZipFile(path) as archive:
        assert archive.namelist() == [f"{name}.json"]
        rows = json.loads(archive.read(f"{name}.json"))
    assert count == len(rows) == 5 * len(index)
    assert {row["image_id"] for row in rows} == set(index.image_ids)
    assert {row["category_id"] for row in rows} <= set(CATEGORY_IDS)
    expected = coco_results(index, detections(engine, index, nms))
    assert [row["category_id"] for row in rows] == [row["category_id"] for row in expected]
    assert np.allclose([row["bbox"] for row in rows], [row["bbox"] for row in expected], atol=0.006)
    assert len(COCO(str(file)).loadRes(rows).anns) == count
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name]


def detections(engine: ModelEngine, index: Any, nms: NmsSettings) -> list[Any]:
    batches = ValLoader(index, image_size=64, batch_size=3)
    return [found for batch in batches for found in detect_batch(engine, batch.images, batch.geometry, nms=nms)]


def test_a_submission_without_detections_is_an_empty_list(miniature: Path, tmp_path: Path) -> None:
    file = miniature / "annotations" / f"{TEST_DEV}.json"
    index = read_image_list(file, root=miniature, class_names=COCO_NAMES)
    engine = ModelEngine(DetectionModel(load_spec("nano"), num_classes=80).eval(), torch.float32)
    nms = NmsSettings(confidence=1.0)
    assert write_submission(tmp_path / "a.zip", engine, index, image_size=64, batch_size=8, nms=nms) == 0
    with ZipFile(tmp_path / "a.zip") as archive:
        assert json.loads(archive.read("a.json")) == []
