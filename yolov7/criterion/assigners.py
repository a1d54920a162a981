"""Label assigners: which cells of a head's maps are positive, and for which object (paper, section 4.2).

`candidates` says which cells may become positive at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from yolov7.boxes import cxcywh_to_xyxy, pairwise_iou
from yolov7.criterion.candidates import FINE, Anchors, Assignment, distinct_cells, find_candidates
from yolov7.settings import Guidance
from yolov7.structures import HeadMaps, Targets
from yolov7.system.shapes import Bool, Float, Int

MAX_K, MAX_K_WITH_AUXILIARY = 10, 20  # how many IoUs are summed to get the number of positives of an object
LEAD_SPAN, WIDE_SPAN = 2.0, 3.0  # range, in cells, of the decoded centre of a box around the centre of its cell

_IOU_WEIGHT = 3.0  # weight of the box cost; the class cost has weight 1
_MAX_PAIRS = 1 << 22  # pairs of object and candidate (with padding) that are compared at once; limits the memory
_LOW_BITS = (1 << 32) - 1


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
        """
        self._anchors = anchors
        self._threshold = threshold
        self._merge_duplicates = merge_duplicates
        self._max_k = max_k
        self._reach = reach
        self._span = span

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
        objects = _ObjectBoxes(cxcywh_to_xyxy(targets.boxes_cxcywh.float() * scale), targets.label)
        num_images = maps[0].shape[0]
        by_candidate = _ByImage.group(candidates.image, num_images=num_images)
        by_object = _ByImage.group(targets.image, num_images=num_images)
        chosen = [candidates.target[:0]]
        owners = [candidates.target[:0]]
        for images in _chunks(by_candidate.sizes, by_object.sizes):
            chunk = _match(predictions, objects, by_candidate.padded(images), by_object.padded(images), self._max_k)
            chosen.append(chunk[0])
            owners.append(chunk[1])
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


@dataclass(frozen=True)
class _Predictions:
    """Decoded candidates: boxes (c, 4) xyxy in pixels, and the class cost negatives (c,) + switch (c, nc)[label].

    With y = sqrt(p(class) p(object)), `negatives` is the sum of -ln(1 - y) over all classes, and `switch` is
    -ln(y) + ln(1 - y): the difference that the class of the object makes.
    """

    boxes_xyxy: Tensor
    negatives: Tensor
    switch: Tensor


@dataclass(frozen=True)
class _ObjectBoxes:
    """The objects of a batch: boxes (n, 4) xyxy in pixels and labels (n,)."""

    boxes_xyxy: Tensor
    labels: Tensor


def _predict(candidates: Assignment, *, maps: Sequence[Tensor], anchors: Anchors, span: float) -> _Predictions:
    """Decode the candidates, and no other cells, in float32."""
    levels = zip(maps, candidates.per_level(len(maps)), strict=True)
    rows = torch.cat([m[c.image, c.anchor, c.row, c.column].float() for m, c in levels])  # c 5+nc
    anchors_px, strides = anchors.on(rows.device)
    box = rows[:, :4].sigmoid()
    cell = torch.stack((candidates.column, candidates.row), dim=1)
    centre = (centre_in_cell(box[:, :2], span=span) + cell) * strides[candidates.level, None]
    size = (2 * box[:, 2:]).square() * anchors_px[candidates.level, candidates.anchor]
    negatives, switch = class_costs(rows[:, 5:], rows[:, 4])
    return _Predictions(cxcywh_to_xyxy(torch.cat((centre, size), dim=1)), negatives, switch)


def class_costs(
    classes: Float[Tensor, "c nc"], objectness: Float[Tensor, " c"]
) -> tuple[Float[Tensor, " c"], Float[Tensor, "c nc"]]:
    """Return the two parts of the class cost, with y = sqrt(sigmoid(class) * sigmoid(objectness)).

    It computes with logarithms, so that no product of probabilities can underflow.

    Args:
        classes: Logits of the classes (c, nc).
        objectness: Logits of the objectness (c,).

    Returns:
        The sum of -ln(1 - y) over the classes (c,), and -ln(y) + ln(1 - y) for each class (c, nc).
    """
    log_y = (logsigmoid(classes) + logsigmoid(objectness)[:, None]).mul_(0.5).clamp_(max=-1e-12)
    negative = log_y.expm1().neg_().log_().neg_()
    return negative.sum(1), log_y.add_(negative).neg_()


