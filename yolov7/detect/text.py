"""Text in pictures: ASCII with the font of OpenCV, and everything else with an installed font that has the characters.

OpenCV's font draws `?` for most characters outside ASCII, so class names in Chinese, for example, would all look
the same. matplotlib and Pillow are imported only when such a text is drawn.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from yolov7.data.images import Image
from yolov7.errors import one_line

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Colour = tuple[int, int, int]

log = logging.getLogger(__name__)

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_CAPITALS = 22  # height in pixels of the capitals of OpenCV's font at scale 1


@dataclass(frozen=True)
class TextStyle:
    """Size of a text.

    Attributes:
        scale: Scale of OpenCV's font. Other fonts get the same height of capitals.
        thickness: Width of the strokes in pixels; other fonts ignore it.
    """

    scale: float
    thickness: int = 1


def measure_text(text: str, style: TextStyle) -> tuple[int, int]:
    """Return the size of a text.

    Args:
        text: One line of text.
        style: Size of the text.

    Returns:
        Width and height above the baseline, in pixels.
    """
    if text.isascii():
        (width, height), _ = cv2.getTextSize(text, _FONT, style.scale, style.thickness)
        return width, height
    left, top, right, _ = _load_font(text, style).getbbox(text, anchor="ls")  # relative to the baseline
    return round(right - left), round(-top)


def write_text(canvas: Image, text: str, corner: tuple[int, int], style: TextStyle, colour: Colour) -> None:
    """Write a text on an image, in place. Parts outside of the image are cut off.

    Args:
        canvas: Image (H, W, 3) uint8 RGB.
        text: One line of text.
        corner: Column and row of the start of the baseline, in pixels.
        style: Size of the text.
        colour: Colour of the text, RGB.
    """
    if text.isascii():
        cv2.putText(canvas, text, corner, _FONT, style.scale, colour, style.thickness, cv2.LINE_AA)
        return
    from PIL import Image as PilImage
    from PIL import ImageDraw

    font = _load_font(text, style)
    left, top, right, bottom = (round(value) for value in font.getbbox(text, anchor="ls"))
    stencil = PilImage.new("L", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(stencil).text((-left, -top), text, fill=255, font=font, anchor="ls")
    x, y = corner[0], corner[1] + top
    part = canvas[max(y, 0) : max(y + stencil.height, 0), max(x, 0) : max(x + stencil.width, 0)]
    cut = np.asarray(stencil, np.float32)[max(-y, 0) :, max(-x, 0) :]
    alpha = cut[: part.shape[0], : part.shape[1], None] / 255
    part[:] = np.round(part * (1 - alpha) + np.array(colour) * alpha).astype(np.uint8)


@functools.lru_cache(maxsize=8)
def drawable_names(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Return class names as they can be drawn. A warning says once which names cannot.

    Args:
        class_names: Names by label.

    Returns:
        The names; `#3` instead of the name of label 3 if no installed font has its characters.
    """
    names = [name if name.isascii() or _find_font(name) else f"#{label}" for label, name in enumerate(class_names)]
    missing = [one_line(name) for name, shown in zip(class_names, names, strict=True) if name != shown]
    if missing:
        log.warning(
            "no installed font can draw the class name%s %s; drawings show the number of the class instead; "
            "install a font with these characters, for example Noto Sans CJK",
            "s" * (len(missing) > 1),
            one_line(", ".join(missing)),
        )
    return tuple(names)


def _load_font(text: str, style: TextStyle) -> FreeTypeFont:
    """Return the font for a text; without a font that has all characters, the default font draws boxes instead."""
    from matplotlib.font_manager import findfont
    from PIL import ImageFont

    path = _find_font(text) or findfont("DejaVu Sans")
    return ImageFont.truetype(path, max(6, round(style.scale * _CAPITALS / 0.73)))  # capitals have 0.73 of the size


@functools.lru_cache(maxsize=1024)
def _find_font(text: str) -> str | None:
    """Return the first installed font that has all characters of a text; None if there is none."""
    needed = {ord(sign) for sign in text if not sign.isspace()}
    return next((path for path in _font_paths() if needed <= _characters(path)), None)


@functools.cache
def _font_paths() -> Sequence[str]:
    """List fonts: the one that comes with matplotlib, then those of the system, regular ones first."""
    from matplotlib.font_manager import findfont, findSystemFonts

    found = sorted(findSystemFonts(), key=lambda path: ("regular" not in path.lower(), "bold" in path.lower(), path))
    return [findfont("DejaVu Sans"), *(path for path in found if Path(path).suffix.lower() in (".ttf", ".otf", ".ttc"))]


@functools.lru_cache(maxsize=512)
def _characters(path: str) -> frozenset[int]:
    """Return the characters of a font that can be drawn in any size; none for damaged and bitmap fonts."""
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    try:
        font = FT2Font(path)
        ImageFont.truetype(path, 20)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()
