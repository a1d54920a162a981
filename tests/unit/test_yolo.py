"""The reader of YOLO data: layouts of files, forms of data.yaml, and flaws of lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.data_files import write_image, write_yolo
from yolov7.data.find_data import find_data, read_split
from yolov7.data.flaws import Flaw, FlawKind
from yolov7.data.index import ImageIndex
from yolov7.data.read.yolo import label_path
from yolov7.errors import DataError

BOX = "1 0.5 0.5 0.25 0.5\n"  # of 60 x 40 pixels: 22.5, 10, 37.5, 30


def read(path: Path, split: str = "train") -> tuple[ImageIndex, tuple[Flaw, ...]]:
    return read_split(find_data(path), split)


def test_boxes_and_polygons_in_shares_become_pixels(tmp_path: Path) -> None:
    index, flaws = read(write_yolo(tmp_path, {"a": BOX + "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.6\n"}))
    assert flaws == ()
    assert index.class_names == ("cat", "dog")
    assert index.category_ids == (0, 1)
    assert index.image_ids == ("a",)
    assert np.allclose(index.boxes_xyxy, [[22.5, 10, 37.5, 30], [6, 4, 30, 24]])
    box, polygon = index.outlines_of(0)
    assert box == ()
    assert np.allclose(polygon[0], [[6, 4], [30, 4], [30, 20], [6, 24]])
    assert index.object_areas.tolist() == pytest.approx([300, 432])  # of a polygon, that of its outline


@pytest.mark.parametrize(
    ("line", "kind", "detail"),
    [
        ("0 0.5 0.5 0.2", FlawKind.FIELD_COUNT, "line 2: 4 values; a box has 5, a polygon has 7, 9, 11, ..."),
        ("0 0.5 0.5 0.2 0.2 0.9", FlawKind.FIELD_COUNT, "line 2: 6 values; a box has 5, a polygon has 7, 9, 11, ..."),
        ("0 nan 0.5 0.2 0.2", FlawKind.NOT_FINITE, "line 2: 'nan'"),
        ("cat 0.5 0.5 0.2 0.2", FlawKind.NOT_FINITE, "line 2: 'cat'"),
        ("2 0.5 0.5 0.2 0.2", FlawKind.UNKNOWN_CATEGORY, "line 2: class '2'; the classes are 0 to 1"),
        ("-1 0.5 0.5 0.2 0.2", FlawKind.UNKNOWN_CATEGORY, "line 2: class '-1'; the classes are 0 to 1"),
        ("0.5 0.5 0.5 0.2 0.2", FlawKind.UNKNOWN_CATEGORY, "line 2: class '0.5'; the classes are 0 to 1"),
        ("0 30 20 15 20", FlawKind.NOT_SHARES, "line 2: '30 20 15 20'"),
        ("0 0.5 0.5 0 0.2", FlawKind.NO_AREA, "line 2: '0.5 0.5 0 0.2'"),
        (BOX.strip(), FlawKind.DUPLICATE_BOX, "line 2: the same as line 1"),
    ],
)
def test_a_flaw_of_a_line_is_counted_with_file_and_line(tmp_path: Path, line: str, kind: FlawKind, detail: str) -> None:
    index, flaws = read(write_yolo(tmp_path, {"a": f"{BOX}{line}\n\n"}))
    assert flaws == (Flaw(kind, str(tmp_path / "labels/train/a.txt"), detail, boxes=1),)
    assert index.num_boxes == 1


def test_a_small_box_in_the_first_pixel_is_an_object(tmp_path: Path) -> None:
    index, flaws = read(write_yolo(tmp_path, {"a": "0 0.005 0.005 0.01 0.01\n"}))
    assert (index.num_boxes, flaws) == (1, ())


def test_images_without_objects_are_counted(tmp_path: Path) -> None:
    index, flaws = read(write_yolo(tmp_path, {"a": BOX, "empty": "", "none": None}))
    assert [flaw.kind for flaw in flaws] == [FlawKind.NO_LABEL_FILE, FlawKind.BACKGROUND, FlawKind.BACKGROUND]
    assert len(index) == 3


def test_no_label_file_at_all_is_an_error(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, {"a": None})
    with pytest.raises(DataError, match=r"none of the 1 images .*labels/train/a\.txt does not exist; put labels"):
        read(path)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/train/a.jpg", "labels/train/a.txt"),
        ("train/images/a.jpg", "train/labels/a.txt"),
        ("images/a/images/b.jpg", "labels/a/images/b.txt"),
        ("a/b.jpg", "a/b.txt"),
        ("images/c.jpg", "images/c.txt"),
    ],
)
def test_labels_are_in_a_parallel_tree_or_beside_the_images(tmp_path: Path, image: str, label: str) -> None:
    (tmp_path / label).parent.mkdir(parents=True)
    (tmp_path / label).touch()
    assert label_path(tmp_path / image) == tmp_path / label


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        ("[cat, dog]", ("cat", "dog")),
        ("{1: dog, 0: cat}", ("cat", "dog")),
        ("{'0': cat, '1': dog}", ("cat", "dog")),
        ("[1, 2]", ("1", "2")),
        ("\nnc: 2", ("class 0", "class 1")),
    ],
)
def test_forms_of_names(tmp_path: Path, names: str, classes: tuple[str, ...]) -> None:
    assert find_data(write_yolo(tmp_path, {"a": BOX}, names=names)).class_names == classes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("{1: cat, 2: dog}", r"the keys of names must be 0 to 1, got \[1, 2\]"),
        ("[cat, cat]", "names has 'cat' twice or blank"),
        ("[cat, dog]\nnc: 3", "has nc=3 and 2 names"),
        ("cat", "names must be a list or a map of class names, got 'cat'"),
        ("\nnc: many", "nc must be the number of classes, got 'many'"),
    ],
)
def test_wrong_names_are_refused(tmp_path: Path, names: str, message: str) -> None:
    path = write_yolo(tmp_path, {"a": BOX}, names=names)
    with pytest.raises(DataError, match=message):
        read(path)


@pytest.mark.parametrize("entry", ["train.txt", "../images/train", "[images/train/a.jpg, images/train/b.jpg]", "."])
def test_forms_of_a_split(tmp_path: Path, entry: str) -> None:
    path = write_yolo(tmp_path, {"a": BOX, "b": BOX})
    (tmp_path / "train.txt").write_text(f"./images/train/a.jpg\n\n{tmp_path}/images/train/b.jpg\n")
    path.write_text(f"train: {entry}\nnames: [cat, dog]\n")
    assert read(path)[0].image_ids == ("a", "b")


def test_sources_are_relative_to_the_stated_path(tmp_path: Path) -> None:
    write_yolo(tmp_path / "data", {"a": BOX})
    path = tmp_path / "elsewhere" / "data.yaml"
    path.parent.mkdir()
    path.write_text("path: ../data\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n")
    assert len(read(path)[0]) == 1
    with pytest.raises(DataError, match=r"split 'val' of .*images/val does not exist; .* are: train, val"):
        read(path, "val")


def test_equal_names_in_several_folders_get_ids_with_folders(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, {"x/a": BOX, "y/a": BOX})
    assert read(path)[0].image_ids == ("images/train/x/a", "images/train/y/a")


def test_values_behind_the_box_are_ignored_if_they_are_keypoints(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, {"a": f"{BOX.strip()} 0.1 0.1 2 0.2 0.2 1\n"})
    path.write_text(path.read_text() + "kpt_shape: [2, 3]\n")
    index, flaws = read(path)
    assert (index.num_boxes, index.outlines, flaws) == (1, None, ())


def test_a_folder_with_class_names_and_no_data_yaml(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": BOX}).unlink()
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    found = find_data(tmp_path)
    assert (found.format, dict(found.splits), found.class_names) == ("yolo", {"train": "train"}, ("cat", "dog"))
    assert read_split(found, "train")[0].num_boxes == 1


def test_classes_of_a_model_decide_the_labels(tmp_path: Path) -> None:
    index, flaws = read_split(
        find_data(write_yolo(tmp_path, {"a": BOX + "0 0.2 0.2 0.1 0.1\n"})), "train", class_names=("eel", "dog")
    )
    assert (index.labels.tolist(), index.category_ids) == ([1], (2, 1))
    assert flaws == (Flaw(FlawKind.UNKNOWN_CATEGORY, str(tmp_path / "data.yaml"), "1 of class 'cat'", boxes=1),)


def test_an_image_that_was_rotated_by_its_exif_data(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, {"a": BOX})
    content = write_image(tmp_path / "images/train/a.jpg", width=600, height=400)
    exif = b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    (tmp_path / "images/train/a.jpg").write_bytes(content[:2] + exif + content[2:])
    index, _ = read(path)
    assert (index.widths[0], index.heights[0]) == (400, 600)
    assert np.allclose(index.boxes_xyxy, [[150, 150, 250, 450]])
