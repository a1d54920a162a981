"""Conversion between the two forms of E-ELAN: ELANs side by side and group convolutions (section 3.1 of the paper)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from yolov7.nn.fuse import rebuild
from yolov7.nn.model import DetectionModel
from yolov7.spec.block_schema import ElanRow
from yolov7.spec.graph import ModelSpec


def regroup(model: DetectionModel, *, grouped: bool) -> DetectionModel:
    """Return a model with the same outputs and all its E-ELANs in the given form.

    The kernels of the groups are concatenated along the output channels.

    Args:
        model: The model, before or after fusing; it stays unchanged.
        grouped: Whether to use group convolutions instead of ELANs side by side.

    Returns:
        The new model.
    """
    spec = regroup_spec(model.spec, grouped=grouped)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for name, row in model.spec.rows.items():
        if spec.rows[name] != row:
            assert isinstance(row, ElanRow)
            prefix = f"rows.{name}."
            inside = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
            changed = _join(inside, row.cardinality) if grouped else _split(inside, row.cardinality)
            state |= {prefix + key: value for key, value in changed.items()}
    return rebuild(model, spec=spec, state=state)


def faster_form(model: DetectionModel, images: Tensor) -> DetectionModel:
    """Return the model with its E-ELANs in the form that is faster on its device.

    On a CPU this is always the form side by side. On other devices, both forms are measured.

    Args:
        model: The model.
        images: Images (B, 3, H, W) of the intended size, on the device of the model.

    Returns:
        The faster model; the same one if it has no E-ELAN.
    """
    side_by_side = model if regroup_spec(model.spec, grouped=False) == model.spec else regroup(model, grouped=False)
    if not images.is_cuda or not any(row.num_branches > 1 for row in model.spec.rows.values()):
        return side_by_side
    return fastest((side_by_side, regroup(side_by_side, grouped=True)), images)


def fastest(models: Sequence[DetectionModel], images: Tensor, *, rounds: int = 5) -> DetectionModel:
    """Return the model with the shortest time. The models take turns, and the first round is not counted.

    Args:
        models: Models to compare.
        images: Images (B, 3, H, W) on their device.
        rounds: Number of rounds.

    Returns:
        The fastest model.
    """
    times = [[_measure(model, images) for model in models] for _ in range(rounds + 1)][1:]
    seconds = [min(column) for column in zip(*times, strict=True)]
    return models[seconds.index(min(seconds))]


def regroup_spec(spec: ModelSpec, *, grouped: bool) -> ModelSpec:
    """Return a specification with all its E-ELANs in the given form.

    Args:
        spec: The specification.
        grouped: Whether to use group convolutions.

    Returns:
        The changed specification.
    """
    rows = {
        name: row.model_copy(update={"grouped": grouped}) if isinstance(row, ElanRow) and row.cardinality > 1 else row
        for name, row in spec.rows.items()
    }
    return ModelSpec.model_validate({**dict(spec), "rows": rows})


@torch.inference_mode()
def _measure(model: DetectionModel, images: Tensor) -> float:
    """Return the seconds of one forward pass."""
    started = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - started


def _join(state: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Join `elans.0.a.conv.weight`, `elans.1.a.conv.weight`, ... to `a.conv.weight`; counters are equal in all."""
    first = [key.removeprefix("elans.0.") for key in state if key.startswith("elans.0.")]
    parts = {key: [state[f"elans.{i}.{key}"] for i in range(number)] for key in first}
    return {key: torch.cat(values) if values[0].ndim else values[0] for key, values in parts.items()}


def _split(state: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    return {
        f"elans.{i}.{key}": (value.chunk(number)[i] if value.ndim else value).clone()
        for i in range(number)
        for key, value in state.items()
    }
