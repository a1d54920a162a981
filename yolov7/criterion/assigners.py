"""Label assigners: which cells of a head's maps are positive, and for which object (paper, section 4.2).

`candidates` says which cells may become positive at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yolov7.boxes import cxcywh_to_xyxy
from yolov7.criterion.candidates import FINE, Anchors, Assignment, distinct_cells, find_candidates
from yolov7.criterion.matching import ByImage, ObjectBoxes, Predictions, chunks_of_images, class_costs, match_cheapest
from yolov7.settings import Guidance
from yolov7.structures import HeadMaps, Targets
from yolov7.system.shapes import Float

MAX_K, MAX_K_WITH_AUXILIARY = 10, 20  # how many IoUs are summed to get the number of positives of an object
SMALL_SIDE, SMALL_K = 2, 4  # side of small objects in strides of the finest level, and their least number of positives
LEAD_SPAN, WIDE_SPAN = 2.0, 3.0  # range, in cells, of the decoded centre of a box around the centre of its cell


class Assigner(ABC):
    """Choose the positive cells of a batch for one head."""

    @abstractmethod
    def __call__(self, maps: Sequence[Tensor], targets: Targets) -> Assignment:
        """Return the positives of a batch. They have no gradient.

        Args:
            maps: Raw maps (B, anchors, H, W, 5 + classes), finest level first.
            targets: The objects of the images.

        Returns:
            The positive cells by ascending level.
        """


class AnchorAssigner(Assigner):
    """Make every candidate positive: matching by the shape of the anchor only, as in YOLOv5."""

    def __init__(self, anchors: Anchors, *, threshold: float, reach: float = FINE) -> None:
        """Set the parameters, which are those of `find_candidates`."""
        self._anchors = anchors
        self._threshold = threshold
        self._reach = reach

    @torch.no_grad()
    def __call__(self, maps: Sequence[Tensor], targets: Targets) -> Assignment:
        """Return all candidates; see `Assigner`."""
        return find_candidates(targets, maps=maps, anchors=self._anchors, threshold=self._threshold, reach=self._reach)


class OtaAssigner(Assigner):
    """Dynamic-k assignment based on the predictions of the head (section 4.2 of the paper; SimOTA of YOLOX).

    Every object takes its k cheapest candidates, where k is the sum of its `max_k` largest IoUs. If several objects
    take the same candidate, it is assigned to the object of the image for which its cost is lowest.
    """

    def __init__(
        self,
        anchors: Anchors,
        *,
        threshold: float,
        merge_duplicates: bool,
        max_k: int = MAX_K,
        reach: float = FINE,
        span: float = LEAD_SPAN,
        four_cells: bool = False,
    ) -> None:
        """Set the parameters.

        Args:
            anchors: Anchors and strides of the head.
            threshold: Largest ratio between a side of an object and of its anchor.
            merge_duplicates: Whether a cell that several objects propose is one candidate, and so is positive for at
                most one object. Otherwise it is one candidate per object, as in the reference, and may be positive for
                several objects.
            max_k: Number of largest IoUs whose sum is the number of positives of an object.
            reach: See `find_candidates`.
            span: Range of the centre in the decoder of the head, in cells.
            four_cells: Whether objects with a side below two strides of the finest level take at least four candidates,
                as far as so many overlap them. The small IoUs of small objects otherwise leave them only one.
        """
        self._anchors = anchors
        self._threshold = threshold
        self._merge_duplicates = merge_duplicates
        self._max_k = max_k
        self._reach = reach
        self._span = span
        self._four_cells = four_cells

    @torch.no_grad()
    def __call__(self, maps: Sequence[Tensor], targets: Targets) -> Assignment:
        """Return the cheapest candidates of all objects; see `Assigner`."""
        candidates = find_candidates(
            targets, maps=maps, anchors=self._anchors, threshold=self._threshold, reach=self._reach
        )
        if self._merge_duplicates:
            candidates = distinct_cells(candidates, maps=maps)
        predictions = _predict(candidates, maps=maps, anchors=self._anchors, span=self._span)
        height, width = (side * self._anchors.strides[0] for side in maps[0].shape[2:4])
        scale = targets.boxes_cxcywh.new_tensor([width, height, width, height], dtype=torch.float32)
        objects = ObjectBoxes(cxcywh_to_xyxy(targets.boxes_cxcywh.float() * scale), targets.label)
        least_k = None
        if self._four_cells:
            sides = (targets.boxes_cxcywh.float() * scale)[:, 2:].amin(1)
            least_k = SMALL_K * (sides < SMALL_SIDE * self._anchors.strides[0])
        num_images = maps[0].shape[0]
        by_candidate = ByImage.group(candidates.image, num_images=num_images)
        by_object = ByImage.group(targets.image, num_images=num_images)
        chosen = [candidates.target[:0]]
        owners = [candidates.target[:0]]
        for images in chunks_of_images(by_candidate.sizes, by_object.sizes):
            found, padded = by_candidate.padded(images), by_object.padded(images)
            positives, takers = match_cheapest(predictions, objects, found, padded, self._max_k, least_k=least_k)
            chosen.append(positives)
            owners.append(takers)
        index, target = torch.cat(chosen), torch.cat(owners)
        order = torch.argsort(candidates.level[index], stable=True)
        cells = candidates.take(index[order])
        return Assignment(cells.level, cells.image, cells.anchor, cells.row, cells.column, target[order])


@dataclass(frozen=True)
class HeadsAssignment:
    """The positives of both heads. Without an auxiliary head, both are those of the lead head.

    Attributes:
        lead: The positives of the lead head.
        auxiliary: The positives of the auxiliary head.
    """

    lead: Assignment
    auxiliary: Assignment


class HeadsAssigner:
    """Choose the cells that the lead and the auxiliary head learn from (section 4.2 and figure 5 of the paper)."""

    def __init__(
        self, *, alone: Assigner, lead: Assigner, auxiliary: Assigner, guidance: Guidance = "coarse_to_fine"
    ) -> None:
        """Combine the assigners of both heads.

        Args:
            alone: Used if the model has no auxiliary head.
            lead: Used for the lead head beside an auxiliary head.
            auxiliary: Used for the auxiliary head, except with `lead_guided`.
            guidance: `lead_guided`: both heads share one assignment based on the predictions of the lead head.
                `coarse_to_fine`: the auxiliary head has its own assignment with coarser candidates, also based on the
                predictions of the lead head. `independent`: each assignment is based on the predictions of its own
                head.
        """
        self._alone = alone
        self._lead = lead
        self._auxiliary = auxiliary
        self._guidance = guidance

    @torch.no_grad()
    def __call__(self, maps: HeadMaps, targets: Targets) -> HeadsAssignment:
        """Return the positives of a batch.

        Args:
            maps: Raw maps of both heads.
            targets: The objects of the images.

        Returns:
            The positives of both heads.
        """
        if not maps.auxiliary:
            alone = self._alone(maps.lead, targets)
            return HeadsAssignment(alone, alone)
        lead = self._lead(maps.lead, targets)
        match self._guidance:
            case "lead_guided":
                return HeadsAssignment(lead, lead)
            case "coarse_to_fine":
                return HeadsAssignment(lead, self._auxiliary(maps.lead, targets))
            case "independent":
                return HeadsAssignment(lead, self._auxiliary(maps.auxiliary, targets))


def centre_in_cell(probability: Float[Tensor, "p 2"], *, span: float) -> Float[Tensor, "p 2"]:
    """Return centres relative to the corner of their cell.

    Args:
        probability: Sigmoids (p, 2) of the predicted x and y.
        span: Range of the centre in cells, around the middle of the cell.

    Returns:
        Centres (p, 2) in cells.
    """
    return probability * span - (span - 1) / 2


def _predict(candidates: Assignment, *, maps: Sequence[Tensor], anchors: Anchors, span: float) -> Predictions:
    """Decode the candidates, and no other cells, in float32."""
    levels = zip(maps, candidates.per_level(len(maps)), strict=True)
    rows = torch.cat([m[c.image, c.anchor, c.row, c.column].float() for m, c in levels])  # c 5+nc
    anchors_px, strides = anchors.on(rows.device)
    box = rows[:, :4].sigmoid()
    cell = torch.stack((candidates.column, candidates.row), dim=1)
    centre = (centre_in_cell(box[:, :2], span=span) + cell) * strides[candidates.level, None]
    size = (2 * box[:, 2:]).square() * anchors_px[candidates.level, candidates.anchor]
    negatives, switch = class_costs(rows[:, 5:], rows[:, 4])
    return Predictions(cxcywh_to_xyxy(torch.cat((centre, size), dim=1)), negatives, switch)
