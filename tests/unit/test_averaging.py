"""Averages of models: exact means, new statistics of batch norm, greedy choice, and common ancestors."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from tests.artifacts import NAMES, SMALL
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import resolve_spec
from yolov7.training.averaging import (
    average_models,
    common_ancestor,
    greedy_soup,
    lineage,
    recount_batch_norm,
    weights_id,
)


def model_of(seed: int) -> DetectionModel:
    torch.manual_seed(seed)
    return DetectionModel(resolve_spec(SMALL, name="small"), num_classes=len(NAMES))


def first_norm(model: nn.Module) -> nn.BatchNorm2d:
    return next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_the_average_is_the_mean_of_every_weight() -> None:
    models = [model_of(seed) for seed in range(3)]
    average = average_models(models).state_dict()
    for name, mean in average.items():
        if mean.is_floating_point():
            expected = sum(model.state_dict()[name].double() for model in models) / 3
            torch.testing.assert_close(mean, expected.float(), rtol=0, atol=1e-7)


def test_the_average_of_one_model_is_that_model_and_shares_nothing_with_it() -> None:
    model = model_of(0)
    average = average_models([model])
    assert weights_id(average) == weights_id(model)
    first_norm(average).weight.data += 1
    assert weights_id(average) != weights_id(model)


def test_recounted_batch_norm_is_that_of_all_images_together() -> None:
    model = model_of(0)
    batches = torch.rand(4, 2, 3, 64, 64)
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    recount_batch_norm(model.eval(), batches)
    convolution = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        maps = [convolution(batch) for batch in batches]
    norm = first_norm(model)
    torch.testing.assert_close(norm.running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0))
    assert not model.training
    assert norm.momentum == 0.03
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


def test_without_images_batch_norm_stays() -> None:
    model = model_of(0)
    before = weights_id(model)
    recount_batch_norm(model, [])
    assert weights_id(model) == before


def test_a_greedy_soup_takes_what_helps_and_is_never_worse_than_the_best() -> None:
    # each "model" is a number here, the mean of numbers is their soup, and the nearer to 5 the better
    models = [copy.copy(model_of(0)) for _ in range(4)]
    values = {id(model): value for model, value in zip(models, (9.0, 4.5, 5.6, 2.0), strict=True)}

    def mix(chosen: Sequence[DetectionModel]) -> DetectionModel:
        soup = copy.copy(models[0])
        values[id(soup)] = sum(values[id(model)] for model in chosen) / len(chosen)
        models.append(soup)  # kept, so that its id stays its own
        return soup

    def score(model: DetectionModel) -> float:
        return -abs(values[id(model)] - 5)

    soup = greedy_soup(models[:4], [score(model) for model in models[:4]], mix=mix, score=score)
    assert soup.chosen == (1, 2)
    assert values[id(soup.model)] == pytest.approx(5.05)
    assert soup.scores == pytest.approx((-0.5, -0.05))


def test_a_greedy_soup_of_which_nothing_helps_is_the_best_model() -> None:
    models = [model_of(0), model_of(1)]
    soup = greedy_soup(models, [0.2, 0.3], mix=average_models, score=lambda _: 0.1)
    assert soup.chosen == (1,)
    assert soup.model is models[1]


def test_weights_have_an_id_that_any_change_changes() -> None:
    model = model_of(0)
    assert weights_id(model) == weights_id(model_of(0)) != weights_id(model_of(1))
    changed = copy.deepcopy(model)
    first_norm(changed).running_mean[0] += 1e-3  # type: ignore[index]
    assert weights_id(changed) != weights_id(model)


def test_the_common_ancestor_is_the_youngest_that_all_share() -> None:
    model = model_of(0)
    own = weights_id(model)
    assert lineage(model, {"ancestors": ["a", "b"]}) == ("a", "b", own)
    assert lineage(model, {}) == (own,)
    assert common_ancestor([("a", "b", "x"), ("a", "b", "y")]) == "b"
    assert common_ancestor([("a", "b", "x"), ("a", "y"), ("a", "b", "z")]) == "a"
    assert common_ancestor([("a", "b"), ("a",)]) == "a"  # what was fine-tuned, with what it began at
    assert common_ancestor([("a", "x"), ("b", "y")]) is None
