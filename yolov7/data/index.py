"""The index of a split: one columnar form of annotated images for every source format, and its file."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from yolov7.data.outlines import Outline, OutlineTable
from yolov7.errors import ArtifactError, one_line
from yolov7.system.files import open_regular, write_whole

Id = int | str
INDEX_VERSION = 2
_DIGEST = "digest"
_DAMAGE = (
    BadZipFile, EOFError, KeyError, MemoryError, OSError, RuntimeError, ValueError, lzma.LZMAError, struct.error,
    zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class ImageIndex:
    """The images of a split and their boxes in columns: n images, m boxes.

    Attributes:
        class_names: The names of the classes, by label.
        paths: (n) absolute paths of the image files.
        widths: (n,) int32 pixels, after the EXIF rotation.
        heights: (n,) int32 pixels, after the EXIF rotation.
        hashes: (n) hashes of the bytes of the files.
        box_offsets: (n + 1,) int64; image i has the boxes from offset i to offset i + 1.
        boxes_xyxy: (m, 4) float32, absolute pixels, corners, clipped to the images.
        labels: (m,) int64.
        crowd: (m,) bool, true for a region of many objects that is no target.
        outlines: The outlines of the objects; None if no object has one.
        areas: (m,) float64 square pixels; None if all are those of the boxes as stated.
        stated_xywh: (m, 4) float64, the boxes as the annotation file states them, x, y, width, height, unclipped;
            None if `boxes_xyxy` says exactly the same.
        image_ids: (n) the ids of the images in the annotation file. If they are left out: 1 to n.
        category_ids: The id of each class in the annotation file. If they are left out: 1 to the number of classes.
        perceptual_hashes: (n,) uint64 hashes of what the images show; see `yolov7.data.near_duplicates`. None if they
            were not computed.
    """

    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    hashes: tuple[str, ...]
    box_offsets: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    outlines: OutlineTable | None = None
    areas: NDArray[np.float64] | None = None
    stated_xywh: NDArray[np.float64] | None = None
    image_ids: tuple[Id, ...] = ()
    category_ids: tuple[Id, ...] = ()
    perceptual_hashes: NDArray[np.uint64] | None = None

    def __post_init__(self) -> None:
        """Number images and classes from 1 if their ids were left out."""
        object.__setattr__(self, "image_ids", self.image_ids or tuple(range(1, len(self.paths) + 1)))
        object.__setattr__(self, "category_ids", self.category_ids or tuple(range(1, len(self.class_names) + 1)))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    @property
    def num_boxes(self) -> int:
        """The number of boxes of all images, crowd regions included."""
        return len(self.labels)

    def boxes_of(self, i: int) -> NDArray[np.float32]:
        """Return the boxes (k, 4) of image i, absolute pixels, corners."""
        return self.boxes_xyxy[self.box_offsets[i] : self.box_offsets[i + 1]]

    def labels_of(self, i: int) -> NDArray[np.int64]:
        """Return the labels (k,) of the boxes of image i."""
        return self.labels[self.box_offsets[i] : self.box_offsets[i + 1]]

    def crowd_of(self, i: int) -> NDArray[np.bool_]:
        """Return for the boxes (k,) of image i whether they are crowd regions."""
        return self.crowd[self.box_offsets[i] : self.box_offsets[i + 1]]

    def outlines_of(self, i: int) -> tuple[Outline, ...]:
        """Return the k outlines of image i in absolute pixels; () if no object of the split has an outline."""
        if self.outlines is None:
            return ()
        return self.outlines.between(int(self.box_offsets[i]), int(self.box_offsets[i + 1]))

    @property
    def objects_xywh(self) -> NDArray[np.float64]:
        """The boxes (m, 4) as the annotation file states them: x, y, width, height in absolute pixels."""
        return to_xywh(self.boxes_xyxy) if self.stated_xywh is None else self.stated_xywh

    @property
    def object_areas(self) -> NDArray[np.float64]:
        """The area (m,) of each object in square pixels, by which COCO calls it small, medium or large."""
        return self.objects_xywh[:, 2:].prod(axis=1) if self.areas is None else self.areas

    def content_hash(self) -> str:
        """Return a hash of all that training sees: pixels, boxes, outlines and class names.

        Two indices with the same hash train the same model. Ids are not part of it.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update("\n".join((*self.class_names, "", *self.hashes)).encode())
        columns = [self.widths, self.heights, self.box_offsets, self.boxes_xyxy, self.labels, self.crowd]
        for column in (*columns, *_outline_columns(self.outlines).values()):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def evaluation_hash(self) -> str:
        """Return a hash of all that results depend on: `content_hash`, the ids, and the boxes and areas as stated."""
        ids = np.frombuffer(json.dumps([self.image_ids, self.category_ids]).encode(), np.uint8)
        digest = hashlib.blake2b(self.content_hash().encode(), digest_size=16)
        for column in (ids, self.objects_xywh, self.object_areas):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()


