"""Drawings: boxes with legible labels, cells of head maps, captions and contact sheets."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from yolov7.data.images import Image
from yolov7.data.outlines import Outline
from yolov7.detect.text import Colour, TextStyle, drawable_names, measure_text, write_text
from yolov7.structures import Detections

_Rectangle = tuple[int, int, int, int]  # left, top, right, bottom

_GOLDEN = 0.618034  # hues that are multiples of the golden ratio apart are never close to each other
_SMALLEST = 480  # pixels of the longer side; smaller images are enlarged, so that labels do not hide the objects
_WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class _Pen:
    """Line width and text height in pixels."""

    line: int
    text: int

    @staticmethod
    def for_image(image: Image) -> _Pen:
        """Choose sizes that suit an image."""
        side = max(image.shape[:2])
        return _Pen(line=max(1, round(side / 300)), text=max(9, round(side / 42)))


def class_colour(label: int) -> Colour:
    """Return the colour of a class. It is the same in every picture and differs clearly from neighbouring classes.

    Args:
        label: Number of the class.

    Returns:
        The colour, RGB.
    """
    hue = (0.02 + label * _GOLDEN) % 1.0
    brightness = (0.95, 0.75, 0.85)[label % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(image: Image, detections: Detections, class_names: Sequence[str]) -> Image:
    """Draw detections with their classes and scores on a copy of an image. Small images are enlarged.

    Args:
        image: Image (H, W, 3) uint8 RGB.
        detections: Detections in pixels of the image. Those with the highest scores are drawn on top.
        class_names: Names by label. Names without an installed font are drawn as `#3` for label 3.

    Returns:
        The drawing (H', W', 3) uint8 RGB.
    """
    canvas, scale = enlarge(image)
    labels, scores = detections.labels.tolist(), detections.scores.tolist()
    order = np.argsort(scores, kind="stable")
    known = drawable_names(tuple(class_names))
    names = [known[label] if label < len(known) else f"#{label}" for label in labels]
    return draw_boxes(
        canvas,
        detections.boxes_xyxy.cpu().numpy()[order] * scale,
        texts=[f"{names[i]} {scores[i]:.2f}" for i in order],
        colours=[class_colour(labels[i]) for i in order],
    )


def draw_boxes(
    image: Image, boxes_xyxy: NDArray[np.floating], *, texts: Sequence[str], colours: Sequence[Colour]
) -> Image:
    """Draw boxes with texts on a copy of an image.

    Texts are placed above their boxes, or where they hide no other text. Texts of boxes on top are placed first.

    Args:
        image: Image (H, W, 3) uint8 RGB.
        boxes_xyxy: Corners (k, 4) in pixels. Later boxes are drawn on top.
        texts: Text of each box; empty for none.
        colours: Colour of each box, RGB.

    Returns:
        The drawing (H, W, 3) uint8 RGB.
    """
    canvas = np.ascontiguousarray(image).copy()
    pen = _Pen.for_image(canvas)
    boxes: list[list[int]] = boxes_xyxy.round().astype(int).tolist()
    for (left, top, right, bottom), colour in zip(boxes, colours, strict=True):
        cv2.rectangle(canvas, (left, top), (right, bottom), colour, pen.line, cv2.LINE_AA)
    tags: list[_Rectangle] = []
    for box, text, colour in reversed(list(zip(boxes, texts, colours, strict=True))):
        if text:
            tags.append(_write_label(canvas, text, box, colour, pen, tags))
    return canvas


def draw_outlines(image: Image, outlines: Sequence[Outline], *, colours: Sequence[Colour]) -> Image:
    """Draw outlines on a copy of an image.

    Args:
        image: Image (H, W, 3) uint8 RGB.
        outlines: Outlines in pixels; an empty outline is skipped.
        colours: Colour of each outline, RGB.

    Returns:
        The drawing (H, W, 3) uint8 RGB.
    """
    canvas = np.ascontiguousarray(image).copy()
    for outline, colour in zip(outlines, colours, strict=True):
        parts = [np.round(part).astype(np.int32) for part in outline]
        cv2.polylines(canvas, parts, isClosed=True, color=colour, thickness=1, lineType=cv2.LINE_AA)
    return canvas


def draw_cells(
    image: Image, cells_xyxy: NDArray[np.floating], *, colours: Sequence[Colour], strengths: Sequence[float]
) -> Image:
    """Draw cells on a pale copy of an image.

    Args:
        image: Image (H, W, 3) uint8 RGB.
        cells_xyxy: Corners (k, 4) in pixels. Later cells are drawn on top.
        colours: Colour of each cell, RGB.
        strengths: Opacity of each cell in 0..1.

    Returns:
        The drawing (H, W, 3) uint8 RGB.
    """
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    canvas = np.asarray(cv2.addWeighted(image, 0.35, grey, 0.35, 60.0), np.uint8)
    pen = _Pen.for_image(canvas)
    cells: list[list[int]] = cells_xyxy.round().astype(int).tolist()
    for (left, top, right, bottom), colour, strength in zip(cells, colours, strengths, strict=True):
        part = canvas[max(top, 0) : bottom, max(left, 0) : right]
        part[:] = (part * (1 - strength) + np.array(colour) * strength).astype(np.uint8)
        cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), colour, max(1, pen.line // 2))
    return canvas


def captioned(image: Image, text: str) -> Image:
    """Add a line of dark text on white above an image, as large as its width allows.

    Args:
        image: Image (H, W, 3) uint8 RGB.
        text: The text.

    Returns:
        The higher image (H', W, 3) uint8 RGB.
    """
    height = max(22, round(image.shape[1] / 20))
    scale = 0.6 * height / 22
    width, _ = measure_text(text, TextStyle(scale))
    style = TextStyle(scale * min(1.0, 0.98 * image.shape[1] / max(width, 1)))
    strip = np.full((height, image.shape[1], 3), _WHITE, np.uint8)
    write_text(strip, text, (1, round(height * 0.72)), style, (30, 30, 30))
    return np.concatenate([strip, image])


def enlarge(image: Image) -> tuple[Image, float]:
    """Enlarge an image if its longer side is shorter than 480 pixels, so that drawings are legible.

    Args:
        image: Image (H, W, 3) uint8 RGB.

    Returns:
        A copy and the factor by which its sides are larger.
    """
    scale = max(1.0, _SMALLEST / max(image.shape[:2]))
    if scale == 1.0:
        return np.ascontiguousarray(image).copy(), scale
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8), scale


def contact_sheet(images: Sequence[Image], columns: int, *, cell: int = 480, margin: int = 12) -> Image:
    """Arrange images in a grid on white, each fitted into a square cell and centred in it.

    Args:
        images: Images (H, W, 3) uint8 RGB, at least one.
        columns: Largest number of columns.
        cell: Side of a cell in pixels.
        margin: Distance between cells in pixels.

    Returns:
        The sheet (H', W', 3) uint8 RGB.

    Raises:
        ValueError: If there is no image.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    columns = max(1, min(columns, len(images)))
    fitted = [_fit(image, cell) for image in images]
    rows = [fitted[start : start + columns] for start in range(0, len(fitted), columns)]
    heights = [max(image.shape[0] for image in row) for row in rows]
    width = max(image.shape[1] for image in fitted)
    sheet = np.full((sum(heights) + margin * (len(rows) + 1), columns * (width + margin) + margin, 3), _WHITE, np.uint8)
    top = margin
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            left = margin + column * (width + margin) + (width - image.shape[1]) // 2
            middle = top + (height - image.shape[0]) // 2
            sheet[middle : middle + image.shape[0], left : left + image.shape[1]] = image
        top += height + margin
    return sheet


def write_picture(path: Path, picture: Image) -> None:
    """Write a picture as a JPEG file.

    Args:
        path: The file.
        picture: (H, W, 3) uint8 RGB.

    Raises:
        OSError: If the file cannot be written.
    """
    content = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    path.write_bytes(content.tobytes())


def _write_label(
    canvas: Image, text: str, box: list[int], colour: Colour, pen: _Pen, tags: Sequence[_Rectangle]
) -> _Rectangle:
    """Write the text on its colour, where it overlaps no other tag if possible, and return the rectangle it takes."""
    scale = pen.text / 22  # capitals are 22 pixels high at scale 1
    style = TextStyle(scale, thickness=max(1, round(scale * 1.6)))
    text_width, text_height = measure_text(text, style)
    pad = max(2, pen.text // 4)
    tag = _place(box, text_width + 2 * pad, text_height + 2 * pad, frame=canvas, pen=pen, tags=tags)
    left, top, right, bottom = tag
    cv2.rectangle(canvas, (left, top), (right, bottom), colour, cv2.FILLED)
    write_text(canvas, text, (left + pad, top + pad + text_height), style, _ink_on(colour))
    return tag


def _place(
    box: list[int], width: int, height: int, *, frame: Image, pen: _Pen, tags: Sequence[_Rectangle]
) -> _Rectangle:
    """Return the first free rectangle of this size within the frame: above, inside or below the box."""
    most_left, lowest = max(frame.shape[1] - width, 0), max(frame.shape[0] - height, 0)
    left = min(max(box[0] - pen.line // 2, 0), most_left)
    right = min(max(box[2] - width, 0), most_left)
    above, below, inside = box[1] - height, box[3], box[1]
    corners = ((left, above), (left, inside), (left, below), (right, above), (right, inside), (right, below))
    places = [(x, y, x + width, y + height) for x, y in corners if 0 <= y <= lowest]
    fallback = (left, min(max(above, 0), lowest))
    free = (place for place in places if not any(_meet(place, tag) for tag in tags))
    return next(free, (*fallback, fallback[0] + width, fallback[1] + height))


def _meet(a: _Rectangle, b: _Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _ink_on(colour: Colour) -> Colour:
    """Return black or white, whichever is easier to read on the colour."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def _fit(image: Image, cell: int) -> Image:
    """Resize an image so that its longer side has `cell` pixels."""
    scale = cell / max(image.shape[:2])
    if scale == 1.0:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)
