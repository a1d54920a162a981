"""A data set that the project draws, in COCO's format, with the same bytes for the same seed.

Objects of eight classes are drawn on noisy backgrounds, with light and shadow, and partly hide each other. They are
small, medium and large as COCO defines it, single or in groups of one class. Some images have a crowd of tiny objects.
"""

from __future__ import annotations

import colorsys
import json
import math
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from yolov7.data.images import Image
from yolov7.data.index import ImageIndex
from yolov7.data.synthetic.shapes import CLASS_NAMES, DrawnObject, Field, ObjectPlan, draw_object

JPEG_QUALITY = 90
MIN_VISIBLE = 0.6  # share of an object that must stay visible
_SIZES = ((0.17, 22, 31), (0.47, 40, 84), (0.36, 106, 132))  # share of objects, sides in pixels of a 192-pixel image
_REFERENCE_SIZE = 192
_GROUP, _CROWD = 0.15, 0.06  # share of images with a group of one class, with a crowd region
_TYPICAL = 0.95  # share of objects in the hue of their class; the others have a random hue
_TRIES = 12


@dataclass(frozen=True)
class Scene:
    """A drawn image with k objects.

    Attributes:
        image: The image (S, S, 3), uint8 RGB.
        boxes_xyxy: Boxes (k, 4) around the visible parts, as corners, pixels.
        labels: Class indices (k,).
        crowd: Whether each is a crowd region (k,).
        visible: Share of each object that no other object covers (k,).
    """

    image: Image
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    visible: NDArray[np.float32]


@dataclass(frozen=True)
class _Placed:
    plan: ObjectPlan
    drawn: DrawnObject
    area: int  # pixels within the image


