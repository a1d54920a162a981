"""Foreign models without a stated spec, re-parameterised by the reference's `fuse`, or of unknown names."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from yolov7.errors import ArtifactError
from yolov7.nn.model import DetectionModel
from yolov7.spec.auxiliary import without_auxiliary
from yolov7.spec.spec_files import ModelSpec, load_spec, resolve_spec
from yolov7.weights.foreign.reference import import_checkpoint, open_weights, reference_state
from yolov7.weights.weight_files import load_weights, save_weights

NANO = load_spec("nano")
THREE = ("a", "b", "c")
EPS = 1e-3


def made(spec: ModelSpec) -> DetectionModel:
    """Return a model of random weights, including the statistics of its batch norms."""
    generator = torch.Generator().manual_seed(0)
    model = DetectionModel(spec, num_classes=3).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "bn.bias", "1.bias")):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model


def fold(state: dict[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    """Remove a convolution and its batch norm, and return the kernel and the bias of both together."""
    kernel, (weight, bias, mean, var) = (
        state.pop(f"{conv}.weight"),
        (state.pop(f"{norm}.{part}") for part in ("weight", "bias", "running_mean", "running_var")),
    )
    del state[f"{norm}.num_batches_tracked"]
    scale = weight / (var + EPS).sqrt()
    return kernel * scale.view(-1, 1, 1, 1), bias - mean * scale


def fused_state(model: DetectionModel) -> dict[str, Tensor]:
    """Return the state dict after the reference's `fuse`, which leaves the implicit vectors and the auxiliary head."""
    state = {name: tensor.clone() for name, tensor in reference_state(model).items()}
    for conv in [name.removesuffix(".conv.weight") for name in state if name.endswith(".conv.weight")]:
        state[f"{conv}.conv.weight"], state[f"{conv}.conv.bias"] = fold(state, f"{conv}.conv", f"{conv}.bn")
    for block in [name.removesuffix(".rbr_dense.0.weight") for name in state if name.endswith(".rbr_dense.0.weight")]:
        kernel, bias = fold(state, f"{block}.rbr_dense.0", f"{block}.rbr_dense.1")
        kernel_1x1, bias_1x1 = fold(state, f"{block}.rbr_1x1.0", f"{block}.rbr_1x1.1")
        kernel[:, :, 1:2, 1:2] += kernel_1x1
        state[f"{block}.rbr_reparam.weight"], state[f"{block}.rbr_reparam.bias"] = kernel, bias + bias_1x1
    for name in [name for name in state if ".ia." in name]:
        head, _, level = name.removesuffix(".implicit").partition(".ia.")
        scale = state[f"{head}.im.{level}.implicit"].view(-1)
        weight, bias = state[f"{head}.m.{level}.weight"], state[f"{head}.m.{level}.bias"]
        bias.add_(weight.flatten(1) @ state[name].view(-1)).mul_(scale)
        weight.mul_(scale.view(-1, 1, 1, 1))
    return state


@pytest.mark.parametrize("base", ["yolov7", "yolov7-w6"])
@torch.no_grad()
def test_a_model_that_the_reference_has_fused(tmp_path: Path, base: str) -> None:
    spec = resolve_spec({"base": base, "scale": {"rule": "width", "width": 0.125}}, name="small")
    assert (spec.head.auxiliary is not None) == (base == "yolov7-w6")
    model = made(spec)
    torch.save({"model": fused_state(model), "names": list(THREE)}, tmp_path / "x.pt")
    weights, (remark,) = import_checkpoint(tmp_path / "x.pt", spec=spec)
    assert weights.model.fused
    assert weights.model.spec.head.auxiliary is None
    assert remark == "it is re-parameterised: it can be evaluated and exported, but not trained further"
    images = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(weights.model(images).lead, model(images).lead, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    path = tmp_path / "x.safetensors"
    save_weights(path, weights.model, class_names=THREE, image_size=128, training={})
    assert load_weights(path).model.fused


def test_the_spec_that_a_file_fits_is_found(tmp_path: Path) -> None:
    torch.save({"model": reference_state(made(NANO)), "names": list(THREE)}, tmp_path / "x.pt")
    assert import_checkpoint(tmp_path / "x.pt").weights.model.spec == NANO
    state = {name: tensor.contiguous() for name, tensor in reference_state(made(NANO)).items()}
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    assert import_checkpoint(tmp_path / "x.safetensors", class_names=THREE).weights.model.spec == NANO


def test_candidates_are_named(tmp_path: Path) -> None:
    tiny = load_spec("yolov7-tiny")
    torch.save(reference_state(DetectionModel(tiny, num_classes=80)), tmp_path / "x.pt")
    with pytest.raises(ArtifactError, match=r"x\.pt: fits the specs yolov7-tiny and yolov7-tiny-silu; give the one"):
        import_checkpoint(tmp_path / "x.pt")
    silu = load_spec("yolov7-tiny-silu")
    assert open_weights(tmp_path / "x.pt", spec=silu).model.spec.activation == "silu"
    narrow = resolve_spec({"base": "nano", "scale": {"rule": "width", "width": 0.5}}, name="narrow")
    torch.save(reference_state(made(narrow)), tmp_path / "x.pt")
    with pytest.raises(ArtifactError, match=r"x\.pt: fits no packaged spec; give the spec that it was trained with"):
        import_checkpoint(tmp_path / "x.pt")
    assert open_weights(tmp_path / "x.pt", spec=narrow).model.spec.rows == narrow.rows


def test_weight_files_of_this_program_are_not_imported(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_weights(path, made(without_auxiliary(NANO)), class_names=THREE, image_size=64, training={})
    with pytest.raises(ArtifactError, match="is a weight file of this program already; use it as it is"):
        import_checkpoint(path)
    assert open_weights(path, spec=NANO).class_names == THREE


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"model.0.conv.weight": torch.zeros(3)}, path)
    with pytest.raises(ArtifactError, match="none of its 1 tensors belongs to a detection layer"):
        import_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match=r"x\.safetensors: is none of the kinds of files that are read"):
        import_checkpoint(path)
    with pytest.raises(ArtifactError, match="is damaged or not a weight file"):
        open_weights(path, spec=NANO)


def test_state_dicts_of_mmyolo_are_refused(tmp_path: Path) -> None:
    state = {"backbone.stem.0.conv.weight": torch.zeros(1), "bbox_head.head_module.x.weight": torch.zeros(1)}
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(ArtifactError, match=r"x\.pth: is a state dict of MMYOLO, whose names this program cannot"):
        import_checkpoint(tmp_path / "x.pth")
