"""Outlines of objects: polygons, one or several each; how they are stored, filled, and seen through a transform."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]  # (n, 2): x, y
Outline = tuple[Points, ...]  # the parts of one object; () where its outline is not known
Planes = NDArray[np.float64]  # (k, 3): half-planes a x + b y + c >= 0

MIN_DEPTH = 0.1  # of a perspective: what is nearer to the horizon would be enlarged more than ten times; it is left out
_ON_EDGE = 0.01  # pixels that count as within
_SLIVER = 0.5  # pixels: what is left of a part and is thinner, nobody sees

_Seen = tuple[Points, NDArray[np.float64], NDArray[np.float64]]  # a polygon, and the lower and upper corner of its box
_NOTHING: _Seen = np.zeros((0, 2), np.float32), np.full(2, np.inf), np.full(2, -np.inf)


@dataclass(frozen=True)
class OutlineTable:
    """The outlines of m objects, with q parts and p points in all.

    `points`: (p, 2) float32, absolute pixels. `part_offsets`: (q + 1,) int64, part j has the points from offset j to
    offset j + 1. `object_offsets`: (m + 1,) int64, in the same way the parts of each object.
    """

    points: Points
    part_offsets: NDArray[np.int64]
    object_offsets: NDArray[np.int64]

    def between(self, start: int, stop: int) -> tuple[Outline, ...]:
        """The outlines of the objects from `start` to `stop`."""
        objects = self.object_offsets[start : stop + 1].tolist()
        first = objects[0]
        offsets = self.part_offsets[first : objects[-1] + 1].tolist()
        parts = [self.points[low:high] for low, high in pairwise(offsets)]
        return tuple(tuple(parts[low - first : high - first]) for low, high in pairwise(objects))

    def is_whole(self, num_objects: int) -> bool:
        """Whether the columns fit each other and that many objects."""
        ends = (self.object_offsets, len(self.part_offsets) - 1), (self.part_offsets, len(self.points))
        rising = all(len(o) and o[0] == 0 and o[-1] == end and (np.diff(o) >= 0).all() for o, end in ends)
        return rising and len(self.object_offsets) == num_objects + 1 and self.points.shape[1:] == (2,)


def tabulate(outlines: Sequence[Outline]) -> OutlineTable | None:
    """The outlines of objects as columns; None where none of them has any."""
    parts = [part for outline in outlines for part in outline]
    if not parts:
        return None
    return OutlineTable(
        points=np.concatenate(parts).astype(np.float32),
        part_offsets=_offsets([len(part) for part in parts]),
        object_offsets=_offsets([len(outline) for outline in outlines]),
    )


def move(
    outlines: Sequence[Outline], *, scale: tuple[float, float] = (1.0, 1.0), shift: tuple[float, float] = (0.0, 0.0)
) -> tuple[Outline, ...]:
    """The outlines scaled by (x, y), then shifted by (x, y)."""
    if not outlines:
        return ()
    by, to = np.array(scale, np.float32), np.array(shift, np.float32)
    return tuple(tuple(part * by + to for part in outline) for outline in outlines)


def bounds(outline: Outline) -> NDArray[np.float32]:
    """The box (4,) around all parts, corners."""
    points = np.concatenate(outline)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def area(outline: Outline) -> float:
    """The area of all parts, in square pixels."""
    total = 0.0
    for part in outline:
        x, y = part.astype(np.float64).T
        total += abs(float(x @ _following(y) - y @ _following(x))) / 2
    return total


def fill(outline: Outline, *, width: int, height: int) -> NDArray[np.bool_]:
    """A mask (height, width) of the pixels whose centres lie within the outline; parts may overlap."""
    mask = np.zeros((height, width), np.bool_)
    rows = np.arange(height) + 0.5
    for part in outline:
        (ax, ay), (bx, by) = part.T.astype(np.float64), _following(part).T.astype(np.float64)
        edge, row = np.nonzero((ay[:, None] > rows) != (by[:, None] > rows))
        x = ax[edge] + (rows[row] - ay[edge]) * (bx - ax)[edge] / (by - ay)[edge]
        first = np.ceil(x - 0.5).clip(0, width).astype(np.int64)  # pixel to the right of the crossing
        crossings = np.bincount(row * (width + 1) + first, minlength=height * (width + 1)).reshape(height, -1)
        mask |= crossings.cumsum(axis=1)[:, :width] % 2 == 1
    return mask


def frame_planes(width: float, height: float) -> Planes:
    """The half-planes of the points from (0, 0) to (width, height)."""
    return np.array([[1, 0, 0], [0, 1, 0], [-1, 0, width], [0, -1, height]], np.float64)


def view_planes(matrix: NDArray[np.float64], *, size: int) -> Planes:
    """Return the half-planes of an image's points that are visible in a sample, and in front of the horizon.

    Args:
        matrix: Transform (3, 3) from the image to the sample.
        size: Side of the square sample, pixels.

    Returns:
        Half-planes (5, 3) in the image, so that horizons do not matter, in pixels of the image.
    """
    x, y, depth = matrix
    planes = np.stack([x, y, size * depth - x, size * depth - y, depth - [0.0, 0.0, MIN_DEPTH]])
    normalised: Planes = planes / np.sqrt(planes[:, :1] ** 2 + planes[:, 1:2] ** 2).clip(1e-9)
    return normalised


def clip_polygon(points: NDArray[Any], planes: Planes) -> NDArray[np.float64]:
    """The part of a polygon (n, 2) within all half-planes (Sutherland and Hodgman, 1974), without points if none is.

    What a concave polygon loses may leave edges along the border, to and fro, which hold no area.
    """
    polygon = points.astype(np.float64)
    for plane in planes:
        if not len(polygon):
            break
        here = _distances(polygon, plane[None])[:, 0]
        if (here >= 0).all():
            continue
        following, there = _following(polygon), _following(here)
        crosses = (here >= 0) != (there >= 0)
        share = here / np.where(crosses, here - there, 1.0)
        pairs = np.stack([polygon, polygon + share[:, None] * (following - polygon)], axis=1)
        polygon = pairs[np.stack([here >= 0, crosses], axis=1)]
    return polygon


def see(
    outlines: Sequence[Outline],
    boxes_xyxy: NDArray[np.float32],
    matrix: NDArray[np.float64],
    *,
    image_size: tuple[int, int],
    size: int,
) -> tuple[tuple[Outline, ...], NDArray[np.float32]]:
    """What an output of `size` x `size` shows of outlines in an image, laid into it by `matrix` (3, 3).

    `boxes_xyxy` (k, 4) are the boxes in the output. Returns the visible outlines, and the boxes with those around what
    is visible of an object that has an outline; without area where nothing is.
    """
    parts = [part for outline in outlines for part in outline]
    if not parts:
        return tuple(outlines), boxes_xyxy
    view = _View(matrix, image_size, size)
    starts = _offsets([len(part) for part in parts])[:-1]
    points = np.concatenate(parts).astype(np.float64)
    nearest, farthest = view.distances(points, starts)
    seen = view.project(points)
    low, high = np.minimum.reduceat(seen, starts), np.maximum.reduceat(seen, starts)
    placed = seen.astype(np.float32)
    pieces = [placed[start : start + len(part)] for start, part in zip(starts.tolist(), parts, strict=True)]
    crossed = nearest < -_ON_EDGE
    for j in np.flatnonzero(crossed.any(axis=1)):
        pieces[j], low[j], high[j] = view.cut(parts[j], crossed[j]) if (farthest[j] > 0).all() else _NOTHING
    counts = np.array([len(outline) for outline in outlines])
    has, ends = counts > 0, np.cumsum(counts)
    boxes, first = boxes_xyxy.copy(), (ends - counts)[has]
    around = np.concatenate([np.minimum.reduceat(low, first), np.maximum.reduceat(high, first)], axis=1)
    boxes[has] = np.where(np.isfinite(around), around, 0.0)
    visible = tuple(
        tuple(piece for piece in pieces[end - count : end] if len(piece))
        for end, count in zip(ends.tolist(), counts.tolist(), strict=True)
    )
    return visible, boxes


class _View:
    """An image of some width and height, seen through a matrix in an output of `size` x `size`."""

    def __init__(self, matrix: NDArray[np.float64], image_size: tuple[int, int], size: int) -> None:
        self._matrix, self._image_size = matrix, image_size
        self._planes = np.concatenate([frame_planes(*image_size), view_planes(matrix, size=size)])

    def distances(
        self, points: NDArray[np.float64], starts: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The least and the greatest (q, planes) of what the points of each of q parts are within each half-plane."""
        within = _distances(points, self._planes)
        return np.minimum.reduceat(within, starts), np.maximum.reduceat(within, starts)

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (n, 2) of the image in the output; what is not seen may come out anywhere."""
        seen = _distances(points, self._matrix)
        if self._matrix[2, 0] or self._matrix[2, 1]:
            seen[:, :2] /= np.maximum(seen[:, 2:], 1e-9)
        return seen[:, :2]

    def cut(self, part: Points, crossed: NDArray[np.bool_]) -> _Seen:
        """What is seen of a part of an outline, and its box; `crossed` are the planes that not all of it is within.

        What several planes leave of a concave polygon also goes along the border where nothing is, so that its box is
        then around the edges that are seen and the corners of the view that lie within the outline.
        """
        planes = self._planes[crossed]
        visible = extremes = self.project(clip_polygon(part, planes))
        if len(planes) > 1:
            edges = _clip_edges(part.astype(np.float64), planes)
            extremes = self.project(np.concatenate([edges, self._corners[_is_inside(self._corners, part)]]))
        if not len(extremes) or np.ptp(extremes, axis=0).min() < _SLIVER:
            return _NOTHING
        return visible.astype(np.float32), extremes.min(axis=0), extremes.max(axis=0)

    @cached_property
    def _corners(self) -> NDArray[np.float64]:
        """Those of what is seen of the image, in its pixels."""
        width, height = self._image_size
        return clip_polygon(np.array([[0, 0], [width, 0], [width, height], [0, height]]), self._planes)


def _clip_edges(polygon: NDArray[np.float64], planes: Planes) -> NDArray[np.float64]:
    """The ends (2 n, 2) of those parts of a polygon's edges that lie within all half-planes (Cyrus and Beck, 1978)."""
    following = _following(polygon)
    here, there = _distances(polygon, planes), _distances(following, planes)
    share = here / np.where(here == there, 1.0, here - there)
    enter = np.where(here < 0, share, 0.0).max(axis=1)
    leave = np.where(there < 0, share, 1.0).min(axis=1)
    kept = (enter <= leave) & ~((here < 0) & (there < 0)).any(axis=1)
    start, along = polygon[kept], (following - polygon)[kept]
    return np.concatenate([start + enter[kept, None] * along, start + leave[kept, None] * along])


def _is_inside(points: NDArray[np.float64], polygon: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each point (k, 2) lies in a polygon (n, 2): an odd number of edges is to its right."""
    x, y = points[:, :1], points[:, 1:]
    (ax, ay), (bx, by) = polygon.T.astype(np.float64), _following(polygon).T.astype(np.float64)
    crosses = (ay > y) != (by > y)
    right = x < ax + (y - ay) * (bx - ax) / np.where(ay == by, 1.0, by - ay)
    return np.asarray((crosses & right).sum(axis=1) % 2 == 1)


def _distances(points: NDArray[np.float64], planes: Planes) -> NDArray[np.float64]:
    """How far each point (n, 2) is within each half-plane: (n, k), where the planes' normals are of length 1."""
    x, y = points[:, :1], points[:, 1:]  # no matrix product, whose last bit depends on the processor
    distances: NDArray[np.float64] = x * planes[:, 0] + y * planes[:, 1] + planes[:, 2]
    return distances


def _following(values: NDArray[Any]) -> NDArray[Any]:
    """Each one's next, the last one's the first."""
    return np.concatenate([values[1:], values[:1]])


def _offsets(counts: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
