"""Import of reference checkpoints: the model gets their classes, anchors and form; errors name a spec that fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.reference_files import write_checkpoint
from yolov7.data.coco_names import COCO_NAMES
from yolov7.detect.detector import Detector
from yolov7.errors import ArtifactError, SpecError
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.auxiliary import with_auxiliary
from yolov7.spec.spec_files import ModelSpec, load_spec, resolve_spec
from yolov7.weights.foreign.reference import Imported, export_checkpoint, import_checkpoint, reference_state
from yolov7.weights.weight_files import load_weights, save_weights

NANO = load_spec("nano")
HEAD = "model.77."
IMAGES = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def state_of(spec: ModelSpec = NANO, *, num_classes: int = 3) -> dict[str, Tensor]:
    """A state dict of random values with the reference's names."""
    torch.manual_seed(0)
    return {
        name: tensor.clone() for name, tensor in reference_state(DetectionModel(spec, num_classes=num_classes)).items()
    }


def imported(path: Path, state: dict[str, Tensor], *, spec: ModelSpec = NANO, **given: Any) -> Imported:
    torch.save({"model": state, "names": ["a", "b", "c"]}, path / "x.pt")
    return import_checkpoint(path / "x.pt", spec=spec, **given)


def refusal(path: Path, state: dict[str, Tensor], **given: Any) -> str:
    with pytest.raises(ArtifactError) as caught:
        imported(path, state, **given)
    message = str(caught.value)
    assert message.startswith(f"{path / 'x.pt'}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path / 'x.pt'}: ")


def test_a_detector_of_an_imported_checkpoint(tmp_path: Path) -> None:
    weights, remarks = imported(tmp_path, state_of())
    assert (weights.class_names, weights.image_size, remarks) == (("a", "b", "c"), NANO.image_size, ())
    path = tmp_path / "x.safetensors"
    save_weights(path, weights.model, class_names=weights.class_names, image_size=192, training=weights.training)
    assert load_weights(path).training == {"imported": "x.pt"}
    detector = Detector.load(path, device="cpu", precision="float32")
    assert detector.class_names == ("a", "b", "c")
    detector.predict([np.zeros((50, 60, 3), np.uint8)])


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    state = state_of()
    write_checkpoint(tmp_path / "x.pt", state, part="ema", names=["a", "b", "c"], half=True)
    weights, remarks = import_checkpoint(tmp_path / "x.pt", spec=NANO)
    assert not remarks
    for name, tensor in reference_state(weights.model).items():
        assert tensor.dtype == state[name].dtype
        rounded = state[name].half() if tensor.is_floating_point() and "anchor" not in name else state[name]
        assert torch.equal(tensor, rounded.to(tensor.dtype))


def test_an_auxiliary_head_and_no_implicit_knowledge(tmp_path: Path) -> None:
    plain = resolve_spec({"base": "nano", "swap": {"head": {"implicit": False}}}, name="nano")
    for spec, remarks in (
        (with_auxiliary(NANO), ("it has an auxiliary head",)),
        (plain, ("it has no implicit knowledge",)),
        (with_auxiliary(plain), ("it has no implicit knowledge", "it has an auxiliary head")),
    ):
        weights, found = imported(tmp_path, state_of(spec))
        assert (weights.model.spec, found) == (spec, remarks)
    weights, found = imported(tmp_path, state_of(plain), spec=with_auxiliary(NANO))
    assert (weights.model.spec, found) == (plain, ("it has no implicit knowledge", "it has no auxiliary head"))


def test_names_of_classes(tmp_path: Path) -> None:
    three, eighty = state_of(), state_of(num_classes=80)
    assert imported(tmp_path, three, class_names=("x", "y", "z")).weights.class_names == ("x", "y", "z")
    torch.save(eighty, tmp_path / "state.pt")
    assert import_checkpoint(tmp_path / "state.pt", spec=NANO).weights.class_names == COCO_NAMES
    assert len(set(COCO_NAMES)) == 80
    assert "2 class names are given, but it has 3 classes" in refusal(tmp_path, three, class_names=("x", "y"))
    assert "3 class names are in it, but it has 80 classes" in refusal(tmp_path, eighty)
    torch.save(three, tmp_path / "state.pt")
    with pytest.raises(ArtifactError, match="has 3 classes but not their names; give the names"):
        import_checkpoint(tmp_path / "state.pt", spec=NANO)


@pytest.mark.parametrize("half", [True, False])
def test_anchors_of_its_own_are_adopted(tmp_path: Path, half: bool) -> None:
    state = state_of()
    state[f"{HEAD}anchors"][0, 0, 1] = 12.34 / 8
    state[f"{HEAD}anchor_grid"][0, 0, 0, 0, 0, 1] = 12.34
    write_checkpoint(tmp_path / "x.pt", state, names=["a", "b", "c"], half=half)
    weights, (remark,) = import_checkpoint(tmp_path / "x.pt", spec=NANO)
    expected = 12.344 if half else 12.34
    assert weights.model.spec.head.anchors[0][1] == pytest.approx(expected, abs=1e-3 if half else 0)
    assert weights.model.spec.head.anchors[1:] == NANO.head.anchors[1:]
    assert remark.startswith("its anchors differ from the spec's: [[10.0, 12.34")
    assert weights.model.anchors_px[0, 0, 1] == weights.model.spec.head.anchors[0][1]
    export_checkpoint(tmp_path / "y.pt", weights.model, class_names=weights.class_names)
    again = import_checkpoint(tmp_path / "y.pt", spec=NANO).weights.model
    assert torch.equal(again.anchors_px, weights.model.anchors_px)
    state[f"{HEAD}anchors"] *= 2
    assert "anchors and model.77.anchor_grid are not the same" in refusal(tmp_path, state)


