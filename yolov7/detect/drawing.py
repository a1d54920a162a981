"""Pictures: boxes with legible labels, cells of a head's maps, captions, and contact sheets."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from yolov7.data.images import Image
from yolov7.data.outlines import Outline
from yolov7.structures import Detections

Colour = tuple[int, int, int]
_Rectangle = tuple[int, int, int, int]  # left, top, right, bottom

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_GOLDEN = 0.618034  # steps of the hue by it are never near each other
_SMALLEST = 480  # pixels of the longer side; smaller images are enlarged, so that a label does not hide what it names
_PAPER: Colour = (255, 255, 255)


@dataclass(frozen=True)
class _Pen:
    """Sizes that suit an image: line width and text height in pixels."""

    line: int
    text: int

    @staticmethod
    def for_image(image: Image) -> _Pen:
        side = max(image.shape[:2])
        return _Pen(line=max(1, round(side / 300)), text=max(9, round(side / 42)))


def class_colour(label: int) -> Colour:
    """The colour of a class, RGB; the same in every picture, and far from its neighbours'."""
    hue = (0.02 + label * _GOLDEN) % 1.0
    brightness = (0.95, 0.75, 0.85)[label % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(image: Image, detections: Detections, class_names: Sequence[str]) -> Image:
    """A copy of the image with a box for each detection, and its class and score; small images are enlarged.

    The surest are drawn last, on top.
    """
    canvas, scale = enlarge(image)
    labels, scores = detections.labels.tolist(), detections.scores.tolist()
    order = np.argsort(scores, kind="stable")
    names = [class_names[label] if label < len(class_names) else str(label) for label in labels]
    return draw_boxes(
        canvas,
        detections.boxes_xyxy.cpu().numpy()[order] * scale,
        texts=[f"{names[i]} {scores[i]:.2f}" for i in order],
        colours=[class_colour(labels[i]) for i in order],
    )


def draw_boxes(
    image: Image, boxes_xyxy: NDArray[np.floating], *, texts: Sequence[str], colours: Sequence[Colour]
) -> Image:
    """A copy of the image with boxes (k, 4), in pixels, each with its text and in its colour; the last are on top.

    Texts stand above their box, or where nothing is hidden; an empty one is left out. Those on top are placed first.
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
    """A copy of the image with outlines, in pixels, in their colours; () has nothing drawn."""
    canvas = np.ascontiguousarray(image).copy()
    for outline, colour in zip(outlines, colours, strict=True):
        parts = [np.round(part).astype(np.int32) for part in outline]
        cv2.polylines(canvas, parts, isClosed=True, color=colour, thickness=1, lineType=cv2.LINE_AA)
    return canvas


def draw_cells(
    image: Image, cells_xyxy: NDArray[np.floating], *, colours: Sequence[Colour], strengths: Sequence[float]
) -> Image:
    """A copy of the image, pale, with cells (k, 4), in pixels, laid over it; of strength 1 a cell hides what it covers.

    The last are on top.
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
    """The image below a line of text, dark on white, as large as fits."""
    height = max(22, round(image.shape[1] / 20))
    scale = 0.6 * height / 22
    (width, _), _ = cv2.getTextSize(text, _FONT, scale, 1)
    scale *= min(1.0, 0.98 * image.shape[1] / max(width, 1))
    strip = np.full((height, image.shape[1], 3), _PAPER, np.uint8)
    cv2.putText(strip, text, (1, round(height * 0.72)), _FONT, scale, (30, 30, 30), 1, cv2.LINE_AA)
    return np.concatenate([strip, image])


def enlarge(image: Image) -> tuple[Image, float]:
    """A copy whose longer side has 480 pixels at least, so that what is drawn is legible, and by how much it grew."""
    scale = max(1.0, _SMALLEST / max(image.shape[:2]))
    if scale == 1.0:
        return np.ascontiguousarray(image).copy(), scale
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8), scale


def contact_sheet(images: Sequence[Image], columns: int, *, cell: int = 480, margin: int = 12) -> Image:
    """The images side by side on white, each fitted into a cell of that many pixels and centred in it."""
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    columns = max(1, min(columns, len(images)))
    fitted = [_fit(image, cell) for image in images]
    rows = [fitted[start : start + columns] for start in range(0, len(fitted), columns)]
    heights = [max(image.shape[0] for image in row) for row in rows]
    width = max(image.shape[1] for image in fitted)
    sheet = np.full((sum(heights) + margin * (len(rows) + 1), columns * (width + margin) + margin, 3), _PAPER, np.uint8)
    top = margin
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            left = margin + column * (width + margin) + (width - image.shape[1]) // 2
            middle = top + (height - image.shape[0]) // 2
            sheet[middle : middle + image.shape[0], left : left + image.shape[1]] = image
        top += height + margin
    return sheet


def _write_label(
    canvas: Image, text: str, box: list[int], colour: Colour, pen: _Pen, tags: Sequence[_Rectangle]
) -> _Rectangle:
    """The text on its colour, clear of the other tags where that is possible; where it now stands."""
    scale = pen.text / 22  # the font's capitals are 22 pixels high at scale 1
    thickness = max(1, round(scale * 1.6))
    (text_width, text_height), _ = cv2.getTextSize(text, _FONT, scale, thickness)
    pad = max(2, pen.text // 4)
    tag = _place(box, text_width + 2 * pad, text_height + 2 * pad, frame=canvas, pen=pen, tags=tags)
    left, top, right, bottom = tag
    cv2.rectangle(canvas, (left, top), (right, bottom), colour, cv2.FILLED)
    start = (left + pad, top + pad + text_height)
    cv2.putText(canvas, text, start, _FONT, scale, _ink_on(colour), thickness, cv2.LINE_AA)
    return tag


def _place(
    box: list[int], width: int, height: int, *, frame: Image, pen: _Pen, tags: Sequence[_Rectangle]
) -> _Rectangle:
    """Where a tag of that size goes: above, below or inside its box, the first place in the frame that is free."""
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
    """Black or white, whichever reads better on a colour."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def _fit(image: Image, cell: int) -> Image:
    """The image with its longer side of `cell` pixels."""
    scale = cell / max(image.shape[:2])
    if scale == 1.0:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=way), np.uint8)
