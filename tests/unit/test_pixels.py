"""Imported models of YOLOX and PP-YOLOE take the pixels of this library, or on request those of the original."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.commands.weights import import_weights
from tests.property.test_fuse import randomise
from yolov7.nn.blocks import ConvBnAct
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import resolve_spec, spec_to_yaml
from yolov7.weights.foreign.module_names import PPYOLOE, YOLOX, names_in
from yolov7.weights.foreign.reference import import_checkpoint, open_weights
from yolov7.weights.weight_files import load_weights

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def first_map(model: DetectionModel, images: Tensor) -> Tensor:
    """Return the inside of the output of the first convolution, where padding has no influence."""
    found: list[Tensor] = []
    first = next(module for module in model.rows.modules() if isinstance(module, ConvBnAct))
    handle = first.register_forward_hook(lambda _, inputs, output: found.append(output))
    with torch.no_grad():
        model(images)
    handle.remove()
    return found[0][..., 1:-1, 1:-1]


@pytest.mark.parametrize("family", ["yolox", "ppyoloe"])
def test_an_imported_model_takes_rgb_images(family: str, tmp_path: Path) -> None:
    scale = {"rule": "both", "depth": 0.2, "width": 0.125}
    spec = resolve_spec({"base": f"{family}-l", "scale": scale}, name="narrow")
    torch.manual_seed(0)
    model = DetectionModel(spec, num_classes=80)
    randomise(model, 0)
    state = model.state_dict()
    names = names_in(YOLOX if family == "yolox" else PPYOLOE, spec, state)
    torch.save({name: state[own] for own, name in names.items()}, tmp_path / "x.pth")
    images = torch.rand(1, 3, 64, 96)
    originals = images.flip(1) * 255 if family == "yolox" else (images - MEAN) / DEVIATION
    original = import_checkpoint(tmp_path / "x.pth", spec=spec).weights.model
    expected = first_map(original, originals)
    (tmp_path / "narrow.yaml").write_text(spec_to_yaml(spec))
    told = import_weights(
        tmp_path / "x.pth", spec=str(tmp_path / "narrow.yaml"), names=None, output=tmp_path / "x.safetensors"
    )
    assert "its first convolution was changed to take RGB in 0..1 instead of " in told
    for changed in (
        open_weights(tmp_path / "x.pth", spec=spec).model,
        load_weights(tmp_path / "x.safetensors").model,
    ):
        torch.testing.assert_close(first_map(changed, images), expected, rtol=1e-4, atol=1e-4)
        if family == "yolox":
            with torch.no_grad():
                ours, theirs = changed.decode(changed(images)), original.decode(original(originals))
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)
