"""Reading of golden vectors, and the deterministic weights that vectors of whole models were made with."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DATA = Path(__file__).parent / "data"


def load_vectors(name: str) -> dict[str, Any]:
    """Return the arrays of a golden file as tensors, and 0-dimensional arrays as numbers."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) if file[key].ndim else file[key].item() for key in file.files}


def load_facts(name: str) -> dict[str, Any]:
    """Return the measured facts of a graph of the reference, such as `training/yolov7`."""
    facts: dict[str, Any] = json.loads((DATA / "architectures.json").read_text())[name]
    return facts


def reference_weights(name: str, *, gain: float) -> list[Tensor]:
    """Return the deterministic weights of a graph of the reference in its order, without counters and anchors."""
    return [_draw(index, key, shape, gain=gain) for index, key, shape in _reference_entries(name)]


def reference_keys(name: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Return key, shape and type of every tensor of a graph of the reference, in its order."""
    with gzip.open(DATA / "state_dict_keys.json.gz", "rt") as file:
        return [(key, tuple(shape), dtype) for key, shape, dtype in json.load(file)[name]]


def reference_state(name: str, *, gain: float) -> dict[str, Tensor]:
    """Return the state dict of a graph of the reference: deterministic weights, zero counters and anchors."""
    facts = load_facts(name)
    levels = torch.tensor(facts["anchors_px"]).view(len(facts["strides"]), -1, 2)
    anchors = {
        "anchors": levels / torch.tensor(facts["strides"]).view(-1, 1, 1),
        "anchor_grid": levels[:, None, :, None, None, :],
    }
    drawn = iter(reference_weights(name, gain=gain))
    state: dict[str, Tensor] = {}
    for key, shape, dtype in reference_keys(name):
        counter = torch.zeros(shape, dtype=torch.int64) if dtype == "int64" else None
        buffer = anchors.get(key.rpartition(".")[2], counter)
        state[key] = next(drawn) if buffer is None else buffer
        assert state[key].shape == shape
    return state


def baseline_state(golden: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Return the state dict of a model of another project, such as `yolox-s/nc3`: drawn weights, zero counters."""
    with gzip.open(DATA / "state_dict_keys_baselines.json.gz", "rt") as file:
        entries = json.load(file)[name]
    return {key: _baseline_tensor(i, key, shape, golden) for i, (key, shape, _) in enumerate(entries)}


def _baseline_tensor(index: int, key: str, shape: list[int], golden: dict[str, Any]) -> Tensor:
    if key.endswith("anchors"):
        return golden["anchors_px"] / golden["strides"].view(-1, 1, 1)
    if key.endswith(("proj_conv.weight", "dfl.conv.weight")):
        return torch.arange(shape[1], dtype=torch.float32).view(shape)
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    return _draw(index, key, shape, gain=golden["gain"])


def fill(model: nn.Module, weights: list[Tensor]) -> None:
    """Copy weights in order. This is right only if the modules have the order of the reference."""
    own = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert [tuple(value.shape) for value in own.values()] == [tuple(value.shape) for value in weights]
    model.load_state_dict(dict(zip(own, weights, strict=True)), strict=False)


def reference_images(size: int) -> Tensor:
    """Return the input (1, 3, size, size) of the golden forward passes."""
    return torch.from_numpy(np.random.default_rng(1234).random((1, 3, size, size)).astype(np.float32))


def _reference_entries(name: str) -> list[tuple[int, str, list[int]]]:
    """Return index among all entries, key and shape."""
    with gzip.open(DATA / "state_dict_keys.json.gz", "rt") as file:
        entries = json.load(file)[name]
    skipped = ("num_batches_tracked", "anchors", "anchor_grid")
    return [(i, key, shape) for i, (key, shape, _) in enumerate(entries) if not key.endswith(skipped)]


def _draw(index: int, key: str, shape: list[int], *, gain: float) -> Tensor:
    n = np.random.default_rng(index).standard_normal(shape)
    return torch.from_numpy(np.asarray(_shape_noise(n, key, gain=gain), dtype=np.float32))


def _shape_noise(n: Any, key: str, *, gain: float) -> Any:
    if key.endswith(".implicit"):
        return 0.02 * n if ".ia" in key else 1 + 0.02 * n
    if key.endswith(("running_var", "_variance")):
        return 1 + 0.1 * abs(n)
    if n.ndim == 4:
        return n * np.sqrt(gain / np.prod(n.shape[1:]))
    return 1 + 0.1 * n if key.endswith(".weight") else 0.1 * n
