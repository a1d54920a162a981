"""The objects of the synthetic data: eight classes, each with its own shape and texture.

Colour is only a hint to the class, and not every object has it. The coordinates u and v belong to the object: they are
rotated with it and their unit is its radius.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]  # H W
CLASS_NAMES = ("disc", "ring", "triangle", "square", "star", "cross", "hexagon", "crescent")

_TAU = 2 * math.pi
_SOFT_RIM = 0.22  # width of the darker rim, in radii
_SHADOW_REACH = 1.36  # half side of an object's patch, in radii


@dataclass(frozen=True)
class ObjectPlan:
    """One object to be drawn.

    Attributes:
        label: Class index.
        x: Horizontal position of the centre, pixels.
        y: Vertical position of the centre, pixels.
        radius: Radius, pixels.
        angle: Rotation, radians.
        squeeze: Height as a share of the width, before the rotation.
        colours: Two colours (2, 3), RGB from 0 to 1.
        light: Direction from which the light comes, radians.
    """

    label: int
    x: float
    y: float
    radius: float
    angle: float
    squeeze: float
    colours: Field
    light: float


@dataclass(frozen=True)
class DrawnObject:
    """The part of an image that one object and its shadow cover.

    Attributes:
        left: Position of the left edge in the image, pixels.
        top: Position of the top edge in the image, pixels.
        colour: Colour of the object (h, w, 3), RGB from 0 to 1.
        alpha: Opacity of the object (h, w), from 0 to 1.
        shadow: Strength of its shadow (h, w), from 0 to 1.
    """

    left: int
    top: int
    colour: Field
    alpha: Field
    shadow: Field

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the object covers."""
        height, width = self.alpha.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def draw_object(plan: ObjectPlan, *, size: int, generator: Generator) -> DrawnObject | None:
    """Draw the part of an object that is within an image.

    Args:
        plan: What to draw.
        size: Side of the square image, pixels.
        generator: Source of randomness of the texture.

    Returns:
        The drawn object; None if it is outside of the image.
    """
    reach = plan.radius * _SHADOW_REACH + 3
    left, top = max(int(plan.x - reach), 0), max(int(plan.y - reach), 0)
    right, bottom = min(int(plan.x + reach) + 1, size), min(int(plan.y + reach) + 1, size)
    if right - left < 2 or bottom - top < 2:
        return None
    x = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - plan.x))[None] / np.float32(plan.radius)
    y = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - plan.y))[:, None] / np.float32(plan.radius)
    cosine, sine = np.float32(math.cos(plan.angle)), np.float32(math.sin(plan.angle))
    u, v = x * cosine + y * sine, (y * cosine - x * sine) / np.float32(plan.squeeze)
    distance = _distance(CLASS_NAMES[plan.label], u, v)
    alpha = np.clip(0.5 - distance * np.float32(plan.radius * (0.5 + plan.squeeze / 2)), 0, 1)
    pattern = _texture(CLASS_NAMES[plan.label], u, v, pixels=plan.radius, generator=generator)
    colour = plan.colours[0] + pattern[..., None] * (plan.colours[1] - plan.colours[0])
    lit = 1 + 0.22 * (x * np.float32(math.cos(plan.light)) + y * np.float32(math.sin(plan.light)))
    rim = 0.62 + 0.38 * np.clip(-distance / _SOFT_RIM, 0, 1)
    return DrawnObject(left, top, colour * (lit * rim)[..., None], alpha, _shadow(alpha, plan))


def _shadow(alpha: Field, plan: ObjectPlan) -> Field:
    """Return the opacity of the object, blurred and moved away from the light."""
    blurred = cv2.blur(alpha, (2 * int(plan.radius * 0.12) + 3,) * 2)
    length = 0.14 * plan.radius + 1
    dx, dy = -length * math.cos(plan.light), -length * math.sin(plan.light)
    height, width = alpha.shape
    return cv2.warpAffine(blurred, np.array([[1, 0, dx], [0, 1, dy]], np.float32), (width, height))  # type: ignore[return-value]