@dataclass(frozen=True)
class _ByImage:
    """Entries grouped by image: `order` (m,) lists them image by image; each image has a start and a size in it."""

    order: Tensor
    starts: Tensor
    sizes: tuple[int, ...]

    @staticmethod
    def group(image: Int[Tensor, " m"], *, num_images: int) -> _ByImage:
        """Group entries by the image index (m,) of each."""
        sizes = torch.bincount(image, minlength=num_images)
        return _ByImage(torch.argsort(image, stable=True), sizes.cumsum(0) - sizes, tuple(sizes.tolist()))

    def padded(self, images: Sequence[int]) -> tuple[Int[Tensor, "b most"], Bool[Tensor, "b most"]]:
        """Return the entries of some images, one row per image, and a mask that is False for padding."""
        sizes = torch.tensor([self.sizes[i] for i in images], device=self.order.device)[:, None]
        position = torch.arange(max(self.sizes[i] for i in images), device=self.order.device)
        starts = self.starts[torch.tensor(images, device=self.order.device)][:, None]
        return self.order[starts + torch.minimum(position, sizes - 1)], position < sizes


def _chunks(num_candidates: Sequence[int], num_objects: Sequence[int]) -> Iterator[list[int]]:
    """Yield images that have candidates and objects, as many at once as `_MAX_PAIRS` allows (nearly always all)."""
    images: list[int] = []
    most_candidates = most_objects = 0
    for image, (candidates, objects) in enumerate(zip(num_candidates, num_objects, strict=True)):
        if not candidates or not objects:
            continue
        pairs = max(most_candidates, candidates) * max(most_objects, objects) * (len(images) + 1)
        if images and pairs > _MAX_PAIRS:
            yield images
            images, most_candidates, most_objects = [], 0, 0
        images.append(image)
        most_candidates, most_objects = max(most_candidates, candidates), max(most_objects, objects)
    if images:
        yield images


def _match(
    predictions: _Predictions,
    objects: _ObjectBoxes,
    candidates: tuple[Int[Tensor, "b c"], Bool[Tensor, "b c"]],
    targets: tuple[Int[Tensor, "b g"], Bool[Tensor, "b g"]],
    max_k: int,
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Return the positive candidates and the object of each, image by image in the order of the candidates."""
    index, exists = candidates
    target, is_object = targets
    valid = is_object[:, :, None] & exists[:, None]
    iou = pairwise_iou(objects.boxes_xyxy[target], predictions.boxes_xyxy[index]).mul_(valid)  # b g c
    num_classes = predictions.switch.shape[1]
    labels = objects.labels[target][:, :, None]
    class_cost = predictions.switch.flatten()[index[:, None] * num_classes + labels]
    class_cost += predictions.negatives[index][:, None]
    num_wanted = dynamic_k(iou, max_k=max_k) * is_object
    cost = class_cost.sub_(iou.add_(1e-8).log_(), alpha=_IOU_WEIGHT).masked_fill_(~valid, torch.inf)
    owner = _resolve(cost, num_wanted, max_k=max_k)  # b c
    image, candidate = (owner >= 0).nonzero(as_tuple=True)
    return index[image, candidate], target[image, owner[image, candidate]]


def dynamic_k(iou: Float[Tensor, "b g c"], *, max_k: int) -> Int[Tensor, "b g"]:
    """Return how many candidates each object takes: the sum of its largest IoUs, rounded down, but at least one.

    Args:
        iou: IoUs (images, objects, candidates).
        max_k: Number of IoUs to sum.

    Returns:
        Counts (images, objects) int64 between 1 and `max_k`.
    """
    largest = iou.topk(min(max_k, iou.shape[-1]), dim=-1).values
    return largest.sum(-1).long().clamp_(min=1, max=max_k)


def _resolve(cost: Float[Tensor, "b g c"], num_wanted: Int[Tensor, "b g"], *, max_k: int) -> Int[Tensor, "b c"]:
    """Return the object of each candidate, -1 for none. The lowest cost decides between objects that take the same."""
    num_candidates = cost.shape[-1]
    cheapest = _cheapest(cost, k=min(max_k, num_candidates))  # b g k
    wanted = torch.arange(cheapest.shape[-1], device=cost.device) < num_wanted[..., None]
    image, taker, rank = wanted.nonzero(as_tuple=True)
    flat = image * num_candidates + cheapest[image, taker, rank]
    takers = torch.bincount(flat, minlength=cost.shape[0] * num_candidates).view(-1, num_candidates)
    owner = torch.full_like(takers, -1)
    owner.view(-1)[flat] = taker
    image, candidate = (takers > 1).nonzero(as_tuple=True)
    owner[image, candidate] = cost[image, :, candidate].argmin(1)
    return owner


def _cheapest(cost: Float[Tensor, "b g c"], *, k: int) -> Int[Tensor, "b g k"]:
    """Return the k cheapest candidates, cheapest first; ties are broken by the order of the candidates.

    Costs are not negative, so their bits have the same order as their values. The position in the low bits makes every
    key unique.
    """
    position = torch.arange(cost.shape[-1], device=cost.device)
    keys = (cost.clamp(min=0).view(torch.int32).long() << 32).bitwise_or_(position)
    return keys.topk(k, dim=-1, largest=False, sorted=True).values.bitwise_and_(_LOW_BITS)
