"""Results carry the ids of the annotation file, and pycocotools computes the same figures from that file."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.unit.data_files import write_coco, write_image, write_voc
from yolov7.data.index import ImageIndex, load_index, save_index
from yolov7.data.read.coco import read_coco
from yolov7.data.read.voc import read_voc
from yolov7.evaluation.figures import FIGURES, coco_metrics, coco_results
from yolov7.settings import CocoEngine
from yolov7.structures import Detections

IMAGES = 8
LAYOUTS: dict[str, dict[str, Any]] = {
    "image ids from 1, category ids from 1": {},
    "category ids from 0": {"categories": (0, 1)},
    "category ids with gaps, in falling order": {"categories": (7, 3)},
    "image ids in another order than the rows": {"ids": (5, 3, 8, 1, 7, 2, 6, 4)},
    "image ids from 0": {"ids": range(IMAGES)},
    "file names that are other numbers than the ids": {"ids": range(IMAGES - 1, -1, -1), "name": "{:03d}.jpg"},
    "image ids and category ids as text": {"ids": [f"{i}b" for i in range(IMAGES)], "categories": ("x", "a")},
}


def write(root: Path, *, ids: Any = range(1, IMAGES + 1), categories: Any = (1, 2), name: str = "i{}.jpg") -> Path:
    """Boxes with decimals, areas of their own, crowd regions and boxes that reach outside of their image."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(40):
        box = [*random.uniform(-3, 25, 2).tolist(), *random.uniform(5, 30, 2).tolist()]
        stated = {"area": box[2] * box[3] * 0.77, "iscrowd": int(number % 9 == 0)}
        rows.append({"image_id": ids[number % IMAGES], "category_id": categories[number % 2], "bbox": box} | stated)
    path = write_coco(
        root, images=[{"id": ids[i], "file_name": name.format(i)} for i in range(IMAGES)], annotations=rows
    )
    table = [{"id": given, "name": f"class {given}"} for given in categories]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"categories": table}))
    return path


def detect(index: ImageIndex) -> list[Detections]:
    """Boxes near the objects, with many equal scores, so that the order of the images matters."""
    found = []
    for i in range(len(index)):
        random = np.random.default_rng(len(str(index.image_ids[i])) + len(index.labels_of(i)) + i)
        boxes = torch.from_numpy(np.repeat(index.boxes_of(i), 3, axis=0))
        boxes[:, 2:] += torch.from_numpy(random.uniform(-3, 5, (len(boxes), 2)).astype(np.float32))
        scores = torch.from_numpy(np.sort(random.integers(1, 4, len(boxes)))[::-1].astype(np.float32) / 7)
        labels = torch.from_numpy(np.repeat(index.labels_of(i), 3))
        found.append(Detections(boxes, scores, labels))
    return found


def score(truth: Path, results: list[dict[str, Any]]) -> list[float]:
    """The twelve figures of pycocotools on an annotation file and on results that were written and read again."""
    with contextlib.redirect_stdout(io.StringIO()):
        table = COCO(str(truth))
        evaluation = COCOeval(table, table.loadRes(json.loads(json.dumps(results))), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def ours(index: ImageIndex, found: list[Detections], engine: CocoEngine) -> list[float]:
    figures = coco_metrics(index, found, engine=engine).as_dict()
    return [-1.0 if figures[name] is None else figures[name] for name in FIGURES]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pycocotools_on_the_source_gives_our_figures(tmp_path: Path, layout: str) -> None:
    path = write(tmp_path, **LAYOUTS[layout])
    save_index(tmp_path / "train.npz", read_coco(path)[0])
    index = load_index(tmp_path / "train.npz")
    found = detect(index)
    theirs = score(path, coco_results(index, found))
    for engine in get_args(CocoEngine):
        np.testing.assert_allclose(ours(index, found, engine), theirs, rtol=0, atol=1e-9)
    assert 0.1 < theirs[0] < 0.9


def test_images_that_are_left_out_are_the_only_difference(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "images/i3.jpg").write_bytes(b"")
    index, flaws = read_coco(path)
    assert sum(flaw.boxes for flaw in flaws) == 5
    found = [
        Detections(torch.from_numpy(index.boxes_of(i)), torch.ones(5), torch.from_numpy(index.labels_of(i)))
        for i in range(7)
    ]
    theirs = score(path, coco_results(index, found))
    content = json.loads(path.read_text())
    content["images"] = [row for row in content["images"] if row["file_name"] != "i3.jpg"]
    path.write_text(json.dumps(content))
    np.testing.assert_allclose(ours(index, found, "hotcoco"), score(path, coco_results(index, found)), atol=1e-9)
    assert theirs[8] < ours(index, found, "hotcoco")[8]


def test_ids_of_voc_are_the_entries_and_the_places_of_the_classes(tmp_path: Path) -> None:
    write_voc(tmp_path, {"b": [("dog", 1, 1, 20, 20)], "007": [("cat", 1, 1, 20, 20)]})
    index, _ = read_voc(tmp_path, "train")
    assert (index.image_ids, index.category_ids) == (("b", "007"), (1, 2))


def test_classes_of_another_split_get_the_ids_of_this_file(tmp_path: Path) -> None:
    path = write_coco(tmp_path, images=[{}], annotations=[{"image_id": 1, "bbox": [1, 1, 5, 5]}])
    index, _ = read_coco(path, class_names=("eel", "cat", "dog", "fox"))
    assert index.category_ids == (8, 7, 3, 9)  # the file has neither eels nor foxes, and does not use 8 and 9


def test_ids_belong_to_the_results_and_not_to_the_training(tmp_path: Path) -> None:
    for folder, names in (("a", (1, 2)), ("b", (5, 6))):
        write_image(tmp_path / folder / "images" / "0.jpg")
        write(tmp_path / folder, categories=names)
    path = tmp_path / "b/train.json"
    path.write_text(path.read_text().replace("class 5", "class 1").replace("class 6", "class 2"))
    one, other = (read_coco(tmp_path / folder / "train.json")[0] for folder in "ab")
    assert one.content_hash() == other.content_hash()
    assert one.evaluation_hash() != other.evaluation_hash()
