"""Training samples and letterboxed images of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, default_rng

from yolov7.data.augment.colour import Gains, draw_gains, recolour
from yolov7.data.augment.compose import compose
from yolov7.data.augment.geometry import Boxes, Corner, Labels, Matrix, find_visible, random_transform
from yolov7.data.augment.letterbox import Letterbox, Size, fitted_size, letterbox, resize
from yolov7.data.augment.mosaic import place_centre, place_mosaic, place_mosaic_nine
from yolov7.data.augment.own_code import OwnAugmentations
from yolov7.data.augment.paste import copy_paste, cut_patches, paste_in
from yolov7.data.augment.tile import Sample, Tile, blend, flip, normalise_boxes, place_tile
from yolov7.data.cache import CacheMode, Gather, make_cache
from yolov7.data.images import Image, read_image
from yolov7.data.index import ImageIndex
from yolov7.data.outlines import move
from yolov7.errors import DataError
from yolov7.settings import AugmentSettings, LetterboxMode

_DONORS = 4  # images from which objects may be pasted into one sample


class _Layout(NamedTuple):
    """Images, their positions in a canvas, and the transform from the canvas to the sample with its scale."""

    members: list[int]
    corners: list[Corner]
    canvas: int
    matrix: Matrix
    scale: float


class _Objects(NamedTuple):
    """The objects of a split: those of image i are from offset i to offset i + 1."""

    offsets: list[int]
    boxes_xyxy: Boxes
    labels: Labels


class DetectionDataset:
    """The samples of a split at one training size.

    A sample depends only on (seed, epoch, image), on every machine. Decoded images may be cached. Crowd regions are
    not training targets.

    Attributes:
        index: The images and objects of the split.
        image_size: Side of the square samples, pixels.
        augment: How samples vary; None for letterboxed images.
        seed: Seed of all random numbers.
        letterbox: How images that are not augmented are brought to the square.
    """

    def __init__(
        self,
        index: ImageIndex,
        *,
        image_size: int,
        augment: AugmentSettings | None = None,
        seed: int = 0,
        letterbox: LetterboxMode = "centre",
        cache: CacheMode = "auto",
        cache_folder: Path | None = None,
        processes: int = 1,
        gather: Gather = lambda mine: [mine],
    ) -> None:
        """Prepare the data set; no image is read yet.

        Args:
            index: The images and objects of the split.
            image_size: Side of the square samples, pixels.
            augment: How samples vary; None for letterboxed images.
            seed: Seed of all random numbers.
            letterbox: How images that are not augmented are brought to the square.
            cache: Where decoded images are kept (see `yolov7.data.cache.make_cache`).
            cache_folder: Folder of the cache files of `cache="disk"`.
            processes: Number of processes of this machine that make a data set of their own, so that all of their
                caches together stay within the limit of memory. Processes forked from this one do not count.
            gather: Collects a value from every process of the run. Those of one machine share their cache in memory.

        Raises:
            SettingError: If the cache does not fit into memory or on the disk.
        """
        self.index = index
        self.image_size = image_size
        self.augment = augment
        self.seed = seed
        self.letterbox = letterbox
        self._sizes = [
            fitted_size(int(width), int(height), size=image_size)
            for width, height in zip(index.widths, index.heights, strict=True)
        ]
        self._objects = _resized_objects(self._sizes, index)
        self._own = OwnAugmentations(augment.plugins if augment else (), num_classes=len(index.class_names))
        self._cache = make_cache(
            index, self._sizes, mode=cache, folder=cache_folder, processes=processes, gather=gather
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.index)

    @property
    def is_cached(self) -> bool:
        """Whether decoded images are kept."""
        return self._cache is not None

    def sample(self, i: int, *, epoch: int = 0, mosaic: bool = True, out: Image | None = None) -> Sample:
        """Return the sample of an image in an epoch; without `augment` its letterboxed image.

        Args:
            i: Position of the image in the index.
            epoch: Number of the epoch.
            mosaic: Whether mosaic, mixup and pasted objects are allowed; False in the last epochs of a training.
            out: The array (S, S, 3), uint8, to draw to. By default a new one.

        Returns:
            The sample.

        Raises:
            DataError: If an image cannot be read or has changed since it was indexed.
        """
        if self.augment is None:
            sample = self._make_plain(i, out)
        else:
            sample = self._make_augmented(i, self.augment, epoch, mosaic, out)
        if out is None or sample.image is out:
            return sample
        out[:] = sample.image
        return replace(sample, image=out)

    def letterboxed(self, i: int, *, out: Image | None = None) -> tuple[Image, Letterbox]:
        """Return an image as detection receives it.

        Args:
            i: Position of the image in the index.
            out: The array (S, S, 3), uint8, to draw to. By default a new one.

        Returns:
            The letterboxed image (S, S, 3), and its geometry, which leads back to the image's own pixels.

        Raises:
            DataError: If the image cannot be read or has changed since it was indexed.
        """
        return letterbox(_read_checked(self.index, i), size=self.image_size, mode=self.letterbox, out=out)

    def _make_plain(self, i: int, out: Image | None) -> Sample:
        image, geometry = self.letterboxed(i, out=out)
        chosen = ~self.index.crowd_of(i)
        boxes = geometry.to_letterbox(self.index.boxes_of(i)[chosen])
        normalised = normalise_boxes(boxes, width=self.image_size, height=self.image_size)
        outlines = geometry.outlines_to_letterbox(list(compress(self.index.outlines_of(i), chosen)))
        return Sample(image, normalised, self.index.labels_of(i)[chosen], outlines)

    def _make_augmented(self, i: int, settings: AugmentSettings, epoch: int, mosaic: bool, out: Image | None) -> Sample:
        generator = default_rng((self.seed, epoch, i))
        layout = self._draw_layout(i, settings, mosaic=mosaic, generator=generator)
        may_mix = mosaic and max(settings.mosaic, settings.mixup) > 0
        if may_mix and generator.random() < settings.mixup:
            tile = self._mix(layout, settings, generator=generator)
            tile = replace(tile, image=recolour(tile.image, draw_gains(settings, generator=generator), out=out))
        else:
            tile = self._compose(layout, gains=draw_gains(settings, generator=generator), out=out)
        if mosaic:
            tile = self._paste(tile, settings, generator=generator)
        horizontal, vertical = generator.random(2) < (settings.flip_horizontal, settings.flip_vertical)
        tile = flip(tile, horizontal=bool(horizontal), vertical=bool(vertical), out=out)
        tile = self._own(tile, generator=generator)
        normalised = normalise_boxes(tile.boxes_xyxy, width=self.image_size, height=self.image_size)
        return Sample(tile.image, normalised, tile.labels, tile.outlines)

    def _draw_layout(self, i: int, settings: AugmentSettings, *, mosaic: bool, generator: Generator) -> _Layout:
        """Draw whether image i is alone or in a mosaic, the other images, their positions and the transform."""
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

    def _compose(self, layout: _Layout, *, gains: Gains | None = None, out: Image | None = None) -> Tile:
        """Draw a layout; images that are not visible are not read."""
        members, corners, canvas, matrix, scale = layout
        visible = find_visible([self._sizes[j] for j in members], corners, matrix, size=self.image_size)
        placed = compress(zip(members, corners, strict=True), visible)
        tiles = [place_tile(self._tile(j), corner, canvas=canvas) for j, corner in placed]
        return compose(tiles, matrix, scale=scale, size=self.image_size, gains=gains, out=out)

    def _mix(self, layout: _Layout, settings: AugmentSettings, *, generator: Generator) -> Tile:
        """Blend a sample with one of a random image that is drawn in the same way."""
        partner = int(generator.integers(len(self)))
        first = self._compose(layout)
        second = self._compose(self._draw_layout(partner, settings, mosaic=True, generator=generator))
        return Tile(
            blend(first.image, second.image, generator=generator),
            np.concatenate([first.boxes_xyxy, second.boxes_xyxy]),
            np.concatenate([first.labels, second.labels]),
            outlines=[*first.outlines, *second.outlines],
        )

    def _paste(self, tile: Tile, settings: AugmentSettings, *, generator: Generator) -> Tile:
        """Paste copies of the sample's own objects, and objects of other images, as often as the settings say."""
        if settings.copy_paste > 0:
            tile = copy_paste(tile, probability=settings.copy_paste, generator=generator)
        if settings.paste_in > 0 and generator.random() < settings.paste_in:
            donors = generator.integers(len(self), size=_DONORS)
            patches = cut_patches(self._tile(int(j)) for j in donors)
            tile = paste_in(tile, patches=patches, generator=generator)
        return tile

    def _tile(self, i: int) -> Tile:
        """Return image i with its long side at the training size, and its objects."""
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


