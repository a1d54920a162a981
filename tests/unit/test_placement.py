"""Count how many workers fit on the nodes of a cluster."""

from __future__ import annotations

import time

import pytest
from pydantic import ValidationError

import pipeline.ray.reservations
from pipeline.params import RaySettings
from pipeline.ray.errors import ClusterError
from pipeline.ray.placement import Node, WorkerResources, choose_resources, lack_of_room, room
from pipeline.ray.reservations import Patience

HEAD, SMALL, LARGE = Node("head", 0), Node("small", 4), Node("large", 16)
ONE_GPU, FOUR_GPUS = Node("one", 8, gpus=1), Node("four", 64, gpus=4)


def test_each_worker_needs_room_on_one_node() -> None:
    assert room([HEAD, SMALL, LARGE], WorkerResources(10)) == 1  # of 20 CPUs in total
    assert room([HEAD, SMALL, LARGE], WorkerResources(4)) == 5
    assert room([ONE_GPU, FOUR_GPUS], WorkerResources(4, gpus=1)) == 5
    assert room([ONE_GPU, FOUR_GPUS], WorkerResources(4, gpus=0.5)) == 10
    assert room([Node("many GPUs, few CPUs", 8, gpus=8)], WorkerResources(4, gpus=1)) == 2


@pytest.mark.parametrize(
    ("workers", "nodes", "expected"),
    [
        (2, [HEAD, SMALL, LARGE], WorkerResources(8)),  # both on the large node; with 10 CPUs each, only one would fit
        (1, [HEAD, SMALL, LARGE], WorkerResources(16)),
        (5, [SMALL, LARGE], WorkerResources(4)),
        (30, [SMALL, LARGE], WorkerResources(1)),  # not all of them fit
        (5, [HEAD, ONE_GPU, FOUR_GPUS], WorkerResources(8, gpus=1)),
        (4, [HEAD, ONE_GPU, FOUR_GPUS], WorkerResources(16, gpus=1)),
        (6, [HEAD, ONE_GPU, FOUR_GPUS], WorkerResources(10)),  # there are fewer GPUs than workers
        ((1, 8), [HEAD, ONE_GPU, FOUR_GPUS], WorkerResources(8, gpus=1)),  # five GPUs
        ((2, 4), [SMALL], WorkerResources(1)),
        (2, [], WorkerResources(1)),
    ],
)
def test_auto_suits_nodes_of_different_size(
    workers: int | tuple[int, int], nodes: list[Node], expected: WorkerResources
) -> None:
    assert choose_resources(RaySettings(workers=workers), nodes) == expected


def test_stated_resources_are_not_changed() -> None:
    settings = RaySettings(workers=2, cpus_per_worker=3, gpus_per_worker=0.5)
    assert choose_resources(settings, [SMALL]) == WorkerResources(3, gpus=0.5)


def test_the_message_about_missing_room_lists_the_nodes() -> None:
    settings = RaySettings(workers=(3, 8))
    assert lack_of_room(settings, [SMALL, LARGE], WorkerResources(5)) is None
    message = lack_of_room(settings, [SMALL, ONE_GPU], WorkerResources(4, gpus=1))
    assert message is not None
    assert message.startswith("there is room for 1 of 3 workers with 4 CPUs and 1 GPUs each (ray.workers, ")
    assert "the nodes are: small with 4 CPUs, one with 8 CPUs and 1 GPUs. Ask for less, or add nodes" in message


def test_what_is_missing_is_told_at_once_and_is_an_error_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.ray.reservations, "LOOK_SECONDS", 0)
    lacks = iter(["no room", None, None, "no room", "no room", "no room"])
    told: list[str] = []
    patience = Patience(lambda: next(lacks), seconds=0.05, say=told.append)
    for _ in range(5):
        patience.look()
    assert told == ["waits up to 0.05 s (ray.start_timeout): no room"] * 2
    time.sleep(0.1)
    with pytest.raises(ClusterError, match=r"no room; training waited 0\.05 s \(ray\.start_timeout\)"):
        patience.look()


def test_workers_are_a_number_or_a_range() -> None:
    assert (RaySettings(workers=(1, 4)).fewest_workers, RaySettings(workers=(1, 4)).most_workers) == (1, 4)
    assert RaySettings(workers=3).fewest_workers == RaySettings(workers=3).most_workers == 3
    with pytest.raises(ValidationError, match=r"\[4, 1\] must be the fewest workers, then the most"):
        RaySettings(workers=(4, 1))
    with pytest.raises(ValidationError):
        RaySettings(workers=0)
