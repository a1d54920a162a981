"""Averages of models: of one run at different iterations, or of runs from the same starting weights.

The paper's section 2.2 calls both model-level re-parameterisation. Weights average well only where training kept them
in one basin, as it does from common starting weights (Wortsman et al., Model soups, 2022). The statistics of batch norm
do not average at all: they are counted anew, on training images, for the averaged weights (Izmailov et al., 2018).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from yolov7.nn.model import DetectionModel

Mix = Callable[[Sequence[DetectionModel]], DetectionModel]
Score = Callable[[DetectionModel], float]


def average_models(models: Sequence[DetectionModel]) -> DetectionModel:
    """A new model with the mean of each weight, summed in float64; the models must be of one spec, and at least one.

    Its batch norm has the mean of the models' statistics, which are not yet its own: see `recount_batch_norm`.
    """
    average = copy.deepcopy(models[0])
    states = [model.state_dict() for model in models]
    average.load_state_dict({name: _mean([state[name] for state in states]) for name in states[0]})
    return average


@torch.no_grad()
def recount_batch_norm(model: DetectionModel, images: Iterable[Tensor]) -> None:
    """Sets every batch norm's mean and variance to those over all batches of images (B, 3, H, W) in 0..1.

    Every batch counts the same, so they should be of one size. Without any batch nothing changes.
    """
    batches = iter(images)
    first = next(batches, None)
    if first is None:
        return
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    was_training, momenta = model.training, [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then takes the mean of all batches
    model.train()
    for batch in chain([first], batches):
        model(batch)
    model.train(was_training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@dataclass(frozen=True)
class GreedySoup:
    """`chosen`: the places of the models that went in, in that order; `scores`: of the soup after each of them."""

    model: DetectionModel
    chosen: tuple[int, ...]
    scores: tuple[float, ...]


def greedy_soup(models: Sequence[DetectionModel], scores: Sequence[float], *, mix: Mix, score: Score) -> GreedySoup:
    """Begins with the best model and adds each next one, by falling score, if the average does not get worse by it.

    `mix` makes the average of a sequence of models, with its batch norm in order; `score` measures it. The result is
    never worse, by that score, than the best model.
    """
    order = sorted(range(len(models)), key=lambda i: -scores[i])
    chosen, reached, soup = [order[0]], [scores[order[0]]], models[order[0]]
    for i in order[1:]:
        candidate = mix([models[j] for j in (*chosen, i)])
        value = score(candidate)
        if value >= reached[-1]:
            chosen.append(i)
            reached.append(value)
            soup = candidate
    return GreedySoup(soup, tuple(chosen), tuple(reached))


def weights_id(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that name the weights of a model; other weights have others."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def lineage(model: nn.Module, training: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids of the weights that these were trained from, oldest first, and at the end their own.

    `training` is the metadata of a weight file, which has the former under `ancestors`.
    """
    return (*(str(ancestor) for ancestor in training.get("ancestors", ())), weights_id(model))


def common_ancestor(lineages: Sequence[Sequence[str]]) -> str | None:
    """The youngest weights from which all were trained; None where there are none."""
    shared = set(lineages[0]).intersection(*lineages[1:])
    return next((ancestor for ancestor in reversed(lineages[0]) if ancestor in shared), None)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total += tensor
    return (total / len(tensors)).to(tensors[0].dtype)
