"""The start of a run: fitted anchors, given weights, frozen rows, and notes about small boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.artifacts import NAMES, SMALL
from yolov7.data.index import ImageIndex
from yolov7.errors import SpecError
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.graph import infer_shapes
from yolov7.spec.spec_files import ModelSpec, list_specs, load_spec, resolve_spec, spec_to_json
from yolov7.training.averaging import weights_id
from yolov7.training.job import TrainJob
from yolov7.training.optim import build_optimizer, build_schedule
from yolov7.training.start import build_start, count_frozen_rows, frozen_rows, set_training
from yolov7.weights.foreign.reference import reference_state
from yolov7.weights.weight_files import save_weights

SPEC = resolve_spec(SMALL, name="small")


def index_of(sizes: np.ndarray) -> ImageIndex:
    count = len(sizes)
    return ImageIndex(
        class_names=NAMES,
        paths=tuple(Path(f"/{i}.jpg") for i in range(count)),
        widths=np.full(count, 64, np.int32),
        heights=np.full(count, 64, np.int32),
        hashes=("",) * count,
        box_offsets=np.arange(count + 1),
        boxes_xyxy=np.concatenate([np.zeros_like(sizes), sizes], axis=1).astype(np.float32),
        labels=np.zeros(count, np.int64),
        crowd=np.zeros(count, bool),
    )


ORDINARY = index_of(np.random.default_rng(0).uniform(10, 60, (50, 2)))
NARROW = index_of(np.random.default_rng(0).uniform((40, 2), (60, 3), (50, 2)))


def job(spec: ModelSpec = SPEC, **settings: Any) -> TrainJob:
    return TrainJob(
        spec_json=spec_to_json(spec),
        settings=TrainSettings.model_validate({"image_size": 64, **settings}),
        seed=0,
        data_folder=Path("/nowhere"),
        data_hash="",
        run_folder=Path("/nowhere"),
    )


@pytest.fixture
def given(tmp_path: Path) -> str:
    path = tmp_path / "given.safetensors"
    model = DetectionModel(SPEC, num_classes=len(NAMES))
    save_weights(path, model, class_names=NAMES, image_size=64, training={})
    return str(path)


def test_the_specs_anchors_stay_where_they_fit() -> None:
    start = build_start(job(), ORDINARY)
    assert start.model.spec == SPEC
    assert start.notes == ()


def test_anchors_that_miss_boxes_are_fitted_and_that_is_said() -> None:
    start = build_start(job(), NARROW)
    assert start.model.spec.head.anchors != SPEC.head.anchors
    assert float(start.model.anchors_px[..., 1].max()) < 4
    (note,) = start.notes
    assert "the fitted anchors are used" in note


def test_anchors_of_the_spec_on_demand() -> None:
    assert build_start(job(anchors="spec"), NARROW).model.spec == SPEC


@pytest.mark.parametrize(("mode", "notes"), [("auto", 0), ("fit", 1)])
def test_a_head_without_anchors_gets_none_and_that_is_said_if_they_were_asked_for(mode: str, notes: int) -> None:
    spec = resolve_spec(SMALL | {"head": "anchor_free"}, name="small")
    start = build_start(job(spec, anchors=mode), NARROW)
    assert start.model.spec == spec
    assert start.notes == ("the head 'detect_dfl' of spec 'small' has no anchors",) * notes


def test_the_ancestor_is_the_beginning_or_the_weights_that_it_began_with(tmp_path: Path) -> None:
    torch.manual_seed(3)
    first = build_start(job(), ORDINARY)
    assert first.ancestors == (weights_id(first.model),)
    path = tmp_path / "w.safetensors"
    other = DetectionModel(SPEC, num_classes=7)
    names = tuple("abcdefg")
    save_weights(path, other, class_names=names, image_size=64, training={"ancestors": ["its own"]})
    tuned = build_start(job(weights=str(path)), ORDINARY)
    assert tuned.ancestors == ("its own", weights_id(other))


def test_a_training_starts_from_a_checkpoint_of_another_implementation(tmp_path: Path) -> None:
    begun = build_start(job(), ORDINARY).model
    torch.save({"model": reference_state(begun)}, tmp_path / "x.pt")  # without class names
    model = build_start(job(weights=str(tmp_path / "x.pt")), ORDINARY).model
    own = begun.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


def test_frozen_rows_keep_weights_and_statistics_while_the_others_learn(given: str) -> None:
    settings = job(freeze="p3", weights=given).settings
    model = build_start(job(freeze="p3", weights=given), ORDINARY).model
    set_training(model, settings, epoch=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    schedule = build_schedule(settings.optim, batch_size=2, steps_per_epoch=1, epochs=1)
    optimizer = build_optimizer(model, settings.optim, schedule=schedule)
    loss = sum(level.square().mean() for level in model(torch.rand(2, 3, 64, 64)).lead)
    loss.backward()  # type: ignore[union-attr]
    optimizer.step()
    frozen = ("rows.s1.", "rows.s2.", "rows.p2.", "rows.d3.", "rows.p3.")
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not [name for name in changed if name.startswith(frozen)]
    assert all(any(name.startswith(f"rows.{row}.") for name in changed) for row in ("p4", "n3", "m5", "h3"))
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in model.parameters() if p.requires_grad
    }


def test_without_a_frozen_row_everything_trains() -> None:
    model = build_start(job(), ORDINARY).model
    set_training(model, job().settings, epoch=0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_frozen_rows_are_released_from_the_last_one(given: str) -> None:
    settings = job(freeze="p3", unfreeze_epochs=4, weights=given).settings
    model = build_start(job(freeze="p3", unfreeze_epochs=4, weights=given), ORDINARY).model
    assert [count_frozen_rows(model, settings, epoch=epoch) for epoch in range(6)] == [5, 4, 3, 2, 0, 0]
    set_training(model, settings, epoch=1)
    evaluated = [name for name, row in model.rows.items() if not row.training]
    assert evaluated == ["s1", "s2", "p2", "d3"]
    assert all(parameter.requires_grad for parameter in model.parameters())  # the optimizer needs all of them


def test_batch_norm_keeps_its_statistics_and_learns_its_weights_if_wanted() -> None:
    model = build_start(job(), ORDINARY).model
    settings = job(weights="w.safetensors", freeze_batch_norm=True).settings
    set_training(model, settings, epoch=0)
    before = {name: value.clone() for name, value in model.named_buffers()}
    sum(level.square().mean() for level in model(torch.rand(2, 3, 64, 64)).lead).backward()  # type: ignore[union-attr]
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(module.weight.grad is not None for module in model.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"freeze": "p3"}, "freeze='p3' keeps rows of trained weights; name a weight file"),
        ({"freeze_batch_norm": True}, "keeps the statistics of trained weights; name a weight file"),
        ({"unfreeze_epochs": 2}, "name the last one in freeze"),
    ],
)
def test_settings_that_need_another_one_name_it(settings: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        job(**settings)


def test_an_unknown_row_names_the_nearest(given: str) -> None:
    with pytest.raises(SpecError, match=r"^freeze='pp3'.*did you mean 'p3'"):
        build_start(job(freeze="pp3", weights=given), ORDINARY)


def test_boxes_that_are_too_small_are_counted_before_training() -> None:
    tiny = index_of(np.full((64, 2), 1.5))
    (note,) = build_start(job(), tiny).notes
    expected = "64 of 64 boxes have a side of at most 2 pixels at image_size=64 and are not learned; raise image_size"
    assert note == expected
    assert build_start(job(image_size=128), tiny).notes == ()
    some = index_of(np.concatenate([np.full((10, 2), 1.5), np.full((30, 2), 30.0)]))
    assert build_start(job(), some).notes[0].startswith("10 of 40 boxes (25.0%) have a side of at most 2 pixels")


@pytest.mark.parametrize("name", list_specs())
def test_every_spec_can_be_frozen_up_to_the_maps_of_stride_8(name: str) -> None:
    spec = load_spec(name)
    with torch.device("meta"):
        model = DetectionModel(spec, num_classes=3)
    rows, shapes = frozen_rows(model, last="p3"), infer_shapes(spec)
    names = list(spec.rows)
    assert rows == [model.rows[row] for row in names[: len(rows)]]
    assert [shapes[row].stride for row in names[len(rows) - 1 : len(rows) + 1]] == [8, 16]


def test_a_row_that_does_not_exist_is_told() -> None:
    with pytest.raises(SpecError, match=r"freeze='b9' is not a row of spec 'small'.*; name one of its rows, or p2, p3"):
        frozen_rows(DetectionModel(SPEC, num_classes=3), last="b9")
