"""E-ELAN's two forms, one into the other: ELANs side by side, and group convolutions (the paper's section 3.1)."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from yolov7.graph import ModelSpec
from yolov7.model import DetectionModel
from yolov7.reparam import rebuild
from yolov7.rows import ElanRow


def regroup(model: DetectionModel, *, grouped: bool) -> DetectionModel:
    """A new model with the same outputs, its E-ELANs as group convolutions or side by side; trained or fused.

    Expand, shuffle and merge cardinality: a group's kernels lie behind one another along the output channels.
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


def faster_form(model: DetectionModel, images: Tensor, *, rounds: int = 5) -> DetectionModel:
    """The model, or its other form, whichever runs these images (B, 3, H, W) faster where they and the model are.

    The model is in evaluation mode. Both forms take turns; the fastest round of each counts. One without E-ELAN comes
    back as it is, at once.
    """
    e_elans = [row for row in model.spec.rows.values() if isinstance(row, ElanRow) and row.cardinality > 1]
    if not e_elans:
        return model
    forms = (model, regroup(model, grouped=not e_elans[0].grouped))
    for form in forms:
        _measure(form, images)  # what is chosen or compiled at the first run does not count
    times = [[_measure(form, images) for form in forms] for _ in range(rounds)]
    seconds = [min(column) for column in zip(*times, strict=True)]
    return forms[seconds.index(min(seconds))]


def regroup_spec(spec: ModelSpec, *, grouped: bool) -> ModelSpec:
    """The spec with all its E-ELANs in this form."""
    rows = {
        name: row.model_copy(update={"grouped": grouped}) if isinstance(row, ElanRow) and row.cardinality > 1 else row
        for name, row in spec.rows.items()
    }
    return ModelSpec.model_validate({**dict(spec), "rows": rows})


@torch.inference_mode()
def _measure(model: DetectionModel, images: Tensor) -> float:
    """Seconds of one forward."""
    started = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - started


def _join(state: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """`elans.0.a.conv.weight`, `elans.1.a.conv.weight` -> `a.conv.weight`; counters are equal in all."""
    first = [key.removeprefix("elans.0.") for key in state if key.startswith("elans.0.")]
    parts = {key: [state[f"elans.{i}.{key}"] for i in range(number)] for key in first}
    return {key: torch.cat(values) if values[0].ndim else values[0] for key, values in parts.items()}


def _split(state: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    return {
        f"elans.{i}.{key}": (value.chunk(number)[i] if value.ndim else value).clone()
        for i in range(number)
        for key, value in state.items()
    }
