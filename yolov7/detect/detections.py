"""The detections of one image as users receive them: with class names, and with exports to other forms."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolov7 import structures
from yolov7.data.images import Image
from yolov7.detect.drawing import draw_detections, write_picture
from yolov7.detect.inputs import ImageInput, as_image
from yolov7.errors import SettingError, shown, suggest

if TYPE_CHECKING:
    import supervision


class Detection(NamedTuple):
    """One detected object.

    Attributes:
        box_xyxy: Left, top, right and bottom in pixels of the image.
        score: Score in 0..1.
        label: Number of the class.
        name: Name of the class.
    """

    box_xyxy: tuple[float, float, float, float]
    score: float
    label: int
    name: str


class DetectionArrays(NamedTuple):
    """Detections as NumPy arrays.

    Attributes:
        boxes_xyxy: Corners (n, 4) float32 in pixels.
        scores: Scores (n,) float32 in 0..1.
        labels: Numbers of the classes (n,) int64.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class Detections(structures.Detections):
    """The n detections of one image, by descending score.

    `len(found)` is their number and iteration yields each `Detection`. An integer index returns a `Detection`; a slice,
    a mask or a list of integers returns `Detections`.

    Attributes:
        boxes_xyxy: Corners (n, 4) float32 in pixels of the image.
        scores: Scores (n,) float32 in 0..1.
        labels: Numbers of the classes (n,) int64.
        class_names: Names by label, of all classes of the model.
        image_size: Width and height of the image in pixels.
        source: The image as it was passed to the detector, such as its path. `plot`, `save` and `crops` read it.
    """

    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    source: ImageInput | None = None

    def __iter__(self) -> Iterator[Detection]:
        """Yield each detection."""
        columns = self.boxes_xyxy.tolist(), self.scores.tolist(), self.labels.tolist()
        for box, score, label in zip(*columns, strict=True):
            yield Detection(tuple(box), score, label, self.class_names[label])

    @overload
    def __getitem__(self, index: int) -> Detection: ...

    @overload
    def __getitem__(self, index: slice | Tensor | NDArray[Any] | Sequence[int] | Sequence[bool]) -> Detections: ...

    def __getitem__(
        self, index: int | slice | Tensor | NDArray[Any] | Sequence[int] | Sequence[bool]
    ) -> Detection | Detections:
        """Return one detection, or some of them.

        Args:
            index: An integer, a slice, a mask (n,), or a sequence of integers.

        Raises:
            IndexError: If the index is out of range.
        """
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"detection {index} is out of range; there are {len(self)}")
            part = self[slice(int(index), int(index) + 1 or None)]
            return next(iter(part))
        if not isinstance(index, (slice, Tensor)):
            array = np.asarray(index)
            index = torch.from_numpy(array if array.size else array.astype(np.int64))
        if isinstance(index, Tensor):
            index = index.to(self.scores.device)
        return replace(self, boxes_xyxy=self.boxes_xyxy[index], scores=self.scores[index], labels=self.labels[index])

    def __repr__(self) -> str:
        """Describe the detections by the number of each class."""
        counts = ", ".join(f"{number} {name}" for name, number in self.counts().items()) or "none"
        return f"Detections({counts}; image of {self.image_size[0]} x {self.image_size[1]} pixels)"

    def counts(self) -> dict[str, int]:
        """Return the number of detections of each class that was detected, most frequent class first."""
        return dict(Counter(self.class_names[label] for label in self.labels.tolist()).most_common())

    def filter(self, *, confidence: float = 0.0, classes: Sequence[str | int] | None = None) -> Detections:
        """Return the detections that meet all conditions.

        Args:
            confidence: Lowest score.
            classes: Names or numbers of classes; None keeps every class.

        Returns:
            The detections, in the same order.

        Raises:
            SettingError: If a class is unknown.
        """
        keep = self.scores >= confidence
        if classes is not None:
            wanted = torch.tensor(class_labels(classes, self.class_names), device=self.labels.device)
            keep = keep & torch.isin(self.labels, wanted)
        return self[keep]

    def numpy(self) -> DetectionArrays:
        """Return the detections as arrays on the CPU."""
        return DetectionArrays(self.boxes_xyxy.cpu().numpy(), self.scores.cpu().numpy(), self.labels.cpu().numpy())

    def to(self, device: torch.device | str) -> Detections:
        """Copy the detections to a device.

        Args:
            device: The device.

        Returns:
            The copy.
        """
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy.to(device),
            scores=self.scores.to(device),
            labels=self.labels.to(device),
        )

    def plot(self, image: ImageInput | None = None) -> Image:
        """Draw the detections on a copy of the image. Small images are enlarged.

        Args:
            image: The image; None reads `source`.

        Returns:
            The drawing (H', W', 3) uint8 RGB.

        Raises:
            DataError: If the image cannot be read.
            ValueError: If there is neither an image nor a source.
        """
        return draw_detections(self._pixels(image), self, self.class_names)

    def save(self, path: str | os.PathLike[str], *, image: ImageInput | None = None) -> Path:
        """Write the drawing of `plot` as a JPEG file.

        Args:
            path: The file; missing folders are created.
            image: The image; None reads `source`.

        Returns:
            The path.

        Raises:
            DataError: If the image cannot be read.
            OSError: If the file cannot be written.
            ValueError: If there is neither an image nor a source.
        """
        path = Path(path)
        picture = self.plot(image)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(path, picture)
        return path

    def crops(self, image: ImageInput | None = None) -> list[Image]:
        """Cut the objects out of the image.

        Args:
            image: The image; None reads `source`.

        Returns:
            One image (h, w, 3) uint8 RGB for each detection, at least one pixel wide and high.

        Raises:
            DataError: If the image cannot be read.
            ValueError: If there is neither an image nor a source.
        """
        pixels = self._pixels(image)
        height, width = pixels.shape[:2]
        found = []
        for left, top, right, bottom in self.boxes_xyxy.tolist():
            x, y = min(int(left), width - 1), min(int(top), height - 1)
            found.append(pixels[y : max(y + 1, round(bottom)), x : max(x + 1, round(right))].copy())
        return found

    def to_coco(self, image_id: int | str = 1, *, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return the detections as entries of a COCO results file.

        Args:
            image_id: Id of the image in the annotation file.
            category_ids: Id of each class by label; None is 1 to the number of classes.

        Returns:
            One mapping per detection: `image_id`, `category_id`, `bbox` (left, top, width and height in pixels) and
            `score`.
        """
        ids = category_ids or range(1, len(self.class_names) + 1)
        return [
            {
                "image_id": image_id,
                "category_id": ids[one.label],
                "bbox": [left, top, right - left, bottom - top],
                "score": one.score,
            }
            for one in self
            for left, top, right, bottom in [[round(value, 3) for value in one.box_xyxy]]
        ]

    def to_supervision(self) -> supervision.Detections:
        """Return the detections for the package `supervision`, with the names under `data["class_name"]`.

        Raises:
            ModuleNotFoundError: If supervision is not installed.
        """
        import supervision

        boxes, scores, labels = self.numpy()
        names = np.array([self.class_names[label] for label in labels.tolist()], dtype=str)
        return supervision.Detections(
            xyxy=boxes.copy(), confidence=scores.copy(), class_id=labels.astype(int), data={"class_name": names}
        )

    def _pixels(self, image: ImageInput | None) -> Image:
        chosen = self.source if image is None else image
        if chosen is None:
            raise ValueError("these detections do not know their image; pass it as `image`")
        return as_image(chosen)


def draw(image: ImageInput, detections: Detections) -> Image:
    """Draw detections with their classes and scores on a copy of an image. Small images are enlarged.

    Args:
        image: The image: a path, an array (H, W, 3) uint8 RGB, a tensor (3, H, W) or a Pillow image.
        detections: Detections in pixels of the image.

    Returns:
        The drawing (H', W', 3) uint8 RGB.

    Raises:
        DataError: If the image cannot be read.
    """
    return detections.plot(image)


def class_labels(classes: Sequence[str | int], class_names: Sequence[str]) -> list[int]:
    """Return the labels of classes that are given by name or number.

    Args:
        classes: Names or numbers. A text that is not a name may be a number.
        class_names: Names by label.

    Returns:
        The labels in the same order.

    Raises:
        SettingError: If a class is unknown.
    """
    if isinstance(classes, (str, int)):
        raise SettingError(f"classes={shown(classes)} must be a list of names or numbers; use [{shown(classes)}]")
    labels = []
    for one in classes:
        if one in class_names:
            labels.append(class_names.index(str(one)))
            continue
        number = int(one) if isinstance(one, (int, np.integer)) or one.strip().isdecimal() else -1
        if not 0 <= number < len(class_names):
            known = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
            raise SettingError(
                f"class {shown(one)} is unknown; the model has the classes {known} (0 to {len(class_names) - 1})"
                f"{suggest(str(one), class_names)}"
            )
        labels.append(number)
    return labels
