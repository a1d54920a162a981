"""Analysis of errors: their kinds, the best and worst images of each class, and labels that may be wrong.

The kinds are those of TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from yolov7.data.index import ImageIndex
from yolov7.evaluation.coco import columns, matched
from yolov7.evaluation.suspects import SUSPECT_KINDS, SuspectKind, find_doubts
from yolov7.structures import Detections
from yolov7.system.settings_base import Settings

CONFIDENCE = 0.25  # lowest score of a detection that counts as an error or is shown
IOU, BACKGROUND_IOU = 0.5, 0.1  # TIDE's thresholds: from the first on a box is right, below the second it is background
_KINDS = {
    "Cls": "class",
    "Loc": "localisation",
    "Both": "both",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}
_EXAMPLES = 2  # best and worst images of each class
_SUSPECTS = 24  # listed suspicions of each kind

Box = tuple[float, float, float, float]


class ErrorKind(Settings):
    """One kind of error.

    Attributes:
        count: The number of such errors among detections with a score of at least `CONFIDENCE`; of the kind "missed",
            the number of objects without such a detection.
        AP50_lost: By how much AP50 would rise if all errors of this kind were corrected; None without objects.
    """

    count: int
    AP50_lost: float | None


class FoundBox(Settings):
    """A detection.

    Attributes:
        label: Its class.
        score: Its score.
        box_xyxy: Its corners in pixels of the image.
    """

    label: int
    score: float
    box_xyxy: Box


class ClassExample(Settings):
    """One of the best or worst images of a class.

    Attributes:
        label: The class.
        image: The place of the image in the split.
        best: Whether it is one of the best images; else it is one of the worst.
        correct: Detections of the class that match an object.
        wrong: Detections of the class that match no object.
        missed: Objects of the class without a detection.
    """

    label: int
    image: int
    best: bool
    correct: int
    wrong: int
    missed: int


class Suspect(Settings):
    """A place where the annotation may be wrong.

    Attributes:
        kind: As in `yolov7.evaluation.suspects`.
        image: The place of the image in the split.
        label: The class of the label; None where there is no label.
        found_label: The class of the detection; None where there is no detection.
        score: The score of the detection; None where there is no detection.
        box_xyxy: Corners of the detection, or else of the label, in pixels of the image.
    """

    kind: SuspectKind
    image: int
    label: int | None
    found_label: int | None
    score: float | None
    box_xyxy: Box


class ErrorReport(Settings):
    """The errors of a model on a split.

    Attributes:
        split: The name of the split.
        kinds: Each kind of error: class, localisation, both, duplicate, background, missed.
        examples: The best and worst images of each class.
        suspect_counts: The number of suspicions of each kind.
        suspects: The strongest suspicions of each kind.
        files: The file name of each image that an example or a suspicion names, by its place in the split.
        detections: The detections with a score of at least `CONFIDENCE` in these images.
    """

    split: str
    kinds: dict[str, ErrorKind]
    examples: tuple[ClassExample, ...]
    suspect_counts: dict[str, int]
    suspects: tuple[Suspect, ...]
    files: dict[int, str]
    detections: dict[int, tuple[FoundBox, ...]]


def analyse_errors(index: ImageIndex, detections: Sequence[Detections], *, split: str) -> ErrorReport:
    """Analyse the errors of detections.

    Args:
        index: The split.
        detections: The detections of each image, in its pixels, down to low scores.
        split: The name of the split.

    Returns:
        Kinds of errors, examples and suspicions.
    """
    confident = [_above(found, CONFIDENCE) for found in detections]
    examples = tuple(_examples(index, confident))
    suspects = list(_suspects(index, detections))
    listed = tuple(_strongest(suspects))
    images = sorted({one.image for one in examples} | {one.image for one in listed})
    return ErrorReport(
        split=split,
        kinds=_count_kinds(index, detections, confident),
        examples=examples,
        suspect_counts={kind: sum(one.kind == kind for one in suspects) for kind in SUSPECT_KINDS},
        suspects=listed,
        files={i: index.paths[i].name for i in images},
        detections={i: tuple(_boxes(confident[i])) for i in images},
    )


def _count_kinds(
    index: ImageIndex, detections: Sequence[Detections], confident: Sequence[Detections]
) -> dict[str, ErrorKind]:
    every = matched(index, detections).tide_errors(pos_thr=IOU, bg_thr=BACKGROUND_IOU)["delta_ap"]
    counts = matched(index, confident).tide_errors(pos_thr=IOU, bg_thr=BACKGROUND_IOU)["counts"]
    has_objects = bool((~index.crowd).any())
    return {
        name: ErrorKind(count=counts[key], AP50_lost=round(every[key], 6) if has_objects else None)
        for key, name in _KINDS.items()
    }


def _examples(index: ImageIndex, confident: Sequence[Detections]) -> Iterator[ClassExample]:
    """Yield the images of each class with the highest and the lowest F1 score."""
    correct, wrong, missed = _count_per_image(index, confident)
    f1 = 2 * correct / np.maximum(2 * correct + wrong + missed, 1)
    for label in range(len(index.class_names)):
        right, errors, score = correct[:, label], wrong[:, label] + missed[:, label], f1[:, label]
        best = [i for i in np.lexsort((-right, -score)).tolist() if right[i]][:_EXAMPLES]
        worst = [i for i in np.lexsort((-errors, score)).tolist() if errors[i] and i not in best][:_EXAMPLES]
        for images, is_best in ((best, True), (worst, False)):
            for i in images:
                yield ClassExample(
                    label=label,
                    image=i,
                    best=is_best,
                    correct=int(right[i]),
                    wrong=int(wrong[i, label]),
                    missed=int(missed[i, label]),
                )


def _count_per_image(
    index: ImageIndex, confident: Sequence[Detections]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return correct and wrong detections and missed objects (images, classes), matched as COCO does at IoU 0.5."""
    status = matched(index, confident).image_diagnostics(iou_thr=IOU)
    shape = (len(index), len(index.class_names))
    correct, wrong, missed = (np.zeros(shape, np.int64) for _ in range(3))
    found = columns(confident)
    for row, (image, label) in enumerate(zip(found.image.tolist(), found.labels.tolist(), strict=True), start=1):
        match status["dt_status"].get(row):
            case "tp":
                correct[image, label] += 1
            case "fp":
                wrong[image, label] += 1
    owners = np.repeat(np.arange(len(index)), np.diff(index.box_offsets))
    for row, (image, label) in enumerate(zip(owners.tolist(), index.labels.tolist(), strict=True), start=1):
        if status["gt_status"].get(row) == "fn":
            missed[image, label] += 1
    return correct, wrong, missed


