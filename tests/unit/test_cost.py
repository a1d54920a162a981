from __future__ import annotations

import pytest
import torch

from yolov7.nn.cost import spec_cost
from yolov7.nn.model import DetectionModel
from yolov7.spec.scaling import scale_spec
from yolov7.spec.spec_files import load_spec

# factors, parameters in millions, printed GFLOPs and the convention that gives them; the table mixes two conventions
TABLE3 = {
    "base": ({"rule": "compound"}, 47.05, 125.5, "gflops_with_bias"),
    "width only": ({"rule": "width", "width": 1.25}, 73.36, 195.5, "gflops_unfolded"),
    "depth only": ({"rule": "depth", "depth": 2.0}, 69.29, 187.6, "gflops_unfolded"),
    "compound": ({"rule": "compound", "depth": 1.5}, 71.31, 189.9, "gflops_with_bias"),
}


@pytest.mark.parametrize("row", TABLE3)
def test_table_3(row: str) -> None:
    factors, parameters, gflops, convention = TABLE3[row]
    cost = spec_cost(scale_spec(load_spec("yolov7x-light"), **factors))
    assert round(cost.parameters_deployed / 1e6, 2) == parameters
    found = {name for name in ("gflops_with_bias", "gflops_unfolded") if round(getattr(cost, name), 1) == gflops}
    assert found == {convention}


def test_nano_is_small() -> None:
    cost = spec_cost(load_spec("nano"), num_classes=8)
    assert cost.parameters_deployed < cost.parameters < 1_000_000
    assert cost.gflops == cost.gflops_built < cost.gflops_with_bias < 1


def test_training_graph_has_the_branches_too() -> None:
    cost = spec_cost(load_spec("yolov7"), image_size=64)
    assert cost.gflops_built > cost.gflops


def test_tiny_before_folding() -> None:
    """The paper prints 13.8. In multiply-accumulates, an element counts 2 in a batch norm and 1 in a LeakyReLU."""
    assert round(spec_cost(load_spec("yolov7-tiny")).gflops_unfolded, 3) == 13.824


def test_the_training_graph_of_d6() -> None:
    """The row of the paper is the training graph with its auxiliary head; the other P6 rows are deployed graphs."""
    cost = spec_cost(load_spec("yolov7-d6"), image_size=640)
    assert round(cost.parameters / 1e6, 1) == 154.7
    assert round(cost.gflops_built_with_bias, 1) * 4 == pytest.approx(806.8)
    assert round(cost.parameters_deployed / 1e6, 1) == 133.8


def test_cost_follows_size_and_leaves_nothing_behind() -> None:
    spec = load_spec("nano")
    assert spec_cost(spec, image_size=640).gflops == pytest.approx(4 * spec_cost(spec, image_size=320).gflops)
    model = DetectionModel(spec, num_classes=3).eval()
    assert model(torch.rand(1, 3, 64, 64)).lead[0].device.type == "cpu"
