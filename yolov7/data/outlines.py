"""Outlines of objects as polygons: how they are stored, measured, filled, and clipped to what an output shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]  # (n, 2): x, y
Outline = tuple[Points, ...]  # the polygons of one object; () if its outline is not known
Planes = NDArray[np.float64]  # (k, 3): half-planes a x + b y + c >= 0

MIN_DEPTH = 0.1  # of a perspective; points nearer to the horizon would be enlarged more than ten times and are left out
_ON_EDGE = 0.01  # pixels that a point may lie outside a half-plane and still count as inside
_SLIVER = 0.5  # pixels: thinner remains of a polygon count as invisible
_Seen = tuple[Points, NDArray[np.float64], NDArray[np.float64]]  # a polygon, the lower and upper corner of its box
_NOTHING: _Seen = np.zeros((0, 2), np.float32), np.full(2, np.inf), np.full(2, -np.inf)


@dataclass(frozen=True)
class OutlineTable:
    """The outlines of m objects in columns: q polygons ("parts") and p points in all.

    Attributes:
        points: (p, 2) float32, absolute pixels.
        part_offsets: (q + 1,) int64; part j has the points from offset j to offset j + 1.
        object_offsets: (m + 1,) int64; object i has the parts from offset i to offset i + 1.
    """

    points: Points
    part_offsets: NDArray[np.int64]
    object_offsets: NDArray[np.int64]

    def between(self, start: int, stop: int) -> tuple[Outline, ...]:
        """Return the outlines of some neighbouring objects.

        Args:
            start: The first object.
            stop: The object behind the last one.

        Returns:
            `stop - start` outlines.
        """
        objects = self.object_offsets[start : stop + 1].tolist()
        first = objects[0]
        offsets = self.part_offsets[first : objects[-1] + 1].tolist()
        parts = [self.points[low:high] for low, high in pairwise(offsets)]
        return tuple(tuple(parts[low - first : high - first]) for low, high in pairwise(objects))

    def is_whole(self, num_objects: int) -> bool:
        """Return whether the columns fit each other and `num_objects` objects."""
        ends = (self.object_offsets, len(self.part_offsets) - 1), (self.part_offsets, len(self.points))
        rising = all(len(o) and o[0] == 0 and o[-1] == end and (np.diff(o) >= 0).all() for o, end in ends)
        return rising and len(self.object_offsets) == num_objects + 1 and self.points.shape[1:] == (2,)

    def select(self, objects: NDArray[np.int64], *, has_outline: NDArray[np.bool_]) -> OutlineTable:
        """Return the outlines of some objects.

        Args:
            objects: (k,) the objects, in the order of the result.
            has_outline: (k,) whether the outline is kept; the result has none for the other objects.

        Returns:
            A table of k objects.
        """
        all_counts = np.diff(self.object_offsets)
        counts = np.where(has_outline, all_counts[objects], 0)
        if np.array_equal(counts, all_counts) and np.array_equal(objects, np.arange(len(all_counts))):
            return self
        parts = _ranges(self.object_offsets[objects], counts)
        sizes = np.diff(self.part_offsets)[parts]
        points = self.points[_ranges(self.part_offsets[parts], sizes)]
        return OutlineTable(points, _offsets(sizes), _offsets(counts))

    def replace(self, changed: Mapping[int, Outline]) -> OutlineTable:
        """Return the same table with other outlines of some objects.

        Args:
            changed: The new outline of each object that changes.

        Returns:
            A table of the same number of objects.
        """
        if not changed:
            return self
        parts = [part for outline in changed.values() for part in outline]
        both = OutlineTable(
            np.concatenate([self.points, *parts]).astype(np.float32),
            np.concatenate([self.part_offsets, self.part_offsets[-1] + np.cumsum([len(part) for part in parts])]),
            np.concatenate(
                [self.object_offsets, self.object_offsets[-1] + np.cumsum([len(o) for o in changed.values()])]
            ),
        )
        count = len(self.object_offsets) - 1
        objects = np.arange(count)
        objects[list(changed)] = count + np.arange(len(changed))
        return both.select(objects, has_outline=np.ones(count, np.bool_))

    def bounds(self) -> NDArray[np.float64]:
        """Return the box (m, 4) around each object, corners; NaN for objects without an outline."""
        boxes = np.full((len(self.object_offsets) - 1, 4), np.nan)
        has, first = self._objects_with_parts()
        if len(first):
            low = np.minimum.reduceat(self.points, self.part_offsets[:-1])
            high = np.maximum.reduceat(self.points, self.part_offsets[:-1])
            boxes[has] = np.concatenate([np.minimum.reduceat(low, first), np.maximum.reduceat(high, first)], axis=1)
        return boxes

    def areas(self) -> NDArray[np.float64]:
        """Return the area (m,) of all parts of each object, in square pixels; 0 for objects without an outline."""
        areas = np.zeros(len(self.object_offsets) - 1)
        has, first = self._objects_with_parts()
        if len(first):
            following = np.arange(1, len(self.points) + 1)
            following[self.part_offsets[1:] - 1] = self.part_offsets[:-1]
            x, y = self.points.T.astype(np.float64)
            crossed = x * y[following] - y * x[following]
            areas[has] = np.add.reduceat(np.abs(np.add.reduceat(crossed, self.part_offsets[:-1])), first) / 2
        return areas

    def _objects_with_parts(self) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        has = np.diff(self.object_offsets) > 0
        return has, self.object_offsets[:-1][has]


def tabulate(outlines: Sequence[Outline]) -> OutlineTable | None:
    """Return the outlines of objects in columns.

    Args:
        outlines: One outline for each object.

    Returns:
        The table, or None if no object has an outline.
    """
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
    """Scale outlines, then shift them.

    Args:
        outlines: Outlines in pixels.
        scale: Factors on x and y.
        shift: Pixels that are added to x and y after the scaling.

    Returns:
        As many outlines.
    """
    if not outlines:
        return ()
    by, to = np.array(scale, np.float32), np.array(shift, np.float32)
    return tuple(tuple(part * by + to for part in outline) for outline in outlines)


def bounds(outline: Outline) -> NDArray[np.float32]:
    """Return the box (4,) around all parts of an outline, corners."""
    points = np.concatenate(outline)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def area(outline: Outline) -> float:
    """Return the area of all parts of an outline, in square pixels."""
    total = 0.0
    for part in outline:
        x, y = part.astype(np.float64).T
        total += abs(float(x @ _following(y) - y @ _following(x))) / 2
    return total


def fill(outline: Outline, *, width: int, height: int) -> NDArray[np.bool_]:
    """Return the pixels whose centres lie within an outline.

    Args:
        outline: Polygons in pixels; they may overlap.
        width: Columns of the mask.
        height: Rows of the mask.

    Returns:
        A mask (height, width).
    """
    mask = np.zeros((height, width), np.bool_)
    rows = np.arange(height) + 0.5
    for part in outline:
        (ax, ay), (bx, by) = part.T.astype(np.float64), _following(part).T.astype(np.float64)
        edge, row = np.nonzero((ay[:, None] > rows) != (by[:, None] > rows))
        x = ax[edge] + (rows[row] - ay[edge]) * (bx - ax)[edge] / (by - ay)[edge]
        first = np.ceil(x - 0.5).clip(0, width).astype(np.int64)  # the pixel to the right of the crossing
        crossings = np.bincount(row * (width + 1) + first, minlength=height * (width + 1)).reshape(height, -1)
        mask |= crossings.cumsum(axis=1)[:, :width] % 2 == 1
    return mask


def frame_planes(width: float, height: float) -> Planes:
    """Return the half-planes (4, 3) whose common part is the rectangle from (0, 0) to (`width`, `height`)."""
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
    return np.asarray(planes / np.sqrt(planes[:, :1] ** 2 + planes[:, 1:2] ** 2).clip(1e-9))


def clip_polygon(points: NDArray[Any], planes: Planes) -> NDArray[np.float64]:
    """Clip a polygon to the common part of half-planes.

    Source: Sutherland and Hodgman, "Reentrant polygon clipping", 1974. Where several pieces of a concave polygon
    remain, they are joined by edges along the border, which enclose no area.

    Args:
        points: (n, 2) the polygon.
        planes: (k, 3) the half-planes.

    Returns:
        The clipped polygon (j, 2); without points if nothing remains.
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
    """Return the visible parts of outlines after a transform, and the boxes around them.

    Args:
        outlines: k outlines in pixels of the image.
        boxes_xyxy: (k, 4) the boxes in pixels of the output.
        matrix: (3, 3) the transform from the image to the output.
        image_size: Width and height of the image.
        size: Side of the square output, pixels.

    Returns:
        The k visible outlines in pixels of the output, and the boxes (k, 4). The box of an object that has an outline
        is the one around its visible parts, and has no area if nothing is visible.
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
    """An image as an output of `size` x `size` pixels shows it after a transform."""

    def __init__(self, matrix: NDArray[np.float64], image_size: tuple[int, int], size: int) -> None:
        self._matrix, self._image_size = matrix, image_size
        self._planes = np.concatenate([frame_planes(*image_size), view_planes(matrix, size=size)])

    def distances(
        self, points: NDArray[np.float64], starts: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the least and the greatest distance (q, planes) of the points of each of q parts to each half-plane.

        Args:
            points: (n, 2) the points of all parts, in pixels of the image.
            starts: (q,) the first point of each part.

        Returns:
            Two arrays (q, planes); distances are positive inside.
        """
        within = _distances(points, self._planes)
        return np.minimum.reduceat(within, starts), np.maximum.reduceat(within, starts)

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return points (n, 2) of the image in pixels of the output; invisible points may land anywhere."""
        seen = _distances(points, self._matrix)
        if self._matrix[2, 0] or self._matrix[2, 1]:
            seen[:, :2] /= np.maximum(seen[:, 2:], 1e-9)
        return seen[:, :2]

    def cut(self, part: Points, crossed: NDArray[np.bool_]) -> _Seen:
        """Clip a polygon to the view.

        Clipping a concave polygon by several half-planes leaves edges along the border. The box is then the one around
        the visible edges and those corners of the view that lie within the polygon.

        Args:
            part: (n, 2) the polygon, in pixels of the image.
            crossed: (planes,) the half-planes that do not contain the whole polygon.

        Returns:
            The visible polygon, and the lower and the upper corner of its box, in pixels of the output.
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
        """The corners of the visible part of the image, in its pixels."""
        width, height = self._image_size
        return clip_polygon(np.array([[0, 0], [width, 0], [width, height], [0, height]]), self._planes)


