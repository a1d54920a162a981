"""The command `inspect`: draw augmented samples, and the cells that learn each object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from pipeline.artifacts.files import WEIGHTS, fresh_folder, stage_folder
from pipeline.artifacts.prepared import fit_to_prepared, load_training_images
from pipeline.artifacts.stage_weights import stage_weights
from pipeline.console import console, stage_line
from pipeline.experiment import ResolvedVariant, check_weights
from yolov7.criterion.candidates import Assignment
from yolov7.criterion.choice import make_loss
from yolov7.data.augment.geometry import Boxes
from yolov7.data.augment.tile import Sample
from yolov7.data.dataset import DetectionDataset
from yolov7.data.images import Image
from yolov7.data.index import ImageIndex
from yolov7.data.loader import collate
from yolov7.data.outlines import move
from yolov7.detect.drawing import (
    captioned,
    class_colour,
    contact_sheet,
    draw_boxes,
    draw_cells,
    draw_outlines,
    enlarge,
    write_picture,
)
from yolov7.detect.text import drawable_names
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.system.files import is_file
from yolov7.system.precision import resolve_device
from yolov7.training.start import describe_small_boxes
from yolov7.training.start_anchors import choose_start_anchors
from yolov7.weights.foreign.reference import open_weights

_SAMPLES, _COLUMNS = 12, 4
_IMAGES = 4  # number of images whose cells are drawn
_FEW_OBJECTS = range(2, 9)  # objects of an image: enough to be interesting, few enough to be distinguished
_ONE_ANCHOR, _EACH_FURTHER = 0.3, 0.17  # opacity of a cell with one assigned anchor; increase for each further one


def inspect(resolved: ResolvedVariant, seed: int) -> None:
    """Draw pictures into `artifacts/inspect/<variant>/<seed>`, and print how well the anchors fit the boxes.

    The anchors are those that a training uses: those of the spec, of the weights that it starts from, or of its
    teacher, or fitted ones.

    `samples.jpg` shows training samples with the augmentation of the variant. `assignment.jpg`, which needs a trained
    variant, shows objects, and the cells from which the lead head and the auxiliary head learn them.

    Args:
        resolved: The variant.
        seed: The seed of the samples and of the trained weights.

    Raises:
        ArtifactError: The data are not prepared, or the weights do not fit them; or the weights that training starts
            from, or those of its teacher, are missing or damaged.
        OSError: A picture cannot be written.
    """
    variant = resolved.name
    settings, reasons = fit_to_prepared(resolved.train)
    index = load_training_images(settings)
    notes = (*reasons, *describe_small_boxes(index, settings), *_describe_anchors(resolved, index, settings))
    folder = fresh_folder(stage_folder("inspect", variant, seed))
    for note in notes:
        console.print(stage_line("inspect", variant, note))
    write_picture(folder / "samples.jpg", _sample_sheet(index, settings, seed=seed))
    if not is_file(stage_folder("train", variant, seed) / WEIGHTS):
        text = f"{folder}/samples.jpg; for assigned cells, run `yolov7 train {variant}` first"
        console.print(stage_line("inspect", variant, text))
        return
    weights = stage_weights("train", resolved, seed=seed, class_names=index.class_names, device=resolve_device())
    write_picture(folder / "assignment.jpg", _assignment_sheet(weights.model, index, settings))
    console.print(stage_line("inspect", variant, f"{folder}/samples.jpg and assignment.jpg"))


def _describe_anchors(resolved: ResolvedVariant, index: ImageIndex, settings: TrainSettings) -> list[str]:
    """Describe the anchors that a training uses, and how well they fit the boxes."""
    if resolved.given is None:
        check_weights(resolved)
    weights, teacher = (
        None if path is None else open_weights(path, spec=resolved.spec).model
        for path in (settings.weights, settings.distil.teacher if settings.distil.is_used else None)
    )
    anchors = choose_start_anchors(
        resolved.spec, index, settings, weights=weights and weights.spec, teacher=teacher, always_measure=True
    )
    return list(dict.fromkeys((anchors.fit, *anchors.notes)))


def _sample_sheet(index: ImageIndex, settings: TrainSettings, *, seed: int) -> Image:
    """Draw the first samples of the first epoch."""
    dataset = DetectionDataset(index, image_size=settings.image_size, augment=settings.augment, seed=seed, cache="none")
    order = np.random.default_rng(seed).permutation(len(index))[:_SAMPLES]
    pictures = [_draw_objects(dataset.sample(int(i)), index.class_names) for i in order]
    return contact_sheet(pictures, _COLUMNS)


def _draw_objects(sample: Sample, class_names: Sequence[str]) -> Image:
    canvas, scale = enlarge(sample.image)
    if sample.outlines:
        outlines = move(sample.outlines, scale=(scale, scale))
        canvas = draw_outlines(canvas, outlines, colours=[class_colour(label) for label in sample.labels.tolist()])
    boxes = _corners(sample, side=canvas.shape[0])
    order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(axis=1), kind="stable")  # small ones are drawn last
    labels = sample.labels[order].tolist()
    return draw_boxes(
        canvas,
        boxes[order],
        texts=[drawable_names(tuple(class_names))[label] for label in labels],
        colours=[class_colour(label) for label in labels],
    )


def _assignment_sheet(model: DetectionModel, index: ImageIndex, settings: TrainSettings) -> Image:
    """Draw a column per image: its objects, the lead head's cells, and the auxiliary head's if there is one."""
    dataset = DetectionDataset(index, image_size=settings.image_size, cache="none")
    chosen = _choose_images(index)
    samples = [dataset.sample(i) for i in chosen]
    batch = collate(samples, torch.from_numpy(np.stack([sample.image for sample in samples])), indices=chosen)
    device = model.anchors_px.device
    with torch.inference_mode():
        maps = model(batch.images.to(device).float() / 255, auxiliary=True)
        loss = make_loss(model, settings, epoch=settings.epochs - 1)
        found = loss.assign(maps, batch.targets.to(device))
    heads = {"lead head": found.lead}
    if maps.auxiliary:
        heads["auxiliary head"] = found.auxiliary
    pictures = [captioned(_draw_numbered(sample), f"{len(sample.labels)} objects") for sample in samples]
    starts = np.cumsum([0, *(len(sample.labels) for sample in samples)])  # an image's first object in the batch
    for name, cells in heads.items():
        for i, sample in enumerate(samples):
            mine = cells.take(cells.image == i)
            pictures.append(_draw_assigned(sample, mine, name=name, first=int(starts[i]), strides=model.strides))
    return contact_sheet(pictures, len(samples))


def _draw_numbered(sample: Sample) -> Image:
    canvas, _ = enlarge(sample.image)
    boxes = _corners(sample, side=canvas.shape[0])
    texts = [str(i + 1) for i in range(len(boxes))]
    return draw_boxes(canvas, boxes, texts=texts, colours=[class_colour(i) for i in range(len(boxes))])


def _draw_assigned(sample: Sample, cells: Assignment, *, name: str, first: int, strides: Sequence[int]) -> Image:
    """Draw cells in the colour of their object, fine levels over coarse ones, more opaque with more anchors."""
    columns = (cells.level, cells.row, cells.column, cells.target - first)
    counts = Counter(zip(*(column.tolist() for column in columns), strict=True))
    places = sorted(counts, reverse=True)
    canvas, scale = enlarge(sample.image)
    boxes = [
        (column * strides[level], row * strides[level], (column + 1) * strides[level], (row + 1) * strides[level])
        for level, row, column, _ in places
    ]
    drawn = draw_cells(
        canvas,
        np.array(boxes, float).reshape(-1, 4) * scale,
        colours=[class_colour(place[3]) for place in places],
        strengths=[min(_ONE_ANCHOR + _EACH_FURTHER * counts[place], 1.0) for place in places],
    )
    objects = range(len(sample.labels))
    corners = _corners(sample, side=canvas.shape[0])
    drawn = draw_boxes(drawn, corners, texts=[""] * len(objects), colours=[class_colour(i) for i in objects])
    levels = Counter(cells.level.tolist())
    parts = ", ".join(f"{stride}: {levels[level]}" for level, stride in enumerate(strides) if levels[level])
    return captioned(drawn, f"{name}, {len(cells)} positives" + (f"; at stride {parts}" if parts else ""))


def _corners(sample: Sample, *, side: int) -> Boxes:
    """Return the boxes (k, 4) as corners in pixels of a picture with this side."""
    centre, size = sample.boxes_cxcywh[:, :2], sample.boxes_cxcywh[:, 2:]
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1) * side


def _choose_images(index: ImageIndex) -> list[int]:
    """Choose images with few objects, spread over the split; any images if none has few objects."""
    numbers = np.diff(index.box_offsets)
    few = [i for i, number in enumerate(numbers.tolist()) if number in _FEW_OBJECTS]
    candidates = few or list(range(len(index)))
    spread = np.linspace(0, len(candidates) - 1, min(_IMAGES, len(candidates))).astype(int)
    return [candidates[i] for i in spread]