def write_synthetic(
    folder: Path,
    *,
    num_images: int,
    image_size: int,
    seed: int,
    split: str,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a split to `folder`: images/*.jpg and annotations.json.

    Args:
        folder: The folder; it is made if it is missing.
        num_images: Number of images.
        image_size: Side of the square images, pixels.
        seed: Seed of all random numbers.
        split: Name of the split; splits of the same seed differ.
        progress: Called after each image with the number of images that are done and of all images.

    Raises:
        OSError: If the folder cannot be written.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    numbers = range(num_images)
    scenes = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        drawn = pool.map(
            lambda i: _write_image(folder, i, image_size, default_rng((seed, zlib.crc32(split.encode()), i))), numbers
        )
        for i, scene in enumerate(drawn):
            scenes.append(replace(scene, image=np.zeros((0, 0, 3), np.uint8)))
            if progress is not None:
                progress(i + 1, num_images)
    content = {
        "info": {"description": f"yolov7-pipeline synthetic shapes, {split}", "seed": seed},
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(CLASS_NAMES)],
        "images": [
            {"id": i + 1, "file_name": _file_name(i), "width": image_size, "height": image_size} for i in numbers
        ],
        "annotations": _annotations(scenes),
    }
    (folder / "annotations.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def draw_scene(image_size: int, *, generator: Generator) -> Scene:
    """Draw one image.

    Args:
        image_size: Side of the square image, pixels.
        generator: Source of randomness.

    Returns:
        The image and its objects.
    """
    light = float(generator.uniform(0, 2 * np.pi))
    canvas = _background(image_size, generator)
    placed = _place_objects(canvas, light, generator)
    owner = np.full((image_size, image_size), -1, np.int32)
    for number, item in enumerate(placed):
        _paint(canvas, item.drawn)
        owner[item.drawn.window][item.drawn.alpha > 0.5] = number
    boxes, visible = zip(*(_visible_box(owner, number, item) for number, item in enumerate(placed)), strict=True)
    labels, crowd = [item.plan.label for item in placed], [False] * len(placed)
    if generator.random() < _CROWD:
        region = _draw_crowd(canvas, owner, light, generator)
        boxes, visible = (*boxes, region[0]), (*visible, 1.0)
        labels, crowd = [*labels, region[1]], [*crowd, True]
    return Scene(
        image=_photograph(canvas, generator),
        boxes_xyxy=np.array(boxes, np.float32),
        labels=np.array(labels, np.int64),
        crowd=np.array(crowd, np.bool_),
        visible=np.array(visible, np.float32),
    )


def shuffle_labels(index: ImageIndex, *, seed: int) -> ImageIndex:
    """Return an index with meaningless annotations, as a control that no model can learn.

    Args:
        index: The images and objects.
        seed: Seed of the random order.

    Returns:
        The same images; each has the boxes of another one, scaled to its size, and the classes are permuted.
    """
    generator = default_rng((seed, 1))
    order = generator.permutation(len(index))
    source = np.empty_like(order)
    source[order] = np.roll(order, 1)
    rows = np.concatenate([np.arange(index.box_offsets[i], index.box_offsets[i + 1]) for i in source])
    counts = np.diff(index.box_offsets)[source]
    frame = np.stack([index.widths, index.heights] * 2, axis=1).astype(np.float32)
    scale = np.repeat(frame, counts, axis=0) / np.repeat(frame[source], counts, axis=0)
    return replace(
        index,
        box_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xyxy=index.boxes_xyxy[rows] * scale,
        labels=generator.permutation(index.labels),
        crowd=index.crowd[rows],
        outlines=None,
        areas=None,
        stated_xywh=None,
    )


def _file_name(i: int) -> str:
    return f"{i:06d}.jpg"


def _write_image(folder: Path, i: int, image_size: int, generator: Generator) -> Scene:
    scene = draw_scene(image_size, generator=generator)
    content = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    (folder / "images" / _file_name(i)).write_bytes(content.tobytes())
    return scene


def _annotations(scenes: list[Scene]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for image, scene in enumerate(scenes):
        for box, label, crowd in zip(
            scene.boxes_xyxy.tolist(), scene.labels.tolist(), scene.crowd.tolist(), strict=True
        ):
            x1, y1, x2, y2 = box
            area = (x2 - x1) * (y2 - y1)
            row = {"id": len(rows) + 1, "image_id": image + 1, "category_id": label + 1, "iscrowd": int(crowd)}
            rows.append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area})
    return rows


def _background(size: int, generator: Generator) -> Field:
    """Draw clouds of three similar colours and blurred clutter at half the size, and grain at the full size."""
    hue, spread = generator.random(), generator.uniform(0.04, 0.3)
    colours = [
        colorsys.hsv_to_rgb((hue + spread * k) % 1, generator.uniform(0.08, 0.5), generator.uniform(0.25, 0.85))
        for k in range(3)
    ]
    half = (size + 1) // 2
    first, second = _clouds(half, generator), _clouds(half, generator)
    palette = np.array(colours, np.float32)
    canvas = palette[0] + first[..., None] * (palette[1] - palette[0])
    canvas += second[..., None] * (palette[2] - canvas) * np.float32(generator.uniform(0.2, 0.8))
    whole: Field = cv2.resize(_add_clutter(canvas, generator), (size, size), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    rough = generator.standard_normal((size // 2, size // 2), dtype=np.float32) * np.float32(generator.uniform(0, 0.12))
    whole *= 1 + cv2.resize(rough, (size, size), interpolation=cv2.INTER_LINEAR)[..., None]
    return whole


def _clouds(size: int, generator: Generator) -> Field:
    """Return fractal noise, 0 to 1."""
    total = np.zeros((size, size), np.float32)
    roughness = generator.uniform(0.45, 0.75)
    for octave in range(7):
        grid = generator.standard_normal((2 + 2**octave, 2 + 2**octave), dtype=np.float32)
        total += cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR) * np.float32(roughness**octave)
    clouds: Field = np.clip(0.5 + total * np.float32(0.3), 0, 1)
    return clouds


def _add_clutter(canvas: Field, generator: Generator) -> Field:
    """Add blurred ellipses, quadrilaterals and lines, which are drawn at half the size of the canvas."""
    size = canvas.shape[0]
    side = size // 2
    small = np.zeros((side, side, 4), np.float32)  # colour times opacity, and opacity
    for _ in range(int(generator.integers(5, 14))):
        opacity = generator.uniform(0.4, 0.9)
        shade = canvas[tuple(generator.integers(0, size, 2))] * generator.uniform(0.5, 1.6) * opacity
        colour = (*(float(value) for value in shade), float(opacity))
        centre, axes = generator.integers(0, side, 2), generator.uniform(0.04, 0.2, 2) * side
        match int(generator.integers(3)):
            case 0:
                angle = float(generator.uniform(0, 180))
                cv2.ellipse(small, centre.tolist(), [int(a) + 1 for a in axes], angle, 0, 360, colour, -1, cv2.LINE_AA)
            case 1:
                points = (centre + generator.uniform(-1.6, 1.6, (4, 2)) * axes).astype(np.int32)
                cv2.fillConvexPoly(small, cv2.convexHull(points), colour, cv2.LINE_AA)
            case _:
                end = generator.integers(0, side, 2)
                cv2.line(small, centre.tolist(), end.tolist(), colour, int(generator.integers(1, 4)), cv2.LINE_AA)
    blurred = cv2.GaussianBlur(small, (0, 0), float(generator.uniform(0.7, 2.0)))
    large = cv2.resize(blurred, (size, size), interpolation=cv2.INTER_LINEAR)
    cluttered: Field = canvas * (1 - large[..., 3:]) + large[..., :3]
    return cluttered


def _place_objects(canvas: Field, light: float, generator: Generator) -> list[_Placed]:
    """Return objects in the order in which they are painted; none covers too much of another one."""
    size = canvas.shape[0]
    owner = np.full((size, size), -1, np.int32)
    placed: list[_Placed] = []
    wanted = int(generator.integers(3, 7))
    group = int(generator.integers(3, 6)) if generator.random() < _GROUP else 0
    radii = sorted((_random_radius(size, generator) for _ in range(wanted)), reverse=True)  # small ones are on top
    for number in range(wanted + group):
        leader = placed[len(placed) // 2] if number >= wanted and placed else None
        radius = radii[min(number, wanted - 1)]
        for _ in range(_TRIES):
            plan = _random_plan(canvas, leader, radius, light, generator)
            drawn = draw_object(plan, size=size, generator=generator)
            if drawn is not None and _fits(owner, placed, plan, drawn):
                covered = drawn.alpha > 0.5
                owner[drawn.window][covered] = len(placed)
                placed.append(_Placed(plan, drawn, int(covered.sum())))
                break
    return placed


def _random_plan(
    canvas: Field, leader: _Placed | None, radius: float, light: float, generator: Generator
) -> ObjectPlan:
    """Return a random object of that radius, or one near `leader` with its class and about its size."""
    size = canvas.shape[0]
    if leader is None:
        label = int(generator.integers(len(CLASS_NAMES)))
        x, y = generator.uniform(0.06, 0.94, 2) * size
    else:
        label = leader.plan.label
        radius = min(leader.plan.radius * generator.uniform(0.8, 1.1), 0.13 * size)
        reach = (radius + leader.plan.radius) * generator.uniform(0.55, 1.9)
        direction = generator.uniform(0, 2 * np.pi)
        x, y = leader.plan.x + reach * math.cos(direction), leader.plan.y + reach * math.sin(direction)
    angle, squeeze = generator.uniform(0, 2 * np.pi), generator.uniform(0.78, 1.0)
    colours = _random_colours(canvas, x, y, label, generator)
    return ObjectPlan(label, float(x), float(y), float(radius), float(angle), float(squeeze), colours, light)


def _random_radius(size: int, generator: Generator) -> float:
    _, low, high = _SIZES[int(generator.choice(len(_SIZES), p=[row[0] for row in _SIZES]))]
    side = low * (high / low) ** generator.random()
    return float(side * size / _REFERENCE_SIZE / 1.85)


def _random_colours(canvas: Field, x: float, y: float, label: int, generator: Generator) -> Field:
    """Return a bright and a dark colour, whose brightness differs from each other and on average from the background.

    Most objects have about the hue of their class. The others have a random hue, and only their shape and texture show
    their class.
    """
    row, column = np.clip([y, x], 0, canvas.shape[0] - 1).astype(int)
    ground = float(canvas[row, column].mean())
    pair = generator.uniform(0.12, 0.95, 2)
    for _ in range(8):
        if abs(pair[0] - pair[1]) > 0.3 and abs(pair.mean() - ground) > 0.12:
            break
        pair = generator.uniform(0.12, 0.95, 2)
    is_typical = generator.random() < _TYPICAL
    hue = label / len(CLASS_NAMES) + generator.normal(0, 0.02) if is_typical else generator.random()
    hues = (hue + np.array([0.0, generator.uniform(-0.08, 0.08)])) % 1
    saturation = generator.uniform(0.4 if is_typical else 0.1, 0.85, 2)
    brightness = np.sort(pair)[::-1]
    return np.array([colorsys.hsv_to_rgb(*row) for row in zip(hues, saturation, brightness, strict=True)], np.float32)


def _fits(owner: NDArray[np.int32], placed: list[_Placed], plan: ObjectPlan, drawn: DrawnObject) -> bool:
    """Tell whether most of an object is in the image and every object that it covers stays visible enough."""
    covered = drawn.alpha > 0.5
    whole = 1.2 * plan.radius**2 * plan.squeeze
    if covered.sum() < max(0.6 * whole, 40):
        return False
    under = owner[drawn.window][covered]
    for number in np.unique(under[under >= 0]):
        left = int((owner == number).sum()) - int((under == number).sum())
        if left < MIN_VISIBLE * placed[number].area:
            return False
    return True


def _paint(canvas: Field, drawn: DrawnObject) -> None:
    part = canvas[drawn.window]
    part *= 1 - np.float32(0.5) * drawn.shadow[..., None]
    part += drawn.alpha[..., None] * (drawn.colour - part)


def _visible_box(owner: NDArray[np.int32], number: int, item: _Placed) -> tuple[tuple[int, ...], float]:
    """Return the box around the visible part of an object, and the share of it that is visible."""
    seen = owner[item.drawn.window] == number
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    left, top = item.drawn.left, item.drawn.top
    box = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
    return tuple(int(value) for value in box), float(seen.sum() / item.area)


def _draw_crowd(
    canvas: Field, owner: NDArray[np.int32], light: float, generator: Generator
) -> tuple[tuple[int, ...], int]:
    """Paint many tiny objects of one class where no other object is; return the crowd's box and class."""
    size = canvas.shape[0]
    label = int(generator.integers(len(CLASS_NAMES)))
    width, height = generator.uniform(0.2, 0.34, 2) * size
    left, top = generator.uniform(0, size - width), generator.uniform(0, size - height)
    for _ in range(int(generator.integers(18, 36))):
        x, y = left + width * generator.uniform(0.07, 0.93), top + height * generator.uniform(0.07, 0.93)
        radius = generator.uniform(0.011, 0.02) * size
        colours = _random_colours(canvas, x, y, label, generator)
        plan = ObjectPlan(label, x, y, radius, generator.uniform(0, 6.28), 0.9, colours, light)
        drawn = draw_object(plan, size=size, generator=generator)
        if drawn is not None:
            free = (owner[drawn.window] < 0).astype(np.float32)
            _paint(canvas, replace(drawn, alpha=drawn.alpha * free, shadow=drawn.shadow * free))
    return (int(left), int(top), int(left + width), int(top + height)), label


def _photograph(canvas: Field, generator: Generator) -> Image:
    """Apply uneven exposure, a vignette, slight defocus and sensor noise."""
    size = canvas.shape[0]
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    direction, strength = generator.uniform(0, 2 * np.pi), generator.uniform(0.0, 0.2)
    slope = axis[None] * (strength * math.cos(direction)) + axis[:, None] * (strength * math.sin(direction))
    vignette = generator.uniform(0.05, 0.2) * (axis[None] ** 2 + axis[:, None] ** 2)
    exposure = generator.uniform(0.95, 1.25)
    exposed = canvas * (exposure * (1 + slope - vignette))[..., None]
    focused = cv2.GaussianBlur(exposed, (3, 3), float(generator.uniform(0.25, 0.75)))
    grain = generator.standard_normal(size * size + 1, dtype=np.float32)  # repeats with an offset from row to row
    focused += np.resize(grain, (size, size, 3)) * np.float32(generator.uniform(0.008, 0.03))
    developed: Image = cv2.convertScaleAbs(focused, alpha=255.0)
    return developed
