"""The command `soup`: average weight files that were trained from the same weights, and measure the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from pipeline.artifacts.files import stage_folder
from pipeline.artifacts.prepared import load_split
from pipeline.console import console, stage_line
from yolov7.data.index import ImageIndex
from yolov7.errors import ArtifactError, shown
from yolov7.evaluation.split import evaluate_split
from yolov7.inference.engine import ModelEngine
from yolov7.nn.model import DetectionModel
from yolov7.settings import COCO_NMS
from yolov7.system.files import is_file
from yolov7.system.precision import resolve_device, resolve_precision
from yolov7.training.averaging import (
    Mix,
    Score,
    average_models,
    common_ancestor,
    greedy_soup,
    lineage,
    recount_batch_norm,
)
from yolov7.training.batches import statistics_batches
from yolov7.weights.weight_files import Weights, load_weights, save_weights

_BATCH = 16


@dataclass(frozen=True)
class _Ingredient:
    """A weight file.

    Attributes:
        path: The file.
        weights: Its content.
        lineage: The ids of the weights that it was trained from, oldest first, then its own.
    """

    path: Path
    weights: Weights
    lineage: tuple[str, ...]


def make_soup(paths: Sequence[Path], *, output: Path, greedy: bool) -> None:
    """Average weight files, write the average, and print AP on the validation split of each file and of the average.

    Args:
        paths: At least two weight files, which `train` or `soup` has written.
        output: The weight file to write.
        greedy: Whether only those files are averaged that do not make the average worse, starting with the best one.

    Raises:
        ArtifactError: The files cannot be averaged, or the data for batch norm or AP are not prepared.
    """
    if len(set(paths)) < max(2, len(paths)):
        raise ArtifactError(
            f"a soup needs at least two weight files and got {len(set(paths))} different ones; name each once"
        )
    device = resolve_device()
    ingredients = [_read(path, device) for path in paths]
    ancestor = _check(ingredients)
    first = ingredients[0].weights
    val = _load_val(first, greedy=greedy)
    mix = partial(_mix, index=_load("train", first), image_size=first.image_size, device=device)
    models = [ingredient.weights.model for ingredient in ingredients]
    if val is None:
        _write(output, mix(models), ingredients, ancestor=ancestor)
        console.print(
            stage_line(
                "soup",
                str(output),
                f"mean of {len(paths)} files; it is not measured, because there is no validation split",
            )
        )
        return
    score = partial(_measure, index=val, image_size=first.image_size)
    scores = [score(model) for model in models]
    for path, value in zip(paths, scores, strict=True):
        console.print(stage_line("soup", str(path), f"AP {value:.4f}"))
    model, chosen, value = _cook(models, scores, greedy=greedy, mix=mix, score=score)
    _write(output, model, [ingredients[i] for i in chosen], ancestor=ancestor)
    gain = f"{value - max(scores):+.4f} compared with the best file"
    console.print(stage_line("soup", str(output), f"AP {value:.4f} ({gain}), mean of {_listed(paths, chosen)}"))


def _cook(
    models: Sequence[DetectionModel], scores: Sequence[float], *, greedy: bool, mix: Mix, score: Score
) -> tuple[DetectionModel, tuple[int, ...], float]:
    """Return the average, the places of the models in it, and its AP."""
    if greedy:
        soup = greedy_soup(models, scores, mix=mix, score=score)
        return soup.model, soup.chosen, soup.scores[-1]
    model = mix(models)
    return model, tuple(range(len(models))), score(model)


def _listed(paths: Sequence[Path], chosen: Sequence[int]) -> str:
    return "all" if len(chosen) == len(paths) else ", ".join(str(paths[i]) for i in chosen)


def _read(path: Path, device: torch.device) -> _Ingredient:
    weights = load_weights(path, device=device)
    if weights.model.fused:
        raise ArtifactError(f"{path} is re-parameterised; average the weights that `train` has written instead")
    return _Ingredient(path, weights, lineage(weights.model, weights.training))


def _check(ingredients: Sequence[_Ingredient]) -> str:
    """Return the id of the common ancestor; raise ArtifactError if averaging would make no sense."""
    first = ingredients[0]
    for other in ingredients[1:]:
        if other.weights.class_names != first.weights.class_names:
            raise _refused(first, other, "have different classes")
        if other.weights.model.spec != first.weights.model.spec:
            raise _refused(first, other, "have different specs or different anchors")
        if other.weights.image_size != first.weights.image_size:
            raise _refused(first, other, "were trained at different image sizes")
        if common_ancestor([first.lineage, other.lineage]) is None:
            starts = " and ".join(_start_of(one) for one in (first, other))
            reason = f"were not trained from the same weights ({starts}), so their mean would not detect anything"
            raise _refused(first, other, f"{reason}; fine-tune both from one file, with train.weights")
    ancestor = common_ancestor([ingredient.lineage for ingredient in ingredients])
    if ancestor is None:
        raise ArtifactError(
            "every two of these files have a common ancestor, but all of them together have none; average fewer"
        )
    return ancestor


def _refused(first: _Ingredient, other: _Ingredient, reason: str) -> ArtifactError:
    return ArtifactError(f"{first.path} and {other.path} {reason}")


def _start_of(ingredient: _Ingredient) -> str:
    ancestors = ingredient.lineage[:-1]
    return f"started from {ancestors[-1]}" if ancestors else "started from unknown weights"


def _load(split: str, weights: Weights) -> ImageIndex:
    index = load_split(split)
    if index.class_names != weights.class_names:
        known, prepared = shown(list(weights.class_names)), shown(list(index.class_names))
        raise ArtifactError(
            f"the weights have the classes {known}, but the prepared data have {prepared}; prepare other data"
        )
    return index


def _load_val(weights: Weights, *, greedy: bool) -> ImageIndex | None:
    if is_file(stage_folder("prepare") / "val.npz"):
        return _load("val", weights)
    if greedy:
        raise ArtifactError(
            "--greedy needs AP on the validation split, which is not prepared; name a split in data.val"
        )
    return None


def _mix(
    models: Sequence[DetectionModel], *, index: ImageIndex, image_size: int, device: torch.device
) -> DetectionModel:
    model = average_models(models)
    recount_batch_norm(model, statistics_batches(index, image_size=image_size, device=device))
    return model


def _measure(model: DetectionModel, index: ImageIndex, *, image_size: int) -> float:
    engine = ModelEngine(model.eval(), resolve_precision("auto", next(model.parameters()).device))
    figures = evaluate_split(engine, index, image_size=image_size, batch_size=_BATCH, nms=COCO_NMS).figures
    return figures.AP or 0.0


def _write(output: Path, model: DetectionModel, used: Sequence[_Ingredient], *, ancestor: str) -> None:
    first = used[0]
    shared = set(first.lineage).intersection(*(one.lineage for one in used))  # the same in whatever order they are used
    ancestors = [one for one in first.lineage[: first.lineage.index(ancestor) + 1] if one in shared]
    training = {"soup": [one.lineage[-1] for one in used], "ancestors": ancestors}
    names, size = first.weights.class_names, first.weights.image_size
    save_weights(output, model, class_names=names, image_size=size, training=training)
