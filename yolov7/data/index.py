"""The one form of annotated images, whatever format they came in: a columnar index, cleaned of flaws that are named."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from yolov7.data.flaws import Flaw, FlawKind
from yolov7.data.images import ImageFacts, inspect_image
from yolov7.data.outlines import Outline, OutlineTable, area, bounds, clip_polygon, frame_planes, tabulate
from yolov7.errors import ArtifactError, DataError, one_line
from yolov7.system.files import is_file, write_whole

Progress = Callable[[int, int], None]  # images checked, images in all
INDEX_VERSION = 1
CLIP_TOLERANCE = 1.0  # pixels that a box or an outline may reach outside the image without being listed
OUTLINE_TOLERANCE = 2.0, 0.05  # pixels, or the share of its longer side, that a box may differ from its outline's


@dataclass(frozen=True)
class AnnotatedImage:
    """What an annotation file says of one image, before any check.

    `boxes_xyxy`: (k, 4) absolute pixels. `labels`: (k,). `crowd`: (k,). `declared_wh`: the size that it states.
    `outlines`: k of them, or () where nothing is said of any. `areas`: (k,) pixels, NaN where one is not stated.
    """

    path: Path
    boxes_xyxy: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    declared_wh: tuple[int, int] | None = None
    outlines: tuple[Outline, ...] = ()
    areas: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class ImageIndex:
    """The images of a split and their boxes, in columns; n images, m boxes.

    `paths`: absolute. `widths`, `heights`: (n,) int32, after EXIF rotation. `hashes`: of the files' bytes.
    `box_offsets`: (n + 1,) int64, image i has the boxes from offset i to offset i + 1.
    `boxes_xyxy`: (m, 4) float32, absolute pixels. `labels`: (m,) int64. `crowd`: (m,) bool, regions of many objects.
    `outlines`: None where no object has one. `areas`: (m,) float64 pixels, None where they are the boxes'.
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

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def num_boxes(self) -> int:
        """Boxes of all images, crowd regions included."""
        return len(self.labels)

    def boxes_of(self, i: int) -> NDArray[np.float32]:
        """(k, 4) absolute pixels, corners."""
        return self.boxes_xyxy[self.box_offsets[i] : self.box_offsets[i + 1]]

    def labels_of(self, i: int) -> NDArray[np.int64]:
        """(k,) class numbers."""
        return self.labels[self.box_offsets[i] : self.box_offsets[i + 1]]

    def crowd_of(self, i: int) -> NDArray[np.bool_]:
        """(k,) whether a box is a crowd region."""
        return self.crowd[self.box_offsets[i] : self.box_offsets[i + 1]]

    def outlines_of(self, i: int) -> tuple[Outline, ...]:
        """K outlines in absolute pixels; () where no object of the split has any."""
        if self.outlines is None:
            return ()
        return self.outlines.between(int(self.box_offsets[i]), int(self.box_offsets[i + 1]))

    @property
    def object_areas(self) -> NDArray[np.float64]:
        """(m,) pixels: what COCO calls small, medium and large."""
        if self.areas is not None:
            return self.areas
        sides = self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]
        return np.asarray(sides.astype(np.float64).prod(axis=1))

    def content_hash(self) -> str:
        """Of all pixels, boxes, outlines and names: two indices with the same hash train the same model."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update("\n".join((*self.class_names, "", *self.hashes)).encode())
        columns = [self.widths, self.heights, self.box_offsets, self.boxes_xyxy, self.labels, self.crowd]
        for column in (*columns, *_outline_columns(self.outlines).values()):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()


def build_index(
    images: Sequence[AnnotatedImage],
    *,
    class_names: tuple[str, ...],
    flaws: Iterable[Flaw] = (),
    progress: Progress | None = None,
) -> tuple[ImageIndex, tuple[Flaw, ...]]:
    """Decodes every image once, in threads, and keeps what is sound; what is not comes back as flaws."""
    found = list(flaws)
    kept: list[tuple[AnnotatedImage, ImageFacts]] = []
    for image, facts in zip(images, _inspect_all([image.path for image in images], progress), strict=True):
        if isinstance(facts, Flaw):
            found.append(facts)
            continue
        cleaned, box_flaws = _clean(image, facts)
        found.extend(box_flaws)
        kept.append((cleaned, facts))
    return _stack(kept, class_names), tuple(found)


def save_index(path: Path, index: ImageIndex) -> None:
    """Writes a .npz; image paths are stored relative to its folder, so that both may move together."""
    folder = path.parent.resolve()
    relative = [Path(os.path.relpath(image, folder)).as_posix() for image in index.paths]
    columns: dict[str, Any] = {
        "version": np.int64(INDEX_VERSION),
        "class_names": _texts(index.class_names),
        "paths": _texts(relative),
        "widths": index.widths,
        "heights": index.heights,
        "hashes": _texts(index.hashes),
        "box_offsets": index.box_offsets,
        "boxes_xyxy": index.boxes_xyxy,
        "labels": index.labels,
        "crowd": index.crowd,
        **_outline_columns(index.outlines),
        **({} if index.areas is None else {"areas": index.areas}),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **columns)
    write_whole(path, buffer.getvalue())


def load_index(path: Path) -> ImageIndex:
    """Reads what `save_index` wrote; ArtifactError when it is missing or damaged."""
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; `yolov7 prepare` makes it")
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
        return _from_columns(columns, path.parent.resolve())
    except (BadZipFile, ValueError, KeyError, OSError, EOFError) as error:
        reason = one_line(error, limit=120)
        raise ArtifactError(f"{path} is damaged or of another version ({reason}); run `yolov7 prepare` again") from None


def _from_columns(columns: dict[str, NDArray[np.generic]], folder: Path) -> ImageIndex:
    if int(columns["version"]) != INDEX_VERSION:
        raise ValueError(f"version {int(columns['version'])}, expected {INDEX_VERSION}")
    index = ImageIndex(
        class_names=tuple(str(name) for name in columns["class_names"]),
        paths=tuple(Path(os.path.normpath(folder / str(path))) for path in columns["paths"]),
        widths=columns["widths"].astype(np.int32),
        heights=columns["heights"].astype(np.int32),
        hashes=tuple(str(value) for value in columns["hashes"]),
        box_offsets=columns["box_offsets"].astype(np.int64),
        boxes_xyxy=columns["boxes_xyxy"].astype(np.float32),
        labels=columns["labels"].astype(np.int64),
        crowd=columns["crowd"].astype(np.bool_),
        outlines=_outline_table(columns),
        areas=columns["areas"].astype(np.float64) if "areas" in columns else None,
    )
    counts = {len(index.paths), len(index.widths), len(index.heights), len(index.hashes), len(index.box_offsets) - 1}
    rows = {len(index.boxes_xyxy), len(index.labels), len(index.crowd), int(index.box_offsets[-1])}
    rows.add(len(index.object_areas))
    outlined = index.outlines is None or index.outlines.is_whole(len(index.labels))
    if len(counts) != 1 or len(rows) != 1 or not outlined:
        raise ValueError("columns of different lengths")
    return index


def _outline_columns(outlines: OutlineTable | None) -> dict[str, NDArray[Any]]:
    """None of them where there are no outlines."""
    if outlines is None:
        return {}
    return {
        "outline_points": outlines.points,
        "outline_part_offsets": outlines.part_offsets,
        "outline_object_offsets": outlines.object_offsets,
    }


def _outline_table(columns: dict[str, NDArray[np.generic]]) -> OutlineTable | None:
    if "outline_points" not in columns:
        return None
    return OutlineTable(
        points=columns["outline_points"].astype(np.float32),
        part_offsets=columns["outline_part_offsets"].astype(np.int64),
        object_offsets=columns["outline_object_offsets"].astype(np.int64),
    )


def _texts(values: Sequence[str]) -> NDArray[np.str_]:
    return np.array(values, dtype=np.str_) if values else np.zeros(0, dtype="<U1")


def _inspect_all(paths: Sequence[Path], progress: Progress | None) -> Iterable[ImageFacts | Flaw]:
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        for done, facts in enumerate(pool.map(_inspect, paths), start=1):
            if progress is not None:
                progress(done, len(paths))
            yield facts


def _inspect(path: Path) -> ImageFacts | Flaw:
    if not is_file(path):
        return Flaw(FlawKind.MISSING, str(path), "no such file")
    try:
        return inspect_image(path)
    except DataError as error:
        reason = str(error).removeprefix(f"image {path} ").split(";")[0]
        return Flaw(FlawKind.UNREADABLE, str(path), reason)


def _clean(image: AnnotatedImage, facts: ImageFacts) -> tuple[AnnotatedImage, list[Flaw]]:
    """Boxes and outlines clipped to the frame, and those left out that hold nothing of it."""
    flaws = []
    frame = np.array([facts.width, facts.height, facts.width, facts.height], np.float64)
    if image.declared_wh is not None and image.declared_wh != (facts.width, facts.height):
        stated = "{}x{}".format(*image.declared_wh)
        flaws.append(
            Flaw(FlawKind.SIZE, str(image.path), f"annotated as {stated}, is {facts.width}x{facts.height} upright")
        )
    clipped = np.clip(image.boxes_xyxy, 0.0, frame)
    kept, outlines, seen = [], [], set()
    for row, box in enumerate(image.boxes_xyxy):
        key = (*box.tolist(), int(image.labels[row]))
        kind = _flaw_of(box, clipped[row], frame) or (FlawKind.DUPLICATE_BOX if key in seen else None)
        seen.add(key)
        if kind in (None, FlawKind.CLIPPED):
            kept.append(row)
            outline, flaw = _clean_outline(image.outlines[row] if image.outlines else (), box, frame)
            outlines.append(outline)
            if kind is FlawKind.CLIPPED and outline:
                clipped[row] = bounds(outline)  # perhaps less than what is left of the box
            kind = kind or flaw
        if kind is not None:
            flaws.append(Flaw(kind, str(image.path), f"[{', '.join(f'{value:g}' for value in box)}]"))
    if not len(image.boxes_xyxy):
        flaws.append(Flaw(FlawKind.BACKGROUND, str(image.path), "no objects"))
    return AnnotatedImage(
        path=image.path,
        boxes_xyxy=clipped[kept],
        labels=image.labels[kept],
        crowd=image.crowd[kept],
        outlines=tuple(outlines),
        areas=_areas(image, kept, outlines, clipped),
    ), flaws


def _clean_outline(
    outline: Outline, box: NDArray[np.float64], frame: NDArray[np.float64]
) -> tuple[Outline, FlawKind | None]:
    """The outline clipped to the frame; none where it is not that of the box, before or after both are clipped."""
    if not outline:
        return (), None
    around, clipped = bounds(outline), outline
    beyond = float(np.abs(around - np.clip(around, 0.0, frame)).max())
    if beyond:
        parts = (clip_polygon(part, frame_planes(*frame[:2])).astype(np.float32) for part in outline)
        clipped = tuple(part for part in parts if len(part))
    if not clipped or not (_is_near(around, box) or _is_near(bounds(clipped), np.clip(box, 0.0, frame))):
        return (), FlawKind.OUTLINE_ELSEWHERE
    return clipped, FlawKind.OUTLINE_CLIPPED if beyond > CLIP_TOLERANCE else None


def _is_near(around: NDArray[np.float32], box: NDArray[np.float64]) -> bool:
    pixels, share = OUTLINE_TOLERANCE
    return bool(np.abs(around - box).max() <= max(pixels, share * float((box[2:] - box[:2]).max())))


def _areas(
    image: AnnotatedImage, kept: Sequence[int], outlines: Sequence[Outline], boxes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The areas that are stated, else those of the outlines, else of the boxes."""
    stated = np.full(len(image.labels), np.nan) if image.areas is None else image.areas
    areas = [
        stated[row] if np.isfinite(stated[row]) else area(outline) or float((boxes[row, 2:] - boxes[row, :2]).prod())
        for row, outline in zip(kept, outlines, strict=True)
    ]
    return np.array(areas, np.float64)


