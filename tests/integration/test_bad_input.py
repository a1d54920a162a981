"""Odd and bad data: what can be used is trained on, what cannot is counted; one line says file, value and remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pipeline.data_settings import DataSettings
from pipeline.report.health import HealthReport
from pipeline.stages.prepare import prepare
from tests.integration.bad_input import TINY, coco_settings, one_line_of, write_set
from tests.unit.data_files import write_image, write_voc
from yolov7.data.flaws import FlawKind
from yolov7.data.index import load_index
from yolov7.errors import DataError
from yolov7.settings import TrainSettings
from yolov7.spec.spec_files import resolve_spec, spec_to_json
from yolov7.training.job import TrainJob
from yolov7.training.loop import WEIGHTS, Worker, fit
from yolov7.training.record import read_epochs
from yolov7.weights.weight_files import load_weights


def report(root: Path) -> HealthReport:
    return HealthReport.model_validate_json((root / "artifacts/prepare/health.json").read_text())


EVERY_FLAW = [
    {},
    {},
    {"bbox": [1, 1, 0, 9]},
    {"bbox": [1, 1, 9, -3]},
    {"bbox": [70, 5, 10, 30]},
    {"bbox": [50, 5, 20, 30]},
    {"bbox": [float("nan"), 5, 20, 30]},
    {"bbox": [float("inf"), 5, 20, 30]},
    {"bbox": [10**400, 5, 20, 30]},
    {"bbox": None},
    {"bbox": "1234"},
    {"bbox": [1, 2, 3]},
    {"bbox": [[1], 2, 3, 4]},
    {"category_id": 99},
    {"category_id": [1]},
    {"category_id": None},
    {"image_id": 99},
    {"image_id": {"a": 1}},
    {"bbox": [1, 1, 5, 5], "id": 1},
    {"bbox": [2, 2, 5, 5], "id": [3]},
]
COUNTED = {
    FlawKind.DUPLICATE_BOX: 1,
    FlawKind.NO_AREA: 2,
    FlawKind.OUTSIDE: 1,
    FlawKind.CLIPPED: 1,
    FlawKind.NOT_FINITE: 7,
    FlawKind.UNKNOWN_CATEGORY: 3,
    FlawKind.UNKNOWN_IMAGE: 2,
    FlawKind.DUPLICATE_ID: 2,
    FlawKind.BACKGROUND: 1,
    FlawKind.MISSING: 2,
    FlawKind.UNREADABLE: 2,
    FlawKind.SIZE: 1,
}


@pytest.fixture
def flawed(tmp_path: Path) -> DataSettings:
    """A data set with a flaw of every kind that COCO's format can have."""
    odd = [{"file_name": name, "skip": True} for name in ("gone.jpg", "n" * 300, "cut.jpg", "text.jpg")]
    images = [{}, {"width": 61}, *odd, {"id": 1, "skip": True}]
    plain = write_set(tmp_path / "data", EVERY_FLAW, images=images)
    content = write_image(tmp_path / "data/images/cut.jpg")
    (tmp_path / "data/images/cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "data/images/text.jpg").write_text("not a picture")
    return plain.model_copy(update={"val": None})


def with_flaws(plain: DataSettings, **flaws: Any) -> DataSettings:
    return coco_settings(Path(plain.path), flaws={"max_unreadable": 0.9} | flaws)


def test_every_flaw_is_counted_listed_and_left_out(flawed: DataSettings, tmp_path: Path) -> None:
    line = prepare(with_flaws(flawed), project_root=tmp_path)
    train = report(tmp_path).splits["train"]
    assert train.flaws == {str(kind): count for kind, count in COUNTED.items()}
    assert len(train.listed_flaws) == sum(COUNTED.values())
    page = (tmp_path / "artifacts/prepare/health.html").read_text()
    assert all(f"{kind}: {kind.outcome}" in page for kind in COUNTED)
    total = sum(COUNTED.values()) - COUNTED[FlawKind.BACKGROUND]
    assert f"{total} flaws (box that is not numbers: 7, " in line
    index = load_index(tmp_path / "artifacts/prepare/train.npz")
    assert index.boxes_of(0).tolist() == [[10, 5, 40, 30], [50, 5, 60, 35], [1, 1, 6, 6], [2, 2, 7, 7]]


@pytest.mark.parametrize(
    ("flaws", "message"),
    [
        ({"max_unreadable": 0.01}, r"4 of 6 images of train cannot be used .*max_unreadable=0\.01.*missing image"),
        ({"fatal": ["boxes"]}, r"17 flaws in train, e\.g\. .*correct them, or remove boxes from data\.flaws\.fatal"),
        ({"fatal": ["ids"]}, r"2 flaws in train, e\.g\. id given twice, .*train\.json: image id 1"),
        ({"fatal": ["sizes", "leaks"]}, r"1 flaw in train, e\.g\. image of another size.*annotated as 61x40, is 60x40"),
    ],
)
def test_a_flaw_that_is_fatal_ends_in_one_line(
    flawed: DataSettings, tmp_path: Path, flaws: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        prepare(with_flaws(flawed, **flaws), project_root=tmp_path)
    one_line_of(caught.value)
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_one_percent_of_unreadable_images_is_allowed(tmp_path: Path) -> None:
    plain = write_set(tmp_path, [{}], images=100, size=(16, 16))
    (tmp_path / "images/7.jpg").write_bytes(b"")
    assert "99 images" in prepare(plain.model_copy(update={"val": None}), project_root=tmp_path)
    (tmp_path / "images/8.jpg").unlink()
    with pytest.raises(DataError, match=r"2 of 100 images of train cannot be used"):
        prepare(plain, project_root=tmp_path)


def test_images_of_val_that_are_in_train_too_can_be_fatal(tmp_path: Path) -> None:
    plain = write_set(tmp_path, [{}], images=2)
    content = json.loads((tmp_path / "train.json").read_text())
    (tmp_path / "part.json").write_text(json.dumps(content | {"images": content["images"][:1]}))
    assert "image that is in train too: 1" in prepare(plain.model_copy(update={"val": "part"}), project_root=tmp_path)
    with pytest.raises(
        DataError, match=r"1 flaw in val, e\.g\. split with the same images as train.*remove leaks from"
    ):
        prepare(coco_settings(tmp_path, val="train", flaws={"fatal": ["leaks"]}), project_root=tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "", "null", "[]", "{", "\ufeff{}", "{}", "[" * 5000, '{"images": {}, "annotations": [], "categories": []}',
        {"images": []}, {"images": [1]}, {"images": [{}]}, {"images": [{"id": [1], "file_name": "0.jpg"}]},
        {"images": [{"id": 1, "file_name": None}]}, {"images": [{"id": 1, "file_name": "a\0b"}]},
        {"images": [{"id": 1, "file_name": "\ud800.jpg"}]}, {"images": [{"id": 1, "file_name": "x" * 5000}]},
        {"images": [{"id": None, "file_name": "0.jpg"}]}, {"annotations": [1]}, {"annotations": [None]},
        {"categories": []}, {"categories": [1]}, {"categories": [{"id": 1}]},
        {"categories": [{"id": 1e999, "name": "a"}]}, {"categories": [{"id": "x", "name": "a"}]},
        {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]},
        {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, {"categories": [{"id": 1, "name": "\n"}]},
        {"categories": [{"id": 1, "name": "\ud800"}]}, {"annotations": []},
    ],
)  # fmt: skip
def test_annotation_files_of_no_use_are_one_line(tmp_path: Path, content: str | dict[str, Any]) -> None:
    plain = write_set(tmp_path, [{}])
    path = tmp_path / "train.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content)
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        prepare(plain, project_root=tmp_path)
    message = one_line_of(caught.value)
    assert "train" in message
    assert len(message) < 500


def test_voc_annotations_that_are_odd(tmp_path: Path) -> None:
    root = tmp_path / "VOC größer 図"
    write_voc(root, {name: [("a", 1, 1, 20, 20)] for name in ("a b", "ä", "empty", "coding", "numbers", "bomb")})
    xml = {
        "empty": "",
        "coding": '<?xml version="1.0" encoding="no such"?><annotation/>',
        "numbers": "<annotation><size><width>²</width><height>x</height></size><object><name>a</name><bndbox>"
        "<xmin>1e999</xmin><ymin>nan</ymin><xmax></xmax></bndbox></object><object/></annotation>",
        "bomb": '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + "".join(
            f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(12)
        ) + "]><annotation>&m;</annotation>",
    }  # fmt: skip
    for name, text in xml.items():
        (root / f"Annotations/{name}.xml").write_text(text, encoding="utf-8")
    voc = {"format": "voc", "path": str(root), "val": None, "flaws": {"max_unreadable": 0.5}}
    line = prepare(DataSettings.model_validate(voc), project_root=tmp_path)
    assert "3 images, 1 class, 2 boxes" in line
    flaws = report(tmp_path).splits["train"].flaws
    expected = {FlawKind.NO_ANNOTATION: 3, FlawKind.NOT_FINITE: 1, FlawKind.UNKNOWN_CATEGORY: 1, FlawKind.SIZE: 2}
    assert flaws == {str(kind): count for kind, count in expected.items()}
    (root / "ImageSets/Main/train.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match=r"train\.txt is not text in UTF-8, UTF-16 or cp1252"):
        prepare(DataSettings.model_validate(voc), project_root=tmp_path)


def test_lists_of_a_single_class_say_more_than_the_name(tmp_path: Path) -> None:
    write_voc(tmp_path, {"a b": [("a", 1, 1, 20, 20)], "c": [("a", 1, 1, 20, 20)]})
    (tmp_path / "ImageSets/Main/train.txt").write_text("a b  1\nc -1\n")
    voc = DataSettings.model_validate({"format": "voc", "path": str(tmp_path), "val": None})
    assert "2 images" in prepare(voc, project_root=tmp_path)


def train_on(data: DataSettings, root: Path, **changes: Any) -> list[dict[str, Any]]:
    """One epoch of a tiny model, measured on val; the lines of its record."""
    prepare(data, project_root=root)
    quick = {"epochs": 1, "batch_size": 2, "image_size": 64, "precision": "float32"}
    job = TrainJob(
        spec_json=spec_to_json(resolve_spec(TINY, name="tiny")),
        settings=TrainSettings.model_validate(quick | changes),
        seed=0,
        data_folder=root / "artifacts/prepare",
        data_hash="any",
        run_folder=root / "run",
    )
    fit(job, Worker(device=torch.device("cpu")))
    trained = load_weights(root / "run" / WEIGHTS)
    assert all(torch.isfinite(value).all() for value in trained.model.state_dict().values())
    assert trained.class_names == load_index(root / "artifacts/prepare/train.npz").class_names
    return read_epochs(root / "run")


ON_THE_SECOND = [{"image_id": 2}]


@pytest.mark.parametrize(
    ("annotations", "data", "changes"),
    [
        pytest.param(ON_THE_SECOND, {"images": 5}, {}, id="images and batches without objects"),
        pytest.param([{}], {"images": 1, "classes": 1}, {"batch_size": 16}, id="one image, one class"),
        pytest.param(
            [{"category_id": 1000}, {"category_id": 1, "image_id": 2}], {"classes": 1000}, {}, id="1000 classes"
        ),
        pytest.param([{"bbox": [0, 0, 16, 16]}], {"size": (16, 16)}, {}, id="images of 16 x 16"),
        pytest.param([{"bbox": [3, 3, 0.01, 0.01]}], {"images": 1}, {"augment": {"mosaic": 0}}, id="a box of no pixel"),
        pytest.param([{"bbox": [0, 0, 3, 900]}], {"images": 2, "size": (3, 900)}, {}, id="images of 3 x 900"),
    ],
)
def test_unusual_data_can_be_trained_on(
    annotations: Sequence[Mapping[str, Any]], data: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    (line,) = train_on(write_set(tmp_path / "data", annotations, **data), tmp_path, **changes)
    assert line["skipped_steps"] == 0
    assert 0 <= line["AP"] <= 1
    assert all(np.isfinite(line[name]) for name in ("box", "objectness", "classification"))


def test_a_batch_without_objects_trains_the_objectness_alone(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", ON_THE_SECOND, images=2)
    (line,) = train_on(data, tmp_path, batch_size=1, augment={"mosaic": 0})
    assert line["objectness"] > 0
    assert line["skipped_steps"] == 0


def test_the_largest_images_can_be_trained_on(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", [{"bbox": [100, 100, 4000, 3000]}], images=[{"skip": True}])
    (tmp_path / "data/images").mkdir()
    flat = np.full((6000, 8000), 120, np.uint8)
    (tmp_path / "data/images/0.jpg").write_bytes(cv2.imencode(".jpg", flat)[1].tobytes())
    (line,) = train_on(data.model_copy(update={"val": None}), tmp_path)
    assert line["box"] > 0
    assert report(tmp_path).splits["train"].flaws == {"image of another size than annotated": 1}


def test_spaces_and_letters_of_every_script_in_paths(tmp_path: Path) -> None:
    root = tmp_path / "mes données (été) 日本 'x' [1] %20"
    images = [{"file_name": name} for name in ("a b.jpg", "ünï.jpg", "子犬.jpg", "dir é/x#1.jpg", "[b]a[/b].jpg")]
    annotations = [{"image_id": number + 1} for number in range(len(images))]
    assert len(train_on(write_set(root / "data", annotations, images=images), root)) == 1
