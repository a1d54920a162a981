"""Which share of a cluster a trial gets: counted node by node, and with GPUs GPU by GPU."""

from __future__ import annotations

import pytest

from pipeline.ray.placement import Node
from pipeline.tuning.trial.resources import choose_resources
from yolov7.errors import SettingError


@pytest.mark.parametrize(
    ("nodes", "trials_per_gpu", "expected"),
    [
        ([Node("a", 4)], 1, (1, 0.0, 4)),
        ([Node("a", 4), Node("b", 2.5), Node("c", 0.5)], 1, (1, 0.0, 6)),  # half a CPU holds no trial
        ([Node("a", 16, 2)], 1, (8, 1.0, 2)),
        ([Node("a", 16, 2)], 3, (2, 0.3333, 6)),
        ([Node("a", 16, 1), Node("b", 4, 1)], 1, (4, 1.0, 2)),  # b has no room for a trial of 10 CPUs
        ([Node("a", 2, 4)], 1, (1, 1.0, 2)),  # two of the GPUs have no CPU
        ([Node("head", 32), Node("gpu", 8, 1)], 1, (8, 1.0, 1)),  # the GPU cannot use the CPUs of the head
        ([Node("a", 8, 1)], 7, (1, 0.1428, 7)),
    ],
)
def test_trials_have_room_on_single_nodes(
    nodes: list[Node], trials_per_gpu: int, expected: tuple[int, float, int]
) -> None:
    found = choose_resources(nodes, trials_per_gpu=trials_per_gpu)
    assert (found.cpus, found.gpus, found.concurrent_trials) == expected
    assert found.gpus * trials_per_gpu <= 1


def test_a_measurement_that_has_a_device_to_itself_has_room_on_one_node() -> None:
    assert choose_resources([Node("a", 4), Node("b", 6)], trials_per_gpu=1).device_threads == 6
    assert choose_resources([Node("a", 9, 3)], trials_per_gpu=1).device_threads == 3


@pytest.mark.parametrize("nodes", [[], [Node("head", 0)], [Node("a", 0, 1)]])
def test_a_cluster_without_room_is_an_error(nodes: list[Node]) -> None:
    with pytest.raises(SettingError, match="no node of the cluster has room for a trial"):
        choose_resources(nodes, trials_per_gpu=1)