def _flaw_of(box: NDArray[np.float64], clipped: NDArray[np.float64], frame: NDArray[np.float64]) -> FlawKind | None:
    if not np.isfinite(box).all():
        return FlawKind.NOT_FINITE
    if box[2] <= box[0] or box[3] <= box[1]:
        return FlawKind.NO_AREA
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return FlawKind.OUTSIDE
    return FlawKind.CLIPPED if np.abs(box - clipped).max() > CLIP_TOLERANCE else None


def _stack(kept: Sequence[tuple[AnnotatedImage, ImageFacts]], class_names: tuple[str, ...]) -> ImageIndex:
    counts = [len(image.labels) for image, _ in kept]
    boxes = [np.zeros((0, 4)), *(image.boxes_xyxy for image, _ in kept)]
    labels = [np.zeros(0, np.int64), *(image.labels for image, _ in kept)]
    crowd = [np.zeros(0, np.bool_), *(image.crowd for image, _ in kept)]
    areas = np.concatenate([np.zeros(0), *(image.areas for image, _ in kept if image.areas is not None)])
    index = ImageIndex(
        class_names=class_names,
        paths=tuple(image.path.absolute() for image, _ in kept),
        widths=np.array([facts.width for _, facts in kept], np.int32),
        heights=np.array([facts.height for _, facts in kept], np.int32),
        hashes=tuple(facts.content_hash for _, facts in kept),
        box_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xyxy=np.concatenate(boxes).astype(np.float32),
        labels=np.concatenate(labels).astype(np.int64),
        crowd=np.concatenate(crowd).astype(np.bool_),
        outlines=tabulate([outline for image, _ in kept for outline in image.outlines]),
    )
    return index if np.allclose(areas, index.object_areas, rtol=1e-5) else replace(index, areas=areas)