def _suspects(index: ImageIndex, detections: Sequence[Detections]) -> Iterator[Suspect]:
    for i, found in enumerate(detections):
        truth, labels = index.boxes_of(i), index.labels_of(i)
        boxes, scores, classes = found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist()
        for doubt in find_doubts(truth, labels, index.crowd_of(i), found):
            place, label = doubt.found, doubt.label
            yield Suspect(
                kind=doubt.kind,
                image=i,
                label=None if label is None else int(labels[label]),
                found_label=None if place is None else classes[place],
                score=None if place is None else round(scores[place], 4),
                box_xyxy=_rounded(boxes[place] if place is not None else truth[label].tolist()),
            )


def _strongest(suspects: Sequence[Suspect]) -> Iterator[Suspect]:
    """Yield the suspicions of each kind with the highest scores, and the largest labels that were never found."""
    for kind in SUSPECT_KINDS:
        ranked = sorted(
            (one for one in suspects if one.kind == kind), key=lambda one: (-(one.score or 0.0), -_area(one.box_xyxy))
        )
        yield from ranked[:_SUSPECTS]


def _area(box_xyxy: Box) -> float:
    left, top, right, bottom = box_xyxy
    return (right - left) * (bottom - top)


def _above(found: Detections, confidence: float) -> Detections:
    keep = found.scores >= confidence
    return Detections(found.boxes_xyxy[keep], found.scores[keep], found.labels[keep])


def _boxes(found: Detections) -> Iterator[FoundBox]:
    for box, score, label in zip(found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        yield FoundBox(label=label, score=round(score, 4), box_xyxy=_rounded(box))


def _rounded(box: Iterable[float]) -> Box:
    left, top, right, bottom = (round(value, 1) for value in box)
    return left, top, right, bottom
