"""Matching of objects with their cheapest candidates, batched over the images (section 4.2; SimOTA of YOLOX).

Images are padded to rows of one tensor. Images that together have too many pairs of object and candidate are matched in
several chunks, with the same result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from yolov7.boxes import pairwise_iou
from yolov7.system.shapes import Bool, Float, Int

MAX_PAIRS = 1 << 22  # pairs of object and candidate (with padding) that are compared at once; limits the memory

_IOU_WEIGHT = 3.0  # weight of the box cost; the class cost has weight 1
_POSITION_BITS = 31


@dataclass(frozen=True)
class Predictions:
    """Decoded candidates: boxes (c, 4) xyxy in pixels, and the class cost negatives (c,) + switch (c, nc)[label].

    With y = sqrt(p(class) p(object)), `negatives` is the sum of -ln(1 - y) over all classes, and `switch` is
    -ln(y) + ln(1 - y): the difference that the class of the object makes.
    """

    boxes_xyxy: Tensor
    negatives: Tensor
    switch: Tensor


@dataclass(frozen=True)
class ObjectBoxes:
    """The objects of a batch: boxes (n, 4) xyxy in pixels and labels (n,)."""

    boxes_xyxy: Tensor
    labels: Tensor


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
class ByImage:
    """Entries grouped by image: `order` (m,) lists them image by image; each image has a start and a size in it."""

    order: Tensor
    starts: Tensor
    sizes: tuple[int, ...]

    @staticmethod
    def group(image: Int[Tensor, " m"], *, num_images: int) -> ByImage:
        """Group entries by the image index (m,) of each."""
        sizes = torch.bincount(image, minlength=num_images)
        return ByImage(torch.argsort(image, stable=True), sizes.cumsum(0) - sizes, tuple(sizes.tolist()))

    def padded(self, images: Sequence[int]) -> tuple[Int[Tensor, "b most"], Bool[Tensor, "b most"]]:
        """Return the entries of some images, one row per image, and a mask that is False for padding."""
        sizes = torch.tensor([self.sizes[i] for i in images], device=self.order.device)[:, None]
        position = torch.arange(max(self.sizes[i] for i in images), device=self.order.device)
        starts = self.starts[torch.tensor(images, device=self.order.device)][:, None]
        return self.order[starts + torch.minimum(position, sizes - 1)], position < sizes


def chunks_of_images(num_candidates: Sequence[int], num_objects: Sequence[int]) -> Iterator[list[int]]:
    """Yield images that have candidates and objects, as many at once as `MAX_PAIRS` allows (nearly always all)."""
    images: list[int] = []
    most_candidates = most_objects = 0
    for image, (candidates, objects) in enumerate(zip(num_candidates, num_objects, strict=True)):
        if not candidates or not objects:
            continue
        pairs = max(most_candidates, candidates) * max(most_objects, objects) * (len(images) + 1)
        if images and pairs > MAX_PAIRS:
            yield images
            images, most_candidates, most_objects = [], 0, 0
        images.append(image)
        most_candidates, most_objects = max(most_candidates, candidates), max(most_objects, objects)
    if images:
        yield images


def match_cheapest(
    predictions: Predictions,
    objects: ObjectBoxes,
    candidates: tuple[Int[Tensor, "b c"], Bool[Tensor, "b c"]],
    targets: tuple[Int[Tensor, "b g"], Bool[Tensor, "b g"]],
    max_k: int,
    *,
    is_last_choice: Bool[Tensor, "b g c"] | None = None,
    least_k: Int[Tensor, " n"] | None = None,
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Return the positive candidates and the object of each, image by image in the order of the candidates.

    Args:
        predictions: The decoded candidates.
        objects: The objects of the batch.
        candidates: Positions of the candidates of each image, and which of them are not padding.
        targets: Positions of the objects of each image, and which of them are not padding.
        max_k: Number of largest IoUs whose sum is the number of positives of an object.
        is_last_choice: Pairs that any other pair is preferred to, whatever its cost.
        least_k: Smallest number of positives of each object of the batch, if so many candidates overlap it.

    Returns:
        Positions of the positive candidates, and the position of the object of each.
    """
    index, exists = candidates
    target, is_object = targets
    valid = is_object[:, :, None] & exists[:, None]
    iou = pairwise_iou(objects.boxes_xyxy[target], predictions.boxes_xyxy[index]).mul_(valid)  # b g c
    num_classes = predictions.switch.shape[1]
    labels = objects.labels[target][:, :, None]
    class_cost = predictions.switch.flatten()[index[:, None] * num_classes + labels]
    class_cost += predictions.negatives[index][:, None]
    wanted = dynamic_k(iou, max_k=max_k)
    if least_k is not None:
        wanted = torch.maximum(wanted, torch.minimum(least_k[target], (iou > 0).sum(-1)))
    num_wanted = torch.minimum(wanted * is_object, exists.sum(1, keepdim=True))
    cost = class_cost.sub_(iou.add_(1e-8).log_(), alpha=_IOU_WEIGHT).masked_fill_(~valid, torch.inf)
    owner = _resolve(_sort_keys(cost, is_last_choice), num_wanted, max_k=max_k)  # b c
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


def _sort_keys(cost: Float[Tensor, "b g c"], is_last_choice: Bool[Tensor, "b g c"] | None) -> Int[Tensor, "b g c"]:
    """Return keys that sort pairs by last choice, cost and position of the candidate.

    Costs are not negative, so their bits have the same order as their values. The position in the low bits makes every
    key of an object unique.
    """
    keys = cost.clamp(min=0).view(torch.int32).long().bitwise_left_shift_(_POSITION_BITS)
    keys |= torch.arange(cost.shape[-1], device=cost.device)
    if is_last_choice is not None:
        keys |= is_last_choice.long().bitwise_left_shift_(_POSITION_BITS + 31)
    return keys


def _resolve(keys: Int[Tensor, "b g c"], num_wanted: Int[Tensor, "b g"], *, max_k: int) -> Int[Tensor, "b c"]:
    """Return the object of each candidate, -1 for none. The lowest key decides between objects that take the same."""
    num_candidates = keys.shape[-1]
    lowest = keys.topk(min(max_k, num_candidates), dim=-1, largest=False, sorted=True).values  # b g k
    cheapest = lowest.bitwise_and_((1 << _POSITION_BITS) - 1)
    wanted = torch.arange(cheapest.shape[-1], device=keys.device) < num_wanted[..., None]
    image, taker, rank = wanted.nonzero(as_tuple=True)
    flat = image * num_candidates + cheapest[image, taker, rank]
    takers = torch.bincount(flat, minlength=keys.shape[0] * num_candidates).view(-1, num_candidates)
    owner = torch.full_like(takers, -1)
    owner.view(-1)[flat] = taker
    image, candidate = (takers > 1).nonzero(as_tuple=True)
    owner[image, candidate] = keys[image, :, candidate].argmin(1)
    return owner
