"""Annotations that are ready to be written: in pixels, of images whose sizes and new names are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolov7.data.annotations import Annotations
from yolov7.data.index import Id

Losses = Counter[str]
"""How many things of each kind a format cannot express, by a phrase that names them."""


@dataclass(frozen=True)
class SizedSplit:
    """A split that is ready to be written.

    Attributes:
        annotations: The images and objects; all boxes and outlines are in pixels.
        sizes: (n, 2) int64 width and height of each image in pixels, after the EXIF rotation.
        names: (n) file names of the images in the new data set; their stems are unique.
        class_names: The names of the classes, by label.
        category_ids: The id of each class; () if the source states none that should be kept.
    """

    annotations: Annotations
    sizes: NDArray[np.int64]
    names: tuple[str, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[Id, ...]

    def rows(self) -> Iterator[tuple[int, range]]:
        """Yield each image with its objects: their places in the columns of the annotations."""
        ends = np.cumsum(np.bincount(self.annotations.image, minlength=len(self.names))).tolist()
        for image, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            yield image, range(start, end)

    def parts_of(self, row: int) -> tuple[NDArray[np.float32], ...]:
        """Return the polygons of an object; () if it has no outline.

        Args:
            row: The place of the object.
        """
        outlines = self.annotations.outlines
        return () if outlines is None else outlines.between(row, row + 1)[0]


@dataclass
class WrittenFiles:
    """The files of one name that several splits may share, such as the annotation of an image in train and trainval.

    Attributes:
        texts: The content of each file.
        differing: The files of which two splits have different contents.
    """

    texts: dict[Path, str] = field(default_factory=dict)
    differing: set[Path] = field(default_factory=set)

    def add(self, path: Path, text: str) -> None:
        """Write a file, unless an earlier split wrote it.

        Args:
            path: The file.
            text: Its content.
        """
        if (known := self.texts.get(path)) is None:
            self.texts[path] = text
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif known != text:
            self.differing.add(path)
