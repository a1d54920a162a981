"""Stage `prepare` with several sources, classes that change, divided splits, and splits that did not change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.data_settings import DataSettings
from pipeline.params import parse_params
from pipeline.stages.prepare import prepare
from pipeline.stages.resolve import _hash_outside
from tests.unit.data_files import write_image, write_voc, write_yolo
from yolov7.data import inspection, sources
from yolov7.data.index import ImageIndex, load_index
from yolov7.data.split_store import READING_CODE
from yolov7.errors import DataError, SettingError

BOX = "1 0.5 0.5 0.25 0.5\n"


def settings(root: Path, **content: Any) -> DataSettings:
    return DataSettings.model_validate({"format": "auto", "path": str(root), "val": None} | content)


def prepared(root: Path, split: str = "train") -> ImageIndex:
    return load_index(root / f"artifacts/prepare/{split}.npz")


def write_two(root: Path) -> None:
    write_voc(root / "cells", {"a": [("cell", 1, 1, 20, 20)], "b": [("dog", 5, 5, 30, 30), ("cell", 2, 2, 9, 9)]})
    write_yolo(root / "pets", {"a": BOX, "c": "0 0.5 0.5 0.25 0.5\n"})


def test_sources_are_joined_with_ids_that_name_their_source(tmp_path: Path) -> None:
    write_two(tmp_path)
    joined = [{"path": "cells"}, {"path": "pets", "classes": {"dog": "animal", "cat": None}}]
    line = prepare(settings(tmp_path, sources=joined), project_root=tmp_path)
    assert line.startswith(f"prepare    cells (voc), pets (yolo) in {tmp_path}: 4 images, 3 classes, 4 boxes, 0 flaws")
    assert "1 class left out" in line
    index = prepared(tmp_path)
    assert index.class_names == ("cell", "dog", "animal")
    assert index.image_ids == ("cells:a", "cells:b", "pets:a", "pets:c")
    assert index.category_ids == (1, 2, 3)
    assert [index.labels_of(i).tolist() for i in range(4)] == [[0], [1, 0], [2], []]


def test_classes_of_one_source_are_merged_and_its_ids_stay(tmp_path: Path) -> None:
    write_two(tmp_path)
    prepare(settings(tmp_path / "pets", classes={"dog": "pet", "cat": "pet"}), project_root=tmp_path)
    index = prepared(tmp_path)
    assert (index.class_names, index.category_ids, index.image_ids) == (("pet",), (0,), ("a", "c"))
    with pytest.raises(DataError, match=r"class 'dgo' of `classes` is not in .*pets; did you mean 'dog'\?"):
        prepare(settings(tmp_path / "pets", classes={"dgo": "pet"}), project_root=tmp_path)
    with pytest.raises(DataError, match="`classes` leaves out all classes"):
        prepare(settings(tmp_path / "pets", classes={"dog": None, "cat": None}), project_root=tmp_path)


def test_splits_are_made_of_the_training_split(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", {f"{i}": [("ab"[i % 2], 1, 1, 20, 20)] for i in range(20)})
    (tmp_path / "voc/JPEGImages/3.jpg").unlink()
    content = {"split": {"val": 0.2, "test": 0.2, "seed": 1}, "flaws": {"max_unreadable": 0.2}}
    data = DataSettings.model_validate({"format": "voc", "path": str(tmp_path / "voc")} | content)
    line = prepare(data, project_root=tmp_path)
    assert "11 + 4 + 4 images, 2 classes, 19 boxes, 1 flaw (missing image: 1)" in line
    ids = [set(prepared(tmp_path, split).image_ids) for split in ("train", "val", "test")]
    assert set.union(*ids) == {f"{i}" for i in range(20)} - {"3"}
    assert prepared(tmp_path, "val").labels.tolist().count(0) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"val": "val", "split": {"val": 0.2}}, r"data: val and split\.val are both stated; remove one of them"),
        ({"split": {}}, r"data\.split: val=0 and test=0 must have a sum above 0 and below 1"),
        ({"sources": [{"path": "a"}, {"path": "x/a"}]}, "sources: two are called 'a'; give each a name of its own"),
        ({"format": "synthetic", "split": {"val": 0.2}}, "split: the synthetic data cannot be changed"),
        ({"val": None}, r"data\.val and data\.test are both null"),
        ({"val": None, "sources": [{"path": "a"}]}, r"data\.val and data\.test are both null"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(content: dict[str, Any], message: str) -> None:
    data = {"format": "voc", "path": "x"} | content
    with pytest.raises(SettingError, match=message):
        parse_params({"data": data, "variants": {"a": {"spec": "nano"}}}, source="here")


def test_what_a_source_does_not_state_is_as_in_data() -> None:
    data = DataSettings.model_validate(
        {
            "format": "voc",
            "path": "x",
            "train": "trainval",
            "val": None,
            "sources": [{"path": "a"}, {"path": "b", "format": "coco"}],
        }
    )
    assert [(s.format, s.train, s.val) for s in data.sources] == [("voc", "trainval", None), ("coco", "trainval", None)]
    assert DataSettings.model_validate(data.model_dump()) == data


def test_a_split_that_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_yolo(tmp_path / "pets", {"a": BOX, "b": BOX})
    path = write_yolo(tmp_path / "pets", {"c": BOX}, folder="images/val")
    path.write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    for file in tmp_path.rglob("*.jpg"):
        os.utime(file, (1e9, 1e9))
    data = settings(tmp_path / "pets", val="val")
    prepare(data, project_root=tmp_path)
    first = {split: (tmp_path / f"artifacts/prepare/{split}.npz").read_bytes() for split in ("train", "val")}
    parsed, inspected = list[str](), list[str]()
    record(monkeypatch, sources, "parse_split", lambda found, split, **_: parsed.append(split))
    record(monkeypatch, inspection, "inspect_image", lambda path: inspected.append(path.stem))
    prepare(data, project_root=tmp_path)
    assert (parsed, inspected) == ([], [])
    assert all((tmp_path / f"artifacts/prepare/{split}.npz").read_bytes() == first[split] for split in first)
    (tmp_path / "pets/labels/val/c.txt").write_text(BOX * 2)
    line = prepare(data, project_root=tmp_path)
    assert (parsed, inspected) == (["val"], [])  # the image itself is known
    assert "box given twice: 1" in line
    write_image(tmp_path / "pets/images/train/a.jpg", seed=50)
    prepare(data, project_root=tmp_path)
    assert (parsed, inspected) == (["val", "train"], ["a"])


def test_the_digest_of_code_covers_what_reading_imports_and_nothing_else() -> None:
    script = "import sys, yolov7.data.sources; print(*(m for m in sys.modules if m.startswith('yolov7.data.')))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    packages = {"read"}
    imported = {name.removeprefix("yolov7.data.").replace(".", "/") for name in done.stdout.split()} - packages
    assert imported == {name for name in READING_CODE if not name.startswith("../")}


def record(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, note: Any) -> None:
    """Note each call of a function, which runs as before."""
    original = getattr(module, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        note(*args, **kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, call)


def test_damaged_notes_about_earlier_reads_are_ignored(tmp_path: Path) -> None:
    write_yolo(tmp_path / "pets", {"a": BOX})
    line = prepare(settings(tmp_path / "pets"), project_root=tmp_path)
    for file in (tmp_path / "runs/prepare").iterdir():
        file.write_bytes(b'{"images": 3}')
    assert prepare(settings(tmp_path / "pets"), project_root=tmp_path) == line
    (tmp_path / "runs/prepare/train.npz").unlink()
    assert prepare(settings(tmp_path / "pets"), project_root=tmp_path) == line


def test_data_outside_of_the_folder_decide_prepare_too(tmp_path: Path) -> None:
    write_yolo(tmp_path / "pets", {"a": BOX})
    (tmp_path / "set").mkdir()
    yaml = tmp_path / "set/data.yaml"
    yaml.write_text(f"path: {tmp_path}/pets\ntrain: images/train\nnames: [cat, dog]\n")
    data = settings(tmp_path / "set")
    before = _hash_outside(data)
    assert list(before) == [str(tmp_path / "pets")]
    (tmp_path / "pets/labels/train/a.txt").write_text(BOX * 2)
    assert _hash_outside(data) != before
    assert _hash_outside(settings(tmp_path / "pets")) == {}
    both = settings(tmp_path / "set", sources=[{"path": "."}, {"path": "../pets"}])
    assert list(_hash_outside(both)) == [str(tmp_path / "pets")]


def test_the_found_format_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_two(tmp_path)
    assert prepare(settings(tmp_path / "cells"), project_root=tmp_path).startswith("prepare    voc: 2 images")
    assert "found voc data in" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "artifacts/prepare/dataset.json").read_text())["source"].startswith("voc: ")
