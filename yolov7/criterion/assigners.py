"""Label assigners: which cells of a head's maps are positive, and for which object (paper, section 4.2).

A *candidate* is a cell and anchor near an object's centre whose anchor fits the object's shape. Candidates have a
fixed order, which also decides ties (the first wins): level, then kind of neighbour (own cell, left, upper, right,
lower), then anchor, then object; or, where duplicates are merged, level, image, anchor, row, column.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from yolov7.boxes import cxcywh_to_xyxy, pairwise_iou
from yolov7.structures import HeadMaps, Targets

Guidance = Literal["coarse_to_fine", "lead_guided", "independent"]

FINE, COARSE = 0.5, 1.0  # cells between a centre and the neighbours that are candidates too
MAX_K, MAX_K_WITH_AUXILIARY = 10, 20  # IoUs that are summed to an object's number of positives
LEAD_SPAN, WIDE_SPAN = 2.0, 3.0  # cells within which a box's centre may lie, around that of its cell

_IOU_WEIGHT = 3.0  # of the box cost beside the class cost
_MAX_PAIRS = 1 << 22  # objects times candidates (padded) that are compared at once; bounds the memory
_LOW_BITS = (1 << 32) - 1


@dataclass(frozen=True)
class Assignment:
    """Cells with the object each belongs to; flat int64 tensors (p,), by ascending level.

    `target` is an index into the batch's Targets. `level`, `image`, `anchor`, `row`, `column` name the cell.
    """

    level: Tensor
    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    target: Tensor

    def take(self, index: Tensor) -> Assignment:
        """The entries of that index, in its order."""
        fields = (self.level, self.image, self.anchor, self.row, self.column, self.target)
        return Assignment(*(field[index] for field in fields))

    def per_level(self, num_levels: int) -> tuple[Assignment, ...]:
        """One assignment a level."""
        sizes = torch.bincount(self.level, minlength=num_levels).tolist()
        fields = (self.level, self.image, self.anchor, self.row, self.column, self.target)
        return tuple(Assignment(*parts) for parts in zip(*(torch.split(field, sizes) for field in fields), strict=True))

    def __len__(self) -> int:
        return self.level.shape[0]


class Assigner(ABC):
    """Chooses the positive cells of a batch for one head."""

    @abstractmethod
    def __call__(self, maps: Sequence[Tensor], targets: Targets) -> Assignment:
        """The positives; `maps` are raw (B, na, H, W, 5 + classes), finest first. Nothing of it has a gradient."""


@dataclass(frozen=True)
class Anchors:
    """The anchors of a head: `px` (nl, na, 2) width and height in pixels, and the stride of each level."""

    px: Tensor
    strides: tuple[int, ...]

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`px` as float32 (nl, na, 2) and the strides (nl,) on a device."""
        px = self.px.to(device=device, dtype=torch.float32)
        return px, torch.tensor(self.strides, dtype=torch.float32, device=device)

    def of(self, cells: Assignment) -> Tensor:
        """The anchors of cells (p, 2), in their cells."""
        px, strides = self.on(cells.level.device)
        return (px / strides[:, None, None])[cells.level, cells.anchor]


class AnchorAssigner(Assigner):
    """Every candidate is positive: matching by anchor shape alone, as YOLOv5 does."""

    def __init__(self, anchors: Anchors, *, threshold: float, reach: float = FINE) -> None:
        self._anchors = anchors
        self._threshold = threshold
        self._reach = reach

    @torch.no_grad()
    def __call__(self, maps: Sequence[Tensor], targets: Targets) -> Assignment:
        return find_candidates(targets, maps=maps, anchors=self._anchors, threshold=self._threshold, reach=self._reach)


