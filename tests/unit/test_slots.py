"""Nodes are divided among trainings that run at the same time, and no CPU or GPU is given twice."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.params import RaySettings
from pipeline.ray.placement import Node
from pipeline.ray.slots import FreeRoom, divide

LAPTOP = [Node("laptop", cpus=8)]
GPU_NODES = [Node("a", cpus=32, gpus=4), Node("b", cpus=32, gpus=4)]


@pytest.mark.parametrize(
    ("nodes", "settings", "trainings", "cpus", "gpus", "at_once"),
    [
        (LAPTOP, {}, 30, 1, 0, 8),
        (LAPTOP, {}, 2, 4, 0, 2),
        (LAPTOP, {}, 3, 2, 0, 4),
        (LAPTOP, {"cpus_per_worker": 3}, 30, 3, 0, 2),
        (LAPTOP, {"workers": [2, 8]}, 2, 2, 0, 2),
        (GPU_NODES, {}, 30, 8, 1, 8),
        (GPU_NODES, {"workers": 2}, 30, 8, 1, 4),
        (GPU_NODES, {"gpus_per_worker": 0.5}, 30, 4, 0.5, 16),
        (GPU_NODES, {"gpus_per_worker": 2}, 30, 16, 2, 4),
        (GPU_NODES, {"gpus_per_worker": 0, "cpus_per_worker": 16}, 30, 16, 0, 4),
    ],
)
def test_nodes_are_divided(
    nodes: list[Node], settings: dict[str, Any], trainings: int, cpus: int, gpus: float, at_once: int
) -> None:
    """With 3 trainings on 8 CPUs, each gets 2, so that there is room for a fourth that does not exist."""
    divided = divide(RaySettings.model_validate(settings), nodes, trainings=trainings)
    assert (divided.cpus_per_worker, divided.gpus_per_worker) == (cpus, gpus)
    free, taken = FreeRoom(nodes), []
    while (slots := free.take(divided)) is not None:
        taken.append(slots)
    assert len(taken) == at_once
    for number, node in enumerate(nodes):
        here = [slot for slots in taken for slot in slots if slot.node == number]
        assert sum(slot.cpus for slot in here) <= node.cpus
        for gpu in range(int(node.gpus)):
            assert sum(slot.gpu_share for slot in here if gpu in slot.gpus) <= 1
    free.give_back(taken[0])
    assert free.take(divided) == taken[0]


def test_a_training_that_does_not_fit_takes_nothing() -> None:
    free = FreeRoom(GPU_NODES)
    assert free.take(RaySettings(workers=9, cpus_per_worker=1, gpus_per_worker=1)) is None
    slots = free.take(RaySettings(workers=8, cpus_per_worker=1, gpus_per_worker=1))
    assert slots is not None
    assert sorted((slot.node, slot.gpus) for slot in slots) == [(n, (gpu,)) for n in (0, 1) for gpu in range(4)]
