"""Write checkpoints like the reference implementation's: pickled modules of classes that do not exist here."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "anchors", "anchor_grid")


@contextmanager
def foreign_classes() -> Iterator[tuple[type[nn.Module], type[nn.Module]]]:
    """Provide the classes `models.yolo.Model` and `models.common.Conv` while something is being pickled."""
    modules = {name: ModuleType(name) for name in ("models", "models.yolo", "models.common")}
    model = type("Model", (nn.Module,), {"__module__": "models.yolo"})
    conv = type("Conv", (nn.Module,), {"__module__": "models.common"})
    modules["models.yolo"].Model, modules["models.common"].Conv = model, conv
    sys.modules |= modules
    try:
        yield model, conv
    finally:
        for name in modules:
            del sys.modules[name]


def write_checkpoint(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    part: str = "model",
    names: Any = None,
    half: bool = False,
    activation: nn.Module | None = None,
    **how: Any,
) -> Path:
    """Write a training checkpoint with a whole module under `part`; `how` is passed to torch.save."""
    with foreign_classes() as (model, conv):
        module = make_tree(state, root=model, inner=conv)
        module = module.half() if half else module
        if activation is not None:
            module.get_submodule("model.0").act = activation
        if names is not None:
            module.names = names
        module.yaml, module.save = {"nc": 80, "anchors": [[1, 2]]}, [4, 11, 24]
        content = {"epoch": 3, "best_fitness": torch.tensor(0.5).numpy(), "training_results": None, "optimizer": None}
        torch.save({**content, "model": None, "ema": None, part: module}, path, **how)
    return path


def make_tree(state: Mapping[str, Tensor], *, root: type[nn.Module], inner: type[nn.Module]) -> nn.Module:
    """Build nested modules whose state dict is this one, in the same order."""
    tree = root()
    for key, tensor in state.items():
        *path, name = key.split(".")
        module = tree
        for part in path:
            if part not in module._modules:
                module.add_module(part, inner())
            module = module._modules[part]
        if name in _BUFFERS:
            module.register_buffer(name, tensor)
        else:
            module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    assert list(tree.state_dict()) == list(state)
    return tree


def write_zip(path: Path, pickled: bytes, *, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> Path:
    """Write a file in the zip form of torch.save; `entries` are the storages, with `_` before their keys."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", pickled)
        for name, content in entries.items():
            archive.writestr(f"x/data/{name.removeprefix('_')}", content)
    return path
