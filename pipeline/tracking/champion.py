"""Which version of a registered model is the champion: the best of those evaluated as it was; pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ABOUT = ("data", "split", "nms")  # what an AP hangs on beside the model


@dataclass(frozen=True)
class Evaluation:
    """A version's AP, and on what it was measured."""

    version: str
    name: str  # variant and seed
    AP: float
    basis: Mapping[str, str]  # of `data`, the hash of their content, `split` and `nms`

    def __str__(self) -> str:
        return f"version {self.version} ({self.name}, AP {self.AP:.3f})"


@dataclass(frozen=True)
class Decision:
    """The version that takes the alias, None where it stays, and why, in one line."""

    version: str | None
    reason: str


def first_champion(evaluated: Evaluation) -> Decision:
    """Where no version has the alias."""
    return Decision(evaluated.version, f"{evaluated} is the first champion")


def decide(champion: Evaluation, evaluated: Evaluation, others: Sequence[Evaluation]) -> Decision:
    """The best of all versions that were evaluated on the champion's data takes its place, if it is better.

    `evaluated` is the version that was evaluated just now. Where it is the champion itself, others may be better than
    its new figure, or have become comparable to it.
    """
    comparable = [one for one in (evaluated, *others) if one.basis == champion.basis]
    best = max(comparable, key=lambda one: one.AP, default=champion)
    if best.AP > champion.AP:
        return Decision(best.version, f"{best} is the champion now, in place of {champion}")
    if evaluated.version == champion.version:
        return Decision(None, f"{champion} stays champion")
    if evaluated.basis != champion.basis:
        return Decision(None, f"{champion} stays champion: {evaluated} was measured {_difference(champion, evaluated)}")
    return Decision(None, f"{champion} stays champion: {evaluated} is not better")


def _difference(champion: Evaluation, evaluated: Evaluation) -> str:
    name = next(name for name in _ABOUT if champion.basis.get(name) != evaluated.basis.get(name))
    return (
        f"on another basis, {name} {_shown(evaluated, name)} instead of {_shown(champion, name)}; "
        "evaluate both alike, or move the alias by hand"
    )


def _shown(evaluation: Evaluation, name: str) -> str:
    text = evaluation.basis.get(name, "unknown")
    return text[:12] if name == "data" else text
