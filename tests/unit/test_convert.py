"""Conversion of data sets: what survives from format to format, what is counted as lost, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pipeline.cli.main import app
from tests.unit.data_files import write_coco, write_image, write_voc, write_yolo
from yolov7.data.find_data import DataFormat, find_data, read_split
from yolov7.data.flaws import FlawKind
from yolov7.data.index import ImageIndex
from yolov7.data.write.convert import Conversion, convert_data
from yolov7.errors import DataError
from yolov7.evaluation.figures import coco_metrics
from yolov7.structures import Detections

CLASSES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
TRIANGLE = [10, 5, 30, 5, 20, 35]


def convert(source: Path, to: DataFormat, folder: Path, **options: Any) -> Conversion:
    return convert_data(find_data(source), to, folder, **options)


def read(folder: Path, split: str = "train") -> ImageIndex:
    return read_split(find_data(folder), split)[0]


def losses(done: Conversion) -> dict[str, int]:
    return {what: count for what, count in done.losses.items() if count and "ids" not in what}


def write_source(root: Path, *objects: dict[str, Any], images: list[dict[str, Any]] | None = None) -> Path:
    """Write a COCO file of images of 60 x 40 whose classes are in the order of their names."""
    rows = [{"image_id": 1, "bbox": [10, 5, 20, 30]} | row for row in objects]
    path = write_coco(root, images=images or [{}], annotations=rows)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"categories": CLASSES}))
    return path


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    write_source(
        root,
        {"bbox": [10.125, 5.0625, 20.3, 30.1], "category_id": 3},
        {"bbox": [0, 0, 60, 40]},
        {"image_id": 3, "bbox": [1, 2, 3, 4]},
        images=[{"file_name": "b.jpg"}, {"file_name": "c.jpg"}, {"file_name": "a.jpg"}],
    )
    return root


def shifted(index: ImageIndex) -> list[Detections]:
    """Return a detection beside each object, the scores of which fall."""
    found = []
    for i in range(len(index)):
        boxes, labels = torch.from_numpy(index.boxes_of(i) + np.float32(2)), torch.from_numpy(index.labels_of(i))
        found.append(Detections(boxes, torch.linspace(0.9, 0.5, len(boxes)), labels))
    return found


def test_a_round_trip_through_all_formats_gives_the_same_index_and_figures(coco: Path, tmp_path: Path) -> None:
    before, first = snapshot(coco), read(coco)
    found = shifted(first)
    figures = coco_metrics(first, found)
    assert 0 < figures.AP < 1
    source = coco
    for format in ("voc", "yolo", "coco"):
        target = tmp_path / f"to-{format}"
        convert(source, format, target)
        index = read(target)
        assert find_data(target).format == format
        assert [path.name for path in index.paths] == ["b.jpg", "c.jpg", "a.jpg"]
        assert np.abs(index.objects_xywh - first.objects_xywh).max() < 1e-9
        assert index.content_hash() == first.content_hash()
        assert coco_metrics(index, found) == figures
        source = target
    assert snapshot(coco) == before


def test_edges_of_images_stay_exact_in_shares(tmp_path: Path) -> None:
    """Shares of the sides with twelve decimals would place an edge at 0.0000000002 pixels."""
    write_source(tmp_path / "coco", *({"bbox": [0, 0, side, 1 + side / 2]} for side in range(1, 60)))
    convert(tmp_path / "coco", "yolo", tmp_path / "yolo")
    assert read(tmp_path / "yolo").content_hash() == read(tmp_path / "coco").content_hash()


def test_coco_keeps_ids_crowds_areas_and_outlines(tmp_path: Path) -> None:
    parts = [[10, 5, 30, 5, 20.5, 20.25], [10, 20, 30, 35, 12, 30.1]]
    rows = [{"segmentation": parts, "area": 123.5}, {"iscrowd": 1, "bbox": [1, 1, 9, 9], "area": 7}]
    source = write_source(tmp_path / "in", *rows, images=[{"id": 42}])
    content = json.loads(source.read_text())
    source.write_text(json.dumps(content | {"annotations": [row | {"image_id": 42} for row in content["annotations"]]}))
    done = convert(source, "coco", tmp_path / "out")
    first, second = read(source), read(tmp_path / "out")
    assert first.content_hash() == second.content_hash()
    assert first.evaluation_hash() == second.evaluation_hash()
    assert (second.image_ids, second.category_ids) == ((42,), (3, 7))
    assert losses(done) == {"masks of crowd regions (their boxes are kept)": 1}


def test_what_a_format_cannot_express_is_counted(tmp_path: Path) -> None:
    two_parts = [TRIANGLE, [12, 5, 14, 5, 13, 8]]
    source = write_source(
        tmp_path / "in",
        {"iscrowd": 1},
        {"segmentation": [TRIANGLE]},
        {"segmentation": two_parts, "category_id": 3},
        {"segmentation": [[10, 5, 29, 5, 20, 35]], "bbox": [10, 5, 20, 31]},
        {"bbox": [1, 1, 8, 8], "area": 20},
        {"bbox": [50.5, 30, 20, 20]},
        {"bbox": [4, 4, 1, 7]},
        {"bbox": ["x", 4, 1, 7]},
        {"image_id": 9},
    )
    common = {"crowd regions": 1, "boxes that are not numbers": 1, "areas that differ from those of the boxes": 1}
    done = convert(source, "yolo", tmp_path / "yolo")
    assert losses(done) == common | {
        "outlines of several parts (the boxes are kept)": 1,
        "outlines that do not end at their boxes (the boxes are kept)": 1,
        "boxes reaching outside their image (clipped)": 1,
    }
    assert done.losses["annotation ids"] == 8
    assert [flaw.kind for flaw in done.flaws] == [FlawKind.UNKNOWN_IMAGE]
    index = read(tmp_path / "yolo")
    assert index.num_boxes == 6
    np.testing.assert_allclose(index.outlines_of(0)[0][0], np.reshape(TRIANGLE, (3, 2)), atol=1e-4)
    assert losses(convert(source, "voc", tmp_path / "voc")) == common | {
        "outlines (the boxes are kept)": 3,
        "boxes with fractions of a pixel (written as such; some tools read whole numbers only)": 1,
        "boxes that are at most one pixel wide or high": 1,
    }
    assert read(tmp_path / "voc").objects_xywh[4].tolist() == [50.5, 30, 20, 20]


def test_voc_says_that_it_has_no_order_of_classes(tmp_path: Path) -> None:
    write_yolo(tmp_path / "in", {"a": "0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.25 0.5\n"}, names="[zebra, ant, owl]")
    done = convert(tmp_path / "in", "voc", tmp_path / "out")
    assert losses(done) == {
        "boxes with fractions of a pixel (written as such; some tools read whole numbers only)": 1,
        "classes without objects": 1,
        "places of classes (VOC has no order of classes; they are sorted by name)": 2,
    }
    assert read(tmp_path / "out").class_names == ("ant", "zebra")


def test_splits_may_share_images_and_have_other_names(tmp_path: Path) -> None:
    boxes = {"a": [("cat", 1, 1, 20, 20)], "b": [("cat", 5, 5, 30, 30)]}
    write_voc(tmp_path / "in", boxes, split="trainval")
    (tmp_path / "in/ImageSets/Main/test.txt").write_text("b\n")
    convert(tmp_path / "in", "coco", tmp_path / "coco")
    assert dict(find_data(tmp_path / "coco").splits) == {"test": "test", "trainval": "trainval"}
    assert len(list((tmp_path / "coco/images").iterdir())) == 2
    convert(tmp_path / "in", "yolo", tmp_path / "yolo")
    assert (len(read(tmp_path / "yolo")), len(read(tmp_path / "yolo", "test"))) == (2, 1)


def test_images_of_one_name_get_names_of_their_own(tmp_path: Path) -> None:
    names = ["x/a.jpg", "y/a.jpg", "y/A.png", "a-2.jpg"]
    rows = [
        {"image_id": number + 1, "bbox": [number, 0, 9, 9], "category_id": 3 + 4 * (number % 2)} for number in range(4)
    ]
    source = write_source(tmp_path / "in", *rows, images=[{"file_name": name} for name in names])
    done = convert(source, "voc", tmp_path / "out")
    assert done.losses["names of images that other images have too (renamed)"] == 3
    assert len(set(os.listdir(tmp_path / "out/JPEGImages"))) == 4  # noqa: PTH208
    assert read(tmp_path / "out").content_hash() == read(source).content_hash()


def test_an_image_that_cannot_be_read_is_left_out_and_told(coco: Path, tmp_path: Path) -> None:
    (coco / "images/c.jpg").unlink()
    done = convert(coco, "yolo", tmp_path / "out")
    assert [flaw.kind for flaw in done.flaws] == [FlawKind.MISSING]
    assert done.splits == {"train": (2, 3)}


def test_images_are_links_or_copies(coco: Path, tmp_path: Path) -> None:
    assert convert(coco, "voc", tmp_path / "auto").linked == 3
    assert (tmp_path / "auto/JPEGImages/a.jpg").samefile(coco / "images/a.jpg")
    done = convert(coco, "voc", tmp_path / "copies", placement="copy")
    assert (done.linked, done.copied) == (0, 3)
    assert not (tmp_path / "copies/JPEGImages/a.jpg").samefile(coco / "images/a.jpg")


def test_the_target_must_be_a_new_folder_outside_of_the_source(coco: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    write_image(tmp_path / "full/x.jpg")
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match="full is not an empty folder; name a new one with -o"):
        convert(coco, "voc", tmp_path / "full")
    with pytest.raises(DataError, match=r"inside the source .*coco, which is not changed"):
        convert(coco, "voc", coco / "voc")
    assert snapshot(tmp_path) == before
    (tmp_path / "empty").mkdir()
    convert(coco, "voc", tmp_path / "empty")


def test_a_failed_conversion_leaves_no_folder(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in", {})
    source.write_text(source.read_text().replace('"cat"', '"a\\tb"'))
    with pytest.raises(DataError, match=r"VOC cannot express the class name 'a\\tb'"):
        convert(source, "voc", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_the_command_says_what_it_found_and_lost(coco: Path, tmp_path: Path) -> None:
    command = ["data", "convert", str(coco), "--to", "voc", "-o", str(tmp_path / "out"), "--copy"]
    lines = CliRunner().invoke(app, command).stdout.splitlines()
    assert lines[0].startswith("found coco data in ")
    assert "train: 3 images, 3 objects" in lines
    assert "lost: 3 annotation ids" in lines
    assert lines[-1] == f"written to {tmp_path / 'out'} (3 images copied)"
    error = CliRunner().invoke(app, ["data", "convert", str(coco), "--to", "yol", "-o", str(tmp_path / "x")]).exception
    assert str(error) == "--to='yol' is no format that is written; did you mean 'yolo'?"
