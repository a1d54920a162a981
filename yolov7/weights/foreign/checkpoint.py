"""What a reference checkpoint holds for us: one model's tensors under their names, and its class names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from yolov7.errors import ArtifactError
from yolov7.weights.foreign.pickle_reader import StandIn, TensorNote
from yolov7.weights.foreign.torch_file import TorchFile, told_of

_PARTS = ("ema", "model", "state_dict")  # the averaged weights are the better ones, where there are any
_MAX_DEPTH = 32  # of modules within modules
_MAX_PARTS = 20_000  # modules, parameters, buffers
_WRAPPER = "module."  # of a model saved within DataParallel


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` under the reference's names, in its order; `class_names` where the checkpoint has them.

    `activations`: the classes of its activations, such as SiLU; none in a state dict.
    """

    tensors: dict[str, TensorNote]
    class_names: tuple[str, ...] | None
    activations: frozenset[str]


def read_checkpoint(file: TorchFile) -> Checkpoint:
    """The model of a file: a module or a state dict, alone or among what a training saves; `ema` before `model`."""
    with told_of(file.path):
        part = _choose_part(file.content)
        named = _name_parts(part)
        tensors = {name: value for name, value in named.items() if isinstance(value, TensorNote)}
        activations = (
            value.of for name, value in named.items() if isinstance(value, StandIn) and name.endswith(".act")
        )
        if tensors and all(name.startswith(_WRAPPER) for name in tensors):
            tensors = {name.removeprefix(_WRAPPER): note for name, note in tensors.items()}
        if not tensors:
            raise ArtifactError("holds no model and no state_dict")
        class_names = _names_of(part) or _names_of(file.content)
        return Checkpoint(tensors, class_names, frozenset(name.rpartition(".")[2] for name in activations))


def _choose_part(content: Any) -> Any:
    if isinstance(content, dict):
        return next((content[name] for name in _PARTS if content.get(name)), content)
    return content


def _name_parts(part: Any) -> dict[str, Any]:
    """The modules and tensors of a module that stand-ins stand for, or the entries of a mapping, under their names."""
    named = _walk(part, prefix="", depth=0) if isinstance(part, StandIn) else _entries(part)
    parts = dict(itertools.islice(named, _MAX_PARTS + 1))
    if len(parts) > _MAX_PARTS:
        raise ArtifactError(f"its model has more than {_MAX_PARTS} parts, far more than any of ours")
    return parts


def _walk(module: StandIn, *, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Parameters, persistent buffers, then the children's, as torch orders them."""
    if depth > _MAX_DEPTH:
        raise ArtifactError(f"its modules are nested more than {_MAX_DEPTH} deep")
    passing = module.attributes.get("_non_persistent_buffers_set", [])
    for name, value in _entries(module.attributes.get("_parameters")):
        yield f"{prefix}{name}", value
    for name, value in _entries(module.attributes.get("_buffers")):
        if name not in passing:
            yield f"{prefix}{name}", value
    for name, child in _entries(module.attributes.get("_modules")):
        if isinstance(child, StandIn):
            yield f"{prefix}{name}", child
            yield from _walk(child, prefix=f"{prefix}{name}.", depth=depth + 1)


def _entries(mapping: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(mapping, Mapping):
        yield from ((name, value) for name, value in mapping.items() if isinstance(name, str))


def _names_of(part: Any) -> tuple[str, ...] | None:
    """The class names that a module or a mapping carries as `names`: a list, or a mapping from their numbers."""
    attributes = part.attributes if isinstance(part, StandIn) else part
    names = attributes.get("names") if isinstance(attributes, dict) else None
    if isinstance(names, dict):
        names = [names.get(i) for i in range(len(names))]
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None
