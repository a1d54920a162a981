"""Labels that a trained model doubts: objects without a label, other classes, and labels that it never finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from yolov7.data.health.box_checks import box_iou
from yolov7.data.health.checks import LABEL_CLASS, LABEL_MISSING, LABEL_UNFOUND, Finding
from yolov7.data.index import ImageIndex
from yolov7.data.inspection import Progress
from yolov7.data.loader import ValLoader
from yolov7.engines.opened_model import OpenedModel
from yolov7.errors import SettingError
from yolov7.inference.batch import detect_batch
from yolov7.settings import NmsSettings
from yolov7.structures import Detections

CONFIDENT = 0.6  # score from which on a detection counts as an object
_NMS = NmsSettings(confidence=0.05, iou=0.6)
_SAME, _TOUCHING, _ALONE = 0.5, 0.3, 0.2  # IoU of a detection and a label
_BATCH = 8  # images


@dataclass(frozen=True)
class _Suspect:
    """A finding and how sure the model is of it."""

    surety: float
    finding: Finding


@dataclass
class LabelSuspects:
    """The model's doubts about the labels of splits. The images are processed on first use.

    Attributes:
        model: The model.
        splits: The splits.
        bar: Shows the progress of a task while its context is open.
    """

    model: OpenedModel
    splits: Mapping[str, ImageIndex]
    bar: Callable[[str], AbstractContextManager[Progress | None]]
    _found: dict[str, list[_Suspect]] | None = field(default=None, init=False)

    def check_classes(self) -> None:
        """Raise an error if the model knows none of the classes of the data.

        Raises:
            SettingError: If no class name is common to both.
        """
        names = next(iter(self.splits.values())).class_names if self.splits else ()
        if not set(names) & set(self.model.class_names):
            ours, theirs = (", ".join(some[:5]) for some in (names, self.model.class_names))
            raise SettingError(
                f"weights={self.model.path} know none of the classes of the data ({ours}); they know: {theirs}; "
                "name weights that were trained with these classes"
            )

    def find(self, check: str) -> Iterable[Finding]:
        """Return the findings of a check, those first of which the model is most sure.

        Args:
            check: The id of one of the checks that need a model.
        """
        if self._found is None:
            found: dict[str, list[_Suspect]] = {}
            for split, index in self.splits.items():
                for id, suspect in self._of_split(split, index):
                    found.setdefault(id, []).append(suspect)
            self._found = found
        suspects = self._found.get(check, [])
        return [suspect.finding for suspect in sorted(suspects, key=lambda suspect: -suspect.surety)]

    def _of_split(self, split: str, index: ImageIndex) -> Iterator[tuple[str, _Suspect]]:
        label_of = {name: label for label, name in enumerate(index.class_names)}
        ours = np.array([label_of.get(name, -1) for name in self.model.class_names], np.int64)
        done = 0
        with self.bar(f"detections in {split}") as progress:
            for batch in ValLoader(index, image_size=self.model.image_size, batch_size=_BATCH):
                detected = detect_batch(self.model.engine, batch.images, batch.geometry, nms=_NMS)
                for i, found in zip(batch.index, detected, strict=True):
                    yield from _of_image(split, index, i, found, ours)
                done += len(batch.index)
                if progress is not None:
                    progress(done, len(index))


def _of_image(
    split: str, index: ImageIndex, i: int, found: Detections, ours: NDArray[np.int64]
) -> Iterator[tuple[str, _Suspect]]:
    """Compare the detections and the labels of an image; `ours` are the data's labels of the model's classes."""
    boxes, labels, crowd = index.boxes_of(i), index.labels_of(i), index.crowd_of(i)
    detected = found.boxes_xyxy.numpy()
    iou = box_iou(detected, boxes)  # detections, labels
    for place, (score, theirs) in enumerate(zip(found.scores.tolist(), found.labels.tolist(), strict=True)):
        label = int(ours[theirs])
        if score < CONFIDENT or label < 0 or _is_in_crowd(detected[place], boxes[crowd]):
            continue
        best = int(iou[place].argmax()) if len(boxes) else -1
        overlap = float(iou[place, best]) if len(boxes) else 0.0
        told = f"{index.class_names[label]} with a score of {score:.2f} at {_told(detected[place])}"
        is_same = bool((iou[place, labels == label] >= _TOUCHING).any())
        if overlap < _ALONE:
            yield LABEL_MISSING.id, _suspect(split, index, i, score, told, detected[place])
        elif overlap >= _SAME and not is_same:
            told += f", labelled {index.class_names[labels[best]]}"
            yield LABEL_CLASS.id, _suspect(split, index, i, score, told, detected[place])
    nearest = iou.max(axis=0, initial=0.0)
    for place in np.flatnonzero((nearest < _TOUCHING) & np.isin(labels, ours) & ~crowd).tolist():
        told = f"{index.class_names[labels[place]]} at {_told(boxes[place])}"
        area = float((boxes[place, 2:] - boxes[place, :2]).prod())
        yield LABEL_UNFOUND.id, _suspect(split, index, i, area, told, boxes[place])  # large objects are easy to find


def _is_in_crowd(box: NDArray[np.float32], crowds: NDArray[np.float32]) -> bool:
    """Return whether most of a box lies in a crowd region."""
    sides = np.minimum(box[2:], crowds[:, 2:]) - np.maximum(box[:2], crowds[:, :2])
    inside = np.clip(sides, 0, None).prod(axis=1).max(initial=0.0)
    return bool(inside > 0.5 * (box[2:] - box[:2]).prod())


def _suspect(split: str, index: ImageIndex, i: int, surety: float, told: str, box: NDArray[np.float32]) -> _Suspect:
    x1, y1, x2, y2 = box.tolist()
    path = index.paths[i]
    return _Suspect(surety, Finding(split, str(path), told, images=(path,), boxes_xyxy=((x1, y1, x2, y2),)))


def _told(box: NDArray[np.float32]) -> str:
    return "[{}]".format(", ".join(f"{value:.0f}" for value in box.tolist()))
