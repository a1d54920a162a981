"""Every field that the readers take from a file, in the forms in which tools write it."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.data_files import write_coco, write_image, write_voc
from yolov7.data.box_sizes import count_small_boxes
from yolov7.data.flaws import Flaw, FlawKind
from yolov7.data.index import ImageIndex
from yolov7.data.read.coco import find_coco_file, read_coco
from yolov7.data.read.voc import read_voc, voc_class_names
from yolov7.errors import DataError

BOX = [10, 5, 20, 30]


def kinds(flaws: tuple[Flaw, ...]) -> dict[FlawKind, int]:
    return dict(Counter(flaw.kind for flaw in flaws))


def read_one(folder: Path, *objects: dict[str, Any], **content: Any) -> tuple[ImageIndex, dict[FlawKind, int]]:
    """Read a file of one image of 60 x 40; `content` replaces whole lists."""
    path = write_coco(folder, images=[{}], annotations=[{"image_id": 1, "bbox": BOX} | row for row in objects])
    path.write_text(json.dumps(json.loads(path.read_text()) | content))
    index, flaws = read_coco(path)
    return index, kinds(flaws)


@pytest.mark.parametrize("value", [0, "0", " 0 ", "false", "False", 0.0, False, None])
def test_forms_of_no_crowd(tmp_path: Path, value: object) -> None:
    index, flaws = read_one(tmp_path, {"iscrowd": value})
    assert (index.crowd.tolist(), flaws) == ([False], {})


@pytest.mark.parametrize("value", [1, "1", "true", " True ", 1.0, True])
def test_forms_of_a_crowd(tmp_path: Path, value: object) -> None:
    index, flaws = read_one(tmp_path, {"iscrowd": value})
    assert (index.crowd.tolist(), flaws) == ([True], {})


@pytest.mark.parametrize("value", [2, -1, "x", "", [0], {}, 0.5, float("nan")])
def test_what_is_neither_crowd_nor_not_is_an_object_and_counted(tmp_path: Path, value: object) -> None:
    index, flaws = read_one(tmp_path, {"iscrowd": value})
    assert (index.crowd.tolist(), flaws) == ([False], {FlawKind.CROWD_VALUE: 1})


def test_an_object_is_no_duplicate_of_a_crowd_region(tmp_path: Path) -> None:
    index, flaws = read_one(tmp_path, {"iscrowd": 1}, {}, {"iscrowd": 1}, {})
    assert (index.crowd.tolist(), flaws) == ([True, False], {FlawKind.DUPLICATE_BOX: 2})


@pytest.mark.parametrize("box", [["10", " 5 ", "2e1", 30.0], [10.0, 5, 20, 30]])
def test_numbers_of_boxes_may_be_text(tmp_path: Path, box: list[object]) -> None:
    index, flaws = read_one(tmp_path, {"bbox": box})
    assert (index.boxes_of(0).tolist(), flaws) == ([[10, 5, 30, 35]], {})


@pytest.mark.parametrize(
    "box", [[True, 5, 20, 30], ["", 5, 20, 30], ["nan", 5, 20, 30], {"x": 1}, "1234", [[1, 2, 3, 4]], 7]
)
def test_boxes_that_are_no_numbers_are_counted(tmp_path: Path, box: object) -> None:
    assert read_one(tmp_path, {"bbox": box}, {})[1] == {FlawKind.NOT_FINITE: 1}


@pytest.mark.parametrize("box", [None, []])
def test_an_object_without_a_box_gets_that_of_its_polygons(tmp_path: Path, box: object) -> None:
    polygon = ["10", 5, 30, 5, 30.0, 35]
    index, flaws = read_one(tmp_path, {"bbox": box, "segmentation": [polygon]})
    assert (index.boxes_of(0).tolist(), flaws) == ([[10, 5, 30, 35]], {})


@pytest.mark.parametrize(
    ("area", "flaw"), [("300", False), (None, False), (0, True), (-1, True), ("x", True), (True, True)]
)
def test_areas(tmp_path: Path, area: object, flaw: bool) -> None:
    index, flaws = read_one(tmp_path, {"area": area})
    assert index.object_areas.tolist() == ([300] if area == "300" else [600])
    assert flaws == ({FlawKind.AREA: 1} if flaw else {})


@pytest.mark.parametrize(
    "size", [(960, 640), (960.0, 640.0), ("960", "640"), ("x", 40), (60, -40), ([60], 40), (60, None)]
)
def test_a_stated_size_is_compared_in_every_form(tmp_path: Path, size: tuple[object, object]) -> None:
    image = {"id": 1, "file_name": "0.jpg", "width": size[0], "height": size[1]}
    assert read_one(tmp_path, {}, images=[image])[1] == ({} if size[1] is None else {FlawKind.SIZE: 1})


@pytest.mark.parametrize("sizes", [{}, {"width": None, "height": None}, {"width": 0, "height": "0"}, {"width": " 60 "}])
def test_a_size_that_is_not_stated_is_not_compared(tmp_path: Path, sizes: dict[str, object]) -> None:
    assert read_one(tmp_path, {}, images=[{"id": 1, "file_name": "0.jpg"} | sizes])[1] == {}


@pytest.mark.parametrize(("table", "used"), [("7", 7), (7, "7"), (7, 7.0), ("7", " 7"), (7.0, 7)])
def test_category_ids_match_as_numbers(tmp_path: Path, table: object, used: object) -> None:
    index, flaws = read_one(tmp_path, {"category_id": used}, categories=[{"id": table, "name": "cat"}])
    assert (index.labels.tolist(), flaws, index.category_ids) == ([0], {}, (table,))


@pytest.mark.parametrize("used", [True, None, [7], "x", 8, 7.5])
def test_other_category_ids_are_counted(tmp_path: Path, used: object) -> None:
    categories = [{"id": 7, "name": "cat"}, {"id": 1, "name": "dog"}]
    assert read_one(tmp_path, {"category_id": used}, {}, categories=categories)[1] == {FlawKind.UNKNOWN_CATEGORY: 1}


def test_numeric_ids_come_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    rows = [{"id": given, "name": f"class {given}"} for given in ("10", "9", "x", "a")]
    assert read_one(tmp_path, {"category_id": "9"}, categories=rows)[0].category_ids == ("9", "10", "a", "x")


@pytest.mark.parametrize(
    "name", ["a\tb", "0", "true", "<b>&", "$x$", "{{ 1 }}", "日本 🐕", "a\nb", "\x1b[31m", "x" * 3000]
)
def test_odd_class_names_are_accepted(tmp_path: Path, name: str) -> None:
    index, flaws = read_one(tmp_path, {}, categories=[{"id": 7, "name": name}])
    assert (index.class_names, flaws) == ((name,), {})


@pytest.mark.parametrize("name", [None, True, [], "", " ", "\ud800"])
def test_names_that_are_none_are_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(DataError, match="category"):
        read_one(tmp_path, {}, categories=[{"id": 7, "name": name}])


def test_an_unused_root_category_is_left_out(tmp_path: Path) -> None:
    root = {"id": 0, "name": "boat", "supercategory": "none"}
    index, flaws = read_one(tmp_path, {}, categories=[root, {"id": 7, "name": "boat", "supercategory": "boat"}])
    assert (index.class_names, index.category_ids, flaws) == (("boat",), (7,), {FlawKind.UNUSED_ROOT: 1})
    with pytest.raises(DataError, match=r"category name 'boat' twice: ids 0 \('boat'\) and 7 \('boat'\)"):
        read_one(tmp_path, {}, {"category_id": 0}, categories=[root, {"id": 7, "name": "boat"}])
    person = [{"id": 7, "name": "cat", "supercategory": "cat"}, {"id": 9, "name": "eel", "supercategory": "eel"}]
    assert read_one(tmp_path, {}, categories=person)[0].class_names == ("cat", "eel")


def test_rotated_rectangles(tmp_path: Path) -> None:
    pen = {"bbox": [10, 16, 40, 8]}
    turned = [pen | {"attributes": {"rotation": angle}} for angle in (0.0, 90.0, "90", 45, 360, None, "x")]
    index, flaws = read_one(tmp_path, *turned)
    assert index.boxes_of(0)[1].tolist() == pytest.approx([26, 0, 34, 40])
    side = 48 / math.sqrt(2)
    assert index.boxes_of(0)[2].tolist() == pytest.approx([30 - side / 2, 20 - side / 2, 30 + side / 2, 20 + side / 2])
    assert flaws == {FlawKind.TURNED: 4, FlawKind.DUPLICATE_BOX: 4}


def test_boxes_in_shares_are_counted(tmp_path: Path) -> None:
    index, flaws = read_one(
        tmp_path, {"bbox": [0.1, 0.2, 0.3, 0.4]}, {"bbox": [0, 0, 1, 1]}, {"bbox": [0, 0, 1, 2]}, {}
    )
    assert (len(index.labels), flaws) == (2, {FlawKind.SHARES: 2})


def test_two_entries_of_a_file_are_one_image(tmp_path: Path) -> None:
    images = [{}, {"file_name": "./0.jpg", "skip": True}, {}]
    rows = [{"image_id": 2, "bbox": [1, 1, 5, 5]}, {"image_id": 3, "bbox": BOX}, {"image_id": 1, "bbox": BOX}]
    index, flaws = read_coco(write_coco(tmp_path, images=images, annotations=rows))
    assert (index.image_ids, kinds(flaws)) == ((1, 3), {FlawKind.DUPLICATE_IMAGE: 1})
    assert index.boxes_of(0).tolist() == [[10, 5, 30, 35], [1, 1, 6, 6]]


def test_copies_of_an_image_are_told(tmp_path: Path) -> None:
    path = write_coco(tmp_path, images=[{}, {}], annotations=[{"image_id": 1, "bbox": BOX}])
    write_image(tmp_path / "images/1.jpg", seed=0)
    index, flaws = read_coco(path)
    assert (len(index), kinds(flaws)) == (2, {FlawKind.COPY: 1, FlawKind.BACKGROUND: 1})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_encodings_of_json(tmp_path: Path, encoding: str) -> None:
    path = write_coco(tmp_path, images=[{"file_name": "größe.jpg"}], annotations=[{"image_id": 1, "bbox": BOX}])
    path.write_bytes(json.dumps(json.loads(path.read_text()), ensure_ascii=False).encode(encoding))
    assert read_coco(path)[0].paths[0].name == "größe.jpg"


def test_windows_paths(tmp_path: Path) -> None:
    images = [{}, {"file_name": "sub\\1.jpg", "skip": True}, {"file_name": "images\\sub/2.jpg", "skip": True}]
    path = write_coco(tmp_path, images=images, annotations=[{"image_id": 1, "bbox": BOX}])
    for number in (1, 2):
        write_image(tmp_path / f"images/sub/{number}.jpg", seed=number)
    assert len(read_coco(path)[0]) == 3


def test_a_folder_of_another_format_names_the_formats(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: images")
    with pytest.raises(DataError, match=r"no json files; the formats that are read are COCO .* and Pascal VOC"):
        find_coco_file(tmp_path, "train")


def _annotate(root: Path, stem: str, text: str | bytes) -> None:
    path = root / f"Annotations/{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


OBJECT = "<object><name>cat</name><bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>35</ymax></bndbox></object>"


@pytest.mark.parametrize(
    "text",
    [
        f'<annotation xmlns="http://example.org/voc">{OBJECT}</annotation>',
        f'<v:annotation xmlns:v="x">{OBJECT.replace("<", "<v:").replace("<v:/", "</v:")}</v:annotation>',
        f"<Annotation>{OBJECT.replace('bndbox', 'BndBox')}</Annotation>",
        f"\ufeff<annotation>{OBJECT}</annotation>",
        f'<?xml version="1.0" encoding="UTF-16"?><annotation>{OBJECT}</annotation>'.encode("utf-16"),
        f"<annotation><folder>größe</folder>{OBJECT}</annotation>".encode("cp1252"),
        f'<?xml version="1.0" encoding="utf-8"?><annotation><folder>größe</folder>{OBJECT}</annotation>'.encode(
            "cp1252"
        ),
        f"<annotation>{OBJECT.replace('>11<', '> 11.0 <').replace('>30<', '>3e1<')}</annotation>",
        "<annotation><object><name>cat</name><robndbox><cx>20</cx><cy>20</cy><w>30</w><h>20</h>"
        "<angle>1.5707963267948966</angle></robndbox></object></annotation>",
        "<annotation><object><name>cat</name><bndbox><xmin>6</xmin><ymin>11</ymin><xmax>35</xmax><ymax>30</ymax></bndbox>"
        "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes></object></annotation>",
    ],
)
def test_forms_of_voc_annotations(tmp_path: Path, text: str | bytes) -> None:
    write_voc(tmp_path, {"x": []})
    _annotate(tmp_path, "x", text)
    index, flaws = read_voc(tmp_path, "train")
    np.testing.assert_allclose(index.boxes_of(0), [[10, 5, 30, 35]], atol=1e-5)
    assert set(kinds(flaws)) <= {FlawKind.TURNED}


@pytest.mark.parametrize("text", [f"<annotations>{OBJECT}</annotations>", f"<html>{OBJECT}</html>", "<annotation>"])
def test_annotations_of_another_kind_are_no_background(tmp_path: Path, text: str) -> None:
    write_voc(tmp_path, {"x": [], "y": [("cat", 1, 1, 20, 20)]})
    _annotate(tmp_path, "x", text)
    index, flaws = read_voc(tmp_path, "train")
    assert (len(index), kinds(flaws)) == (1, {FlawKind.NO_ANNOTATION: 1})


@pytest.mark.parametrize(("text", "flaw"), [("200", True), ("200.0", True), (" 60 ", False), ("0", False), ("x", True)])
def test_stated_sizes_of_voc(tmp_path: Path, text: str, flaw: bool) -> None:
    write_voc(tmp_path, {"x": []})
    _annotate(tmp_path, "x", f"<annotation><size><width>{text}</width></size>{OBJECT}</annotation>")
    assert kinds(read_voc(tmp_path, "train")[1]) == ({FlawKind.SIZE: 1} if flaw else {})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_lists_of_voc(tmp_path: Path, encoding: str) -> None:
    names = ["photo", "photo 0", "photo 1", "a/1", "b/1", "größe"]
    write_voc(tmp_path, {name.replace("/", "-"): [] for name in names})
    for name in names:
        _annotate(tmp_path, name, f"<annotation>{OBJECT.replace('cat', 'dog') if '/' in name else OBJECT}</annotation>")
        write_image(tmp_path / f"JPEGImages/{name}.jpg", seed=len(name) + ord(name[0]) + ord(name[-1]))
    lines = ["photo", "photo 0", "photo 1", "a\\1", "b/1  -1", "größe.jpg"]
    (tmp_path / "ImageSets/Main/train.txt").write_bytes("\r\n".join(lines).encode(encoding))
    index, flaws = read_voc(tmp_path, "train")
    assert voc_class_names(tmp_path) == ("cat", "dog")
    assert (index.image_ids, flaws) == (tuple(names), ())


def test_small_objects_are_counted(tmp_path: Path) -> None:
    boxes = [[1, 1, 20, 20], [1, 1, 4, 20], [1, 1, 6, 6], [2, 2, 4, 4]]
    index, _ = read_one(tmp_path, *({"bbox": box, "iscrowd": int(box[0] == 2)} for box in boxes))
    assert [count_small_boxes(index, image_size=size) for size in (3, 30, 24, 600)] == [(3, 3), (1, 3), (1, 3), (0, 3)]


@pytest.mark.parametrize(
    "text",
    [
        "<annotation><folder>" + "x" * (17 * 2**20) + "</folder></annotation>",
        "<annotation>" + "<a>" * 2_000_000,
        '<!DOCTYPE a [<!ENTITY a "' + "a" * 50_000 + '">]><annotation>' + "&a;" * 50_000 + "</annotation>",
    ],
    ids=["large", "deep", "expanding"],
)
def test_annotations_that_take_too_much_memory_are_left_out(tmp_path: Path, text: str) -> None:
    write_voc(tmp_path, {"x": [], "y": [("cat", 1, 1, 20, 20)]})
    _annotate(tmp_path, "x", text)
    index, flaws = read_voc(tmp_path, "train")
    assert (len(index), kinds(flaws)) == (1, {FlawKind.NO_ANNOTATION: 1})


def test_json_that_is_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    path = write_coco(tmp_path, images=[{}], annotations=[{"image_id": 1, "bbox": BOX}])
    content = path.read_text()
    for deep in ('{"a":' * 100_000, "[" * 100_000, "9" * 10_000):
        path.write_text(content.replace('"iscrowd": 0', f'"iscrowd": {deep}'))
        with pytest.raises(DataError, match=r"train\.json is not valid JSON"):
            read_coco(path)


def test_the_page_of_formats_lists_every_flaw() -> None:
    page = (Path(__file__).parents[2] / "docs/data-formats.md").read_text(encoding="utf-8")
    for kind in FlawKind:
        group = kind.group.value if kind.group else "a remark, never fatal"
        assert f"| {kind} | {group} | {kind.outcome} |" in page