def _clip_edges(polygon: NDArray[np.float64], planes: Planes) -> NDArray[np.float64]:
    """Return the ends (2 n, 2) of the parts of edges within all half-planes (Cyrus and Beck, 1978)."""
    following = _following(polygon)
    here, there = _distances(polygon, planes), _distances(following, planes)
    share = here / np.where(here == there, 1.0, here - there)
    enter = np.where(here < 0, share, 0.0).max(axis=1)
    leave = np.where(there < 0, share, 1.0).min(axis=1)
    kept = (enter <= leave) & ~((here < 0) & (there < 0)).any(axis=1)
    start, along = polygon[kept], (following - polygon)[kept]
    return np.concatenate([start + enter[kept, None] * along, start + leave[kept, None] * along])


def _is_inside(points: NDArray[np.float64], polygon: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether each point (k, 2) lies in a polygon (n, 2): an odd number of edges is to its right."""
    x, y = points[:, :1], points[:, 1:]
    (ax, ay), (bx, by) = polygon.T.astype(np.float64), _following(polygon).T.astype(np.float64)
    crosses = (ay > y) != (by > y)
    right = x < ax + (y - ay) * (bx - ax) / np.where(ay == by, 1.0, by - ay)
    return np.asarray((crosses & right).sum(axis=1) % 2 == 1)


def _distances(points: NDArray[np.float64], planes: Planes) -> NDArray[np.float64]:
    """Return how far each point (n, 2) lies inside each half-plane (n, k), for normals of length 1."""
    x, y = points[:, :1], points[:, 1:]  # a matrix product would depend on the processor in its last bit
    distances: NDArray[np.float64] = x * planes[:, 0] + y * planes[:, 1] + planes[:, 2]
    return distances


def _following(values: NDArray[Any]) -> NDArray[Any]:
    """Return the successor of each value; the last one is followed by the first."""
    return np.concatenate([values[1:], values[:1]])


def _offsets(counts: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers from each start on, `counts` of them, one range behind the other."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum())
