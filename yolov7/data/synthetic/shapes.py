"""The objects of the synthetic data: eight classes of their own shape and texture; colour is a hint, not always there.

Coordinates u, v are the object's own: rotated with it, and in units of its radius.
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
class Shape:
    """One object to draw. `x`, `y`: its centre, pixels. `colours`: (2, 3) RGB, 0-1. `light`: direction of the light."""

    label: int
    x: float
    y: float
    radius: float
    angle: float
    squeeze: float  # its height as a share of its width, before the rotation
    colours: Field
    light: float


@dataclass(frozen=True)
class Patch:
    """A drawn object at `left`, `top` of the image: `colour` (h, w, 3) 0-1, `alpha` and `shadow` (h, w) 0-1."""

    left: int
    top: int
    colour: Field
    alpha: Field
    shadow: Field

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image."""
        height, width = self.alpha.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def draw_shape(shape: Shape, *, size: int, generator: Generator) -> Patch | None:
    """The part of an object that lies within an image of `size` x `size`; None where there is none."""
    reach = shape.radius * _SHADOW_REACH + 3
    left, top = max(int(shape.x - reach), 0), max(int(shape.y - reach), 0)
    right, bottom = min(int(shape.x + reach) + 1, size), min(int(shape.y + reach) + 1, size)
    if right - left < 2 or bottom - top < 2:
        return None
    x = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - shape.x))[None] / np.float32(shape.radius)
    y = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - shape.y))[:, None] / np.float32(shape.radius)
    cosine, sine = np.float32(math.cos(shape.angle)), np.float32(math.sin(shape.angle))
    u, v = x * cosine + y * sine, (y * cosine - x * sine) / np.float32(shape.squeeze)
    distance = _distance(CLASS_NAMES[shape.label], u, v)
    alpha = np.clip(0.5 - distance * np.float32(shape.radius * (0.5 + shape.squeeze / 2)), 0, 1)
    pattern = _texture(CLASS_NAMES[shape.label], u, v, pixels=shape.radius, generator=generator)
    colour = shape.colours[0] + pattern[..., None] * (shape.colours[1] - shape.colours[0])
    lit = 1 + 0.22 * (x * np.float32(math.cos(shape.light)) + y * np.float32(math.sin(shape.light)))
    rim = 0.62 + 0.38 * np.clip(-distance / _SOFT_RIM, 0, 1)
    return Patch(left, top, colour * (lit * rim)[..., None], alpha, _shadow(alpha, shape))


def _shadow(alpha: Field, shape: Shape) -> Field:
    """The object's outline, blurred and moved away from the light."""
    blurred = cv2.blur(alpha, (2 * int(shape.radius * 0.12) + 3,) * 2)
    length = 0.14 * shape.radius + 1
    dx, dy = -length * math.cos(shape.light), -length * math.sin(shape.light)
    height, width = alpha.shape
    return cv2.warpAffine(blurred, np.array([[1, 0, dx], [0, 1, dy]], np.float32), (width, height))  # type: ignore[return-value]


def _distance(name: str, u: Field, v: Field) -> Field:
    """Signed distance to the outline in radii, negative inside."""
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
    """Distance to the edge between an outer and an inner corner, after all edges are folded onto one."""
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
    """0-1, where between an object's two colours; `pixels` in a radius keep edges one pixel soft."""
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
        case "cross":  # pale heart, dark ends
            pattern = np.clip(np.hypot(u, v) * np.float32(1.3) - np.float32(0.25), 0, 1)
        case "hexagon":  # marble
            pattern = _marble(u, v, generator)
        case _:  # a gradient from tip to tip
            pattern = np.clip(np.float32(0.5) + v * np.float32(0.6), 0, 1)
    return pattern


def _wave(position: Field, *, period: float, pixels: float) -> Field:
    wave: Field = np.sin(position * np.float32(_TAU / period))
    return _edge(wave, pixels=pixels * period / _TAU)


def _edge(value: Field, *, pixels: float) -> Field:
    """A step at zero, as soft as a pixel of a value that grows by one over so many pixels."""
    step: Field = np.clip(np.float32(0.5) + value * np.float32(min(max(pixels, 0.5), 6.0)), 0, 1)
    return step


def _marble(u: Field, v: Field, generator: Generator) -> Field:
    grid = generator.random((11, 11), dtype=np.float32)
    where_u = np.ascontiguousarray(np.broadcast_to((u + np.float32(1.5)) * np.float32(3.4), u.shape), np.float32)
    where_v = np.ascontiguousarray(np.broadcast_to((v + np.float32(1.5)) * np.float32(3.4), v.shape), np.float32)
    noise = cv2.remap(grid, where_u, where_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    marble: Field = np.clip((noise - np.float32(0.5)) * 3 + np.float32(0.5), 0, 1)
    return marble