class OtaAssigner(Assigner):
    """Dynamic-k assignment from the head's own predictions (paper, section 4.2; after SimOTA of YOLOX).

    Every object takes its k cheapest candidates, k being the sum of its `max_k` largest IoUs; a candidate that several
    take goes to the object of the image for which it is cheapest. With `merge_duplicates` a cell is one candidate
    whichever objects propose it, hence positive for one object at most. Without it, it is one candidate for every
    proposing object, as in the reference, and may become positive for several. `span`: of the head's decoder, in cells.
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
        self._anchors = anchors
        self._threshold = threshold
        self._merge_duplicates = merge_duplicates
        self._max_k = max_k
        self._reach = reach
        self._span = span

    @torch.no_grad()
    def __call__(self, maps: Sequence[Tensor], targets: Targets) -> Assignment:
        candidates = find_candidates(
            targets, maps=maps, anchors=self._anchors, threshold=self._threshold, reach=self._reach
        )
        if self._merge_duplicates:
            candidates = _distinct_cells(candidates, maps=maps)
        predictions = _predict(candidates, maps=maps, anchors=self._anchors, span=self._span)
        objects = _objects(targets, maps=maps, anchors=self._anchors)
        num_images = maps[0].shape[0]
        by_candidate = _ByImage.of(candidates.image, num_images=num_images)
        by_object = _ByImage.of(targets.image, num_images=num_images)
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
    """The positives of the lead head and of the auxiliary head; the same of both where there is no auxiliary head."""

    lead: Assignment
    auxiliary: Assignment


class HeadsAssigner:
    """Which cells the lead and the auxiliary head learn from (paper, section 4.2 and figure 5).

    `lead_guided`: both from one assignment, by the lead's predictions. `coarse_to_fine`: the auxiliary head has one of
    its own, of coarser candidates, also by the lead's predictions. `independent`: each by its own predictions.
    `alone` assigns where there is no auxiliary head.
    """

    def __init__(
        self, *, alone: Assigner, lead: Assigner, auxiliary: Assigner, guidance: Guidance = "coarse_to_fine"
    ) -> None:
        self._alone = alone
        self._lead = lead
        self._auxiliary = auxiliary
        self._guidance = guidance

    @torch.no_grad()
    def __call__(self, maps: HeadMaps, targets: Targets) -> HeadsAssignment:
        """The positives of a batch."""
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


def find_candidates(
    targets: Targets, *, maps: Sequence[Tensor], anchors: Anchors, threshold: float, reach: float = FINE
) -> Assignment:
    """The candidates of all objects, each with the object that proposes it.

    An anchor fits if no side of box and anchor differs by `threshold` times or more. The own cell of the centre is a
    candidate, and the neighbours nearer than `reach` cells: at most 3 cells for 0.5 (fine), 5 for 1.0 (coarse).
    """
    boxes = targets.boxes_cxcywh.float()
    anchors_px, strides = anchors.on(boxes.device)
    grid = torch.tensor([(m.shape[3], m.shape[2]) for m in maps], device=boxes.device)  # nl 2, width first
    grid_f = grid[:, None].float()
    centre, size = boxes[:, :2] * grid_f, boxes[:, 2:] * grid_f  # nl n 2, in cells
    ratio = size[:, None] / (anchors_px / strides[:, None, None])[:, :, None]  # nl na n 2
    fits = torch.maximum(ratio, 1 / ratio).amax(-1) < threshold
    kinds = _neighbours(centre, grid_f - centre, reach=reach)
    level, kind, anchor, target = (kinds[:, :, None] & fits[:, None]).nonzero(as_tuple=True)
    steps = boxes.new_tensor([(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)]) * reach
    cell = (centre[level, target] - steps[kind]).long().clamp_(min=0)
    column, row = torch.minimum(cell, grid[level] - 1).unbind(-1)
    return Assignment(level, targets.image[target], anchor, row, column, target)


def _neighbours(
    from_low: Float[Tensor, "nl n 2"], from_high: Float[Tensor, "nl n 2"], *, reach: float
) -> Bool[Tensor, "nl 5 n"]:
    """Which of own, left, upper, right and lower cell a centre takes, from its distances to the grid's borders."""
    low = (from_low % 1 < reach) & (from_low > 1)
    high = (from_high % 1 < reach) & (from_high > 1)
    own = torch.ones_like(low[..., 0])
    return torch.stack((own, low[..., 0], low[..., 1], high[..., 0], high[..., 1]), dim=1)


def _distinct_cells(candidates: Assignment, *, maps: Sequence[Tensor]) -> Assignment:
    """Every cell once, ordered by level, image, anchor, row, column."""
    numbers, order = torch.sort(cell_numbers(candidates, maps=maps), stable=True)
    first = torch.ones_like(numbers, dtype=torch.bool)
    first[1:] = numbers[1:] != numbers[:-1]
    return candidates.take(order[first])


def cell_numbers(cells: Assignment, *, maps: Sequence[Tensor]) -> Int[Tensor, " p"]:
    """The place of each cell among all of the maps, counted by level, image, anchor, row, column."""
    sizes = torch.tensor([m.shape[:4] for m in maps], device=cells.level.device)  # nl 4: B na H W
    starts = sizes.prod(1).cumsum(0) - sizes.prod(1)
    _, num_anchors, height, width = sizes[cells.level].unbind(1)
    plane = cells.image * num_anchors + cells.anchor
    return starts[cells.level] + (plane * height + cells.row) * width + cells.column


