"""Weights that do not fit, full disks, folders that cannot be written, and what the command prints of such things."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.artifacts.files import stage_folder, write_json
from pipeline.artifacts.reports import TrainSummary
from pipeline.artifacts.stage_weights import stage_weights
from pipeline.data_settings import DataSettings
from pipeline.experiment import load_experiment, parse_experiment
from pipeline.stages.prepare import prepare
from tests.integration.bad_input import TINY, one_line_of, write_set
from yolov7.errors import ArtifactError
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import resolve_spec
from yolov7.system.files import write_whole
from yolov7.training.anchors import with_anchors
from yolov7.weights.weight_files import save_weights

YOLOV7 = Path(sys.executable).with_name("yolov7")
VARIANT = parse_experiment({"variants": {"tiny": {"spec": "nano"}}}).variant("tiny")


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes the weights of a stage, by default those that belong to the variant; returns their path."""
    monkeypatch.chdir(tmp_path)
    model = DetectionModel(VARIANT.spec, num_classes=2)
    names = dict.fromkeys(("variant", "fingerprint", "precision", "device"), "x")
    figures = dict.fromkeys(("seed", "epochs", "seconds", "images_per_second", "loader_wait_share", "workers"), 1)
    summary = TrainSummary.model_validate({**names, **figures, "skipped_steps": 0, "AP": None, "AP50": None})

    def write(stage: str = "train", *, model: DetectionModel = model, fingerprint: str = "x") -> Path:
        path = stage_folder(stage, "tiny", 0) / "weights.safetensors"
        save_weights(path, model, class_names=("a", "b"), image_size=64, training={"fingerprint": fingerprint})
        write_json(stage_folder("train", "tiny", 0) / "train.json", summary)
        return path

    return write


def stage_error(stage: Any = "train", *, class_names: tuple[str, ...] = ("a", "b")) -> str:
    with pytest.raises(ArtifactError) as caught:
        stage_weights(stage, VARIANT, seed=0, class_names=class_names)
    message = one_line_of(caught.value)
    assert f"artifacts/{stage}/tiny/0/weights.safetensors" in message
    return message


def test_weights_that_fit_are_read(trained: Callable[..., Path]) -> None:
    spec = VARIANT.spec
    fitted = with_anchors(spec, np.full((len(spec.head.anchors), 3, 2), 9.0))
    trained(model=DetectionModel(fitted, num_classes=2))
    trained("reparam")
    for stage in ("train", "reparam"):
        assert stage_weights(stage, VARIANT, seed=0, class_names=("a", "b")).image_size == 64


def test_weights_for_other_classes_are_one_line(trained: Callable[..., Path]) -> None:
    trained()
    message = stage_error(class_names=("a", "c"))
    assert "has the classes ['a', 'b'], the prepared data have ['a', 'c']; run `yolov7 train tiny` again" in message
    assert "have ['a', 'b', 'c']" in stage_error(class_names=("a", "b", "c"))


def test_weights_of_another_spec_or_training_are_one_line(trained: Callable[..., Path]) -> None:
    trained(model=DetectionModel(resolve_spec(TINY, name="tiny"), num_classes=2))
    assert "has another spec than variant 'tiny' of params.yaml; run `yolov7 train tiny`" in stage_error()
    trained("reparam", fingerprint="older")
    assert "run `yolov7 reparam tiny` again" in stage_error("reparam")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.9, 0.9999])
def test_truncated_weights_are_one_line(trained: Callable[..., Path], share: float) -> None:
    path = trained()
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "is damaged or not a weight file" in stage_error()


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """No file may grow above a size, in bytes: each write beyond it fails as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 400 KB; needs the rights to mount one."""
    folder = Path(tempfile.mkdtemp())
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "-", folder], capture_output=True, check=False)
    if done.returncode:
        folder.rmdir()
        pytest.skip("no right to mount a disk")
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that this process may not write; where it is root, it acts as another user meanwhile."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


SYNTHETIC = DataSettings.model_validate({"synthetic": {"train_images": 60, "val_images": 2, "image_size": 192}})


