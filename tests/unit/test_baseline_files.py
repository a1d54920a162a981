"""Test imports of state dicts of YOLOv5, YOLOX and PP-YOLOE, and refusals of what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from yolov7.detect.detector import Detector
from yolov7.errors import ArtifactError, SpecError
from yolov7.export.export_model import export_model
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import ModelSpec, load_spec, resolve_spec
from yolov7.weights.foreign.module_names import PPYOLOE, YOLOX, Scheme, names_in
from yolov7.weights.foreign.reference import export_checkpoint, import_checkpoint, reference_state
from yolov7.weights.weight_files import save_weights

NARROW = {"rule": "both", "depth": 0.2, "width": 0.125}
SCHEMES = {"yolox-l": YOLOX, "ppyoloe-l": PPYOLOE}


def narrow(base: str) -> ModelSpec:
    return resolve_spec({"base": base, "scale": NARROW}, name="narrow")


def state_of(spec: ModelSpec, scheme: Scheme) -> dict[str, Tensor]:
    """Return the state dict of a model with random weights by the names of another implementation."""
    state = DetectionModel(spec, num_classes=2).state_dict()
    return {name: state[own] for own, name in names_in(scheme, spec, state).items()}


def read(path: Path, state: dict[str, Tensor], spec: ModelSpec | None) -> DetectionModel:
    torch.save({"model": state, "start_epoch": 3}, path / "x.pth")
    return import_checkpoint(path / "x.pth", spec=spec, class_names=("a", "b")).weights.model


@pytest.mark.parametrize("base", SCHEMES)
def test_every_tensor_has_a_name_of_its_own(tmp_path: Path, base: str) -> None:
    spec = narrow(base)
    state = state_of(spec, SCHEMES[base])
    model = read(tmp_path, state, spec)
    own = model.state_dict()
    assert len(names_in(SCHEMES[base], spec, own)) == len(state)
    assert all(torch.equal(own[key], state[name]) for key, name in names_in(SCHEMES[base], spec, own).items())
    assert len(own) - len(state) == (0 if base == "yolox-l" else sum("batches" in key for key in own))
    with pytest.raises(SpecError, match="has the anchor-free head"):
        export_checkpoint(tmp_path / "y.pt", model, class_names=["a", "b"])


def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    spec = narrow("ppyoloe-l")
    state = state_of(spec, PPYOLOE)
    bins = torch.arange(17.0).view(1, 17, 1, 1)
    assert read(tmp_path, state | {"yolo_head.proj_conv.weight": bins}, spec).num_classes == 2
    faults = (
        (state, None, ArtifactError, "fits no packaged spec; give the spec that it was trained with"),
        (state, load_spec("ppyoloe-s"), ArtifactError, r"does not fit spec 'ppyoloe-s' \(backbone.stem.conv1"),
        (state, load_spec("yolox-s"), SpecError, "is a model of PP-YOLOE, but spec 'yolox-s' has the"),
        (state | {"yolo_head.proj_conv.weight": 2 * bins}, spec, ArtifactError, "must be the numbers 0, 1, 2, ..."),
        (state | {"backbone.stages.0.blocks.0.conv2.conv.bias": bins}, spec, ArtifactError, "is merged for deployment"),
        (state | {"yolo_head.pred_cls.0.bias": torch.zeros(2, 2)}, spec, ArtifactError, "is not one value per class"),
    )  # fmt: skip
    for changed, given, kind, message in faults:
        with pytest.raises(kind, match=message) as caught:
            read(tmp_path, changed, given)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("base", SCHEMES)
def test_images_are_brought_to_the_square_as_the_original_does(tmp_path: Path, base: str) -> None:
    spec = narrow(base)
    torch.save(state_of(spec, SCHEMES[base]), tmp_path / "x.pth")
    weights = import_checkpoint(tmp_path / "x.pth", spec=spec, class_names=("a", "b")).weights
    save_weights(
        tmp_path / "x.safetensors",
        weights.model,
        class_names=weights.class_names,
        image_size=64,
        training={},
        letterbox=weights.letterbox,
    )
    wide = np.full((33, 100, 3), 255, np.uint8)
    fitted = Detector.load(tmp_path / "x.safetensors", device="cpu").fit(wide)
    assert (fitted.geometry.left, fitted.geometry.top) == (0, 0)
    assert fitted.geometry.resized_h == (21 if base == "yolox-l" else 64)  # YOLOX rounds 21.12 down
    assert fitted.pixels[20].min() == 255
    assert set(fitted.pixels[-1].flatten()) == {114 if base == "yolox-l" else 255}
    if base == "ppyoloe-l":
        return  # an exported file gets its letterbox in the same way
    _, file = export_model(tmp_path / "x.safetensors", format="torchscript")
    np.testing.assert_array_equal(Detector.load(file, device="cpu").fit(wide).pixels, fitted.pixels)


def test_files_of_paddle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pdparams").write_bytes(b"\x80\x04}.")
    with pytest.raises(ArtifactError, match=r"is a file of PaddlePaddle.*safetensors.numpy.save_file"):
        import_checkpoint(tmp_path / "x.pdparams")


def test_a_spec_with_other_rows_has_no_names() -> None:
    rows = {"s1": {"block": "conv", "out": 8, "s": 2}, "x9": {"block": "conv", "out": 8}}
    spec = resolve_spec({"rows": rows | {"head": {"block": "detect_yolox", "hidden": 8}}}, name="other")
    with pytest.raises(SpecError, match="row 'x9' of spec 'other' has no counterpart"):
        names_in(YOLOX, spec, DetectionModel(spec, num_classes=1).state_dict())
    spec = resolve_spec({"base": "yolox-s", "swap": {"p2": {"block": "csp_c"}}}, name="other")
    with pytest.raises(SpecError, match="of spec 'other' has no counterpart"):
        names_in(YOLOX, spec, DetectionModel(spec, num_classes=1).state_dict())


def test_yolov5_has_its_anchors_only_in_units_of_the_stride(tmp_path: Path) -> None:
    spec = resolve_spec({"base": "yolov5n", "scale": {"rule": "width", "width": 0.5}}, name="narrow")
    state = {
        key: 2 * tensor if key.endswith(".anchors") else tensor
        for key, tensor in reference_state(DetectionModel(spec, num_classes=2)).items()
        if not key.endswith("anchor_grid")
    }
    model = read(tmp_path, state, spec)
    assert model.spec.head.anchors == tuple(tuple(2 * side for side in level) for level in spec.head.anchors)