def to_xywh(boxes_xyxy: NDArray[Any]) -> NDArray[np.float64]:
    """Return boxes (m, 4) given by their corners as x, y, width, height, computed in float64."""
    boxes = boxes_xyxy.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def save_index(path: Path, index: ImageIndex, *, root: Path | None = None) -> None:
    """Write an index to a .npz file; equal indices give equal bytes.

    The paths of images under `root` are stored relative to the folder of the file, so that both may be moved or copied
    together. All other paths are stored as they are, so that a copy of the file finds the same images.

    Args:
        path: The file.
        index: The index.
        root: A folder that is moved as a whole. If it is left out: the folder of the file.
    """
    folder = path.parent.resolve()
    whole = folder if root is None else root.resolve()
    paths = [
        Path(os.path.relpath(image, folder)).as_posix() if image.is_relative_to(whole) else str(image)
        for image in index.paths
    ]
    texts = {
        "version": INDEX_VERSION,
        "class_names": index.class_names,
        "paths": paths,
        "hashes": index.hashes,
        "image_ids": index.image_ids,
        "category_ids": index.category_ids,
    }
    columns: dict[str, NDArray[Any]] = {
        "texts": np.frombuffer(json.dumps(texts).encode(), np.uint8),
        "widths": index.widths,
        "heights": index.heights,
        "box_offsets": index.box_offsets,
        "boxes_xyxy": index.boxes_xyxy,
        "labels": index.labels,
        "crowd": index.crowd,
        **_outline_columns(index.outlines),
        **({} if index.areas is None else {"areas": index.areas}),
        **({} if index.stated_xywh is None else {"stated_xywh": index.stated_xywh}),
        **({} if index.perceptual_hashes is None else {"perceptual_hashes": index.perceptual_hashes}),
    }
    files = {name: _to_bytes(column) for name, column in columns.items()}
    files[_DIGEST] = _to_bytes(_digest(files))
    buffer = io.BytesIO()
    with ZipFile(buffer, "w", ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(ZipInfo(f"{name}.npy"), content, ZIP_DEFLATED, compresslevel=1)
    write_whole(path, buffer.getvalue())


def load_index(path: Path) -> ImageIndex:
    """Read a file that `save_index` wrote.

    Args:
        path: The file.

    Returns:
        The index.

    Raises:
        ArtifactError: If the file is missing, damaged, or of another version.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; prepare the data again")
    try:
        with open_regular(path) as file, ZipFile(file) as archive:
            files = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
        if _DIGEST not in files:
            raise ValueError("no digest")
        digest = _from_bytes(files.pop(_DIGEST))
        if not np.array_equal(digest, _digest(files)):
            raise ValueError("the digest does not match")
    except _DAMAGE as error:
        reason = one_line(error, limit=120)
        raise ArtifactError(f"{path} is damaged or of another version ({reason}); prepare the data again") from None
    columns = {name: _from_bytes(content) for name, content in files.items()}
    texts = json.loads(columns["texts"].tobytes())
    if texts["version"] != INDEX_VERSION:
        raise ArtifactError(
            f"{path} is of version {texts['version']}, and {INDEX_VERSION} is expected; prepare the data again"
        )
    return _from_columns(columns, texts, path.parent.resolve())


def _from_columns(columns: Mapping[str, NDArray[Any]], texts: Mapping[str, Any], folder: Path) -> ImageIndex:
    return ImageIndex(
        class_names=tuple(texts["class_names"]),
        paths=tuple(Path(os.path.normpath(folder / path)) for path in texts["paths"]),
        widths=columns["widths"],
        heights=columns["heights"],
        hashes=tuple(texts["hashes"]),
        box_offsets=columns["box_offsets"],
        boxes_xyxy=columns["boxes_xyxy"],
        labels=columns["labels"],
        crowd=columns["crowd"],
        outlines=_outline_table(columns),
        areas=columns.get("areas"),
        stated_xywh=columns.get("stated_xywh"),
        image_ids=tuple(texts["image_ids"]),
        category_ids=tuple(texts["category_ids"]),
        perceptual_hashes=columns.get("perceptual_hashes"),
    )


def _to_bytes(column: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(column), allow_pickle=False)
    return buffer.getvalue()


def _from_bytes(content: bytes) -> NDArray[Any]:
    column: NDArray[Any] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return column


def _digest(files: Mapping[str, bytes]) -> NDArray[np.uint8]:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(files):
        digest.update(f"{name} {len(files[name])}\n".encode())
        digest.update(files[name])
    return np.frombuffer(digest.digest(), np.uint8)


def _outline_columns(outlines: OutlineTable | None) -> dict[str, NDArray[Any]]:
    if outlines is None:
        return {}
    return {
        "outline_points": outlines.points,
        "outline_part_offsets": outlines.part_offsets,
        "outline_object_offsets": outlines.object_offsets,
    }


def _outline_table(columns: Mapping[str, NDArray[Any]]) -> OutlineTable | None:
    if "outline_points" not in columns:
        return None
    return OutlineTable(
        points=columns["outline_points"],
        part_offsets=columns["outline_part_offsets"],
        object_offsets=columns["outline_object_offsets"],
    )
