"""Own code of a user, as tests name it: blocks, an assigner with scores, and callbacks, some of them wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from yolov7.criterion.aligned import Scored
from yolov7.criterion.candidates import Assignment
from yolov7.criterion.own_code import HeadGeometry
from yolov7.training.callbacks import Callback, RunState


class Drift(Callback):
    """Changes the weights by what it remembers, so that a wrong state changes the result."""

    def __init__(self) -> None:
        self.steps, self.momentum, self.figures = 0, torch.zeros(1), 0.0

    def on_step_end(self, run: RunState) -> None:
        self.steps += 1
        self.momentum = 0.9 * self.momentum + self.steps
        with torch.no_grad():
            next(run.model.parameters()).add_(1e-5 * float(self.momentum) + 1e-4 * self.figures)

    def on_epoch_end(self, run: RunState, figures: Any) -> None:
        assert figures["epoch"] == run.epoch
        self.figures += figures["box"]

    def on_end(self, run: RunState) -> None:
        if run.worker.is_lead:
            (run.folder / "drift.txt").write_text(f"{self.steps} {float(self.momentum)!r} {self.figures!r}")

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "momentum": self.momentum, "more": [self.figures, {"none": None}]}

    def load_state_dict(self, state: Any) -> None:
        self.steps, self.momentum, self.figures = state["steps"], state["momentum"], state["more"][0]


class Wrong(Callback):
    def on_step_end(self, run: RunState) -> None:
        raise KeyError("nothing")


class Unsaved(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"what": object()}


def similarity(predicted: Tensor, wanted: Tensor) -> Tensor:
    """A similarity that has a gradient everywhere."""
    return 1 - (predicted - wanted).abs().mean(1)


def wrong_similarity(predicted: Tensor, wanted: Tensor) -> Tensor:
    return predicted - wanted


class FirstCells:
    """Gives each object the first cell of the finest level; with scores where they are needed."""

    def __init__(self, head: HeadGeometry) -> None:
        self._needs_scores = head.bins > 0

    def __call__(self, maps: Any, targets: Any) -> Assignment | Scored:
        zeros, numbers = torch.zeros_like(targets.image), torch.arange(len(targets))
        cells = Assignment(zeros, targets.image, zeros, zeros, numbers % maps[0].shape[3], numbers)
        return Scored(cells, torch.full((len(cells),), 0.5)) if self._needs_scores else cells


def outside(head: HeadGeometry) -> Any:
    """An assigner whose cells are outside of the maps."""

    def assign(maps: Any, targets: Any) -> Assignment:
        zeros = torch.zeros_like(targets.image)
        return Assignment(zeros, targets.image, zeros, zeros + 1000, zeros, torch.arange(len(targets)))

    return assign


def no_image(image: Any, boxes_xyxy: Any, labels: Any, generator: Any) -> Any:
    return None, boxes_xyxy, labels


def relabel(image: Any, boxes_xyxy: Any, labels: Any, generator: Any) -> Any:
    return image, boxes_xyxy, labels + 100


def negative(image: Any, boxes_xyxy: Any, labels: Any, generator: Any) -> Any:
    return image, boxes_xyxy, labels * 0 - 1


def floating(image: Any, boxes_xyxy: Any, labels: Any, generator: Any) -> Any:
    return image, boxes_xyxy, labels + 0.5


def infinite(image: Any, boxes_xyxy: Any, labels: Any, generator: Any) -> Any:
    return image, boxes_xyxy / 0.0, labels


def emptied(image: Any, boxes_xyxy: Any, labels: Any, generator: Any) -> Any:
    return image, [], []


def mirror(image: Any, boxes_xyxy: Any, labels: Any, generator: Any) -> Any:
    """Mirrors left and right, and adds a box outside of the image."""
    boxes = boxes_xyxy.copy()
    boxes[:, [0, 2]] = image.shape[1] - boxes_xyxy[:, [2, 0]]
    return image[:, ::-1], [*boxes, [-9, -9, -5, -5]], [*labels, 0]


class Fast(nn.Module):
    """What `Slow` becomes."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, self.weight)


class Slow(nn.Module):
    """A sum of two 1x1 convolutions, a product of matrices, and a method that fuses the convolutions."""

    def __init__(self, channels: tuple[int, ...], out: int, stride: int, *, scale: float = 1.0) -> None:
        super().__init__()
        assert stride == 1
        self.left = nn.Conv2d(channels[0], out, 1, bias=False)
        self.right = nn.Conv2d(channels[0], out, 1, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return (self.left(x) + self.right(x)) * self.scale

    def fuse(self) -> nn.Module:
        return Fast((self.left.weight + self.right.weight).detach() * self.scale)


class Join(nn.Module):
    """Takes two maps of different resolution; its linear layer counts as a product of matrices."""

    def __init__(self, channels: tuple[int, int], out: int, stride: int) -> None:
        super().__init__()
        self.mix = nn.Linear(sum(channels), out, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        joined = torch.cat((x, torch.nn.functional.interpolate(coarse, scale_factor=2.0)), dim=1)
        y: Tensor = self.norm(self.mix(joined.movedim(1, -1)).movedim(-1, 1))
        return y


class WrongShape(nn.Module):
    def __init__(self, channels: tuple[int, ...], out: int, stride: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1]


def no_module(channels: tuple[int, ...], out: int, stride: int) -> str:
    return "block"


class Failing(nn.Module):
    def __init__(self, channels: tuple[int, ...], out: int, stride: int) -> None:
        raise RuntimeError("no room")