@pytest.mark.parametrize(
    ("anchors", "grid"),
    [
        (torch.ones(3, 0, 2), torch.ones(3, 1, 0, 1, 1, 2)),
        (torch.ones(3, 3), torch.ones(3, 1, 3, 1, 1, 2)),
        (torch.ones(3, 3, 3), torch.ones(3, 1, 3, 1, 1, 3)),
        (torch.full((3, 3, 2), torch.inf), torch.full((3, 1, 3, 1, 1, 2), torch.inf)),
        (-torch.ones(3, 3, 2), -torch.ones(3, 1, 3, 1, 1, 2)),
        (torch.full((3, 3, 2), torch.nan), torch.full((3, 1, 3, 1, 1, 2), torch.nan)),
    ],
)
def test_anchors_that_are_none(tmp_path: Path, anchors: Tensor, grid: Tensor) -> None:
    state = state_of() | {f"{HEAD}anchors": anchors, f"{HEAD}anchor_grid": grid}
    assert "are not the same anchors" in refusal(tmp_path, state)


def test_a_state_dict_without_anchors_gets_those_of_the_spec(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in state_of().items() if "anchor" not in name}
    assert imported(tmp_path, state).weights.model.spec == NANO


def test_another_spec_is_told_with_the_one_that_fits(tmp_path: Path) -> None:
    message = refusal(tmp_path, state_of(), spec=load_spec("yolov7-tiny"))
    assert message == (
        "does not fit spec 'yolov7-tiny' (model.0.conv.weight is (16, 3, 3, 3), its spec asks for (32, 3, 3, 3)); "
        "it fits spec 'nano'"
    )
    message = refusal(tmp_path, state_of(), spec=load_spec("yolov7-w6"))
    assert message.endswith("it fits spec 'nano'")


def test_other_faults_are_told(tmp_path: Path) -> None:
    missing = state_of()
    del missing["model.5.bn.bias"]
    assert "(model.5.bn.bias is missing, its spec asks for (16,))" in refusal(tmp_path, missing)
    more = state_of() | {"model.77.other": torch.zeros(2)}
    assert "(model.77.other is (2,), its spec asks for none)" in refusal(tmp_path, more)
    folded = {name: tensor for name, tensor in state_of().items() if ".bn." not in name}
    folded["model.0.conv.bias"] = torch.zeros(16)
    assert "(model.1.conv.bias is missing, its spec asks for (24,))" in refusal(tmp_path, folded)
    headless = {name: tensor for name, tensor in state_of().items() if not name.startswith(HEAD)}
    assert "none of its 330 tensors belongs to a detection layer" in refusal(tmp_path, headless)
    keypoints = state_of() | {f"{HEAD}m.0.bias": torch.zeros(25)}
    assert "only detection heads can be imported" in refusal(tmp_path, keypoints)


def test_an_activation_that_the_spec_does_not_have(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "x.pt", state_of(), names=["a", "b", "c"], activation=nn.LeakyReLU())
    import_checkpoint(path, spec=NANO)
    silu = resolve_spec({"base": "nano", "activation": "silu"}, name="other")
    with pytest.raises(
        ArtifactError, match=r"its activation is LeakyReLU, its spec asks for SiLU\); it fits spec 'nano'"
    ):
        import_checkpoint(path, spec=silu)


def test_re_parameterised_weights_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match="have no names in the reference implementation; export the trained weights"
    ):
        export_checkpoint(tmp_path / "x.pt", fuse(DetectionModel(NANO, num_classes=3)), class_names="abc")
    assert not list(tmp_path.iterdir())


def test_group_convolutions_travel_side_by_side(tmp_path: Path) -> None:
    grouped = resolve_spec({"base": "nano", "swap": {"p2": {"cardinality": 2, "grouped": True}}}, name="grouped")
    model = DetectionModel(grouped, num_classes=3).eval()
    export_checkpoint(tmp_path / "x.pt", model, class_names="abc")
    side_by_side = resolve_spec({"base": "nano", "swap": {"p2": {"cardinality": 2}}}, name="grouped")
    for spec in (grouped, side_by_side):
        again = import_checkpoint(tmp_path / "x.pt", spec=spec).weights.model
        assert again.spec == spec
        with torch.no_grad():
            torch.testing.assert_close(again(IMAGES).lead, model(IMAGES).lead)
    with pytest.raises(SpecError, match="E-ELAN as group convolutions has no counterpart"):
        reference_state(model)