def centre_in_cell(probability: Float[Tensor, "p 2"], *, span: float) -> Float[Tensor, "p 2"]:
    """Centres relative to their cell's corner, from sigmoids: a span around the middle of the cell."""
    return probability * span - (span - 1) / 2


@dataclass(frozen=True)
class _Predictions:
    """What the candidates' logits say: boxes (c, 4) xyxy pixels; class cost = negatives (c,) + switch (c, nc)[label].

    With y = sqrt(p(class) p(object)): `negatives` is the sum of -ln(1 - y) over all classes, `switch` is
    -ln(y) + ln(1 - y), what changes for the class that is the object's.
    """

    boxes_xyxy: Tensor
    negatives: Tensor
    switch: Tensor


@dataclass(frozen=True)
class _Objects:
    """Boxes (n, 4) xyxy in pixels and labels (n,)."""

    boxes_xyxy: Tensor
    labels: Tensor


def _predict(candidates: Assignment, *, maps: Sequence[Tensor], anchors: Anchors, span: float) -> _Predictions:
    """Decodes the candidates only, in float32."""
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
    """Sum of -ln(1 - y) and, a class, -ln(y) + ln(1 - y), of y = sqrt(sigmoid(class) sigmoid(objectness)).

    Works on logarithms: no product of probabilities can underflow.
    """
    log_y = (logsigmoid(classes) + logsigmoid(objectness)[:, None]).mul_(0.5).clamp_(max=-1e-12)
    negative = log_y.expm1().neg_().log_().neg_()
    return negative.sum(1), log_y.add_(negative).neg_()


def _objects(targets: Targets, *, maps: Sequence[Tensor], anchors: Anchors) -> _Objects:
    """The targets in pixels, by the images' width and height."""
    height, width = (side * anchors.strides[0] for side in maps[0].shape[2:4])
    scale = targets.boxes_cxcywh.new_tensor([width, height, width, height], dtype=torch.float32)
    return _Objects(cxcywh_to_xyxy(targets.boxes_cxcywh.float() * scale), targets.label)


@dataclass(frozen=True)
class _ByImage:
    """Entries grouped by image: `order` (m,) lists them image by image; `starts` and `sizes` of each image."""

    order: Tensor
    starts: Tensor
    sizes: tuple[int, ...]

    @staticmethod
    def of(image: Int[Tensor, " m"], *, num_images: int) -> _ByImage:
        sizes = torch.bincount(image, minlength=num_images)
        return _ByImage(torch.argsort(image, stable=True), sizes.cumsum(0) - sizes, tuple(sizes.tolist()))

    def padded(self, images: Sequence[int]) -> tuple[Int[Tensor, "b most"], Bool[Tensor, "b most"]]:
        """The entries of those images, one row an image, and which of them are none but padding (False)."""
        sizes = torch.tensor([self.sizes[i] for i in images], device=self.order.device)[:, None]
        position = torch.arange(max(self.sizes[i] for i in images), device=self.order.device)
        starts = self.starts[torch.tensor(images, device=self.order.device)][:, None]
        return self.order[starts + torch.minimum(position, sizes - 1)], position < sizes


def _chunks(num_candidates: Sequence[int], num_objects: Sequence[int]) -> Iterator[list[int]]:
    """Images that have both, as many together as fit in _MAX_PAIRS; nearly always all at once."""
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
    objects: _Objects,
    candidates: tuple[Int[Tensor, "b c"], Bool[Tensor, "b c"]],
    targets: tuple[Int[Tensor, "b g"], Bool[Tensor, "b g"]],
    max_k: int,
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Positive candidates and the object of each, image by image in candidate order."""
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
    """How many candidates an object wants: the sum of its largest IoUs, rounded down, at least one."""
    largest = iou.topk(min(max_k, iou.shape[-1]), dim=-1).values
    return largest.sum(-1).long().clamp_(min=1, max=max_k)


def _resolve(cost: Float[Tensor, "b g c"], num_wanted: Int[Tensor, "b g"], *, max_k: int) -> Int[Tensor, "b c"]:
    """The object that gets a candidate, -1 for none: each takes its cheapest, the cheapest of all wins a conflict."""
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
    """The k cheapest candidates, ascending, ties by candidate order.

    Costs are not negative, so their bits order as they do; with the position below them every key is unique.
    """
    position = torch.arange(cost.shape[-1], device=cost.device)
    keys = (cost.clamp(min=0).view(torch.int32).long() << 32).bitwise_or_(position)
    return keys.topk(k, dim=-1, largest=False, sorted=True).values.bitwise_and_(_LOW_BITS)