def _resized_objects(sizes: Sequence[Size], index: ImageIndex) -> _Objects:
    """Return the objects of an index, without crowd regions, in images resized to `sizes`."""
    kept = ~index.crowd
    offsets = np.concatenate([[0], np.cumsum(kept)])[index.box_offsets]
    scale = np.reshape(sizes, (-1, 2)) / np.stack([index.widths, index.heights], axis=1)
    boxes = index.boxes_xyxy * np.tile(scale, 2).astype(np.float32).repeat(np.diff(index.box_offsets), axis=0)
    return _Objects(offsets.tolist(), boxes[kept], index.labels[kept])


def _read_checked(index: ImageIndex, i: int, *, at_least: Size | None = None) -> Image:
    """Read image i, a JPEG file perhaps smaller, down to `at_least`; raise DataError if its size has changed."""
    width, height = int(index.widths[i]), int(index.heights[i])
    reduce = 1
    if at_least is not None:
        reduce = max((r for r in (2, 4, 8) if width >= r * at_least[0] and height >= r * at_least[1]), default=1)
    image = read_image(index.paths[i], reduce=reduce)
    if image.shape[:2] not in ((height, width), (-(-height // reduce), -(-width // reduce))):
        found = f"{image.shape[1]}x{image.shape[0]}" + (f" at 1/{reduce} of its size" if reduce > 1 else "")
        raise DataError(
            f"image {index.paths[i]} is {found} pixels but was {width}x{height} when the data were prepared; restore "
            "the file or prepare the data again"
        )
    return image
