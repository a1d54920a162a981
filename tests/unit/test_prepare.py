"""What the stage `prepare` writes, warns of, and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import pytest

from pipeline.artifacts.files import read_json
from pipeline.artifacts.reports import PreparedData
from pipeline.data_settings import DataSettings
from pipeline.report.health import HealthReport
from pipeline.stages.prepare import prepare
from tests.unit.data_files import write_coco, write_image, write_voc
from yolov7.data.index import load_index
from yolov7.errors import DataError


def _synthetic(**changes: Any) -> DataSettings:
    small = {"train_images": 5, "val_images": 3, "image_size": 96}
    return DataSettings.model_validate({"synthetic": small | changes})


def _voc(root: Path, **changes: Any) -> DataSettings:
    return DataSettings.model_validate({"format": "voc", "path": str(root), "val": None} | changes)


def _prepared(root: Path) -> PreparedData:
    return read_json(root / "artifacts/prepare/dataset.json", PreparedData, made_by="prepare")


def test_synthetic_data_are_whole_and_repeatable(tmp_path: Path) -> None:
    line = prepare(_synthetic(), project_root=tmp_path)
    first = _prepared(tmp_path)
    folder = tmp_path / "artifacts" / "prepare"
    assert line == f"prepare    synthetic: 5 + 3 images, 8 classes, {sum(first.boxes.values()):,} boxes, 0 flaws"
    assert first.splits == {"train": 5, "val": 3}
    index = load_index(folder / "val.npz")
    assert all(path.is_file() and path.is_relative_to(folder) for path in index.paths)
    assert cv2.imread(str(folder / "sheet.jpg")) is not None
    page = (folder / "health.html").read_text()
    assert "crescent" in page
    assert "http" not in page
    prepare(_synthetic(), project_root=tmp_path)
    assert _prepared(tmp_path) == first
    assert [path.name for path in folder.parent.iterdir()] == ["prepare"]


def test_shuffled_labels_touch_train_only(tmp_path: Path) -> None:
    prepare(_synthetic(), project_root=tmp_path)
    plain = {
        split: load_index(tmp_path / f"artifacts/prepare/{split}.npz").content_hash() for split in ("train", "val")
    }
    assert "labels shuffled" in prepare(_synthetic(shuffle_labels=True), project_root=tmp_path)
    other = {
        split: load_index(tmp_path / f"artifacts/prepare/{split}.npz").content_hash() for split in ("train", "val")
    }
    assert plain["train"] != other["train"]
    assert plain["val"] == other["val"]


def test_flaws_are_reported_or_fatal(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", {"x": [("b", 1, 1, 20, 20), ("b", 5, 5, 5, 5)], "<y>": [("a", 1, 1, 60, 40)], "z": []})
    line = prepare(_voc(tmp_path / "voc"), project_root=tmp_path)
    assert "1 flaw (box without area: 1), 1 image without boxes; see" in line
    report = read_json(tmp_path / "artifacts/prepare/health.json", HealthReport, made_by="prepare")
    train = report.splits["train"]
    assert (train.images, train.boxes, train.images_without_boxes) == (3, 2, 1)
    assert train.boxes_per_size == {"small": 1, "medium": 1, "large": 0}
    assert train.flaws == {"box without area": 1, "image without boxes": 1}
    with pytest.raises(DataError, match=r"1 flaw in train.*box without area.*x\.jpg: \[5, 5, 5, 5\]; correct them"):
        prepare(_voc(tmp_path / "voc", flaws={"fatal": ["boxes"]}), project_root=tmp_path)
    assert _prepared(tmp_path).splits == {"train": 3}  # what was there stays


def test_unreadable_images_count_against_a_limit(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", {name: [("a", 1, 1, 20, 20)] for name in "wxyz"})
    (tmp_path / "voc/JPEGImages/x.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"1 of 4 images of train cannot be used.*x\.jpg: is not an image"):
        prepare(_voc(tmp_path / "voc"), project_root=tmp_path)
    assert not (tmp_path / "artifacts/prepare").exists()
    assert "3 images" in prepare(_voc(tmp_path / "voc", flaws={"max_unreadable": 0.3}), project_root=tmp_path)


def test_images_of_both_splits_are_told(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", {"x": [("a", 1, 1, 20, 20)], "y": [("a", 1, 1, 20, 20)]})
    (tmp_path / "voc/ImageSets/Main/val.txt").write_text("y\n")
    line = prepare(_voc(tmp_path / "voc", val="val"), project_root=tmp_path)
    assert "2 + 1 images" in line
    assert "image that is in train too: 1" in line


def test_edited_pixels_change_the_hash(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", {"x": [("a", 1, 1, 20, 20)]})
    prepare(_voc(tmp_path / "voc"), project_root=tmp_path)
    before = _prepared(tmp_path)
    write_image(tmp_path / "voc/JPEGImages/x.jpg", seed=99)
    prepare(_voc(tmp_path / "voc"), project_root=tmp_path)
    assert before.content_hash != _prepared(tmp_path).content_hash
    assert before.boxes == _prepared(tmp_path).boxes


def _coco(root: Path, **changes: Any) -> DataSettings:
    return DataSettings.model_validate({"format": "coco", "path": str(root), "val": None} | changes)


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (
            {"category_id": "x"},
            r"\(unknown category: 3\), e\.g\. .*train\.json: annotation 1: category id 'x'; correct",
        ),
        ({"image_id": "1"}, r"\(annotation of an unknown image: 3\), e\.g\. .*: annotation 1: image id '1'; correct"),
        ({"bbox": [200, 200, 9, 9]}, r"\(box outside its image: 3\), e\.g\. .*0\.jpg: \[200, 200, 209, 209\]; correct"),
        ({"bbox": [0.1, 0.1, 0.5, 0.5]}, r"\(box in shares of its image \(0 to 1\): 3\), .*multiply x by the width"),
    ],
)
def test_the_reasons_are_told_if_all_boxes_are_left_out(
    tmp_path: Path, annotation: dict[str, Any], reason: str
) -> None:
    rows = [{"image_id": 1, "bbox": [1 + i, 1, 5, 5]} | annotation for i in range(3)]
    write_coco(tmp_path, images=[{}], annotations=rows)
    with pytest.raises(DataError, match=f"all 3 boxes of train were left out {reason}"):
        prepare(_coco(tmp_path), project_root=tmp_path)


def test_crowd_regions_alone_are_refused(tmp_path: Path) -> None:
    write_coco(tmp_path, images=[{}], annotations=[{"image_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": "1"}])
    with pytest.raises(DataError, match="all 1 boxes of train are crowd regions"):
        prepare(_coco(tmp_path), project_root=tmp_path)


def test_what_was_left_out_is_explained_in_the_report(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", {name: [("a", 1, 1, 20, 20), ("a", 5, 5, 5, 5)] for name in "wxyz"})
    (tmp_path / "voc/JPEGImages/x.jpg").write_bytes(b"nothing")
    prepare(_voc(tmp_path / "voc", flaws={"max_unreadable": 0.3}), project_root=tmp_path)
    train = read_json(tmp_path / "artifacts/prepare/health.json", HealthReport, made_by="prepare").splits["train"]
    assert (train.images_left_out, train.boxes_left_out) == (1, 5)
    page = " ".join((tmp_path / "artifacts/prepare/health.html").read_text().split())
    assert "1 images and 5 boxes were left out. Figures are measured without them" in page


def test_names_are_shown_and_never_run(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>{{ 7*7 }}"
    write_voc(tmp_path / "voc", {"x": [("placeholder", 1, 1, 20, 20)]})
    path = tmp_path / "voc/Annotations/x.xml"
    path.write_text(path.read_text().replace("placeholder", name.replace("<", "&lt;")))
    prepare(_voc(tmp_path / "voc"), project_root=tmp_path)
    page = (tmp_path / "artifacts/prepare/health.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;{{ 7*7 }}" in page
    assert "<script" not in page


@pytest.mark.parametrize(("path", "what"), [("data.yaml", "is a file"), ("nowhere", "does not exist")])
def test_a_path_that_is_no_folder_names_the_formats(tmp_path: Path, path: str, what: str) -> None:
    (tmp_path / "data.yaml").write_text("train: images\n")
    with pytest.raises(DataError, match=rf"data\.path='.*{path}' {what}, is not a folder.*coco .*, voc .* and yolo"):
        prepare(_coco(tmp_path / path), project_root=tmp_path)
