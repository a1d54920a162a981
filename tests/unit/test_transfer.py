"""Transfer of weights: between different classes and forms of heads; weights that cannot be used are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from yolov7.errors import ArtifactError
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.auxiliary import with_auxiliary
from yolov7.spec.spec_files import ModelSpec, load_spec, resolve_spec
from yolov7.weights.transfer import transfer
from yolov7.weights.weight_files import load_weights, save_weights

IMAGES = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
PLAIN = resolve_spec({"base": "nano", "swap": {"head": {"implicit": False}}}, name="plain")


def model_of(spec: ModelSpec, *, num_classes: int, seed: int) -> DetectionModel:
    torch.manual_seed(seed)
    model = DetectionModel(spec, num_classes=num_classes).eval()
    for vector in (*model.head.ia, *model.head.im):
        torch.nn.init.uniform_(vector, 0.5, 1.5)
    return model


def saved(path: Path, model: DetectionModel) -> Path:
    names = tuple(f"class {i}" for i in range(model.num_classes))
    save_weights(path, model, class_names=names, image_size=320, training={})
    return path


def transfer_from(path: Path, model: DetectionModel) -> int:
    return transfer(model, load_weights(path).model, weights=path)


def maps_of(model: DetectionModel) -> list[Tensor]:
    with torch.no_grad():
        return list(model(IMAGES).lead)


@pytest.mark.parametrize("num_classes", [7, 3, 1])
def test_all_but_the_class_channels_are_kept(tmp_path: Path, num_classes: int) -> None:
    source = model_of(load_spec("nano"), num_classes=5, seed=0)
    model = model_of(load_spec("nano"), num_classes=num_classes, seed=1)
    fresh = model_of(load_spec("nano"), num_classes=num_classes, seed=1)
    num_copied = transfer_from(saved(tmp_path / "w.safetensors", source), model)
    assert num_copied == len(model.state_dict())
    for ours, theirs in zip(maps_of(model), maps_of(source), strict=True):
        torch.testing.assert_close(ours[..., :5], theirs[..., :5])
    for i, conv in enumerate(model.head.convs):
        kept = fresh.head.convs[i].weight.view(3, 5 + num_classes, -1)[:, 5:]
        assert torch.equal(conv.weight.view(3, 5 + num_classes, -1)[:, 5:], kept)


def test_the_same_classes_are_kept_wholly(tmp_path: Path) -> None:
    source, model = (model_of(load_spec("nano"), num_classes=5, seed=seed) for seed in (0, 1))
    transfer_from(saved(tmp_path / "w.safetensors", source), model)
    torch.testing.assert_close(model.state_dict(), source.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("of", "to"), [(load_spec("nano"), PLAIN), (PLAIN, load_spec("nano"))])
def test_between_heads_with_and_without_implicit_knowledge(tmp_path: Path, of: ModelSpec, to: ModelSpec) -> None:
    source, model = model_of(of, num_classes=5, seed=0), model_of(to, num_classes=5, seed=1)
    transfer_from(saved(tmp_path / "w.safetensors", source), model)
    torch.testing.assert_close(maps_of(model), maps_of(source))


def test_an_auxiliary_head_that_the_weights_lack_is_left_alone(tmp_path: Path) -> None:
    source = model_of(load_spec("nano"), num_classes=5, seed=0)
    model = model_of(with_auxiliary(load_spec("nano")), num_classes=5, seed=1)
    before = model.head.auxiliary_convs[0].weight.clone()
    transfer_from(saved(tmp_path / "w.safetensors", source), model)
    torch.testing.assert_close(maps_of(model), maps_of(source))
    assert torch.equal(model.head.auxiliary_convs[0].weight, before)


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    source = model_of(load_spec("nano"), num_classes=5, seed=0)
    path = saved(tmp_path / "fused.safetensors", fuse(source))
    with pytest.raises(
        ArtifactError, match=r"fused.safetensors: is re-parameterised and cannot be trained further; name"
    ):
        transfer_from(path, source)
    path = saved(tmp_path / "nano.safetensors", source)
    other = DetectionModel(load_spec("yolov7-tiny"), num_classes=5)
    with pytest.raises(
        ArtifactError, match=r"its spec is 'nano', and it fits only \d+ of the \d+ tensors of spec 'yolov7-tiny'"
    ):
        transfer_from(path, other)
