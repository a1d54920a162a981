"""Recognition of formats and splits by the files of a folder; the same data in three formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.data_files import write_coco, write_image, write_voc, write_yolo
from yolov7.data.find_data import find_data, read_split
from yolov7.data.index import ImageIndex
from yolov7.errors import DataError
from yolov7.evaluation.figures import coco_metrics
from yolov7.structures import Detections

BOXES = {  # of images of 60 x 40, from the first pixel 0
    "a": [("cat", 3, 4, 33, 30), ("dog", 20, 2, 59, 39)],
    "b": [("dog", 0, 0, 7, 9)],
    "c": [("cat", 10, 10, 50, 21), ("cat", 12, 5, 22, 40), ("dog", 1, 30, 60, 40)],
}


def write_all(root: Path) -> None:
    """The same boxes in each format."""
    numbers = {"cat": 0, "dog": 1}
    voc = {stem: [(name, x1 + 1, y1 + 1, x2, y2) for name, x1, y1, x2, y2 in rows] for stem, rows in BOXES.items()}
    write_voc(root / "voc", voc, split="val")
    labels = {
        stem: "".join(
            f"{numbers[name]} {(x1 + x2) / 120:.8f} {(y1 + y2) / 80:.8f} {(x2 - x1) / 60:.8f} {(y2 - y1) / 40:.8f}\n"
            for name, x1, y1, x2, y2 in rows
        )
        for stem, rows in BOXES.items()
    }
    path = write_yolo(root / "yolo", labels, folder="images/val")
    path.write_text("val: images/val\nnames: [cat, dog]\n")
    rows = [
        {"image_id": image, "category_id": numbers[name], "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for image, rows in enumerate(BOXES.values())
        for name, x1, y1, x2, y2 in rows
    ]
    images = [{"id": image, "file_name": f"{stem}.jpg"} for image, stem in enumerate(BOXES)]
    made = write_coco(root / "coco", images=images, annotations=rows)
    content = json.loads(made.read_text()) | {"categories": [{"id": n, "name": name} for name, n in numbers.items()]}
    made.unlink()
    (root / "coco/images").rename(root / "coco/val2017")
    (root / "coco/annotations").mkdir()
    (root / "coco/annotations/instances_val2017.json").write_text(json.dumps(content))


def near(index: ImageIndex) -> list[Detections]:
    """A detection beside each object, some with the wrong class."""
    random = np.random.default_rng(0)
    found = []
    for i in range(len(index)):
        boxes = torch.from_numpy(index.boxes_of(i).copy())
        boxes[:, :2] += torch.from_numpy(random.uniform(0, 4, (len(boxes), 2)).astype(np.float32))
        labels = torch.from_numpy(index.labels_of(i) ^ (random.random(len(boxes)) < 0.2))
        found.append(Detections(boxes, torch.linspace(0.9, 0.2, len(boxes)), labels))
    return found


def test_the_same_data_in_three_formats_give_the_same_index_and_figures(tmp_path: Path) -> None:
    write_all(tmp_path)
    indices = {}
    for name in ("coco", "voc", "yolo"):
        found = find_data(tmp_path / name)
        assert (found.format, list(found.splits), found.class_names) == (name, ["val"], ("cat", "dog"))
        indices[name], flaws = read_split(found, "val")
        assert flaws == ()
    coco = indices["coco"]
    detections = near(coco)
    figures = coco_metrics(coco, detections)
    assert 0 < figures.AP < 1
    for other in (indices["voc"], indices["yolo"]):
        assert other.hashes == coco.hashes
        assert np.array_equal(other.labels, coco.labels)
        assert np.abs(other.boxes_xyxy - coco.boxes_xyxy).max() < 1e-5
        assert coco_metrics(other, detections) == figures
    assert indices["voc"].content_hash() == coco.content_hash()


def test_what_was_found_is_described(tmp_path: Path) -> None:
    write_all(tmp_path)
    found = find_data(tmp_path / "coco")
    assert found.description == f"coco data in {tmp_path / 'coco'} with the splits val (instances_val2017)"
    assert find_data(tmp_path / "voc").description == f"voc data in {tmp_path / 'voc'} with the splits val"
    assert find_data(tmp_path / "yolo").description == f"yolo data in {tmp_path / 'yolo/data.yaml'} with the splits val"


def test_several_data_sets_in_one_folder_are_all_named(tmp_path: Path) -> None:
    write_all(tmp_path)
    with pytest.raises(DataError, match=r"several data sets: coco data in .*; voc data in .*; yolo data in .*; state"):
        find_data(tmp_path)
    assert find_data(tmp_path, format="voc").root == tmp_path / "voc"
    (tmp_path / "voc/data.yaml").write_text("train: JPEGImages\nnames: [cat]\n")
    with pytest.raises(DataError, match=r"several data sets: voc data in .*; yolo data in .*; state the format"):
        find_data(tmp_path / "voc")


@pytest.mark.parametrize(
    "files",
    [
        {"train": "annotations/instances_train2017.json", "val": "annotations/instances_val2017.json"},
        {"train": "train/_annotations.coco.json", "val": "valid/_annotations.coco.json"},
        {"train": "train.json", "test": "test.json"},
        {"train": "my_train_v2.json", "val": "my-validation.json"},
        {"instances_train2014": "annotations/instances_train2014.json", "trainval": "annotations/trainval.json"}
        | {"instances_train2017": "annotations/instances_train2017.json"},
        {"default": "default.json"},
    ],
)
def test_files_of_coco_are_splits(tmp_path: Path, files: dict[str, str]) -> None:
    for file in (*files.values(), "annotations/captions_train2017.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text('{"images": [], "annotations": [], "categories": []}')
    (tmp_path / "settings.json").write_text("{}")
    assert set(find_data(tmp_path).splits) == set(files)


@pytest.mark.parametrize("folder", ["val2017", "images/val2017", "images", "annotations", "data", "."])
def test_images_of_coco_are_found_in_each_layout(tmp_path: Path, folder: str) -> None:
    write_image(tmp_path / folder / "sub/a.jpg")
    (tmp_path / "annotations").mkdir(exist_ok=True)
    content = {
        "images": [{"id": 1, "file_name": "sub/a.jpg"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "x"}],
    }
    file = tmp_path / "annotations/instances_val2017.json"
    file.write_text(json.dumps(content))
    for path in (tmp_path, file):
        assert len(read_split(find_data(path), "val")[0]) == 1


def test_what_is_no_data_is_refused_in_one_line(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"no annotations were found in .*, which has 1 image; the formats are coco"):
        find_data(tmp_path)
    with pytest.raises(DataError, match="no voc annotations were found"):
        find_data(tmp_path, format="voc")
    with pytest.raises(DataError, match="is not data; name the folder"):
        find_data(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="does not exist; name the folder"):
        find_data(tmp_path / "b")
    (tmp_path / "a.json").write_text('{"shapes": []}')
    with pytest.raises(DataError, match=r"a\.json is not a COCO file"):
        find_data(tmp_path / "a.json")


def test_voc_without_lists_has_the_split_all(tmp_path: Path) -> None:
    write_voc(tmp_path, {"b": [("cat", 1, 1, 20, 20)], "a": [("dog", 1, 1, 20, 20)]})
    for path in (tmp_path / "ImageSets/Main/train.txt", tmp_path / "ImageSets/Main", tmp_path / "ImageSets"):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "JPEGImages").rename(tmp_path / "images")
    found = find_data(tmp_path)
    assert (found.format, dict(found.splits)) == ("voc", {"all": "all"})
    index, flaws = read_split(found, "all")
    assert (index.image_ids, flaws) == (("a", "b"), ())
