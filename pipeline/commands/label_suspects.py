"""Labels that a trained model doubts: objects without a label, other classes, and labels that it never finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from yolov7.data.class_names import match_names
from yolov7.data.health.checks import LABEL_CLASS, LABEL_MISSING, LABEL_UNFOUND, Finding
from yolov7.data.index import ImageIndex
from yolov7.data.inspection import Progress
from yolov7.data.loader import ValLoader
from yolov7.engines.opened_model import OpenedModel
from yolov7.errors import SettingError
from yolov7.evaluation.suspects import FAINT, find_doubts
from yolov7.inference.batch import detect_batch
from yolov7.settings import NmsSettings
from yolov7.structures import Detections

_NMS = NmsSettings(confidence=FAINT, iou=0.6)
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
        """Check that the model and the data have at least one class in common.

        Raises:
            SettingError: If no class name is common to both.
        """
        names = next(iter(self.splits.values())).class_names if self.splits else ()
        if max(match_names(names, self.model.class_names), default=-1) < 0:
            ours, theirs = (", ".join(some[:5]) for some in (names, self.model.class_names))
            raise SettingError(
                f"weights={self.model.path} have none of the classes of the data ({ours}), but {theirs}; "
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
        ours = match_names(self.model.class_names, index.class_names)
        done = 0
        with self.bar(f"detections in {split}") as progress:
            model = self.model
            for batch in ValLoader(index, image_size=model.image_size, batch_size=_BATCH, letterbox=model.letterbox):
                detected = detect_batch(self.model.engine, batch.images, batch.geometry, nms=_NMS)
                for i, found in zip(batch.index, detected, strict=True):
                    yield from _of_image(split, index, i, found, ours)
                done += len(batch.index)
                if progress is not None:
                    progress(done, len(index))


def _of_image(
    split: str, index: ImageIndex, i: int, found: Detections, ours: Sequence[int]
) -> Iterator[tuple[str, _Suspect]]:
    """Compare the detections and the labels of an image; `ours` are the data's labels of the model's classes."""
    boxes, labels = index.boxes_of(i), index.labels_of(i)
    found = Detections(found.boxes_xyxy, found.scores, torch.tensor(ours)[found.labels])
    for doubt in find_doubts(boxes, labels, index.crowd_of(i), found):
        label = None if doubt.label is None else int(labels[doubt.label])
        labelled = "" if label is None else index.class_names[label]
        if doubt.found is None:
            assert doubt.label is not None
            if label in ours:  # the model cannot find other classes
                box = boxes[doubt.label]
                area = float((box[2:] - box[:2]).prod())  # large objects are easy to find
                yield LABEL_UNFOUND.id, _suspect(split, index, i, area, f"{labelled} at {_told(box)}", box)
            continue
        box, score = found.boxes_xyxy[doubt.found].numpy(), float(found.scores[doubt.found])
        told = f"{index.class_names[int(found.labels[doubt.found])]} with a score of {score:.2f} at {_told(box)}"
        check, end = (LABEL_MISSING, "") if label is None else (LABEL_CLASS, f", labelled {labelled}")
        yield check.id, _suspect(split, index, i, score, told + end, box)


def _suspect(split: str, index: ImageIndex, i: int, surety: float, told: str, box: NDArray[np.float32]) -> _Suspect:
    x1, y1, x2, y2 = box.tolist()
    path = index.paths[i]
    return _Suspect(surety, Finding(split, str(path), told, images=(path,), boxes_xyxy=((x1, y1, x2, y2),)))


def _told(box: NDArray[np.float32]) -> str:
    return "[{}]".format(", ".join(f"{value:.0f}" for value in box.tolist()))
