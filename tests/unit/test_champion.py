"""Which version of a registered model becomes the champion."""

from __future__ import annotations

from pipeline.tracking.champion import Evaluation, decide, first_champion

BASIS = {"data": "a" * 64, "split": "val", "nms": "confidence=0.001 iou=0.65"}


def evaluation(version: str, ap: float, **other: str) -> Evaluation:
    return Evaluation(version, "nano/0", ap, BASIS | other)


def test_the_first_version_is_the_champion() -> None:
    decision = first_champion(evaluation("1", 0.1))
    assert decision.version == "1"
    assert decision.reason == "version 1 (nano/0, AP 0.100) is the first champion"


def test_a_better_version_takes_its_place() -> None:
    decision = decide(evaluation("1", 0.5), evaluation("2", 0.6), [])
    assert decision.version == "2"
    assert (
        "version 2 (nano/0, AP 0.600) is the champion now, in place of version 1 (nano/0, AP 0.500)" in decision.reason
    )


def test_one_that_is_worse_or_as_good_does_not() -> None:
    for ap in (0.4, 0.5):
        decision = decide(evaluation("1", 0.5), evaluation("2", ap), [])
        assert decision.version is None
        assert decision.reason.endswith("is not better")


def test_what_was_measured_on_another_basis_does_not_and_is_told_why() -> None:
    for name, other, said in (
        ("data", "b" * 64, "data bbbbbbbbbbbb instead of aaaaaaaaaaaa"),
        ("split", "test", "split test instead of val"),
        ("nms", "confidence=0.1 iou=0.65", "nms confidence=0.1 iou=0.65 instead of confidence=0.001 iou=0.65"),
    ):
        decision = decide(evaluation("1", 0.5), evaluation("2", 0.9, **{name: other}), [])
        assert decision.version is None
        assert said in decision.reason
        assert "move the alias by hand" in decision.reason


def test_a_champion_evaluated_anew_meets_those_that_were_before_it() -> None:
    """After a change of data it depends on no order who is evaluated first."""
    moved = {"data": "b" * 64}
    better, champion = evaluation("2", 0.6, **moved), evaluation("1", 0.5, **moved)
    assert decide(champion, champion, [better, champion]).version == "2"


def test_a_version_is_not_compared_with_one_of_other_data() -> None:
    other = evaluation("3", 0.9, data="b" * 64)
    assert decide(evaluation("1", 0.5), evaluation("2", 0.6), [other]).version == "2"
