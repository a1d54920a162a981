"""Outlines from annotation files: what is kept, what is a flaw, how they are stored, and COCO's sizes of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.property.test_fuzz import WRONG
from tests.unit.data_files import write_coco, write_image, write_voc
from yolov7.data.flaws import FlawGroup, FlawKind
from yolov7.data.index import ImageIndex, load_index, save_index
from yolov7.data.outlines import area, bounds, fill, see
from yolov7.data.read.coco import read_coco
from yolov7.data.read.voc import read_voc
from yolov7.errors import ArtifactError
from yolov7.evaluation.figures import coco_metrics
from yolov7.settings import CocoEngine
from yolov7.structures import Detections

TRIANGLE = [10.0, 5.0, 30.0, 5.0, 30.0, 35.0]
BOX = [10, 5, 20, 30]


def read(folder: Path, *objects: dict[str, Any]) -> tuple[ImageIndex, Counter[FlawKind]]:
    rows = [{"image_id": 1, "bbox": [x + i / 1000 for x in BOX]} | row for i, row in enumerate(objects)]
    index, flaws = read_coco(write_coco(folder, images=[{}], annotations=rows))
    return index, Counter(flaw.kind for flaw in flaws)


def test_polygons_are_kept_and_stored(tmp_path: Path) -> None:
    two = [[10.0, 5.0, 20.0, 5.0, 20.0, 15.0], [22.0, 20.0, 30.0, 20.0, 30.0, 35.0, 22.0, 35.0]]
    index, flaws = read(tmp_path, {"segmentation": [TRIANGLE]}, {"bbox": [1, 1, 5, 5]}, {"segmentation": two})
    assert not flaws
    save_index(tmp_path / "train.npz", index)
    loaded = load_index(tmp_path / "train.npz")
    assert loaded.content_hash() == index.content_hash() != replace(index, outlines=None).content_hash()
    first, second, third = loaded.outlines_of(0)
    assert [part.tolist() for part in first] == [[[10, 5], [30, 5], [30, 35]]]
    assert second == ()
    assert [len(part) for part in third] == [3, 4]
    assert bounds(third).tolist() == [10, 5, 30, 35]
    np.testing.assert_allclose(loaded.object_areas, [300, 25, 50 + 120])


def test_data_without_outlines_store_none_of_it(tmp_path: Path) -> None:
    index, _ = read(tmp_path, {"segmentation": []}, {"area": 600, "bbox": [1, 1, 20, 30]})
    assert (index.outlines, index.areas, index.outlines_of(0)) == (None, None, ())
    save_index(tmp_path / "train.npz", index)
    with np.load(tmp_path / "train.npz") as file:
        assert not [name for name in file.files if "outline" in name or "area" in name]
    write_voc(tmp_path / "voc", {"x": [("b", 1, 1, 60, 40)]})
    assert read_voc(tmp_path / "voc", "train")[0].outlines is None


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        ([TRIANGLE[:-1]], FlawKind.NO_POLYGON),
        ([TRIANGLE[:4]], FlawKind.NO_POLYGON),
        ([TRIANGLE, []], FlawKind.NO_POLYGON),
        ([[*TRIANGLE[:-1], float("nan")]], FlawKind.NO_POLYGON),
        ([[*TRIANGLE[:-1], 10**400]], FlawKind.NO_POLYGON),
        ([[*TRIANGLE[:-1], "x"]], FlawKind.NO_POLYGON),
        ([[*TRIANGLE[:-1], True]], FlawKind.NO_POLYGON),
        ([[*TRIANGLE[:-1], 1e30]], FlawKind.NO_POLYGON),
        ("triangle", FlawKind.NO_POLYGON),
        (7, FlawKind.NO_POLYGON),
        ({"counts": [0, 9], "size": [40, 60]}, FlawKind.MASK),
        ([[40.0, 5.0, 55.0, 5.0, 55.0, 35.0]], FlawKind.OUTLINE_ELSEWHERE),
        ([[70.0, 5.0, 90.0, 5.0, 90.0, 35.0]], FlawKind.OUTLINE_ELSEWHERE),
    ],
)
def test_an_outline_that_is_none_leaves_the_box(tmp_path: Path, segmentation: object, kind: FlawKind) -> None:
    index, flaws = read(tmp_path, {"segmentation": segmentation}, {"segmentation": [TRIANGLE]})
    assert flaws == {kind: 1}
    assert kind.group is (None if kind is FlawKind.MASK else FlawGroup.OUTLINES)
    np.testing.assert_array_equal(index.boxes_of(0)[0], [10, 5, 30, 35])
    none, sound = index.outlines_of(0)
    assert none == ()
    assert len(sound) == 1


def test_whatever_stands_for_an_outline_or_an_area_is_no_error(tmp_path: Path) -> None:
    """Wrong values in place of the segmentation, a part of it, a coordinate, and the area."""
    wrong = [value for value in WRONG if _is_json(value)]
    objects = [
        row
        for value in wrong
        for row in (
            {"segmentation": value},
            {"segmentation": [TRIANGLE, value]},
            {"segmentation": [[*TRIANGLE[:-1], value]]},
            {"segmentation": [TRIANGLE], "area": value},
        )
    ]
    index, flaws = read(tmp_path, *objects)
    assert index.num_boxes == len(objects) == 4 * len(wrong)
    assert set(flaws) <= {kind for kind in FlawKind if kind.group is FlawGroup.OUTLINES} | {FlawKind.MASK}
    assert index.outlines is not None
    assert np.isfinite(index.outlines.points).all()
    assert np.isfinite(index.object_areas).all()
    assert (index.object_areas > 0).all()
    assert all(index.outlines_of(0)[3::4])  # those of which the area alone is wrong


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def test_an_outline_is_clipped_with_its_box(tmp_path: Path) -> None:
    corner, both = [50.0, 5.0, 70.0, 5.0, 70.0, 35.0], [50.0, -9.0, 70.0, -9.0, 70.0, 15.0, 50.0, 15.0]
    index, flaws = read(tmp_path, {"bbox": [50, 5, 20, 30], "segmentation": [corner]})
    assert flaws == {FlawKind.CLIPPED: 1}
    np.testing.assert_array_equal(index.boxes_of(0), [[50, 5, 60, 20]])  # tight: the triangle's lower part is outside
    index, flaws = read(
        tmp_path,
        {"bbox": [50, 5, 10, 15], "segmentation": [corner]},
        {"bbox": [50, 0, 10, 15], "segmentation": [both]},
    )
    assert flaws == {FlawKind.OUTLINE_CLIPPED: 2}
    assert [bounds(outline).tolist() for outline in index.outlines_of(0)] == [[50, 5, 60, 20], [50, 0, 60, 15]]


def test_masks_of_crowds_are_no_news(tmp_path: Path) -> None:
    assert not read(tmp_path, {"segmentation": {"counts": "x", "size": [1, 1]}, "iscrowd": 1})[1]


@pytest.mark.parametrize("column", ["outline_points", "outline_part_offsets", "outline_object_offsets", "areas"])
def test_damaged_columns_are_told(tmp_path: Path, column: str) -> None:
    path = tmp_path / "train.npz"
    save_index(path, read(tmp_path, {"segmentation": [TRIANGLE]})[0])
    with np.load(path) as file:
        columns = {name: file[name] for name in file.files}
    for broken in (columns[column][:-1], np.zeros(0)):
        np.savez(path, **(columns | {column: broken}))
        with pytest.raises(ArtifactError, match="is damaged"):
            load_index(path)


def test_an_outline_cut_apart_is_boxed_by_what_is_left() -> None:
    """The lower arm of a C lies below the frame and its back beside it: what remains is the upper arm alone."""
    c = np.array([[-9, 5], [60, 5], [60, 10], [-5, 10], [-5, 50], [60, 50], [60, 55], [-9, 55]], np.float32)
    visible, boxes = see([(c,)], np.zeros((1, 4), np.float32), np.eye(3), image_size=(64, 64), size=40)
    np.testing.assert_allclose(boxes, [[0, 5, 40, 10]], atol=1e-5)
    assert area(visible[0]) == pytest.approx(200)
    away = np.array([[1.0, 0, -100], [0, 1, 0], [0, 0, 1]])
    hidden, seen = see([(c,), ()], np.ones((2, 4), np.float32), away, image_size=(64, 64), size=40)
    assert hidden == ((), ())
    np.testing.assert_array_equal(seen, [[0, 0, 0, 0], [1, 1, 1, 1]])  # nothing of the first; the second has no outline


def test_parts_that_overlap_are_filled_twice() -> None:
    square = np.array([[2, 2], [8, 2], [8, 8], [2, 8]], np.float32)
    mask = fill((square, square), width=12, height=10)
    assert mask.shape == (10, 12)
    assert mask[2:8, 2:8].all()
    assert mask.sum() == 36


def test_small_medium_and_large_are_those_of_the_annotation_file(tmp_path: Path) -> None:
    """Thin outlines, whose boxes would be of another size, against pycocotools on the file as it is."""
    random = np.random.default_rng(3)
    images: list[dict[str, Any]] = [{"width": 400, "height": 300, "file_name": f"{i}.png"} for i in range(6)]
    rows: list[dict[str, Any]] = []
    for i in range(60):
        w, h = (int(side) for side in random.integers(10, 200, 2))
        x, y = int(random.integers(0, 400 - w)), int(random.integers(0, 300 - h))
        polygon = [x, y, x + w, y, x + w, y + h]
        stated = {"area": w * h / 2} if i % 2 else {}
        rows.append({"image_id": 1 + i % 6, "bbox": [x, y, w, h], "segmentation": [polygon], **stated})
    for i, image in enumerate(images):
        write_image(tmp_path / "images" / image["file_name"], width=400, height=300, seed=i)
    path = write_coco(tmp_path, images=[{**image, "skip": True} for image in images], annotations=rows)
    index, flaws = read_coco(path)
    assert not flaws
    content = json.loads(path.read_text())
    content["annotations"] = [{"area": row["bbox"][2] * row["bbox"][3] / 2, **row} for row in content["annotations"]]
    path.write_text(json.dumps(content))
    detections = [_shaken(index.boxes_of(i), random) for i in range(6)]
    theirs = _pycocotools(path, detections)
    for engine in get_args(CocoEngine):
        ours = coco_metrics(index, detections, engine=engine)
        np.testing.assert_allclose([ours.AP, ours.AP50, ours.APs, ours.APm, ours.APl], theirs, atol=1e-12)
    boxes = coco_metrics(replace(index, areas=None), detections)
    assert boxes.APs != pytest.approx(theirs[2], abs=0.01)


def _shaken(boxes: np.ndarray, random: np.random.Generator) -> Detections:
    moved = torch.from_numpy(boxes + random.normal(0, 3, boxes.shape).round().astype(np.float32))
    return Detections(moved, torch.linspace(0.9, 0.1, len(moved)), torch.ones(len(moved), dtype=torch.int64))


def _pycocotools(path: Path, detections: list[Detections]) -> list[float]:
    truth = COCO(str(path))
    results = []
    for i, found in enumerate(detections):
        for (x1, y1, x2, y2), score in zip(found.boxes_xyxy.tolist(), found.scores.tolist(), strict=True):
            results.append({"image_id": i + 1, "category_id": 7, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score})
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [evaluation.stats[k] for k in (0, 1, 3, 4, 5)]
