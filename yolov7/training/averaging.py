"""Averages of the weights of models: of one run at different epochs, or of runs that started from the same weights.

The paper's section 2.2 calls both model-level re-parameterisation. Averaging weights works only if training has kept
the models in one basin of the loss, as it does from common starting weights (Wortsman et al., Model soups, 2022). The
statistics of batch norm must not be averaged. They are computed again, on training images, for the averaged weights
(Izmailov et al., 2018).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolov7.nn.model import DetectionModel

Mix = Callable[[Sequence[DetectionModel]], DetectionModel]
Score = Callable[[DetectionModel], float]


def average_models(models: Sequence[DetectionModel]) -> DetectionModel:
    """Compute the mean of each weight, summed in float64.

    Args:
        models: At least one model, all of the same spec.

    Returns:
        A new model. Its batch norm has the mean of the models' statistics, which must be replaced by those of the new
        weights (`recount_batch_norm`).
    """
    average = copy.deepcopy(models[0])
    states = [model.state_dict() for model in models]
    average.load_state_dict({name: _mean([state[name] for state in states]) for name in states[0]})
    return average


@torch.no_grad()
def recount_batch_norm(model: DetectionModel, images: Iterable[Tensor], *, kept: Iterable[nn.Module] = ()) -> None:
    """Replace the mean and variance of every batch norm by those over images ("precise batch norm").

    Wu and Johnson, 2021, "Rethinking 'Batch' in BatchNorm", section 3.

    Args:
        model: The model, which is changed.
        images: Batches (B, 3, H, W) in 0..1 on the model's device. Every batch has the same influence, so all should
            have the same size. Without any batch, nothing changes.
        kept: Modules of the model whose batch norm keeps its statistics, because they were frozen in training.
    """
    keeping = {module for part in kept for module in part.modules()}
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module not in keeping]
    momenta = [norm.momentum for norm in norms]
    was_training = model.training
    model.eval()
    for i, batch in enumerate(images):
        if i == 0:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the mean of all batches
                norm.train()
        model(batch, auxiliary=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)


@dataclass(frozen=True)
class GreedySoup:
    """The result of `greedy_soup`.

    Attributes:
        model: The average of the chosen models.
        chosen: The places of the chosen models, in the order in which they were added.
        scores: The score of the average after each addition.
    """

    model: DetectionModel
    chosen: tuple[int, ...]
    scores: tuple[float, ...]


def greedy_soup(models: Sequence[DetectionModel], scores: Sequence[float], *, mix: Mix, score: Score) -> GreedySoup:
    """Average the best model with every further one that does not make the average worse.

    Args:
        models: Models that started from the same weights.
        scores: The score of each model.
        mix: Computes the average of models, with the right statistics of batch norm.
        score: Measures a model; higher is better.

    Returns:
        The average, whose score is at least that of the best model.
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
    """Identify the weights of a model by sixteen hexadecimal digits, a hash of all names, shapes, types and values.

    Args:
        model: Any module.

    Returns:
        The digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def lineage(model: nn.Module, training: Mapping[str, Any]) -> tuple[str, ...]:
    """List the ids of the weights that a model was trained from, and its own id.

    Args:
        model: The model.
        training: The training metadata of its weight file, whose `ancestors` are the ids it was trained from.

    Returns:
        The ids, oldest first, the model's own last.
    """
    return (*(str(ancestor) for ancestor in training.get("ancestors", ())), weights_id(model))


def common_ancestor(lineages: Sequence[Sequence[str]]) -> str | None:
    """Find the youngest weights that all models were trained from.

    Args:
        lineages: The lineage of each model, from `lineage`.

    Returns:
        The id of the weights; None if there are none.
    """
    shared = set(lineages[0]).intersection(*lineages[1:])
    return next((ancestor for ancestor in reversed(lineages[0]) if ancestor in shared), None)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total += tensor
    return (total / len(tensors)).to(tensors[0].dtype)
