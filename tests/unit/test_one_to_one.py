"""The head without non-maximum suppression: its branches, its loss, and what its detections are."""

from __future__ import annotations

import pytest
import torch

from yolov7.criterion.choice import make_loss
from yolov7.data.augment.letterbox import letterbox
from yolov7.errors import SpecError
from yolov7.inference.batch import detect_batch
from yolov7.inference.engine import ModelEngine
from yolov7.inference.nms import non_max_suppression
from yolov7.nn.cost import spec_cost
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.settings import NmsSettings, TrainSettings
from yolov7.spec.anchor_free import with_anchor_free_head, with_one_to_one_head
from yolov7.spec.auxiliary import without_auxiliary
from yolov7.spec.graph import count_size
from yolov7.spec.spec_files import load_spec, resolve_spec, spec_from_json, spec_to_json
from yolov7.structures import HeadMaps, Targets

SPEC = resolve_spec({"base": "nano", "head": "one_to_one"}, name="nano")
FAR, NEAR = [0.3, 0.3, 0.2, 0.3], [0.7, 0.6, 0.4, 0.4]
TARGETS = Targets(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.tensor([FAR, NEAR, NEAR]))


def make_model() -> DetectionModel:
    torch.manual_seed(1)
    return DetectionModel(SPEC, num_classes=2)


def test_the_deployed_model_is_that_of_the_anchor_free_head() -> None:
    deployed = without_auxiliary(SPEC)
    assert with_one_to_one_head(SPEC) is SPEC
    assert spec_from_json(spec_to_json(deployed)) == deployed
    cost, plain = spec_cost(SPEC, image_size=64), spec_cost(with_anchor_free_head(load_spec("nano")), image_size=64)
    assert cost.parameters > plain.parameters
    assert (cost.parameters_deployed, cost.gflops) == (plain.parameters_deployed, plain.gflops)
    outputs = [count_size(spec).parameters for spec in (SPEC, deployed)]
    assert outputs[0] > outputs[1]
    with pytest.raises(SpecError, match="'detect_yolox', which has no form without suppression"):
        with_one_to_one_head(load_spec("yolox-s"))


def test_the_maps_of_the_lead_branch_are_those_of_the_fused_model() -> None:
    model = make_model()
    images = torch.rand(2, 3, 64, 64)
    assert len(model(images).auxiliary) == len(model.strides)
    model.eval()
    expected = model(images)
    assert expected.auxiliary == ()
    fused = fuse(model)
    assert not [name for name in fused.state_dict() if "auxiliary" in name]
    for ours, theirs in zip(fused(images).lead, expected.lead, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_lead_branch_learns_one_cell_per_object_and_only_itself() -> None:
    model = make_model()
    loss = make_loss(model, TrainSettings(image_size=64))
    maps = model(torch.rand(2, 3, 64, 64))
    found = loss.assign(maps, TARGETS)
    assert torch.bincount(found.lead.target, minlength=3).tolist() == [1, 1, 1]
    assert torch.bincount(found.auxiliary.target, minlength=3).min() > 1
    own, other = loss(HeadMaps(maps.lead), TARGETS), loss(maps, TARGETS)
    assert own.total < other.total
    own.total.backward(retain_graph=True)
    learning = {name.rpartition(".")[0] for name, value in model.named_parameters() if value.grad is not None}
    assert learning
    assert all(name.startswith("head.lead") for name in learning)
    other.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_overlapping_detections_remain() -> None:
    model = make_model().eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    settings = NmsSettings(confidence=0.001, iou=0.1, max_detections=15)
    engine = ModelEngine(model, torch.float32)
    _, geometry = letterbox(images[0].permute(1, 2, 0).numpy(), size=64)
    (found,) = detect_batch(engine, images, [geometry], nms=settings)
    decoded = engine.decode(images)
    (suppressed,) = non_max_suppression(decoded, settings=settings)
    (unlimited,) = non_max_suppression(decoded, settings=settings.model_copy(update={"iou": 1.0}))
    assert len(suppressed) < len(found) == len(unlimited) == 15
    assert torch.equal(found.scores, unlimited.scores)
