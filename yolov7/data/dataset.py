"""Training samples and letterboxed images of a split, from decoded images kept in memory where they fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, default_rng

from yolov7.data.augment.colour import Gains, draw_gains, recolour
from yolov7.data.augment.geometry import (
    Boxes,
    Corner,
    Labels,
    Letterbox,
    Matrix,
    Sample,
    Size,
    Tile,
    blend,
    compose,
    find_seen,
    fitted_size,
    flip,
    lay,
    letterbox,
    normalise_boxes,
    random_transform,
    resize,
)
from yolov7.data.augment.mosaic import place_centre, place_mosaic, place_mosaic_nine
from yolov7.data.augment.paste import copy_paste, cut_patches, paste_in
from yolov7.data.cache import CacheMode, make_cache
from yolov7.data.images import Image, read_image
from yolov7.data.index import ImageIndex
from yolov7.data.outlines import move
from yolov7.errors import DataError
from yolov7.settings import AugmentSettings

_DONORS = 4  # images whose objects may be pasted into a sample


class _Layout(NamedTuple):
    """Images, where they lie in a canvas, and the transform from it to the sample with the scale that it holds."""

    members: list[int]
    corners: list[Corner]
    canvas: int
    matrix: Matrix
    scale: float


class _Objects(NamedTuple):
    """The objects of a split; image i has those from offset i to offset i + 1."""

    offsets: list[int]
    boxes_xyxy: Boxes
    labels: Labels


class DetectionDataset:
    """The samples of a split at one training size. What sample (seed, epoch, i) is depends on these three only.

    Images decoded once stay in memory that processes forked from this one share, or with cache="disk" in a file of
    `cache_folder`. Crowd regions are no targets.
    """

    def __init__(
        self,
        index: ImageIndex,
        *,
        image_size: int,
        augment: AugmentSettings | None = None,
        seed: int = 0,
        cache: CacheMode = "auto",
        cache_folder: Path | None = None,
    ) -> None:
        self.index = index
        self.image_size = image_size
        self.augment = augment
        self.seed = seed
        self._sizes = [
            fitted_size(int(width), int(height), size=image_size)
            for width, height in zip(index.widths, index.heights, strict=True)
        ]
        self._objects = _objects_at(self._sizes, index)
        self._cache = make_cache(index, self._sizes, mode=cache, folder=cache_folder)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def is_cached(self) -> bool:
        """Whether decoded images are kept."""
        return self._cache is not None

    def sample(self, i: int, *, epoch: int = 0, mosaic: bool = True, out: Image | None = None) -> Sample:
        """The sample of image i in an epoch; without `augment` its letterboxed image.

        `mosaic=False` leaves out mosaic, mixup and pasted objects, as in the last epochs. `out`: where to draw it.
        """
        sample = self._plain(i) if self.augment is None else self._augmented(i, self.augment, epoch, mosaic, out)
        if out is None or sample.image is out:
            return sample
        out[:] = sample.image
        return replace(sample, image=out)

    def letterboxed(self, i: int) -> tuple[Image, Letterbox]:
        """Image i as detection sees it, and how to get back to its own pixels."""
        image, geometry = letterbox(_read_checked(self.index, i), size=self.image_size)
        return image, geometry

    def _plain(self, i: int) -> Sample:
        image, geometry = self.letterboxed(i)
        chosen = ~self.index.crowd_of(i)
        boxes = geometry.to_letterbox(self.index.boxes_of(i)[chosen])
        normalised = normalise_boxes(boxes, width=self.image_size, height=self.image_size)
        outlines = geometry.outlines_to_letterbox(list(compress(self.index.outlines_of(i), chosen)))
        return Sample(image, normalised, self.index.labels_of(i)[chosen], outlines)

    def _augmented(self, i: int, settings: AugmentSettings, epoch: int, mosaic: bool, out: Image | None) -> Sample:
        generator = default_rng((self.seed, epoch, i))
        layout = self._layout(i, settings, mosaic=mosaic, generator=generator)
        if mosaic and settings.mosaic and generator.random() < settings.mixup:
            tile = self._mixed(layout, settings, generator=generator)
            tile = replace(tile, image=recolour(tile.image, draw_gains(settings, generator=generator), out=out))
        else:
            tile = self._composed(layout, gains=draw_gains(settings, generator=generator), out=out)
        if mosaic:
            tile = self._pasted(tile, settings, generator=generator)
        horizontal, vertical = generator.random(2) < (settings.flip_horizontal, settings.flip_vertical)
        tile = flip(tile, horizontal=bool(horizontal), vertical=bool(vertical), out=out)
        normalised = normalise_boxes(tile.boxes_xyxy, width=self.image_size, height=self.image_size)
        return Sample(tile.image, normalised, tile.labels, tile.outlines)

    def _layout(self, i: int, settings: AugmentSettings, *, mosaic: bool, generator: Generator) -> _Layout:
        """What is drawn at random for the image i, alone or in a mosaic."""
        size = self.image_size
        if mosaic and generator.random() < settings.mosaic:
            is_large = settings.mosaic_nine > 0 and generator.random() < settings.mosaic_nine
            members = [i, *generator.integers(len(self), size=8 if is_large else 3).tolist()]
            place = place_mosaic_nine if is_large else place_mosaic
            corners, canvas = place([self._sizes[j] for j in members], size=size, generator=generator), 2 * size
        else:
            members, corners, canvas = [i], [place_centre(self._sizes[i], size=size)], size
        matrix, scale = random_transform(settings, canvas=canvas, size=size, generator=generator)
        return _Layout(members, corners, canvas, matrix, scale)

    def _composed(self, layout: _Layout, *, gains: Gains | None = None, out: Image | None = None) -> Tile:
        members, corners, canvas, matrix, scale = layout
        seen = find_seen([self._sizes[j] for j in members], corners, matrix, size=self.image_size)
        placed = compress(zip(members, corners, strict=True), seen)
        tiles = [lay(self._tile(j), corner, canvas=canvas) for j, corner in placed]
        return compose(tiles, matrix, scale=scale, size=self.image_size, gains=gains, out=out)

    def _mixed(self, layout: _Layout, settings: AugmentSettings, *, generator: Generator) -> Tile:
        """One sample blended with another one."""
        partner = int(generator.integers(len(self)))
        first = self._composed(layout)
        second = self._composed(self._layout(partner, settings, mosaic=True, generator=generator))
        return Tile(
            blend(first.image, second.image, generator=generator),
            np.concatenate([first.boxes_xyxy, second.boxes_xyxy]),
            np.concatenate([first.labels, second.labels]),
            outlines=[*first.outlines, *second.outlines],
        )

    def _pasted(self, tile: Tile, settings: AugmentSettings, *, generator: Generator) -> Tile:
        """The sample with copies of its own objects and with those of other images, as often as the settings say."""
        if settings.copy_paste > 0:
            tile = copy_paste(tile, probability=settings.copy_paste, generator=generator)
        if settings.paste_in > 0 and generator.random() < settings.paste_in:
            donors = generator.integers(len(self), size=_DONORS)
            patches = cut_patches(self._tile(int(j)) for j in donors)
            tile = paste_in(tile, patches=patches, generator=generator)
        return tile

    def _tile(self, i: int) -> Tile:
        """Image i at the training size, long side first."""
        width, height = self._sizes[i]
        image = self._cache.get(i) if self._cache is not None else None
        if image is None:
            image = resize(_read_checked(self.index, i, at_least=(width, height)), width=width, height=height)
            if self._cache is not None:
                self._cache.put(i, image)
        start, stop = self._objects.offsets[i : i + 2]
        boxes, labels = self._objects.boxes_xyxy[start:stop], self._objects.labels[start:stop]
        if self.index.outlines is None:
            return Tile(image, boxes, labels)
        scale = width / self.index.widths[i], height / self.index.heights[i]
        outlines = list(compress(self.index.outlines_of(i), ~self.index.crowd_of(i)))
        return Tile(image, boxes, labels, outlines=move(outlines, scale=scale))


def _objects_at(sizes: Sequence[Size], index: ImageIndex) -> _Objects:
    """Those of an index, its crowd regions left out, in images resized to these sizes."""
    kept = ~index.crowd
    offsets = np.concatenate([[0], np.cumsum(kept)])[index.box_offsets]
    scale = np.reshape(sizes, (-1, 2)) / np.stack([index.widths, index.heights], axis=1)
    boxes = index.boxes_xyxy * np.tile(scale, 2).astype(np.float32).repeat(np.diff(index.box_offsets), axis=0)
    return _Objects(offsets.tolist(), boxes[kept], index.labels[kept])


def _read_checked(index: ImageIndex, i: int, *, at_least: tuple[int, int] | None = None) -> Image:
    """Image i, where `at_least` (width, height) is enough perhaps smaller than it is; DataError if it has changed."""
    width, height = int(index.widths[i]), int(index.heights[i])
    reduce = _reduction(width, height, *at_least) if at_least else 1
    image = read_image(index.paths[i], reduce=reduce)
    if image.shape[:2] not in ((height, width), (-(-height // reduce), -(-width // reduce))):
        found = f"{image.shape[1]}x{image.shape[0]}" + (f" at 1/{reduce} of its size" if reduce > 1 else "")
        raise DataError(f"image {index.paths[i]} is {found}, was {width}x{height}; run `yolov7 prepare` again")
    return image


def _reduction(width: int, height: int, least_width: int, least_height: int) -> int:
    """The largest reduction that leaves enough."""
    fitting = [r for r in (1, 2, 4, 8) if width >= r * least_width and height >= r * least_height]
    return max(fitting, default=1)