def test_a_full_disk_is_one_line_and_leaves_what_was_there(small_disk: Path) -> None:
    few = DataSettings.model_validate({"synthetic": {"train_images": 2, "val_images": 1, "image_size": 64}})
    line = prepare(few, project_root=small_disk)
    before = sorted(path for path in small_disk.rglob("*"))
    with pytest.raises(OSError, match="No space left on device") as caught:
        prepare(SYNTHETIC, project_root=small_disk)
    message = one_line_of(caught.value)
    assert str(small_disk) in message
    assert "free some space" in message
    assert sorted(path for path in small_disk.rglob("*")) == before
    assert prepare(few, project_root=small_disk) == line


def test_a_limit_on_files_is_one_line(tmp_path: Path) -> None:
    with limited_files(2000), pytest.raises(OSError, match="File too large") as caught:
        prepare(SYNTHETIC, project_root=tmp_path)
    assert f"{tmp_path}/artifacts/prepare" in one_line_of(caught.value)
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_weights_on_a_full_disk_leave_nothing(tmp_path: Path) -> None:
    model = DetectionModel(resolve_spec(TINY, name="tiny"), num_classes=2)
    path = tmp_path / "weights.safetensors"
    with limited_files(2000), pytest.raises(OSError, match="File too large") as caught:
        save_weights(path, model, class_names=("a", "b"), image_size=64, training={})
    assert one_line_of(caught.value).startswith(str(path))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(read_only: Path) -> None:
    with pytest.raises(PermissionError) as caught:
        prepare(SYNTHETIC, project_root=read_only)
    message = one_line_of(caught.value)
    assert str(read_only) in message
    assert "run this in a folder of your own" in message
    with pytest.raises(PermissionError, match=f"{read_only}/x"):
        write_whole(read_only / "x", b"content")
    assert list(read_only.iterdir()) == []


def run_prepare(folder: Path, params: object, **options: Any) -> str:
    """The one line with which `yolov7 prepare` ends."""
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    done = subprocess.run(
        [YOLOV7, "prepare"], cwd=folder, capture_output=True, text=True, timeout=60, check=False, **options
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("yolov7: ")
    return line


def test_the_command_ends_in_one_line_for_a_truncated_image(tmp_path: Path) -> None:
    root = tmp_path / "data"
    images = [{"file_name": name} for name in ("cut.jpg", "cut.png", "cut.webp", "cut.tif", "cut.gif")]
    data = write_set(root, [{}], images=images)
    for path in (root / "images").iterdir():
        path.write_bytes(path.read_bytes()[:-30])
    line = run_prepare(tmp_path, {"variants": {"a": {"spec": "nano"}}, "data": data.model_dump(mode="json")})
    assert "5 of 5 images of train cannot be used (allowed data.flaws.max_unreadable=0.01), e.g. unreadable" in line


CONV = {"block": "conv", "out": 8, "s": 2}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"s1": {**CONV, "from": ["s2"]}, "s2": CONV}, "s1: takes 's2', which is not above it; move "),
        ({"s1": {**CONV, "from": ["s1"]}, "s2": CONV}, "s1: takes 's1', which is not above it"),
        ({"s1": CONV, "s2": {**CONV, "from": ["s1", "image"]}}, "s2.conv: cannot concatenate a map of stride 4 with"),
        (
            {"s1": CONV, "s2": {**CONV, "s": 1, "from": ["s1", "s1"]}},
            "s2.conv: out=8 must be greater than the 8 channels that",
        ),
        ({"s1": CONV, "s2": {**CONV, "block": "mp", "s": None}}, "s2.mp.s: unknown key"),
    ],
)
def test_a_spec_that_does_not_fit_is_one_line(tmp_path: Path, rows: dict[str, Any], message: str) -> None:
    spec = {"rows": rows | {"head": {"block": "detect", "from": ["s2"], "anchors": [[10, 13]]}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    params = {"variants": {"a": {"spec": str(tmp_path / "own.yaml")}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ValueError, match=r"params\.yaml") as caught:
        load_experiment(tmp_path / "params.yaml")
    assert f"variants.a: {message}" in one_line_of(caught.value)


def test_the_command_ends_in_one_line_on_a_full_disk(tmp_path: Path) -> None:
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # noqa: E731
    line = run_prepare(tmp_path, {"variants": {"a": {"spec": "nano"}}}, preexec_fn=limit)
    assert "artifacts/prepare" in line
    assert "ulimit -f" in line
    assert list((tmp_path / "artifacts").iterdir()) == []
