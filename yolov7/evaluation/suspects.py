"""Labels that may be wrong: where a model disagrees with the labels of an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from yolov7.boxes import pairwise_iou
from yolov7.structures import Detections

SUSPICIOUS = 0.6  # lowest score of a detection that casts doubt on labels
FAINT = 0.05  # lowest score of a detection that counts as finding a label
_SAME, _TOUCHING, _ALONE = 0.5, 0.3, 0.2  # IoU of a detection and a label
_IN_CROWD = 0.5  # share of a detection within a crowd region

SuspectKind = Literal["unlabelled", "other class", "never found"]
SUSPECT_KINDS: tuple[SuspectKind, ...] = ("unlabelled", "other class", "never found")


@dataclass(frozen=True)
class Doubt:
    """A disagreement between a model and the labels of an image.

    Attributes:
        kind: "unlabelled": a confident detection where there is no label. "other class": a confident detection of one
            class on a label of another. "never found": a label that no detection of any class overlaps.
        found: The place of the detection; None where there is no detection.
        label: The place of the label; None where there is no label.
    """

    kind: SuspectKind
    found: int | None
    label: int | None


def find_doubts(
    boxes_xyxy: NDArray[np.float32], labels: NDArray[np.int64], crowd: NDArray[np.bool_], found: Detections
) -> Iterator[Doubt]:
    """Find where a model disagrees with the labels of an image.

    Detections that lie mostly in a crowd region say nothing about labels, and crowd regions are no labels to check.

    Args:
        boxes_xyxy: (k, 4) the boxes of the labels, corners in pixels.
        labels: (k,) their classes.
        crowd: (k,) whether they are crowd regions.
        found: The detections in the same pixels, with the classes of the labels; -1 for a class that the labels do not
            have.

    Yields:
        The doubts: those about detections in their order, then those about labels in their order.
    """
    overlaps = pairwise_iou(found.boxes_xyxy.cpu().double(), torch.from_numpy(boxes_xyxy).double()).numpy()
    scores, classes = found.scores.cpu().numpy(), found.labels.cpu().numpy()
    detected = found.boxes_xyxy.cpu().numpy()
    objects = np.flatnonzero(~crowd)
    for place in np.flatnonzero((scores >= SUSPICIOUS) & (classes >= 0)).tolist():
        if _is_in_crowd(detected[place], boxes_xyxy[crowd]):
            continue
        overlap = overlaps[place, objects]
        nearest = int(overlap.argmax()) if len(objects) else -1
        largest = float(overlap.max(initial=0.0))
        is_labelled = bool((overlap[labels[objects] == classes[place]] >= _TOUCHING).any())
        if largest < _ALONE:
            yield Doubt("unlabelled", place, None)
        elif largest >= _SAME and not is_labelled:
            yield Doubt("other class", place, int(objects[nearest]))
    is_found = overlaps[scores >= FAINT].max(axis=0, initial=0.0) >= _TOUCHING
    for place in np.flatnonzero(~is_found & ~crowd).tolist():
        yield Doubt("never found", None, place)


def _is_in_crowd(box: NDArray[np.float32], crowds: NDArray[np.float32]) -> bool:
    sides = np.minimum(box[2:], crowds[:, 2:]) - np.maximum(box[:2], crowds[:, :2])
    inside = np.clip(sides, 0, None).prod(axis=1).max(initial=0.0)
    return bool(inside > _IN_CROWD * (box[2:] - box[:2]).prod())
