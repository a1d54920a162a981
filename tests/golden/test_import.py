"""Checkpoints of the reference's graphs: names, forward passes of imported weights, and export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.golden.test_models import GRAPHS, YOLOV7, assert_forward
from tests.golden.vectors import load_vectors, reference_keys, reference_state
from yolov7.nn.model import DetectionModel
from yolov7.spec.auxiliary import without_auxiliary
from yolov7.spec.spec_files import ModelSpec, load_spec, resolve_spec
from yolov7.weights.foreign.reference import export_checkpoint, import_checkpoint
from yolov7.weights.foreign.reference import reference_state as named_as_reference

QUICK = ("training/yolov7-tiny", "deploy/yolov7-tiny-silu")


def graphs(names: tuple[str, ...]) -> list[object]:
    """Return parameters of a test; all but two graphs are marked as slow."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("graph", GRAPHS)
def test_names_order_and_shapes(graph: str) -> None:
    with torch.device("meta"):
        model = DetectionModel(spec_of(graph), num_classes=80)
    state = named_as_reference(model)
    ours = [(key, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for key, tensor in state.items()]
    assert ours == reference_keys(graph)


@pytest.mark.parametrize("graph", graphs(YOLOV7))
def test_forward_of_an_imported_state_dict(tmp_path: Path, graph: str) -> None:
    golden = load_vectors(f"model_{graph.replace('/', '_')}")
    torch.save(reference_state(graph, gain=golden["gain"]), tmp_path / "x.pt")
    imported = import_checkpoint(tmp_path / "x.pt", spec=load_spec(graph.partition("/")[2]))
    assert imported.weights.model.spec == spec_of(graph)
    assert_forward(imported.weights.model, golden)


@pytest.mark.parametrize("graph", graphs(GRAPHS))
def test_import_export_import(tmp_path: Path, graph: str) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.rand(shape, generator=generator) if dtype == "float32" else torch.tensor(3)
        for key, shape, dtype in reference_keys(graph)
        if not key.endswith(("anchors", "anchor_grid"))
    }
    torch.save(state, tmp_path / "x.pt")
    spec = load_spec(graph.partition("/")[2])
    first = import_checkpoint(tmp_path / "x.pt", spec=spec).weights
    export_checkpoint(tmp_path / "y.pt", first.model, class_names=first.class_names)
    exported = torch.load(tmp_path / "y.pt", weights_only=True)["model"]
    second = import_checkpoint(tmp_path / "y.pt", spec=spec).weights
    assert [(key, tuple(tensor.shape)) for key, tensor in exported.items()] == [
        (key, shape) for key, shape, _ in reference_keys(graph)
    ]
    assert all(torch.equal(exported[key], tensor) for key, tensor in state.items())
    assert second.model.spec == first.model.spec
    theirs = second.model.state_dict()
    assert all(torch.equal(theirs[key], tensor) for key, tensor in first.model.state_dict().items())


def spec_of(graph: str) -> ModelSpec:
    kind, name = graph.split("/")
    if kind != "deploy":
        return load_spec(name)
    return without_auxiliary(resolve_spec({"base": name, "swap": {"head": {"implicit": False}}}, name=name))