def _distance(name: str, u: Field, v: Field) -> Field:
    """Return the signed distance to the outline in radii, negative inside."""
    distance: Field
    match name:
        case "disc":
            distance = np.hypot(u, v) - np.float32(0.95)
        case "ring":
            distance = np.abs(np.hypot(u, v) - np.float32(0.72)) - np.float32(0.26)
        case "triangle":
            distance = _polygon(u, v, sides=3, inner=0.55)
        case "square":
            distance = np.maximum(np.abs(u), np.abs(v)) - np.float32(0.8)
        case "star":
            distance = _star(u, v)
        case "cross":
            a, b = np.abs(u), np.abs(v)
            distance = np.minimum(np.maximum(a - 1, b - np.float32(0.3)), np.maximum(a - np.float32(0.3), b - 1))
        case "hexagon":
            distance = _polygon(u, v, sides=6, inner=0.87)
        case _:
            distance = np.maximum(np.hypot(u, v) - 1, np.float32(0.7) - np.hypot(u - np.float32(0.62), v))
    return distance


def _polygon(u: Field, v: Field, *, sides: int, inner: float) -> Field:
    normals = [(math.cos(_TAU * k / sides), math.sin(_TAU * k / sides)) for k in range(sides)]
    edges = [u * np.float32(nx) + v * np.float32(ny) for nx, ny in normals]
    distance: Field = np.maximum.reduce(edges) - np.float32(inner)
    return distance


def _star(u: Field, v: Field, *, points: int = 5, inner: float = 0.45) -> Field:
    """Return the distance to the edge between an outer and an inner corner, onto which all edges are folded."""
    half = math.pi / points
    theta = np.arctan2(v, u)
    folded = np.abs((theta + half) % (2 * half) - half)
    radius = np.hypot(u, v)
    edge = np.array([inner * math.cos(half) - 1, inner * math.sin(half)])
    normal = np.array([edge[1], -edge[0]]) / np.linalg.norm(edge)
    x, y = radius * np.cos(folded), radius * np.sin(folded)
    distance: Field = (x - 1) * np.float32(normal[0]) + y * np.float32(normal[1])
    return distance


def _texture(name: str, u: Field, v: Field, *, pixels: float, generator: Generator) -> Field:
    """Return the mixture of the object's two colours, 0 to 1; `pixels` per radius make edges one pixel soft."""
    pattern: Field
    match name:
        case "disc":  # stripes
            pattern = _wave(u, period=0.5, pixels=pixels)
        case "ring":  # spokes
            pattern = _wave(np.arctan2(v, u), period=_TAU / 10, pixels=0.7 * pixels)
        case "triangle":  # dots
            cell_u, cell_v = (np.abs(axis / np.float32(0.44) % 1 - np.float32(0.5)) for axis in (u, v))
            pattern = _edge(np.float32(0.27) - np.hypot(cell_u, cell_v), pixels=0.44 * pixels)
        case "square":  # checker
            pattern = _edge(np.sin(u * np.float32(_TAU / 0.8)) * np.sin(v * np.float32(_TAU / 0.8)), pixels=pixels / 6)
        case "star":  # concentric waves
            pattern = _wave(np.hypot(u, v) + np.float32(0.12), period=0.42, pixels=pixels)
        case "cross":  # bright centre, dark ends
            pattern = np.clip(np.hypot(u, v) * np.float32(1.3) - np.float32(0.25), 0, 1)
        case "hexagon":  # marble
            pattern = _marble(u, v, generator)
        case _:  # a gradient between the tips
            pattern = np.clip(np.float32(0.5) + v * np.float32(0.6), 0, 1)
    return pattern


def _wave(position: Field, *, period: float, pixels: float) -> Field:
    wave: Field = np.sin(position * np.float32(_TAU / period))
    return _edge(wave, pixels=pixels * period / _TAU)


def _edge(value: Field, *, pixels: float) -> Field:
    """Return a step at zero that is one pixel soft; the value grows by one over `pixels` pixels."""
    step: Field = np.clip(np.float32(0.5) + value * np.float32(min(max(pixels, 0.5), 6.0)), 0, 1)
    return step


def _marble(u: Field, v: Field, generator: Generator) -> Field:
    grid = generator.random((11, 11), dtype=np.float32)
    where_u = np.ascontiguousarray(np.broadcast_to((u + np.float32(1.5)) * np.float32(3.4), u.shape), np.float32)
    where_v = np.ascontiguousarray(np.broadcast_to((v + np.float32(1.5)) * np.float32(3.4), v.shape), np.float32)
    noise = cv2.remap(grid, where_u, where_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    marble: Field = np.clip((noise - np.float32(0.5)) * 3 + np.float32(0.5), 0, 1)
    return marble
