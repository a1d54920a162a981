"""Test `yolov7 predict`: sources and outputs of every kind, faults in the input, and interruptions."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from pycocotools.coco import COCO
from typer.testing import CliRunner, Result

from pipeline.artifacts.files import stage_folder
from pipeline.cli.main import app
from pipeline.tracking.named_models import find_model
from tests.unit.media import FRAMES, count_frames, noise, server, write_video
from yolov7 import Detector
from yolov7.errors import ArtifactError, SettingError, UserError
from yolov7.nn.model import DetectionModel
from yolov7.settings import NmsSettings
from yolov7.spec.spec_files import load_spec
from yolov7.weights.weight_files import save_weights

NAMES = ("cat", "guinea pig", "a/b")
LOW = ("--confidence", "0.001", "--max-detections", "4", "--device", "cpu", "--precision", "float32")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("predict") / "weights.safetensors"
    model = DetectionModel(load_spec("nano"), num_classes=3)
    for conv in model.head.convs:
        conv.weight.data *= 30  # scores far apart, so that rounding does not change their order
    save_weights(path, model, class_names=NAMES, image_size=64, training={})
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which has four images."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a.jpg", "b.png", "sub/a.jpg", "sub/c.bmp")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), noise(40 + 10 * i, 60, seed=i))
    return tmp_path


def predict(weights: Path | str, *arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["predict", str(weights), *LOW, *arguments], input=stdin, catch_exceptions=False)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_lines_of_json_in_the_order_of_the_sources(weights: Path, folder: Path) -> None:
    done = predict(weights, "images/sub", "images", "--json", "--batch-size", "2")
    assert done.exit_code == 0
    found = lines(done.stdout)
    names = ["images/sub/a.jpg", "images/sub/c.bmp", "images/a.jpg", "images/b.png"]
    assert [line["source"] for line in found] == [*names, *names[:2]]
    expected = Detector.load(weights, device="cpu", precision="float32").predict(
        names, nms=NmsSettings(confidence=0.001, max_detections=4)
    )
    for line, one in zip(found, expected, strict=False):
        assert (line["width"], line["height"]) == one.image_size
        assert len(line["detections"]) == len(one) == 4
        for detection, (box, score, label, name) in zip(line["detections"], one, strict=True):
            assert detection["box_xyxy"] == pytest.approx(box, abs=0.1)
            assert detection["score"] == pytest.approx(score, abs=1e-4)
            assert (detection["label"], detection["name"]) == (label, name)
    assert sorted(path.relative_to("predictions").as_posix() for path in Path("predictions").rglob("*.jpg")) == [
        "a-2.jpg", "a.jpg", "b.jpg", "c.jpg", "sub/a.jpg", "sub/c.jpg"
    ]  # fmt: skip
    assert cv2.imread("predictions/b.jpg").shape == (400, 480, 3)
    assert "6 images" in done.stderr
    assert "24 detections; results are in predictions" in done.stderr


def test_every_format(weights: Path, folder: Path) -> None:
    options = ("--coco", "--yolo", "--csv", "--crops", "--count", "--no-pictures", "--json-file", "new/found.jsonl")
    done = predict(weights, "images", "--out", "out", *options)
    assert done.exit_code == 0
    found = lines(Path("new/found.jsonl").read_text(encoding="utf-8"))
    assert [line["source"] for line in found] == [
        "images/a.jpg", "images/b.png", "images/sub/a.jpg", "images/sub/c.bmp"
    ]  # fmt: skip
    detections = [detection for line in found for detection in line["detections"]]
    coco = COCO("out/predictions.json")
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [line["source"] for line in found]
    assert [coco.cats[one["category_id"]]["name"] for one in coco.anns.values()] == [one["name"] for one in detections]
    left, top, right, bottom = detections[5]["box_xyxy"]
    assert coco.anns[6]["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=0.02)
    assert len(coco.loadRes(list(coco.anns.values())).anns) == 16
    rows = Path("out/predictions.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 17
    assert rows[6].startswith(f"images/b.png,,{left:.2f},{top:.2f},{right:.2f},{bottom:.2f},")
    label, cx, cy, width, height, _ = map(float, Path("out/labels/b.txt").read_text().splitlines()[1].split())
    assert label == detections[5]["label"]
    shares = [(left + right) / 120, (top + bottom) / 100, (right - left) / 60, (bottom - top) / 50]
    assert [cx, cy, width, height] == pytest.approx(shares, abs=1e-3)
    crops = sorted(Path("out/crops").rglob("*.jpg"))
    assert len(crops) == 16
    assert {path.relative_to("out/crops").parts[0] for path in crops} <= {"cat", "guinea pig", "a_b"}
    for line in done.stdout.splitlines()[:4]:
        counts = dict(part.split(" ", 1)[::-1] for part in line.partition(": ")[2].split(", "))
        names = [one["name"] for one in found[done.stdout.splitlines().index(line)]["detections"]]
        assert counts == {name: str(names.count(name)) for name in names}
    assert done.stdout.splitlines()[4].startswith("total: ")
    assert not list(Path("out").glob("*.jpg"))


def test_a_bad_file_is_one_line_and_the_others_are_done(weights: Path, folder: Path) -> None:
    bad = folder / "images"
    (bad / "corrupt.jpg").write_bytes((bad / "a.jpg").read_bytes()[:500])
    (bad / "text.jpg").write_text("a text", encoding="utf-8")
    cv2.imwrite(str(bad / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(bytes(100))
    chunks = b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (header, pixels, b"IEND")
    )
    (bad / "vast.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    (folder / "list.txt").write_text("images/a.jpg\nimages/missing.jpg\nimages/b.png\n", encoding="utf-8")
    done = predict(weights, "images", "list.txt", "--json", "--batch-size", "3")
    assert done.exit_code == 1
    found = {line["source"]: line for line in lines(done.stdout)}
    errors = {name: line["error"] for name, line in found.items() if "error" in line}
    assert {name: text.partition(f"{name} ")[2].split(" (")[0] for name, text in errors.items()} == {
        "images/corrupt.jpg": "is truncated",
        "images/text.jpg": "is not an image of a known format",
        "images/vast.png": "has 20000 x 20000 pixels, and 178,956,970 are allowed",
        "images/missing.jpg": "cannot be read",
    }
    assert found["images/dot.png"]["width"] == 1
    *reported, summary = done.stderr.splitlines()
    assert reported == [f"yolov7: {text}" for text in errors.values()]
    assert "7 images" in summary
    assert "4 errors" in summary
    assert len(list(Path("predictions").rglob("*.jpg"))) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jpg"], "there is no file, folder or camera 'missing.jpg'"),
        (["empty"], "the folder 'empty' has no images"),
        (["images/*.webp"], "the pattern 'images/*.webp' matches no file"),
        (["images", "--classes", "cat,guinea pg"], "class 'guinea pg' is unknown; the model has the classes cat, "),
        (["images", "--classes", "7"], "class '7' is unknown"),
        (["images", "--overlap", "0.1"], "--overlap 0.1 has no effect without --tile"),
        (["images", "--tile", "5"], "the tile size 5 must be at least 32"),
        (["images", "--every", "0"], "--every 0 must be at least 1"),
        (["images", "--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["images", "--iou", "2"], "iou=2.0 must be from 0 to 1"),
        (["images", "--out", "images"], "--out images contains sources, which annotated pictures could replace"),
        (["images/sub", "--out", "images"], "--out images contains sources"),
        (["images", "--out", "images/a.jpg"], "--out images/a.jpg is a file; name a folder"),
        (["images", "--actors", "3"], "--actors 3 concerns --ray; add --ray"),
        (["images", "--format", "parquet"], "--format parquet concerns --ray; add --ray"),
        (["images", "--ray", "--json", "--tile", "64"], "--json, --tile cannot be combined with --ray"),
        (["images", "--ray", "--confidence", "5"], "confidence=5.0 must be from 0 to 1"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_arguments_is_one_line_and_nothing_is_written(
    weights: Path, folder: Path, arguments: list[str], message: str
) -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError) as caught:
        predict(weights, *arguments)
    assert message in str(caught.value)
    assert not Path("predictions").exists()


def test_weights_that_are_no_weights_are_one_line(folder: Path) -> None:
    Path("w.pt").write_bytes(pickle.dumps({"model": 1}))
    torch.save({"model": torch.zeros(1)}, "w.ckpt")
    Path("w.txt").write_text("weights", encoding="utf-8")
    other = DetectionModel(load_spec("nano"), num_classes=3)
    save_weights("other.safetensors", other, class_names=NAMES, image_size=64, training={})
    content = Path("other.safetensors").read_bytes()
    Path("other.safetensors").write_bytes(content.replace(b"elan", b"elam"))
    for name in ("w.pt", "w.ckpt", "w.txt", "other.safetensors", "missing.safetensors", "images"):
        with pytest.raises((ArtifactError, SettingError), match=name) as caught:
            predict(name, "images")
        assert str(caught.value).isprintable()


def test_classes_by_name_and_number(weights: Path, folder: Path) -> None:
    for value, expected in (("a/b", {2}), ("cat,2", {0, 2}), (" 1 ", {1})):
        found = lines(
            predict(weights, "images", "--json", "--no-pictures", "--confidence", "0", "--classes", value).stdout
        )
        labels = {one["label"] for line in found for one in line["detections"]}
        assert labels
        assert labels <= expected
    assert not Path("predictions").exists()


def test_standard_input(weights: Path, folder: Path) -> None:
    done = predict(weights, "-", "--json", "--count", stdin=Path("images/a.jpg").read_bytes())
    (line,) = lines(done.stdout)
    assert (line["source"], line["width"], line["height"]) == ("-", 60, 40)
    assert sum(line["counts"].values()) == 4
    assert Path("predictions/stdin.jpg").is_file()
    assert "standard input is empty (0 bytes)" in predict(weights, "-", stdin=b"").stderr
    assert predict(weights, "-", stdin=b"<html>").exit_code == 1


def test_tiles_and_test_time_augmentation(weights: Path, folder: Path) -> None:
    cv2.imwrite("large.png", noise(150, 200))
    plain, tiled, augmented = (
        lines(predict(weights, "large.png", "--json", *options).stdout)[0]
        for options in ((), ("--tile", "64", "--overlap", "0.3"), ("--tta",))
    )
    assert (tiled["width"], tiled["height"]) == (200, 150)
    assert plain["detections"] != tiled["detections"] != augmented["detections"] != plain["detections"]
    assert cv2.imread("predictions/large.jpg") is not None
    vast = folder / "wide.png"
    cv2.imwrite(str(vast), np.zeros((6000, 6000), np.uint8))
    done = predict(weights, "wide.png", "images/a.jpg", "--json", "--tile", "32", "--overlap", "0.5", "--no-pictures")
    assert "wide.png: tiles of 32 pixels divide an image of 6000 x 6000 pixels" in lines(done.stdout)[0]["error"]
    assert len(lines(done.stdout)) == 2


def test_videos(weights: Path, folder: Path) -> None:
    write_video(folder / "film.mp4")
    content = write_video(folder / "cut.avi").read_bytes()
    (folder / "cut.avi").write_bytes(content[: len(content) // 2])
    done = predict(weights, "images/a.jpg", "film.mp4", "cut.avi", "images/b.png", "--json", "--every", "4", "--yolo")
    assert done.exit_code == 1
    found = lines(done.stdout)
    assert [line["frame"] for line in found if line["source"] == "film.mp4"] == list(range(0, FRAMES, 4))
    assert [line["source"] for line in found if "frame" not in line] == ["images/a.jpg", "cut.avi", "images/b.png"]
    *frames, end = [line for line in found if line["source"] == "cut.avi"]
    assert f"of about {FRAMES} frames; the file is cut off" in end["error"]
    assert count_frames(Path("predictions/film.mp4")) == 8
    assert count_frames(Path("predictions/cut.mp4")) == len(frames) >= 3
    assert cv2.VideoCapture("predictions/film.mp4").get(cv2.CAP_PROP_FPS) == pytest.approx(2.5)
    assert len(list(Path("predictions/labels").glob("film_0000*.txt"))) == 8


@pytest.fixture
def site(folder: Path) -> Iterator[str]:
    with server(folder / "images") as address:
        yield address


def test_web_addresses(weights: Path, folder: Path, site: str) -> None:
    write_video(folder / "images" / "film.avi", frames=10)
    names = [f"{site}/{name}" for name in ("a.jpg", "html", "film.avi", "none.jpg", "stream", "sub/c.bmp")]
    done = predict(weights, *names, "--json")
    assert done.exit_code == 1
    found = lines(done.stdout)
    assert list(dict.fromkeys(line["source"] for line in found)) == names
    assert [line["frame"] for line in found if line["source"] == names[2]] == list(range(10))
    stream = [line for line in found if line["source"] == names[4]]
    assert len(stream) > 1
    assert "stopped after 8 frames" in stream[-1]["error"]
    assert "text/html" in next(line["error"] for line in found if line["source"] == names[1])
    assert "404" in next(line["error"] for line in found if line["source"] == names[3])
    assert {path.name for path in Path("predictions").iterdir()} == {"a.jpg", "film.mp4", "stream.mp4", "c.jpg"}
    assert count_frames(Path("predictions/stream.mp4")) == len(stream) - 1


def test_variants_by_name(weights: Path, folder: Path) -> None:
    params = {"seeds": [3, 5], "variants": {"nano": {"spec": "nano"}, "nano-deep": {"spec": "nano"}}}
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    with pytest.raises(
        ArtifactError, match=r"artifacts/reparam/nano/3/weights.safetensors is missing; `yolov7 reparam"
    ):
        predict("nano", "images")
    for seed in (3, 5):
        stage_folder("reparam", "nano", seed).mkdir(parents=True)
        (stage_folder("reparam", "nano", seed) / "weights.safetensors").write_bytes(weights.read_bytes())
    assert find_model("nano") == Path("artifacts/reparam/nano/3/weights.safetensors")
    assert find_model("nano/5") == Path("artifacts/reparam/nano/5/weights.safetensors")
    assert find_model("weights.safetensors") is None
    assert predict("nano/5", "images").exit_code == 0
    with pytest.raises(ArtifactError, match=r"it has: nano, nano-deep; did you mean 'nano'\?"):
        predict("nan", "images")
    with pytest.raises(SettingError, match=r"seed 4 is not in params.yaml; it has the seeds \[3, 5\]"):
        predict("nano/4", "images")
    with pytest.raises(SettingError, match="must name an alias or a version of a registered model"):
        predict("models:/yolov7", "images")
    with pytest.raises(ArtifactError, match=r"there is no tracking store sqlite:///mlflow\.db"):
        predict("models:/yolov7@champion", "images")


def start(weights: Path, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from pipeline.cli.main import main; main()", "predict", str(weights), *LOW]
    return subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, **options)


def test_finished_work_is_kept_when_it_is_interrupted(weights: Path, folder: Path) -> None:
    (folder / "list.txt").write_text("images/a.jpg\n" * 100_000, encoding="utf-8")
    output = folder / "found.jsonl"
    with output.open("wb") as file:
        running = start(weights, "list.txt", "--json", "--coco", "--no-pictures", stdout=file)
        while output.stat().st_size < 5000:
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert errors.decode().splitlines()[-1] == "yolov7: interrupted; the results so far are kept"
    images = json.loads(Path("predictions/predictions.json").read_text(encoding="utf-8"))["images"]
    assert 10 < len(images) == len(lines(output.read_text(encoding="utf-8"))) < 100_000


def test_it_ends_quietly_with_the_reader_of_its_output_and_needs_no_tools_of_the_pipeline(
    weights: Path, folder: Path
) -> None:
    (folder / "list.txt").write_text("images/a.jpg\n" * 5_000, encoding="utf-8")
    for name in ("dvc", "mlflow", "ray", "pandas", "PIL", "matplotlib", "sqlalchemy", "psutil", "pyarrow"):
        (folder / "blocked" / name).mkdir(parents=True)
        (folder / "blocked" / name / "__init__.py").write_text(f"raise ImportError('{name}')", encoding="utf-8")
    paths = f"{folder / 'blocked'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    running = start(weights, "list.txt", "--json", stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths})
    assert running.stdout is not None
    running.stdout.readline()
    running.stdout.close()
    assert running.stderr is not None
    (summary,) = io.TextIOWrapper(running.stderr).read().splitlines()
    assert summary.startswith("predict ")
    assert running.wait(60) == 1


def test_images_of_any_shape_are_drawn(weights: Path, folder: Path) -> None:
    cv2.imwrite("long.png", np.zeros((1, 70_000), np.uint8))
    assert predict(weights, "long.png", "--crops").exit_code == 0
    assert cv2.imread("predictions/long.jpg").shape[1] == 65_000
