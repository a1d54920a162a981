"""Annotation files as annotation tools export them: read correctly, or refused in one line with a remedy.

The files are of our own making. `test_field_forms` has the forms of single fields, encodings and rotated boxes.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.data_files import write_image
from yolov7.data.find_data import find_data, read_split
from yolov7.data.flaws import FlawKind
from yolov7.data.index import ImageIndex
from yolov7.errors import DataError

BOX = [10.0, 5.0, 20.0, 30.0]  # in an image of 60 x 40
CORNERS = [10, 5, 30, 35]
POLYGON = [10.0, 5.0, 30.0, 5.0, 30.0, 35.0, 10.0, 35.0]
SHARES = "0.16666667 0.125 0.5 0.125 0.5 0.875 0.16666667 0.875"


def read(root: Path, split: str) -> tuple[ImageIndex, dict[FlawKind, int]]:
    index, flaws = read_split(find_data(root), split)
    return index, dict(Counter(flaw.kind for flaw in flaws))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def check_cat(index: ImageIndex) -> None:
    assert index.class_names[int(index.labels[0])] == "cat"
    np.testing.assert_allclose(index.boxes_of(0), [CORNERS], atol=1e-4)


def test_coco_of_cvat(tmp_path: Path) -> None:
    row = {"id": 1, "image_id": 1, "category_id": 2, "segmentation": [], "area": 600.0, "bbox": BOX, "iscrowd": 0}
    row |= {"attributes": {"occluded": False, "rotation": 0.0, "track_id": 0, "keyframe": True}}
    image = {"id": 1, "width": 60, "height": 40, "file_name": "cam 1/frame_000000.PNG", "license": 0}
    image |= {"flickr_url": "", "coco_url": "", "date_captured": 0}
    categories = [{"id": n + 1, "name": name, "supercategory": ""} for n, name in enumerate(["dog", "cat"])]
    head = {"licenses": [{"name": "", "id": 0, "url": ""}], "info": {"contributor": "", "version": ""}}
    content = head | {"categories": categories, "images": [image], "annotations": [row]}
    write_json(tmp_path / "annotations/instances_default.json", content)
    write_image(tmp_path / "images/cam 1/frame_000000.PNG")
    (split,) = find_data(tmp_path).splits
    index, flaws = read(tmp_path, split)
    check_cat(index)
    assert flaws == {}


def test_voc_of_cvat(tmp_path: Path) -> None:
    text = """<annotation><folder></folder><filename>frame 1.jpg</filename>
      <source><database>Unknown</database></source><size><width>60</width><height>40</height><depth></depth></size>
      <segmented>0</segmented><object><name>cat</name><truncated>0</truncated><occluded>0</occluded>
      <difficult>0</difficult><bndbox><xmin>11.0</xmin><ymin>6.0</ymin><xmax>30.0</xmax><ymax>35.0</ymax></bndbox>
      <attributes><attribute><name>rotation</name><value>0.0</value></attribute></attributes></object></annotation>"""
    for name in ("Annotations", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "Annotations/frame 1.xml").write_text(text)
    (tmp_path / "ImageSets/Main/default.txt").write_text("frame 1\n")
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\n")
    write_image(tmp_path / "JPEGImages/frame 1.jpg")
    index, flaws = read(tmp_path, "default")
    check_cat(index)
    assert flaws == {}


def test_parts_of_voc_objects_are_no_objects(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    box = "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>35</ymax></bndbox>"
    (tmp_path / "Annotations").mkdir()
    for number, inner in enumerate((f"{part}{box}", f"{box}{part}")):
        text = f"<annotation><object>{'<name>cat</name>'}{inner}</object></annotation>"
        (tmp_path / f"Annotations/{number}.xml").write_text(text)
        write_image(tmp_path / f"JPEGImages/{number}.jpg", seed=number)
    index, flaws = read(tmp_path, "all")
    assert index.class_names == ("cat",)
    assert index.boxes_xyxy.tolist() == [CORNERS, CORNERS]
    assert flaws == {}


def test_coco_of_label_studio(tmp_path: Path) -> None:
    row = {"id": 0, "image_id": 0, "category_id": 0, "segmentation": [], "bbox": BOX, "ignore": 0, "iscrowd": 0}
    content = {
        "images": [{"width": 60, "height": 40, "id": 0, "file_name": "images\\1a2b3c4d-größe.jpg"}],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [row | {"area": 600}],
        "info": {"year": 2026, "version": "1.0", "contributor": "Label Studio"},
    }
    write_json(tmp_path / "result.json", content)
    write_image(tmp_path / "images/1a2b3c4d-größe.jpg")
    (split,) = find_data(tmp_path).splits
    index, flaws = read(tmp_path, split)
    check_cat(index)
    assert (flaws, index.category_ids) == ({}, (0, 1))


def test_yolo_of_label_studio(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    notes = {"categories": [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}], "info": {"year": 2026}}
    write_json(tmp_path / "notes.json", notes)
    write_image(tmp_path / "images/1a2b-photo.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/1a2b-photo.txt").write_text("1 0.3333333333333333 0.5 0.3333333333333333 0.7500000000000001")
    index, flaws = read(tmp_path, "train")
    check_cat(index)
    assert flaws == {}


def test_yolo_of_roboflow(tmp_path: Path) -> None:
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['dog', 'cat']\n"
    (tmp_path / "data.yaml").write_text(f"{text}\nroboflow:\n  workspace: w\n  version: 1\n")
    (tmp_path / "README.roboflow.txt").write_text("exported\n")
    for seed, split in enumerate(("train", "valid", "test")):
        write_image(tmp_path / split / "images/a_jpg.rf.0f.jpg", seed=seed)
        (tmp_path / split / "labels").mkdir()
        line = f"1 {SHARES}" if split == "train" else "1 0.33333333 0.5 0.33333333 0.75"
        (tmp_path / split / "labels/a_jpg.rf.0f.txt").write_text(line)
    assert list(find_data(tmp_path).splits) == ["train", "val", "test"]
    for split in ("train", "val", "test"):
        index, flaws = read(tmp_path, split)
        check_cat(index)
        assert flaws == {}
    assert len(read(tmp_path, "train")[0].outlines_of(0)[0][0]) == 4


def test_coco_in_the_style_of_lvis(tmp_path: Path) -> None:
    categories = [
        {"id": n, "name": name, "synset": f"{name}.n.01", "synonyms": [name], "def": "x", "frequency": "r"}
        | {"image_count": 1, "instance_count": 1}
        for n, name in ((7, "cat"), (1203, "dog"))
    ]
    image = {"id": 9, "width": 60, "height": 40, "coco_url": "http://images.cocodataset.org/train2017/000000000009.jpg"}
    image |= {"neg_category_ids": [1203], "not_exhaustive_category_ids": []}
    row = {"id": 1, "image_id": 9, "category_id": 7, "bbox": BOX, "area": 600.0, "segmentation": [POLYGON]}
    content = {"images": [image], "annotations": [row], "categories": categories}
    write_json(tmp_path / "annotations/lvis_v1_train.json", content)
    write_image(tmp_path / "train2017/000000000009.jpg")
    index, flaws = read(tmp_path, "train")
    check_cat(index)
    assert flaws == {}


@pytest.mark.parametrize("counts", [[205, 30, 10, 30], "5d0N200"], ids=["list", "compressed"])
def test_masks_of_coco_leave_the_box(tmp_path: Path, counts: object) -> None:
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 60, "iscrowd": 0}
    row |= {"segmentation": {"size": [40, 60], "counts": counts}}
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "cat"}]}
    write_json(tmp_path / "train.json", content | {"annotations": [row]})
    write_image(tmp_path / "a.jpg")
    index, flaws = read(tmp_path, "train")
    check_cat(index)
    assert (index.object_areas.tolist(), flaws) == ([60], {FlawKind.MASK: 1})


LABELME = {"version": "5.4.1", "flags": {}, "imagePath": "a.jpg", "imageHeight": 40, "imageWidth": 60}
VIA_REGION = {"shape_attributes": {"name": "rect", "x": 10, "y": 5}, "region_attributes": {"kind": "cat"}}
STUDIO = {"from_name": "label", "to_name": "image", "type": "rectanglelabels", "value": {"x": 16.7}}
CVAT = '<annotations><version>1.1</version><image id="0" name="a.jpg"><box label="cat" xtl="1"/></image></annotations>'


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("a.json", LABELME | {"shapes": [{"label": "cat", "points": [[10, 5], [30, 35]]}]}, "labelme2coco"),
        ("via.json", {"a.jpg1": {"filename": "a.jpg", "regions": [VIA_REGION]}}, r"Export Annotations \(COCO format\)"),
        ("via.csv", "filename,file_size,region_shape_attributes\n", r"Export Annotations \(COCO format\)"),
        ("tasks.json", [{"id": 1, "annotations": [{"result": [STUDIO]}]}], "export the project as COCO or YOLO"),
        ("annotations.xml", CVAT, "export the task as COCO"),
    ],
)
def test_the_own_format_of_a_tool_is_refused_with_its_remedy(
    tmp_path: Path, name: str, content: object, remedy: str
) -> None:
    write_image(tmp_path / "a.jpg")
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(DataError, match=f"is in the own format of .*{remedy}") as caught:
            find_data(path)
        assert "\n" not in str(caught.value)


def test_what_is_no_data_set_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    (tmp_path / "results.json").write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": BOX, "score": 0.5}]))
    (tmp_path / "data.zip").write_bytes(b"PK")
    results = r"results\.json holds results of a model and no annotations; name the annotation file"
    with pytest.raises(DataError, match=rf"which has 1 image; {results}"):
        find_data(tmp_path)
    with pytest.raises(DataError, match=results):
        find_data(tmp_path / "results.json")
    with pytest.raises(DataError, match=r"data\.zip is an archive; unpack it, and name the folder"):
        find_data(tmp_path / "data.zip")
    for name in "ab":
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / f"Annotations/{name}.xml").write_text("<annotation><object>")
    with pytest.raises(DataError, match=r"2 of the 2 annotation files of .* cannot be read.*does not parse"):
        find_data(tmp_path).class_names  # noqa: B018
