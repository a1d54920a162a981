"""Weight files: round trips, atomic writes, and errors for unusable files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from yolov7.errors import ArtifactError
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec
from yolov7.weights.weight_files import load_weights, save_weights

NAMES = ("cat", "Hündin", "a,b")
IMAGES = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> DetectionModel:
    torch.manual_seed(0)
    return DetectionModel(load_spec("nano"), num_classes=len(NAMES)).eval()


def save(path: Path, model: DetectionModel) -> Path:
    save_weights(path, model, class_names=NAMES, image_size=320, training={"epochs": 3, "AP": None})
    return path


@pytest.mark.parametrize("fused", [False, True])
def test_round_trip(tmp_path: Path, model: DetectionModel, fused: bool) -> None:
    model = fuse(model) if fused else model
    loaded = load_weights(save(tmp_path / "new" / "model.safetensors", model))
    assert (loaded.class_names, loaded.image_size, loaded.training) == (NAMES, 320, {"epochs": 3, "AP": None})
    assert (loaded.model.fused, loaded.model.spec) == (fused, model.spec)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model.decode(loaded.model(IMAGES)), model.decode(model(IMAGES)))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]


def test_a_loaded_model_can_be_trained_on(tmp_path: Path, model: DetectionModel) -> None:
    loaded = load_weights(save(tmp_path / "model.safetensors", model)).model.train()
    sum(level.sum() for level in loaded(IMAGES.repeat(2, 1, 1, 1)).lead).backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_channels_last_weights_are_saved(tmp_path: Path, model: DetectionModel) -> None:
    loaded = load_weights(save(tmp_path / "model.safetensors", model.to(memory_format=torch.channels_last)))
    torch.testing.assert_close(loaded.model.state_dict(), model.state_dict())


def test_failed_write_leaves_the_old_file(
    tmp_path: Path, model: DetectionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "model.safetensors", model)
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save(path, model)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_class_names_must_be_as_many_as_classes(tmp_path: Path, model: DetectionModel) -> None:
    with pytest.raises(ValueError, match="1 class names for a model of 3 classes"):
        save_weights(tmp_path / "x", model, class_names=("one",), image_size=320, training={})


def test_unusable_files_are_told_in_one_line(tmp_path: Path, model: DetectionModel) -> None:
    good = save(tmp_path / "good.safetensors", model)
    content, state = good.read_bytes(), load_file(good)
    (tmp_path / "truncated.safetensors").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("not weights")
    save_file(state, tmp_path / "foreign.safetensors")
    _resave(good, tmp_path / "missing.safetensors", drop="head.convs.0.bias")
    _resave(good, tmp_path / "no_names.safetensors", without="class_names")
    _resave(good, tmp_path / "two_names.safetensors", class_names='["a", "b"]')
    _resave(good, tmp_path / "other_spec.safetensors", spec='{"name": "x", "rows": {}}')
    names = ("none", "truncated", "empty", "text", "foreign", "missing", "no_names", "two_names", "other_spec")
    for path in (tmp_path / f"{name}.safetensors" for name in names):
        with pytest.raises(ArtifactError) as caught:
            load_weights(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "train again" in str(caught.value)
        assert "\n" not in str(caught.value)


def _resave(source: Path, target: Path, *, drop: str = "", without: str = "", **metadata: str) -> None:
    from safetensors import safe_open

    with safe_open(source, framework="pt") as file:
        kept = {key: value for key, value in (file.metadata() | metadata).items() if key != without}
    save_file({key: value for key, value in load_file(source).items() if key != drop}, target, metadata=kept)


def test_a_checkpoint_of_torch_is_told_apart(tmp_path: Path, model: DetectionModel) -> None:
    for zipped in (True, False):
        torch.save(model.state_dict(), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(ArtifactError, match=r"x\.pt: is a PyTorch checkpoint, .*`yolov7 import-weights`"):
            load_weights(tmp_path / "x.pt")
