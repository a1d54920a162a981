"""Classes of a model and of a data set, matched by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from yolov7.data.class_names import match_names
from yolov7.errors import DataError, shown
from yolov7.structures import Detections


@dataclass(frozen=True)
class ClassMapping:
    """How the classes of a model correspond to those of a data set.

    Attributes:
        labels: The label in the data of each class of the model; -1 if the data do not have the class.
        only_in_model: Names of the classes that the data do not have.
        only_in_data: Names of the classes that the model does not have.
    """

    labels: tuple[int, ...]
    only_in_model: tuple[str, ...]
    only_in_data: tuple[str, ...]

    def notes(self) -> tuple[str, ...]:
        """Describe the classes that do not correspond, in sentences; nothing if all do."""
        found = []
        if self.only_in_model:
            found.append(
                f"detections of {_listed(self.only_in_model)} are left out, because the data have no such class"
            )
        if self.only_in_data:
            found.append(f"the model has no class {_listed(self.only_in_data)}, so it finds no such object")
        return tuple(found)

    def apply(self, detections: Detections) -> Detections:
        """Replace labels of the model by those of the data, and leave out classes that the data do not have.

        Args:
            detections: Detections with the labels of the model.

        Returns:
            The detections with the labels of the data.
        """
        labels = torch.tensor(self.labels, dtype=torch.int64)[detections.labels]
        keep = labels >= 0
        return Detections(detections.boxes_xyxy[keep], detections.scores[keep], labels[keep])


def map_classes(model: Sequence[str], data: Sequence[str]) -> ClassMapping:
    """Match classes by name.

    `yolov7.data.class_names` states which names are equal.

    Args:
        model: Class names of the model, by label.
        data: Class names of the data, by label.

    Returns:
        The mapping.

    Raises:
        DataError: If no class has the same name in both.
    """
    labels = match_names(model, data)
    if max(labels, default=-1) < 0:
        raise DataError(
            f"the model and the data have no class in common: the model has {_listed(model)}, and the data have "
            f"{_listed(data)}"
        )
    missing = tuple(name for label, name in enumerate(data) if label not in labels)
    return ClassMapping(labels, tuple(name for name, label in zip(model, labels, strict=True) if label < 0), missing)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(shown(name) for name in names[:5]) + more
