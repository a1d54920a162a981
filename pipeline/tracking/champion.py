"""Decide which version of a registered model is the champion: the best of those measured on the same data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_BASIS = ("data", "split", "nms")  # what affects an AP besides the model


@dataclass(frozen=True)
class VersionEvaluation:
    """The AP of a version, and what it was measured on.

    Attributes:
        version: The number of the version.
        name: Variant and seed, as `nano/0`.
        AP: COCO AP as a fraction.
        basis: `data` (the hash of their content), `split` and `nms` (its settings).
    """

    version: str
    name: str
    AP: float
    basis: Mapping[str, str]

    def __str__(self) -> str:
        """Return the version as messages show it."""
        return f"version {self.version} ({self.name}, AP {self.AP:.3f})"


@dataclass(frozen=True)
class ChampionDecision:
    """The decision which version gets the alias.

    Attributes:
        version: The version that takes the alias; None if it stays where it is.
        reason: Why, in one line.
    """

    version: str | None
    reason: str


def first_champion(evaluated: VersionEvaluation) -> ChampionDecision:
    """Return the decision where no version has the alias yet.

    Args:
        evaluated: The version that was evaluated just now.

    Returns:
        A decision for that version.
    """
    return ChampionDecision(evaluated.version, f"{evaluated} is the first champion")


def decide(
    champion: VersionEvaluation, evaluated: VersionEvaluation, others: Sequence[VersionEvaluation]
) -> ChampionDecision:
    """Give the alias to the best of all versions that were measured as the champion was, if it is better.

    Args:
        champion: The version that has the alias.
        evaluated: The version that was evaluated just now. Where it is the champion itself, others may be better than
            its new figure, or have become comparable with it.
        others: All versions that were evaluated.

    Returns:
        The decision.
    """
    comparable = [one for one in (evaluated, *others) if one.basis == champion.basis]
    best = max(comparable, key=lambda one: one.AP, default=champion)
    if best.AP > champion.AP:
        return ChampionDecision(best.version, f"{best} replaces {champion} as champion")
    if evaluated.version == champion.version:
        return ChampionDecision(None, f"{champion} stays champion")
    if evaluated.basis != champion.basis:
        reason = f"{evaluated} was measured {_difference(champion, evaluated)}"
    else:
        reason = f"{evaluated} is not better"
    return ChampionDecision(None, f"{champion} stays champion: {reason}")


def _difference(champion: VersionEvaluation, evaluated: VersionEvaluation) -> str:
    name = next(name for name in _BASIS if champion.basis.get(name) != evaluated.basis.get(name))
    return (
        f"with {name} {_shown(evaluated, name)} instead of {_shown(champion, name)}; "
        "evaluate both in the same way, or move the alias by hand"
    )


def _shown(evaluation: VersionEvaluation, name: str) -> str:
    text = evaluation.basis.get(name, "unknown")
    return text[:12] if name == "data" else text
