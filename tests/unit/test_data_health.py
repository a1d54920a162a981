"""Every check finds its flaw, names file and remedy, and finds nothing in clean data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.commands.data_check import check_data
from pipeline.commands.label_suspects import LabelSuspects
from pipeline.params import DataSettings
from pipeline.stages.prepare import prepare
from tests.unit.flawed_data import (
    COUNT,
    NAMES,
    PLANTED,
    Coco,
    clean_coco,
    clean_voc,
    clean_yolo,
    copy_coco,
)
from yolov7.boxes import pairwise_iou
from yolov7.data.find_data import find_data, read_split
from yolov7.data.flaws import FlawKind
from yolov7.data.health.box_checks import overlapping_pairs
from yolov7.data.health.checks import CHECK_OF_FLAW, CHECKS
from yolov7.engines.opened_model import OpenedModel
from yolov7.errors import SettingError
from yolov7.nn.model import DetectionModel
from yolov7.spec.anchor_free import with_anchor_free_head
from yolov7.spec.spec_files import load_spec
from yolov7.weights.weight_files import save_weights

ROOT = Path(__file__).parents[2]
BY_ID = {check.id: check for check in CHECKS}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Coco:
    return clean_coco(tmp_path_factory.mktemp("clean") / "data")


def checked(path: Path, **options: Any) -> tuple[int, dict[str, Any]]:
    """Check data; return the exit code and, for each check that found something, its report."""
    file = path.parent / "report.json"
    code = check_data(path, json=str(file), **options)
    report = json.loads(file.read_text())
    return code, {check["id"]: check for check in report["checks"] if check["status"] != "clean"}


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_clean_data_have_no_finding(form: str, clean: Coco, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = {"coco": lambda: clean.root, "voc": lambda: clean_voc(tmp_path), "yolo": lambda: clean_yolo(tmp_path / "y")}
    assert checked(path[form](), strict=True) == (0, {})
    assert "40 checks: 0 errors, 0 warnings, 0 notes" in re.sub(r"\d+ checks", "40 checks", capsys.readouterr().out)


@pytest.mark.parametrize("id", PLANTED)
def test_a_planted_flaw_is_found_with_file_and_remedy(
    id: str, clean: Coco, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant, others, file = PLANTED[id]
    data = copy_coco(clean, tmp_path / "data")
    plant(data)
    code, found = checked(data.save())
    assert found.keys() == {id} | others
    assert code == (found[id]["severity"] == "error")
    first = found[id]["findings"][0]
    assert Path(first["file"]).name == file
    assert first["detail"]
    text = capsys.readouterr().out
    assert f"  remedy: {BY_ID[id].remedy}" in text
    assert file in text


def test_a_missing_annotation_of_voc_is_found(tmp_path: Path) -> None:
    root = clean_voc(tmp_path / "data")
    (root / "Annotations/train3.xml").unlink()
    (root / "Annotations/train4.xml").write_text("<annotation><object>")
    code, found = checked(root)
    assert (code, found.keys()) == (1, {"annotation-missing"})
    assert [Path(finding["file"]).name for finding in found["annotation-missing"]["findings"]] == [
        "train3.xml",
        "train4.xml",
    ]


@pytest.mark.parametrize(
    ("id", "line"),
    [("line-values", "0 0.5 0.5"), ("box-in-pixels", "0 50 50 20 20"), ("unknown-category", "2 .5 .5 .2 .2")],
)
def test_a_wrong_line_of_yolo_is_found(id: str, line: str, tmp_path: Path) -> None:
    label = clean_yolo(tmp_path / "data") / "labels/train/train3.txt"
    label.write_text(f"{label.read_text()}{line}\n")
    code, found = checked(tmp_path / "data")
    assert (code, found.keys()) == (1, {id})
    assert found[id]["findings"][0]["file"] == str(label)
    assert "line 3" in found[id]["findings"][0]["detail"]


def test_a_missing_label_file_is_a_note(tmp_path: Path) -> None:
    (clean_yolo(tmp_path / "data") / "labels/train/train3.txt").unlink()
    code, found = checked(tmp_path / "data")
    assert (code, found.keys()) == (0, {"label-file-missing", "image-without-boxes"})


def test_every_flaw_has_a_check_and_every_check_is_documented() -> None:
    assert CHECK_OF_FLAW.keys() == set(FlawKind)
    assert len(BY_ID) == len(CHECKS)
    page = (ROOT / "docs/data-check.md").read_text()
    listed = dict(re.findall(r"^\| `([a-z-]+)` \| (error|warning|note) \|", page, flags=re.MULTILINE))
    assert listed == {check.id: str(check.severity) for check in CHECKS}
    fixed = set(re.findall(r"^\| `([a-z-]+)` \| [a-z]+ \| [^|]+ \| [^| ]", page, flags=re.MULTILINE))
    assert fixed == {check.id for check in CHECKS if check.fix}


def test_a_check_that_crashes_never_ends_with_0(
    clean: Coco, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def crash(*_: object) -> None:
        raise KeyError("planted")

    data = copy_coco(clean, tmp_path / "data")
    data.image(3).unlink()
    monkeypatch.setattr("yolov7.data.health.run.find_overlaps", crash)
    code, found = checked(data.save(), skip="image-missing")
    assert (code, found.keys()) == (1, {"box-overlap"})
    assert "KeyError: 'planted'" in found["box-overlap"]["crash"]
    assert "box-overlap" in checked(data.root)[1].keys() & {"box-overlap", "image-missing"}
    assert "1 check stopped with an error" in capsys.readouterr().out


def test_leaks_are_found_between_all_splits_but_a_joined_list(tmp_path: Path) -> None:
    root = clean_voc(tmp_path / "data")
    lists = root / "ImageSets/Main"
    (lists / "trainval.txt").write_text((lists / "train.txt").read_text() + (lists / "val.txt").read_text())
    assert checked(root) == (0, {})
    assert checked(root, splits="train,trainval")[1]["image-leak"]["count"] == COUNT


def test_findings_about_a_whole_split_name_no_folder(
    clean: Coco, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = copy_coco(clean, tmp_path / "data")
    val = data.content["val"]
    val["annotations"] = [row for row in val["annotations"] if row["category_id"] != 2]
    assert checked(data.save())[1].keys() == {"class-absent"}
    assert f"\n  val: dog: no objects; {COUNT} in train\n" in capsys.readouterr().out


def test_names_from_the_data_cannot_control_the_terminal(
    clean: Coco, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = copy_coco(clean, tmp_path / "data")
    for content in data.content.values():
        content["categories"].append({"id": 9, "name": "\x1b[31mred\nline"})
    assert checked(data.save())[1].keys() == {"class-absent"}
    assert "\n  train: \\x1b[31mred line: no objects; 0 in val\n" in capsys.readouterr().out


def test_a_split_with_the_images_of_another_one_is_one_finding(clean: Coco, tmp_path: Path) -> None:
    data = copy_coco(clean, tmp_path / "data")
    text = (data.save() / "train.json").read_text()
    (data.root / "val.json").write_text(text.replace('"train', '"../train/train'))
    code, found = checked(data.root)
    assert (code, found.keys()) == (0, {"split-same"})
    assert found["split-same"]["findings"][0]["detail"] == f"the {COUNT} images of train"
    settings = DataSettings.model_validate({"format": "coco", "path": str(data.root), "val": "train"})
    assert ", 1 flaw (split with the same images as train: 1); see" in prepare(settings, project_root=tmp_path)


def test_checks_are_selected_and_notes_count_in_strict_mode(clean: Coco, tmp_path: Path) -> None:
    data = copy_coco(clean, tmp_path / "data")
    for id in ("box-below-stride", "image-leak"):
        PLANTED[id][0](data)
    data.save()
    assert checked(data.root, only="box-below-stride,box-twice")[1].keys() == {"box-below-stride"}
    assert checked(data.root, skip="box-below-stride")[1].keys() == {"image-leak"}
    assert checked(data.root, splits="train")[1].keys() == {"box-below-stride"}
    assert check_data(data.root, skip="image-leak") == 0
    assert check_data(data.root, skip="image-leak", strict=True) == 1


def test_wrong_options_are_refused(clean: Coco) -> None:
    with pytest.raises(SettingError, match="there is no check 'box-overlp'; did you mean 'box-overlap'"):
        check_data(clean.root, only="box-overlp")
    with pytest.raises(SettingError, match=r"split 'tran' is not in .*; did you mean 'train'"):
        check_data(clean.root, splits="tran")
    with pytest.raises(SettingError, match="the label checks need a model; name its weight file in --weights"):
        check_data(clean.root, only="label-missing")
    for option in ({"json": str(clean.root)}, {"html": clean.root}):
        with pytest.raises(SettingError, match=r"--(json|html)=.* is a folder; name a file"):
            check_data(clean.root, **option)
    with pytest.raises(SettingError, match="no check is left"):
        check_data(clean.root, only="anchors", skip="anchors")


def test_the_command_prints_json_alone_and_writes_a_page(clean: Coco, tmp_path: Path) -> None:
    data = copy_coco(clean, tmp_path / "data")
    data.add(3, [-30, 10, 60, 60])
    data.content["train"]["categories"][0]["name"] = "<script>cat"
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["data", "check", str(data.save()), "--json", "-", "--html", str(page), "--strict"])
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert (report["version"], report["image_size"], report["splits"]["val"]["images"]) == (1, 640, COUNT)
    text = page.read_text()
    assert 'id="box-clipped"' in text
    assert text.count("data:image/jpeg;base64") == 1
    assert "<script" not in text
    assert "http" not in text


def test_prepare_lists_the_quick_checks(clean: Coco, tmp_path: Path) -> None:
    data = copy_coco(clean, tmp_path / "data")
    PLANTED["box-overlap"][0](data)
    PLANTED["image-near-leak"][0](data)
    settings = DataSettings.model_validate({"format": "coco", "path": str(data.save()), "test": None})
    for _ in range(2):  # the second time from what the first one kept
        prepare(settings, project_root=tmp_path)
        checks = json.loads((tmp_path / "artifacts/prepare/health.json").read_text())["checks"]
        assert {check["id"] for check in checks if check["count"]} == {"box-overlap", "image-near-leak"}
    assert not {"image-channels", "box-too-small", "anchors"} & {check["id"] for check in checks}
    assert 'id="box-overlap"' in (tmp_path / "artifacts/prepare/health.html").read_text()


def test_overlapping_pairs_are_those_of_all_pairs() -> None:
    draw = np.random.default_rng(0)
    corner, side = draw.uniform(0, 9, (150, 2)).round(), draw.uniform(55, 60, (150, 2)).round()
    boxes, labels = np.concatenate([corner, corner + side], axis=1), draw.integers(0, 2, 150)
    iou = torch.triu(pairwise_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)), 1).numpy()
    expected = np.argwhere((iou > 0.95) & (labels[:, None] == labels))
    pairs, overlaps = overlapping_pairs(boxes, labels)
    np.testing.assert_array_equal(pairs, expected)
    np.testing.assert_allclose(overlaps, iou[tuple(expected.T)])
    assert len(expected) > 5


class PlantedEngine:
    """An engine that finds in each image of a split what a test states, in pixels of the letterboxed image."""

    needs_suppression = True

    def __init__(self, rows: dict[int, list[list[float]]]) -> None:
        self._rows, self._done = rows, 0

    def decode(self, images: Tensor) -> Tensor:
        found = torch.zeros(len(images), 8, 5 + len(NAMES))
        for place in range(len(images)):
            for k, row in enumerate(self._rows.get(self._done + place, [])):
                found[place, k] = torch.tensor(row)
        self._done += len(images)
        return found


def test_labels_that_a_model_doubts(clean: Coco) -> None:
    index, _ = read_split(find_data(clean.root), "train")
    rows: dict[int, list[list[float]]] = {}
    for i in range(COUNT):
        for (x1, y1, x2, y2), label in zip(index.boxes_of(i).tolist(), index.labels_of(i).tolist(), strict=True):
            classes = [0.9 * (label == k) for k in range(2)]
            centre = [(x1 + x2) / 2, (y1 + y2) / 2 + 40, x2 - x1, y2 - y1]  # 40 pixels of padding above
            rows.setdefault(i, []).append([*centre, 1.0, *classes])
    rows[2][0][5:] = [0.0, 0.9]  # another class
    del rows[3][1]  # never found
    rows[4].append([290.0, 270.0, 40.0, 20.0, 1.0, 0.8, 0.0])  # without a label
    rows[5].append([290.0, 270.0, 40.0, 20.0, 1.0, 0.3, 0.0])  # not confident
    model = OpenedModel(PlantedEngine(rows), "planted", "float32", NAMES, 320, Path("planted"))
    from pipeline.commands.data_check import _progress

    suspects = LabelSuspects(model, {"train": index}, _progress)
    found = {
        id: [Path(f.file).name for f in suspects.find(id)] for id in ("label-class", "label-unfound", "label-missing")
    }
    assert found == {"label-class": ["train2.jpg"], "label-unfound": ["train3.jpg"], "label-missing": ["train4.jpg"]}
    assert "dog with a score of 0.90" in next(iter(suspects.find("label-class"))).detail


def test_weights_run_the_label_checks(clean: Coco, tmp_path: Path) -> None:
    spec = load_spec("nano")
    torch.manual_seed(0)
    model = DetectionModel(spec, num_classes=2)
    save_weights(tmp_path / "two.safetensors", model, class_names=NAMES, image_size=64, training={})
    save_weights(tmp_path / "other.safetensors", model, class_names=("car", "bus"), image_size=64, training={})
    data = copy_coco(clean, tmp_path / "data")
    code, found = checked(data.root, weights=tmp_path / "two.safetensors")
    assert code == 0
    assert found["label-unfound"]["count"] == 4 * COUNT
    with pytest.raises(SettingError, match=r"have none of the classes of the data \(cat, dog\), but car, bus"):
        checked(data.root, weights=tmp_path / "other.safetensors")


def test_the_anchors_of_a_model_without_anchors_are_not_checked(
    clean: Coco, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = DetectionModel(with_anchor_free_head(load_spec("nano")), num_classes=2)
    save_weights(tmp_path / "free.safetensors", model, class_names=NAMES, image_size=8, training={})
    data = copy_coco(clean, tmp_path / "data")
    for weights, expected in ((None, ["anchors"]), (tmp_path / "free.safetensors", [])):
        assert check_data(data.root, only="anchors", weights=weights, json="-") == 0
        printed = capsys.readouterr()
        assert [check["id"] for check in json.loads(printed.out)["checks"]] == expected
    assert printed.err == "check anchors: the head 'detect_dfl' of spec 'nano' has no anchors\n"
