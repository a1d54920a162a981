"""Room for workers, node by node."""

from __future__ import annotations

import time

import pytest
from pydantic import ValidationError

import pipeline.ray.placement
from pipeline.params import RaySettings
from pipeline.ray.placement import Lookout, Node, Share, choose_share, lack_of_room, room

HEAD, SMALL, LARGE = Node("head", 0), Node("small", 4), Node("large", 16)
ONE_GPU, FOUR_GPUS = Node("one", 8, gpus=1), Node("four", 64, gpus=4)


def test_a_worker_has_room_on_one_node_only() -> None:
    assert room([HEAD, SMALL, LARGE], Share(10)) == 1  # of 20 CPUs in all
    assert room([HEAD, SMALL, LARGE], Share(4)) == 5
    assert room([ONE_GPU, FOUR_GPUS], Share(4, gpus=1)) == 5
    assert room([ONE_GPU, FOUR_GPUS], Share(4, gpus=0.5)) == 10
    assert room([Node("many GPUs, few CPUs", 8, gpus=8)], Share(4, gpus=1)) == 2


@pytest.mark.parametrize(
    ("workers", "nodes", "share"),
    [
        (2, [HEAD, SMALL, LARGE], Share(8)),  # both on the large one; 10 each would fit nowhere
        (1, [HEAD, SMALL, LARGE], Share(16)),
        (5, [SMALL, LARGE], Share(4)),
        (30, [SMALL, LARGE], Share(1)),  # there is no room for them all
        (5, [HEAD, ONE_GPU, FOUR_GPUS], Share(8, gpus=1)),
        (4, [HEAD, ONE_GPU, FOUR_GPUS], Share(16, gpus=1)),
        (6, [HEAD, ONE_GPU, FOUR_GPUS], Share(10)),  # a GPU for each there is not
        ((1, 8), [HEAD, ONE_GPU, FOUR_GPUS], Share(8, gpus=1)),  # five GPUs
        ((2, 4), [SMALL], Share(1)),
        (2, [], Share(1)),
    ],
)
def test_auto_suits_nodes_of_different_size(workers: int | tuple[int, int], nodes: list[Node], share: Share) -> None:
    assert choose_share(RaySettings(workers=workers), nodes) == share


def test_what_is_asked_for_is_not_changed() -> None:
    settings = RaySettings(workers=2, cpus_per_worker=3, gpus_per_worker=0.5)
    assert choose_share(settings, [SMALL]) == Share(3, gpus=0.5)


def test_missing_room_is_told_with_what_there_is() -> None:
    settings = RaySettings(workers=(3, 8))
    assert lack_of_room(settings, [SMALL, LARGE], Share(5)) is None
    said = lack_of_room(settings, [SMALL, ONE_GPU], Share(4, gpus=1))
    assert said is not None
    assert said.startswith("there is room for 1 of 3 workers with 4 CPUs and 1 GPUs each (train.workers, ")
    assert "there are: small 4 CPUs, one 8 CPUs and 1 GPUs. Ask for less, or add nodes" in said


def test_room_that_is_missing_is_told_at_once_and_later_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.ray.placement, "LOOK_SECONDS", 0)
    lacks = iter(["no room", None, None, "no room", "no room", "no room"])
    said: list[str] = []
    lookout = Lookout(lambda: next(lacks), patience=0.05, say=said.append)
    for _ in range(5):
        lookout.look()
    assert said == ["waits up to 0.05 s (train.start_timeout): no room"] * 2
    time.sleep(0.1)
    with pytest.raises(ValueError, match=r"no room; 0\.05 s \(train\.start_timeout\) were in vain"):
        lookout.look()


def test_workers_are_a_number_or_a_range() -> None:
    assert (RaySettings(workers=(1, 4)).fewest_workers, RaySettings(workers=(1, 4)).most_workers) == (1, 4)
    assert RaySettings(workers=3).fewest_workers == RaySettings(workers=3).most_workers == 3
    with pytest.raises(ValidationError, match=r"\[4, 1\] must be the fewest workers, then the most"):
        RaySettings(workers=(4, 1))
    with pytest.raises(ValidationError):
        RaySettings(workers=0)
