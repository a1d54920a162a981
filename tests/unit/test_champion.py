"""Test which version of a registered model becomes the champion."""

from __future__ import annotations

from pipeline.tracking.champion import VersionEvaluation, decide, first_champion

BASIS = {"data": "a" * 64, "split": "val", "nms": "confidence=0.001 iou=0.65"}


def evaluation(version: str, ap: float, **other: str) -> VersionEvaluation:
    return VersionEvaluation(version, "nano/0", ap, BASIS | other)


def test_the_first_version_is_the_champion() -> None:
    decision = first_champion(evaluation("1", 0.1))
    assert decision.version == "1"
    assert decision.reason == "version 1 (nano/0, AP 0.100) is the first champion"


def test_a_better_version_replaces_the_champion() -> None:
    decision = decide(evaluation("1", 0.5), evaluation("2", 0.6), [])
    assert decision.version == "2"
    assert decision.reason == "version 2 (nano/0, AP 0.600) replaces version 1 (nano/0, AP 0.500) as champion"


def test_a_version_that_is_worse_or_equal_does_not_replace_the_champion() -> None:
    for ap in (0.4, 0.5):
        decision = decide(evaluation("1", 0.5), evaluation("2", ap), [])
        assert decision.version is None
        assert decision.reason.endswith("is not better")


def test_a_version_that_was_measured_differently_does_not_replace_the_champion() -> None:
    for name, other, said in (
        ("data", "b" * 64, "data bbbbbbbbbbbb instead of aaaaaaaaaaaa"),
        ("split", "test", "split test instead of val"),
        ("nms", "confidence=0.1 iou=0.65", "nms confidence=0.1 iou=0.65 instead of confidence=0.001 iou=0.65"),
    ):
        decision = decide(evaluation("1", 0.5), evaluation("2", 0.9, **{name: other}), [])
        assert decision.version is None
        assert said in decision.reason
        assert "move the alias by hand" in decision.reason


def test_a_champion_that_is_evaluated_anew_is_compared_with_earlier_evaluations() -> None:
    """After a change of data the result does not depend on which version is evaluated first."""
    moved = {"data": "b" * 64}
    better, champion = evaluation("2", 0.6, **moved), evaluation("1", 0.5, **moved)
    assert decide(champion, champion, [better, champion]).version == "2"


def test_versions_that_were_measured_on_other_data_are_not_compared() -> None:
    other = evaluation("3", 0.9, data="b" * 64)
    assert decide(evaluation("1", 0.5), evaluation("2", 0.6), [other]).version == "2"
