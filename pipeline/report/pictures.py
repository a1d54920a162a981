"""Small pictures inside the page: the best and worst images of each class, doubtful labels, and samples of the data."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from yolov7.data.images import Image, read_image
from yolov7.data.index import ImageIndex
from yolov7.detect.drawing import class_colour, draw_boxes
from yolov7.errors import DataError
from yolov7.evaluation.errors import Box, ClassExample, ErrorReport, FoundBox, Suspect

MOST_EXAMPLES = 32  # of all variants together, so that the page stays below about 3 MB
MOST_SUSPECTS = 8  # of each kind
_SIDE, _CROP = 300, 150  # pixels of the longer side of an example, and of a side of a cut-out
_CONTEXT = 2.4  # the side of a cut-out in sides of its box
_SHEET = 1100  # pixels of the longer side of the samples of the data
_QUALITY = 72
_OTHERS = (150, 150, 150)  # colour of boxes of other classes
_SUSPICIOUS = (230, 60, 20)
_KINDS = {
    "unlabelled": "The model is confident, but there is no label.",
    "other class": "The model is confident that the label should be of another class.",
    "never found": "There is a label, but no detection of any class overlaps it, not even one with a low score.",
}


@dataclass(frozen=True)
class ExamplePicture:
    """One of the best or worst images of a class.

    Attributes:
        class_name: The class.
        best: Whether it is one of the best images; else it is one of the worst.
        counts: How many objects were found and missed.
        file: The name of the image file.
        truth: The labels, as a data URI.
        found: The detections, as a data URI.
    """

    class_name: str
    best: bool
    counts: str
    file: str
    truth: str
    found: str


@dataclass(frozen=True)
class SuspectPicture:
    """A place where the annotation may be wrong.

    Attributes:
        text: What is annotated and what was found.
        file: The name of the image file.
        picture: The place, as a data URI.
    """

    text: str
    file: str
    picture: str


@dataclass(frozen=True)
class SuspectGroup:
    """Suspicions of one kind.

    Attributes:
        title: What they have in common.
        count: How many there are.
        pictures: The strongest ones.
    """

    title: str
    count: int
    pictures: Sequence[SuspectPicture]


def draw_examples(
    errors: ErrorReport, index: ImageIndex, *, per_class_AP: Mapping[str, float | None], most: int
) -> tuple[ExamplePicture, ...]:
    """Draw the best and worst images of each class, those of the class with the lowest AP first.

    Args:
        errors: The analysis of errors.
        index: The split that was evaluated.
        per_class_AP: The AP of each class by name, which orders the classes.
        most: The largest number of images.

    Returns:
        The pictures; images that cannot be read any more are left out.
    """
    names = index.class_names
    order = sorted(range(len(names)), key=lambda label: (per_class_AP.get(names[label]) or 0.0, label))
    by_class = [_alternating([one for one in errors.examples if one.label == label]) for label in order]
    turns = [turn[start : start + 2] for start in (0, 2) for turn in by_class]  # one pair of each class comes first
    chosen = {id(one) for one in [one for turn in turns for one in turn][:most]}
    shown = (one for turn in by_class for one in turn if id(one) in chosen)
    return tuple(picture for one in shown if (picture := _draw_example(one, errors, index)) is not None)


def draw_suspects(errors: ErrorReport, index: ImageIndex) -> tuple[SuspectGroup, ...]:
    """Draw the places where the annotation may be wrong.

    Args:
        errors: The analysis of errors.
        index: The split that was evaluated.

    Returns:
        The groups that have any place.
    """
    return tuple(
        SuspectGroup(title, errors.suspect_counts[kind], tuple(_draw_suspects(kind, errors, index)))
        for kind, title in _KINDS.items()
        if errors.suspect_counts.get(kind)
    )


def read_sheet(path: Path) -> str:
    """Return a picture as a data URI, reduced to the size in which the page shows it.

    Args:
        path: The JPEG file.

    Returns:
        The data URI; empty if there is no such picture.
    """
    if not path.is_file():
        return ""
    image = cv2.imread(str(path))
    return "" if image is None else _data_uri(_fit(np.asarray(image[..., ::-1], np.uint8), _SHEET)[0])


def _alternating(examples: Sequence[ClassExample]) -> list[ClassExample]:
    """Order the examples of a class: the best, the worst, the second best, the second worst."""
    best, worst = ([one for one in examples if one.best is wanted] for wanted in (True, False))
    longest = max(len(best), len(worst))
    return [one for i in range(longest) for part in (best, worst) for one in part[i : i + 1]]


def _draw_example(example: ClassExample, errors: ErrorReport, index: ImageIndex) -> ExamplePicture | None:
    image = _read(example.image, errors, index)
    if image is None:
        return None
    small, scale = _fit(image, _SIDE)
    truth = _labels(index, example.image)
    found = errors.detections.get(example.image, ())
    return ExamplePicture(
        class_name=index.class_names[example.label],
        best=example.best,
        counts=f"{example.correct} found, {example.missed} missed, {example.wrong} wrong",
        file=errors.files[example.image],
        truth=_data_uri(_draw_class(small, truth, scale, label=example.label, with_scores=False)),
        found=_data_uri(_draw_class(small, found, scale, label=example.label, with_scores=True)),
    )


def _draw_class(image: Image, boxes: Sequence[FoundBox], scale: float, *, label: int, with_scores: bool) -> Image:
    """Draw the boxes of one class in its colour, on top of those of all other classes in grey."""
    ordered = sorted(boxes, key=lambda box: (box.label == label, box.score))
    is_own = [box.label == label for box in ordered]
    return draw_boxes(
        image,
        np.array([box.box_xyxy for box in ordered], np.float64).reshape(-1, 4) * scale,
        texts=[f"{box.score:.2f}" if own and with_scores else "" for box, own in zip(ordered, is_own, strict=True)],
        colours=[class_colour(label) if own else _OTHERS for own in is_own],
    )


def _draw_suspects(kind: str, errors: ErrorReport, index: ImageIndex) -> Iterator[SuspectPicture]:
    for suspect in [one for one in errors.suspects if one.kind == kind][:MOST_SUSPECTS]:
        image = _read(suspect.image, errors, index)
        if image is not None:
            picture = _data_uri(_cut_out(image, suspect.box_xyxy))
            yield SuspectPicture(_suspect_text(suspect, index.class_names), errors.files[suspect.image], picture)


def _suspect_text(suspect: Suspect, names: Sequence[str]) -> str:
    found = "" if suspect.found_label is None else f"found: {names[suspect.found_label]} {suspect.score:.2f}"
    label = "no label" if suspect.label is None else f"label: {names[suspect.label]}"
    return ", ".join(filter(None, (label, found)))


def _cut_out(image: Image, box: Box) -> Image:
    """Cut a square around a box out of an image, with the box drawn."""
    left, top, right, bottom = box
    side = min(max(_CONTEXT * (right - left), _CONTEXT * (bottom - top), 48.0), float(max(image.shape[:2])))
    x, y = (
        int(min(max((low + high - side) / 2, 0), max(length - side, 0)))
        for low, high, length in ((left, right, image.shape[1]), (top, bottom, image.shape[0]))
    )
    part = image[y : y + round(side), x : x + round(side)]
    small, scale = _fit(part, _CROP)
    corners = (np.array([box]) - (x, y, x, y)) * scale
    return draw_boxes(small, corners, texts=[""], colours=[_SUSPICIOUS])


def _read(place: int, errors: ErrorReport, index: ImageIndex) -> Image | None:
    """Read an image of the split; return None if it was removed or is another one than the one that was evaluated."""
    if place >= len(index) or index.paths[place].name != errors.files.get(place):
        return None
    try:
        return read_image(index.paths[place])
    except DataError:
        return None


def _labels(index: ImageIndex, place: int) -> list[FoundBox]:
    """Return the labels of an image in the form of detections."""
    rows = zip(index.labels_of(place).tolist(), index.boxes_of(place).tolist(), strict=True)
    return [FoundBox(label=label, score=1.0, box_xyxy=box) for label, box in rows]


def _fit(image: Image, side: int) -> tuple[Image, float]:
    """Resize an image so that its longer side has `side` pixels; return it with the factor."""
    scale = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8), scale


def _data_uri(image: Image) -> str:
    content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(content.tobytes()).decode()}"
