"""A training starts from a file of every kind that can be imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.artifacts import NAMES, SMALL
from tests.foreign_files import write_darknet
from tests.unit.test_start import NARROW as NARROW_BOXES
from tests.unit.test_start import ORDINARY, job
from yolov7.data.index import ImageIndex
from yolov7.errors import ArtifactError
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import ModelSpec, resolve_spec
from yolov7.training.anchors import with_anchors
from yolov7.training.checkpoint import Checkpoint, save_checkpoint
from yolov7.training.start import Start, build_start
from yolov7.weights.foreign.module_names import PPYOLOE, YOLOX, Scheme, names_in
from yolov7.weights.foreign.reference import export_checkpoint, import_checkpoint, open_weights, reference_state
from yolov7.weights.foreign.reference_names import reference_names
from yolov7.weights.weight_files import load_weights, save_weights

NARROW = {"rule": "both", "depth": 0.2, "width": 0.125}
TWO = ("a", "b")
Write = Callable[[Path, DetectionModel], None]


def narrow(base: str) -> ModelSpec:
    return resolve_spec({"base": base, "scale": NARROW}, name="narrow")


def write_own(path: Path, model: DetectionModel) -> None:
    save_weights(path, model, class_names=TWO, image_size=64, training={})


def write_reference(path: Path, model: DetectionModel) -> None:
    export_checkpoint(path, model, class_names=TWO)


def write_plain_safetensors(path: Path, model: DetectionModel) -> None:
    safetensors.torch.save_file({key: tensor.clone() for key, tensor in reference_state(model).items()}, path)


def write_yolov5(path: Path, model: DetectionModel) -> None:
    torch.save({key: tensor for key, tensor in reference_state(model).items() if "anchor_grid" not in key}, path)


def write_scheme(scheme: Scheme) -> Write:
    def write(path: Path, model: DetectionModel) -> None:
        state = model.state_dict()
        torch.save({"model": {name: state[own] for own, name in names_in(scheme, model.spec, state).items()}}, path)

    return write


def write_u6(path: Path, model: DetectionModel) -> None:
    state = model.state_dict()
    torch.save({name: state[own] for name, own in reference_names(model.spec, state).weights.items()}, path)


def write_values(path: Path, model: DetectionModel) -> None:
    """Write a darknet file in which all values are the same."""
    names = [name for name in model.state_dict() if ".conv." in name or ".bn." in name or name.startswith("head.convs")]
    count = sum(model.state_dict()[name].numel() for name in names if not name.endswith("tracked"))
    write_darknet(path, np.full(count, 0.25, "<f4").tobytes())


KINDS: dict[str, tuple[ModelSpec, str, Write]] = {
    "own": (resolve_spec(SMALL, name="small"), "x.safetensors", write_own),
    "reference": (resolve_spec(SMALL, name="small"), "x.pt", write_reference),
    "safetensors": (resolve_spec(SMALL, name="small"), "x.safetensors", write_plain_safetensors),
    "yolov5": (narrow("yolov5n"), "x.pt", write_yolov5),
    "yolox": (narrow("yolox-l"), "x.pth", write_scheme(YOLOX)),
    "ppyoloe": (narrow("ppyoloe-l"), "x.pth", write_scheme(PPYOLOE)),
    "u6": (narrow("yolov7-u6"), "x.pt", write_u6),
    "darknet": (narrow("yolov7-tiny"), "x.weights", write_values),
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_from_a_file_of_every_kind(tmp_path: Path, kind: str) -> None:
    spec, name, write = KINDS[kind]
    torch.manual_seed(5)
    source = DetectionModel(spec, num_classes=2)
    write(tmp_path / name, source)
    torch.manual_seed(6)
    start = build_start(job(spec, weights=tmp_path / name), ORDINARY)
    assert start.model.num_classes == 3
    given, found = kernels(source), kernels(start.model)
    inner = list(found)[1:]  # the first kernel of YOLOX and PP-YOLOE is changed for other pixels
    if kind == "darknet":
        assert all(len(found[key].unique()) <= found[key].shape[0] for key in inner)
    else:
        assert all(torch.equal(given[key], found[key]) for key in inner)


def kernels(model: DetectionModel) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.rows.state_dict().items() if tensor.dim() == 4}


SPEC = resolve_spec(SMALL, name="small")
OTHER = with_anchors(SPEC, np.array(SPEC.head.anchors).reshape(3, -1, 2) * 1.6)  # type: ignore[union-attr]
TRAINED_FOR_OTHERS = "the outputs of the head of the weights were trained for other anchors than those of this run"


def started(
    folder: Path, spec: ModelSpec, names: tuple[str, ...], *, boxes: ImageIndex = ORDINARY, **keys: Any
) -> Start:
    """Build the start of a run that begins with random weights of a spec."""
    torch.manual_seed(5)
    source = DetectionModel(spec, num_classes=len(names))
    save_weights(folder / "w.safetensors", source, class_names=names, image_size=64, training={})
    return build_start(job(SPEC, weights=folder / "w.safetensors", **keys), boxes)


def test_equal_classes_start_exactly_as_the_weights_without_a_note(tmp_path: Path) -> None:
    start = started(tmp_path, SPEC, NAMES)
    assert start.notes == ()
    given = load_weights(tmp_path / "w.safetensors").model.state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in start.model.state_dict().items())


def test_the_random_numbers_of_a_start_do_not_depend_on_the_anchors_of_the_weights(tmp_path: Path) -> None:
    def drawn(spec: ModelSpec) -> tuple[Tensor, Tensor]:
        start = started(tmp_path, spec, ("x", "red"))
        return start.model.head.convs[0].weight, torch.rand(3)

    for first, second in zip(drawn(SPEC), drawn(OTHER), strict=True):
        assert torch.equal(first, second)


def test_classes_in_another_order_start_by_name_and_that_is_said(tmp_path: Path) -> None:
    start = started(tmp_path, SPEC, ("blue", "red", "grey"))
    (note,) = start.notes
    assert note == "of 3 class outputs, 2 are taken from the weights by name and 1 starts anew: that of 'green'"
    given, own = load_weights(tmp_path / "w.safetensors").model.head, start.model.head
    for ours, theirs in zip(own.convs, given.convs, strict=True):
        ours, theirs = (conv.weight.detach().view(3, 8, -1) for conv in (ours, theirs))
        assert torch.equal(ours[:, [*range(5), 5, 7]], theirs[:, [*range(5), 6, 5]])
        assert not torch.isclose(ours[:, 6], theirs[:, 7]).all()


def test_a_file_without_class_names_is_matched_by_number_and_that_is_said(tmp_path: Path) -> None:
    torch.manual_seed(5)
    write_plain_safetensors(tmp_path / "x.safetensors", DetectionModel(SPEC, num_classes=3))
    start = build_start(job(SPEC, weights=tmp_path / "x.safetensors"), ORDINARY)
    assert start.notes == ("the weights have no class names; their 3 class outputs are taken by number",)


def test_the_anchors_of_the_weights_are_taken_over_and_that_is_said(tmp_path: Path) -> None:
    start = started(tmp_path, OTHER, NAMES)
    assert start.model.spec.head.anchors == OTHER.head.anchors  # type: ignore[union-attr]
    assert torch.equal(start.model.anchors_px, DetectionModel(OTHER, num_classes=3).anchors_px)
    (note,) = start.notes
    assert note.startswith("anchors of the weights: recall 1.0000")
    assert note.endswith("those of the weights are used")


@pytest.mark.parametrize(("mode", "of"), [("spec", OTHER), ("fit", OTHER), ("fit", SPEC)])
def test_other_anchors_than_those_of_the_weights_are_said(tmp_path: Path, mode: str, of: ModelSpec) -> None:
    start = started(tmp_path, of, NAMES, anchors=mode)
    assert start.model.spec.head.anchors != of.head.anchors  # type: ignore[union-attr]
    assert start.notes[-1] == f"{TRAINED_FOR_OTHERS}; anchors: auto takes over those of the weights if they fit"


def test_anchors_of_weights_that_miss_boxes_are_replaced_and_that_is_said(tmp_path: Path) -> None:
    start = started(tmp_path, OTHER, NAMES, boxes=NARROW_BOXES)
    first, second = start.notes
    assert first.startswith("anchors of the weights: recall 0.")
    assert first.endswith("the fitted anchors are used")
    assert second == TRAINED_FOR_OTHERS
    assert started(tmp_path, SPEC, NAMES, anchors="spec").notes == ()


def test_a_teacher_whose_anchors_are_not_those_of_the_weights_is_said(tmp_path: Path) -> None:
    torch.manual_seed(5)
    teacher = DetectionModel(OTHER, num_classes=3)
    write_own(tmp_path / "w.safetensors", DetectionModel(SPEC, num_classes=2))
    settings = job(SPEC, weights=tmp_path / "w.safetensors", distil={"teacher": "t.safetensors"})
    start = build_start(settings, ORDINARY, teacher=teacher)
    assert torch.equal(start.model.anchors_px, teacher.anchors_px)
    assert start.notes[-2:] == ("the anchors are those of the teacher", TRAINED_FOR_OTHERS)


def test_a_checkpoint_of_a_training_is_refused_by_the_name_of_the_file_to_give(tmp_path: Path) -> None:
    state = DetectionModel(SPEC, num_classes=3).state_dict()
    checkpoint = Checkpoint("f", {"step": 4}, model=state, ema=state, ema_updates=4, optimizer={}, scaler={})
    path = tmp_path / "checkpoint-000000004.pt"
    save_checkpoint(path, checkpoint)
    expected = f"{path}: is a checkpoint from which an interrupted training continues; give the weights.safetensors"
    for read in (lambda: build_start(job(SPEC, weights=path), ORDINARY), lambda: import_checkpoint(path, spec=SPEC)):
        with pytest.raises(ArtifactError) as raised:
            read()
        assert str(raised.value).startswith(expected)


def test_safetensors_files_are_told_from_pickles_whatever_the_length_of_their_header(tmp_path: Path) -> None:
    path, model = tmp_path / "x.safetensors", DetectionModel(SPEC, num_classes=2)
    state = {key: tensor.clone() for key, tensor in reference_state(model).items()}

    def save_own(text: str) -> None:
        save_weights(path, model, class_names=TWO, image_size=64, training={"text": text})

    def save_foreign(text: str) -> None:
        safetensors.torch.save_file(state, path, {"text": text})

    for save, names in ((save_own, TWO), (save_foreign, ("0", "1"))):
        for length in range(256):
            save("x" * length)
            if path.read_bytes()[:1] == b"\x80":  # as a pickle begins
                break
        else:
            raise AssertionError("no length of the header has the first byte of a pickle")
        assert open_weights(path, spec=SPEC).class_names == names
