"""Distillation: its loss, which teachers fit which models, and what it changes in a run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.artifacts import NAMES, SMALL
from yolov7.criterion.anchor_free_loss import U6_GAINS
from yolov7.criterion.distillation import DistillationLoss, Outputs, binary_divergence, channel_divergence
from yolov7.errors import ArtifactError, SettingError, UserError
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.spec_files import resolve_spec, spec_to_json
from yolov7.training.distillation import Distillation, add_adapters, anchors_to_share, open_teacher
from yolov7.training.job import TrainJob
from yolov7.weights.weight_files import save_weights

WIDER = {"base": "nano", "image_size": 64}
HEADS: dict[str, dict[str, Any]] = {
    "anchor-based": SMALL,
    "yolox": {"base": "yolox-s", "image_size": 64, "scale": {"rule": "width", "width": 0.25}},
    "ppyoloe": {"base": "ppyoloe-s", "image_size": 64, "scale": {"rule": "width", "width": 0.25}},
    "u6": {**SMALL, "head": "anchor_free"},
}


def model_of(spec: dict[str, Any], *, seed: int = 0, num_classes: int = len(NAMES)) -> DetectionModel:
    """Build a model that sees objects with certainties between 0 and 1 in many cells."""
    torch.manual_seed(seed)
    model = DetectionModel(resolve_spec(spec, name="model"), num_classes=num_classes)
    for name, parameter in model.head.named_parameters():
        if name.endswith("bias") and "convs" in name:
            nn.init.normal_(parameter)
    return model.eval()


def settings_of(**distil: Any) -> TrainSettings:
    return TrainSettings.model_validate({"image_size": 64, "distil": {"teacher": "teacher.safetensors", **distil}})


def outputs_of(model: DetectionModel, images: Tensor) -> Outputs:
    inputs = model.head_inputs(images)
    return Outputs(model.head(*inputs).lead, inputs)


def detached(outputs: Outputs) -> Outputs:
    return Outputs([m.detach() for m in outputs.lead], [m.detach() for m in outputs.inputs])


@pytest.mark.parametrize("head", HEADS)
def test_a_model_does_not_differ_from_itself(head: str) -> None:
    model = model_of(HEADS[head])
    outputs = detached(outputs_of(model, torch.rand(2, 3, 64, 64)))
    parts = DistillationLoss(model, settings_of(features=1.0))(outputs, outputs)
    assert parts.total == pytest.approx(0.0, abs=1e-4)
    others = detached(outputs_of(model_of(HEADS[head], seed=1), torch.rand(2, 3, 64, 64)))
    assert DistillationLoss(model, settings_of())(outputs, others).total > 1e-2


@pytest.mark.parametrize("head", HEADS)
def test_the_gradient_moves_outputs_to_those_of_the_teacher(head: str) -> None:
    model, images = model_of(HEADS[head]), torch.rand(1, 3, 64, 64)
    teacher = detached(outputs_of(model_of(HEADS[head], seed=1), images))
    student = [m.detach().requires_grad_() for m in outputs_of(model, images).lead]
    loss, optimizer = DistillationLoss(model, settings_of()), torch.optim.Adam(student, lr=0.1)
    values, differences = [], []
    for _ in range(121):
        own, theirs = (model.head.decode(maps).detach() for maps in (student, teacher.lead))
        seen = theirs[..., 4] * theirs[..., 5:].amax(-1) > 0.1
        differences.append((own[seen] - theirs[seen]).abs().mean(0))  # cx, cy, w, h, objectness, classes
        total = loss(Outputs(student), teacher).total
        values.append(total.item())
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert values[-1] < 0.2 * values[0]
    assert (differences[-1] <= 0.6 * differences[0]).all()
    assert differences[-1][4:].max() < 0.2


def test_a_gain_of_zero_has_no_effect_and_gains_are_factors() -> None:
    model = model_of(SMALL)
    images = torch.rand(2, 3, 64, 64)
    own, theirs = (detached(outputs_of(m, images)) for m in (model, model_of(SMALL, seed=1)))

    def value(**gains: float) -> float:
        return float(DistillationLoss(model, settings_of(**gains))(own, theirs).total)

    assert value(outputs=0.0, features=0.0) == 0.0
    both = value(outputs=2.0, features=3.0)
    assert both == pytest.approx(2 * value(outputs=1.0) + 3 * value(outputs=0.0, features=1.0), rel=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_shares_of_a_batch_add_up_to_the_whole(head: str) -> None:
    model, images = model_of(HEADS[head]), torch.rand(3, 3, 64, 64)
    own, theirs = (detached(outputs_of(m, images)) for m in (model, model_of(HEADS[head], seed=1)))
    loss = DistillationLoss(model, settings_of(features=1.0))
    sums: list[list[Tensor]] = []

    def part(outputs: Outputs, images: slice) -> Outputs:
        return Outputs([m[images] for m in outputs.lead], [m[images] for m in outputs.inputs])

    shares = [slice(0, 2), slice(2, 3), slice(3, 3)]
    for share in shares:
        seen: list[Tensor] = []
        sums.append(seen)
        loss(part(own, share), part(theirs, share), sum_over_ranks=lambda x, seen=seen: seen.append(x) or x)  # type: ignore[misc]
    totals = [torch.stack(values).sum(0) for values in zip(*sums, strict=True)]
    added = torch.zeros(())
    for share in shares:
        answers = iter(totals)
        added += loss(part(own, share), part(theirs, share), sum_over_ranks=lambda _, a=answers: next(a)).total  # type: ignore[misc]
    torch.testing.assert_close(added, loss(own, theirs).total, rtol=1e-5, atol=1e-5)


def test_the_divergence_of_probabilities_is_that_of_their_definition() -> None:
    ours, theirs = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    p, q = theirs.sigmoid(), ours.sigmoid()
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(binary_divergence(ours, theirs), expected)


def test_the_divergence_of_maps_is_that_of_their_definition() -> None:
    ours, theirs = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = 0.0
    for image in range(2):
        for channel in range(3):
            p, q = (m[image, channel].flatten().softmax(0) for m in (theirs, ours))
            expected += float((p * (p / q).log()).sum()) / 3
    assert float(channel_divergence(ours, theirs)) == pytest.approx(expected, rel=1e-5)
    shifted = theirs + torch.randn(2, 3, 1, 1)  # a softmax depends on differences only
    assert float(channel_divergence(shifted, theirs)) == pytest.approx(0.0, abs=1e-5)


def job_of(folder: Path, teacher: Path | None = None, *, distil: dict[str, Any] | None = None, **more: Any) -> TrainJob:
    settings = {"image_size": 64, "distil": {"teacher": teacher, **(distil or {})}, **more}
    return TrainJob(
        spec_json=spec_to_json(resolve_spec(SMALL, name="small")),
        settings=TrainSettings.model_validate(settings),
        seed=1,
        data_folder=folder,
        data_hash="h",
        teacher_hash="t" if teacher else "",
        run_folder=folder,
    )


def save_teacher(path: Path, spec: dict[str, Any] = WIDER, names: tuple[str, ...] = NAMES) -> Path:
    model = model_of(spec, num_classes=len(names))
    save_weights(path, model, class_names=names, image_size=64, training={})
    return path


def test_a_teacher_is_opened_with_the_classes_of_the_data_and_changes_no_random_numbers(tmp_path: Path) -> None:
    path = save_teacher(tmp_path / "a.safetensors", names=("other", "Blue", "green", "red"))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    teacher = open_teacher(job_of(tmp_path, path), NAMES)
    assert torch.equal(torch.rand(1), expected)
    assert teacher is not None
    assert teacher.fused
    assert teacher.num_classes == 3
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert open_teacher(job_of(tmp_path, path, distil={"outputs": 0.0}), NAMES) is None
    assert open_teacher(job_of(tmp_path), NAMES) is None


def test_a_teacher_of_other_classes_is_refused_unless_only_maps_are_compared(tmp_path: Path) -> None:
    path = save_teacher(tmp_path / "a.safetensors", names=("red", "green", "purple"))
    with pytest.raises(
        ArtifactError,
        match=r"^distil\.teacher=.*a\.safetensors: the weights lack 1 of the 3 .*"
        "or set distil.outputs: 0 and distil.features: 1 to imitate only its maps$",
    ):
        open_teacher(job_of(tmp_path, path), NAMES)
    assert open_teacher(job_of(tmp_path, path, distil={"outputs": 0.0, "features": 1.0}), NAMES) is not None


def test_a_missing_teacher_and_a_teacher_of_larger_strides_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"^distil\.teacher=.*none\.safetensors: there is no such weight file"
    ) as error:
        open_teacher(job_of(tmp_path, tmp_path / "none.safetensors"), NAMES)
    assert str(error.value).count("none.safetensors") == 1
    deep = {"base": "yolov7-w6", "image_size": 64, "scale": {"rule": "width", "width": 0.125}}
    path = save_teacher(tmp_path / "deep.safetensors", deep)
    with pytest.raises(SettingError, match=r"^image_size=96 must be a multiple of 64, the largest stride of distil"):
        open_teacher(job_of(tmp_path, path, image_size=96), NAMES)


def fitted(teacher: DetectionModel, student: DetectionModel, **distil: Any) -> Distillation:
    return Distillation(teacher, student, settings_of(**distil), dtype=torch.float32)


@pytest.mark.parametrize(
    ("teacher", "student", "reason"),
    [
        (HEADS["u6"], SMALL, "its head is 'detect_dfl' and that of the model 'detect'; set distil.outputs: 0 and"),
        (
            {"base": "yolov7-w6", "image_size": 64, "scale": {"rule": "width", "width": 0.125}},
            SMALL,
            "it has the strides 8, 16, 32, 64 and the model 8, 16, 32; set distil.outputs: 0 and distil.features: 1 to "
            "imitate only its maps with the strides 8, 16, 32$",
        ),
    ],
    ids=["head", "strides"],
)
def test_a_teacher_whose_outputs_mean_something_else_is_refused(
    teacher: dict[str, Any], student: dict[str, Any], reason: str
) -> None:
    models = model_of(teacher), model_of(student)
    with pytest.raises(
        SettingError, match=r"its outputs cannot be compared with those of the model, because " + reason
    ):
        fitted(*models)
    assert len(fitted(*models, outputs=0.0, features=1.0).adapters) == 3


@pytest.mark.parametrize("teacher", [{**WIDER, "head": "one_to_one"}, HEADS["u6"], WIDER], ids=["same", "u6", "detect"])
def test_a_head_with_two_branches_imitates_maps_only(teacher: dict[str, Any]) -> None:
    models = model_of(teacher).requires_grad_(False), model_of({**SMALL, "head": "one_to_one"}).train()
    reason = "the head 'detect_one_to_one' of the model can imitate maps only; set distil.outputs: 0 and"
    with pytest.raises(SettingError, match=reason):
        fitted(*models)
    distillation, images = fitted(*models, outputs=0.0, features=1.0), torch.rand(2, 3, 64, 64)
    lead, _, inputs = distillation.wrap(models[1])(images)
    parts = distillation(images, Outputs(lead, inputs))
    pairs = zip(inputs, models[0].head_inputs(images), strict=False)
    expected = U6_GAINS.box * sum(channel_divergence(*pair).detach() for pair in pairs) / 3
    assert parts.total.item() == pytest.approx(float(expected), rel=1e-4)  # the loss of this head is a sum over images


def test_a_teacher_with_the_decoding_of_darknet_is_imitated_in_its_maps_only() -> None:
    darknet = resolve_spec(WIDER, name="darknet")
    head = darknet.head.model_copy(update={"scale_xy": (1.05,) * 3})
    teacher = DetectionModel(
        darknet.model_copy(update={"rows": darknet.rows | {darknet.head_name: head}}), num_classes=len(NAMES)
    )
    student = model_of(WIDER)
    with pytest.raises(
        SettingError, match=r"they decode boxes in different ways \(scale_xy .*; set distil\.outputs: 0"
    ):
        fitted(teacher, student)
    assert len(fitted(teacher, student, outputs=0.0, features=1.0).adapters) == 3


def test_anchors_decide_what_an_output_means_and_are_those_of_the_teacher_with_auto() -> None:
    teacher, student = model_of(WIDER), model_of(SMALL)
    teacher.anchors_px = teacher.anchors_px * 1.5
    with pytest.raises(SettingError, match=r"they have different anchors \(with anchors: auto,"):
        fitted(teacher, student)
    shared = anchors_to_share(teacher, student.spec, settings_of())
    assert shared is not None
    assert torch.equal(shared, teacher.anchors_px)
    keeps = settings_of().model_copy(update={"anchors": "fit"})
    assert anchors_to_share(teacher, student.spec, keeps) is None
    assert anchors_to_share(teacher, student.spec, settings_of(outputs=0.0, features=1.0)) is None


def test_adapters_are_made_where_channels_differ_and_are_trained_like_convolutions() -> None:
    student = model_of(SMALL)
    assert [type(one) for one in fitted(model_of(SMALL, seed=1), student, features=1.0).adapters] == [nn.Identity] * 3
    distillation = fitted(model_of(WIDER), student, features=1.0)
    assert all(isinstance(adapter, nn.Conv2d) for adapter in distillation.adapters)
    biases = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [biases]}], lr=0.1)
    add_adapters(optimizer, distillation.adapters)
    assert optimizer.param_groups[-1]["params"] == [biases]
    assert optimizer.param_groups[0]["params"] == list(distillation.adapters.parameters())


def test_the_loss_of_a_batch_reaches_model_and_adapters_and_not_the_teacher() -> None:
    teacher, student = model_of(WIDER), model_of(SMALL).train()
    before = copy.deepcopy(teacher.state_dict())
    distillation = fitted(teacher.requires_grad_(False), student, features=1.0)
    images = torch.rand(2, 3, 64, 64)
    lead, _, inputs = distillation.wrap(student)(images)
    distillation(images, Outputs(lead, inputs)).total.backward()  # type: ignore[no-untyped-call]
    for module in (student.rows, distillation.adapters):
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert distillation.seconds > 0


def test_a_run_is_known_by_its_teacher(tmp_path: Path) -> None:
    job = job_of(tmp_path, tmp_path / "a.safetensors")
    assert job.fingerprint != job_of(tmp_path).fingerprint
    moved = job_of(tmp_path, tmp_path / "b.safetensors")
    assert moved.fingerprint == job.fingerprint
    assert moved.model_copy(update={"teacher_hash": "other"}).fingerprint != job.fingerprint
    stronger = job_of(tmp_path, tmp_path / "a.safetensors", distil={"outputs": 2.0})
    assert stronger.fingerprint != job.fingerprint


def test_errors_of_a_teacher_are_one_line(tmp_path: Path) -> None:
    path = save_teacher(tmp_path / "a.safetensors", names=("one",))
    with pytest.raises(UserError) as caught:
        open_teacher(job_of(tmp_path, path), NAMES)
    assert "\n" not in str(caught.value)
