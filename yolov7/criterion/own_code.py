"""Box losses and assigners that the user has written: what they get, and the check of what they return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor

from yolov7.boxes import IouKind, box_similarity
from yolov7.criterion.aligned import Scored, ScoringAssigner
from yolov7.criterion.assigners import Assigner
from yolov7.criterion.candidates import Assignment
from yolov7.errors import TrainingError
from yolov7.structures import Targets
from yolov7.system.plugins import ASSIGNER, BOX_LOSS, is_dotted, load_plugin, naming

Similarity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class HeadGeometry:
    """The head that an own assigner serves.

    Attributes:
        strides: Stride of each level in pixels, finest first.
        anchors_px: Width and height of the anchors (levels, anchors, 2) in pixels; None if the head has no anchors.
        bins: Number of bins per side of a box; 0 if the head predicts no distributions.
    """

    strides: tuple[int, ...]
    anchors_px: Tensor | None = None
    bins: int = 0


def similarity_of(name: str) -> Similarity:
    """Return the measure of similarity that a setting names.

    Args:
        name: A kind of `box_similarity`, or the dotted name of an own box loss.

    Returns:
        A function of predicted and wanted boxes, both cx, cy, w, h (n, 4) in one unit, which returns similarities (n,).
    """
    if not is_dotted(name):
        kind = cast(IouKind, name)
        return lambda predicted, wanted: box_similarity(predicted, wanted, kind=kind)
    own = load_plugin(name, BOX_LOSS)

    def checked(predicted: Tensor, wanted: Tensor) -> Tensor:
        with naming("the box loss", name):
            found: Tensor = own(predicted, wanted)
            if found.shape != predicted.shape[:1]:
                raise ValueError(f"it returned {tuple(found.shape)}, not a similarity for each of {len(wanted)} pairs")
        return found

    return checked


class _Own:
    """A user's assigner. Its results are checked completely the first time only, because the checks wait for a GPU."""

    def __init__(self, name: str, head: HeadGeometry) -> None:
        """Make the assigner.

        Args:
            name: Its dotted name.
            head: The head that it serves.
        """
        self._name, self._needs_scores, self._is_checked = name, head.bins > 0, False
        with naming("the assigner", name):
            self._own: Callable[..., Any] = load_plugin(name, ASSIGNER)(head)

    @torch.no_grad()
    def _assign(self, maps: Sequence[Tensor], targets: Targets) -> Scored:
        with naming("the assigner", self._name):
            found = self._own(maps, targets)
        wanted = "Scored" if self._needs_scores else "Assignment"
        if not isinstance(found, Scored if self._needs_scores else Assignment):
            raise TrainingError(f"the assigner {self._name} returned a {type(found).__name__}; it must return {wanted}")
        scored = found if isinstance(found, Scored) else Scored(found, maps[0].new_ones(len(found)))
        if not self._is_checked:
            if fault := _fault(scored, maps, targets):
                raise TrainingError(f"the assigner {self._name} returned an {wanted} in which {fault}; correct it")
            self._is_checked = len(scored.cells) > 0
        return scored


@final
class OwnAssigner(_Own, Assigner):
    """A user's assigner for a head with objectness."""

    def __call__(self, maps: Sequence[Tensor], targets: Targets) -> Assignment:
        """Return the positive cells; see `Assigner`."""
        return self._assign(maps, targets).cells


@final
class OwnScoringAssigner(_Own, ScoringAssigner):
    """A user's assigner for a head with distributions."""

    def __call__(self, maps: Sequence[Tensor], targets: Targets) -> Scored:
        """Return the positive cells and their scores; see `ScoringAssigner`."""
        return self._assign(maps, targets)


def _fault(scored: Scored, maps: Sequence[Tensor], targets: Targets) -> str:
    """Return what is wrong with positives; an empty string if nothing is."""
    cells, count = scored.cells, len(scored.cells)
    if scored.score.shape != (count,):
        return f"there are {len(scored.score)} scores for {count} cells"
    fields = {name: getattr(cells, name) for name in Assignment.__dataclass_fields__}
    for name, values in fields.items():
        if values.dtype != torch.int64 or values.shape != (count,):
            return f"{name} is {tuple(values.shape)} {values.dtype}, not ({count},) torch.int64"
    if bool((cells.level.diff() < 0).any()):
        return "the cells are not in the order of their levels"
    limits = {"level": len(maps), "target": len(targets)}
    for name, limit in limits.items():
        if count and not 0 <= int(fields[name].min()) <= int(fields[name].max()) < limit:
            return f"{name} is outside of 0..{limit - 1}"
    sizes = cells.level.new_tensor([m.shape[:4] for m in maps])[cells.level]  # p 4
    for position, name in enumerate(("image", "anchor", "row", "column")):
        if bool(((fields[name] < 0) | (fields[name] >= sizes[:, position])).any()):
            return f"{name} is outside of the map of its level"
    return ""
