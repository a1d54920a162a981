"""The teacher of a training run: its file, whether it fits, its outputs for each batch, and its share of the time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn

from yolov7.criterion.distillation import DistillationLoss, DistillationParts, Outputs
from yolov7.criterion.loss_parts import SumOverRanks
from yolov7.errors import ArtifactError, SettingError
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.graph import ModelSpec, check_image_size, infer_shapes
from yolov7.spec.head_rows import DetectRow, OneToOneHeadRow
from yolov7.system.precision import autocast
from yolov7.training.job import TrainJob
from yolov7.weights.adaptation import select_classes
from yolov7.weights.foreign.reference import open_weights

_ONLY_MAPS = "set distil.outputs: 0 and distil.features: 1"
StudentOutputs = tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]


def open_teacher(job: TrainJob, class_names: Sequence[str]) -> DetectionModel | None:
    """Open the teacher that the settings name.

    The global generator of random numbers stays as it is, so that models with and without a teacher start alike.

    Args:
        job: The run.
        class_names: The classes of the data. The teacher may have more classes and another order of them; its maps can
            be compared whatever its classes are.

    Returns:
        The teacher, re-parameterised and on the CPU, with the outputs of these classes if its outputs are compared;
        None if none is used.

    Raises:
        ArtifactError: The file is missing, damaged, or lacks a class.
        SettingError: The image size is not a multiple of the teacher's strides.
    """
    path = job.settings.distil.teacher
    if path is None or not job.settings.distil.is_used:
        return None
    with torch.random.fork_rng(devices=[]):
        try:
            weights = open_weights(path, spec=job.spec)
        except ArtifactError as error:  # which begins with the path
            raise ArtifactError(f"distil.teacher={path}: {str(error).removeprefix(f'{path}: ')}") from None
        model = weights.model
        if job.settings.distil.outputs:
            try:
                model = select_classes(model, weights.class_names, class_names)
            except ArtifactError as error:
                raise ArtifactError(
                    f"distil.teacher={path}: {error}, or {_ONLY_MAPS} to imitate only its maps"
                ) from None
        model = model if model.fused else fuse(model)
    size = job.settings.image_size
    stride_of = f"the largest stride of distil.teacher={path}"
    check_image_size(model.spec, size, what=f"image_size={size}", stride_of=stride_of)
    return model.requires_grad_(False)


def anchors_to_share(teacher: DetectionModel | None, spec: ModelSpec, settings: TrainSettings) -> Tensor | None:
    """Return the anchors that a model takes over from its teacher, because they decide what an output means.

    Args:
        teacher: The teacher; None if there is none.
        spec: The spec of the model.
        settings: The settings of the training.

    Returns:
        Anchors (levels, anchors, 2) in pixels; None if the model keeps to its own rule.
    """
    if teacher is None or settings.anchors != "auto" or not settings.distil.outputs:
        return None
    heads = (teacher.spec.head, spec.head)
    if not all(isinstance(head, DetectRow) for head in heads):
        return None
    own, theirs = ([len(level) for level in head.anchors] for head in heads if isinstance(head, DetectRow))
    return teacher.anchors_px if own == theirs else None


@final
class Distillation:
    """The imitation of a teacher in the steps of a run.

    Attributes:
        adapters: A 1x1 convolution for each compared map whose number of channels differs from that of the teacher.
            They are trained with the model, are part of checkpoints, and are not part of the result.
        stride: The largest stride of the teacher, of which the sides of images must be multiples.
    """

    def __init__(
        self, teacher: DetectionModel, student: DetectionModel, settings: TrainSettings, *, dtype: torch.dtype
    ) -> None:
        """Prepare the imitation.

        Args:
            teacher: The teacher, from `open_teacher`.
            student: The model that is trained, on its device.
            settings: The settings of the training.
            dtype: The type of activations in the forward pass.

        Raises:
            SettingError: The outputs or maps of the two cannot be compared.
        """
        _check_fit(teacher, student, settings)
        self._device = student.anchors_px.device
        self._dtype = dtype
        self._teacher = teacher.to(self._device).eval()
        if settings.channels_last:
            self._teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._compares_outputs = bool(settings.distil.outputs)
        self._levels = _common_levels(teacher, student) if settings.distil.features else []
        self.adapters = nn.ModuleList(_make_adapters(student, teacher, self._levels)).to(self._device)
        self.stride = max(teacher.strides)
        self._loss = DistillationLoss(student, settings)
        self._clock = _Clock(self._device)

    @property
    def seconds(self) -> float:
        """How long the teacher has computed in this process."""
        return self._clock.seconds()

    def wrap(self, student: DetectionModel) -> nn.Module:
        """Return a module that computes what is compared of a model: `StudentOutputs`.

        Args:
            student: The model.
        """
        return _Student(student, self.adapters, [own for own, _ in self._levels])

    def __call__(
        self, images: Tensor, student: Outputs, *, sum_over_ranks: SumOverRanks | None = None
    ) -> DistillationParts:
        """Return the loss of distillation of a batch.

        Args:
            images: The images (B, 3, H, W) that the model has seen, in 0..1; B may be 0.
            student: The outputs of the model for them.
            sum_over_ranks: See `Loss`.
        """
        return self._loss(student, self._imitated(images, like=student), sum_over_ranks=sum_over_ranks)

    @torch.no_grad()
    def _imitated(self, images: Tensor, *, like: Outputs) -> Outputs:
        """Return the outputs of the teacher."""
        if not len(images):
            return Outputs([m.detach() for m in like.lead], [m.detach() for m in like.inputs])
        with self._clock.running(), autocast(self._dtype, self._device):
            inputs = self._teacher.head_inputs(images)
            lead = self._teacher.head(*inputs).lead if self._compares_outputs else ()
        return Outputs(lead, [inputs[theirs] for _, theirs in self._levels])


class _Student(nn.Module):
    """A model with the adapters of the maps that enter its head, so that several workers sum all gradients together."""

    def __init__(self, model: DetectionModel, adapters: nn.ModuleList, levels: Sequence[int]) -> None:
        super().__init__()
        self.model, self.adapters, self._levels = model, adapters, tuple(levels)

    def forward(self, images: Tensor) -> StudentOutputs:
        inputs = self.model.head_inputs(images)
        heads = self.model.head(*inputs)
        adapted = (adapter(inputs[level]) for adapter, level in zip(self.adapters, self._levels, strict=True))
        return heads.lead, heads.auxiliary, tuple(adapted)


class _Clock:
    """The time that a device takes for a part of the work; the work of a GPU is not waited for."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the body."""
        if self._is_cuda:
            events = (_event(), _event())
            events[0].record()
            yield
            events[1].record()
            self._events.append(events)
            return
        begun = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - begun

    def seconds(self) -> float:
        """Return the counted time."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000
        self._events.clear()
        return self._seconds


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def add_adapters(optimizer: torch.optim.Optimizer, adapters: nn.Module) -> None:
    """Add adapters to an optimizer, with the learning rate of convolutions and without weight decay.

    Args:
        optimizer: An optimizer whose last group holds the biases and stays the last one.
        adapters: The adapters; if they have no parameters, nothing changes.
    """
    if parameters := list(adapters.parameters()):
        optimizer.add_param_group({"params": parameters, "weight_decay": 0.0})
        optimizer.param_groups.insert(0, optimizer.param_groups.pop())


def _check_fit(teacher: DetectionModel, student: DetectionModel, settings: TrainSettings) -> None:
    """Raise SettingError if what the settings ask for cannot be compared."""
    wanted = settings.distil
    strides = [student.strides[own] for own, _ in _common_levels(teacher, student)]
    if wanted.outputs and (difference := _describe_difference(teacher, student)):
        remedy = "name a teacher with a head of the same kind and strides"
        if strides:
            remedy = f"{_ONLY_MAPS} to imitate only its maps with the strides {_listed(strides)}"
        elif isinstance(student.spec.head, OneToOneHeadRow):
            remedy = f"{_ONLY_MAPS}, and name a teacher with a common stride"
        raise SettingError(
            f"distil.teacher={wanted.teacher}: its outputs cannot be compared with those of the model, because "
            f"{difference}; {remedy}"
        )
    if wanted.features and not strides:
        raise SettingError(
            f"distil.teacher={wanted.teacher}: its maps have the strides {_listed(teacher.strides)} and those of the "
            f"model {_listed(student.strides)}, so that none can be compared; name a teacher with a common stride"
        )


def _describe_difference(teacher: DetectionModel, student: DetectionModel) -> str:
    """Say why the outputs of two heads have different meanings; return an empty text if they have the same."""
    theirs, own = teacher.spec.head, student.spec.head
    if isinstance(own, OneToOneHeadRow):
        return f"the head {own.block!r} of the model can imitate maps only"
    if theirs.block != own.block:
        return f"its head is {theirs.block!r} and that of the model {own.block!r}"
    if teacher.strides != student.strides:
        return f"it has the strides {_listed(teacher.strides)} and the model {_listed(student.strides)}"
    if isinstance(theirs, DetectRow) and isinstance(own, DetectRow) and theirs.scale_xy != own.scale_xy:
        return "they decode boxes in different ways (scale_xy of darknet's YOLOv4)"
    if getattr(theirs, "bins", 0) != getattr(own, "bins", 0):
        return "their distributions of sides have different numbers of bins"
    if teacher.anchors_px.shape != student.anchors_px.shape:
        return "they have different numbers of anchors"
    if not torch.allclose(teacher.anchors_px.cpu(), student.anchors_px.cpu(), rtol=1e-3):
        return "they have different anchors (with anchors: auto, the model has those of the teacher)"
    return ""


def _common_levels(teacher: DetectionModel, student: DetectionModel) -> list[tuple[int, int]]:
    """Return the levels of the student and of the teacher that have the same stride."""
    places = {stride: level for level, stride in enumerate(teacher.strides)}
    return [(level, places[stride]) for level, stride in enumerate(student.strides) if stride in places]


def _make_adapters(
    student: DetectionModel, teacher: DetectionModel, levels: Sequence[tuple[int, int]]
) -> Iterator[nn.Module]:
    own, theirs = _channels(student), _channels(teacher)
    for mine, other in levels:  # a bias would not change the softmax of a channel
        yield nn.Identity() if own[mine] == theirs[other] else nn.Conv2d(own[mine], theirs[other], 1, bias=False)


def _channels(model: DetectionModel) -> list[int]:
    """Return the numbers of channels of the maps that enter the head."""
    shapes = infer_shapes(model.spec)
    return [shapes[source].channels for source in model.spec.head.sources]


def _listed(strides: Sequence[int]) -> str:
    return ", ".join(map(str, strides))
