"""Find the tensors and the class names of one model in the content of a reference checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from yolov7.errors import ArtifactError
from yolov7.weights.foreign.pickle_reader import StandIn, TensorNote
from yolov7.weights.foreign.torch_file import TorchFile, naming_file

_PARTS = ("ema", "model", "state_dict")  # in the order of preference: averaged weights are better
_MAX_DEPTH = 32  # of modules within modules
_MAX_PARTS = 20_000  # modules, parameters and buffers
_MAX_ENTRIES = 200_000  # of the mappings that hold them, counted each time that they are visited
_MAX_NAME = 200  # characters
_OF_OWN_TRAINING = {"fingerprint", "progress", "ema_updates", "optimizer"}  # keys that no other program writes together
_WRAPPER = "module."  # the prefix of a model that was saved within DataParallel


@dataclass(frozen=True)
class ForeignCheckpoint:
    """The model of a reference checkpoint.

    Attributes:
        tensors: Notes of its tensors by the reference's names, in the reference's order.
        class_names: The names of its classes; None if the checkpoint does not have them.
        activations: The classes of its activation modules, such as `SiLU`; empty for a state dict.
    """

    tensors: dict[str, TensorNote]
    class_names: tuple[str, ...] | None
    activations: frozenset[str]


def read_checkpoint(file: TorchFile) -> ForeignCheckpoint:
    """Find the model in a file that torch.save wrote.

    The model is a module or a state dict, either alone or in a mapping that a training saved. A mapping's `ema` is
    preferred to its `model`.

    Args:
        file: The opened file.

    Returns:
        The names and notes of the model's tensors; their values are not read.

    Raises:
        ArtifactError: The file holds no model, or something far larger than a model, or is a checkpoint with which
            this library continues a training.
    """
    if isinstance(file.content, dict) and file.content.keys() >= _OF_OWN_TRAINING:
        raise ArtifactError(
            f"{file.path}: is a checkpoint from which an interrupted training continues; give the weights.safetensors "
            "that the run writes at its end"
        )
    with naming_file(file.path):
        part, named = _choose_part(file.content)
        tensors = {name: value for name, value in named.items() if isinstance(value, TensorNote)}
        activations = (
            value.of for name, value in named.items() if isinstance(value, StandIn) and name.endswith(".act")
        )
        if tensors and all(name.startswith(_WRAPPER) for name in tensors):
            tensors = {name.removeprefix(_WRAPPER): note for name, note in tensors.items()}
        if not tensors:
            raise ArtifactError("holds no model and no state_dict")
        class_names = _find_class_names(part) or _find_class_names(file.content)
        return ForeignCheckpoint(tensors, class_names, frozenset(name.rpartition(".")[2] for name in activations))


def _choose_part(content: Any) -> tuple[Any, dict[str, Any]]:
    """Return the first part of a checkpoint that holds tensors, and its modules and tensors by their names."""
    parts = [content[name] for name in _PARTS if content.get(name)] if isinstance(content, dict) else []
    for part in (*parts, content):
        named = _name_parts(part)
        if any(isinstance(value, TensorNote) for value in named.values()):
            return part, named
    return content, {}


def _name_parts(part: Any) -> dict[str, Any]:
    """Return the modules and tensors of a module, or the entries of a mapping, by their names."""
    walk = _Walk()
    named = walk.module(part, prefix="", depth=0) if isinstance(part, StandIn) else walk.entries(part)
    parts: dict[str, Any] = {}
    for name, value in named:
        if len(parts) >= _MAX_PARTS:
            raise ArtifactError(f"its model has more than {_MAX_PARTS} parts, far more than a detector has")
        parts[name] = value
    return parts


@final
@dataclass
class _Walk:
    """A walk through modules, which may share their children and so be larger than the file is.

    Attributes:
        visited: How many entries of mappings were looked at so far.
    """

    visited: int = field(default=0)

    def module(self, module: StandIn, *, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
        """Yield parameters, then persistent buffers, then the children's, in torch's order."""
        if depth > _MAX_DEPTH:
            raise ArtifactError(f"its modules are nested more than {_MAX_DEPTH} levels deep")
        temporary = self._names(module.attributes.get("_non_persistent_buffers_set"))
        for name, value in self.entries(module.attributes.get("_parameters")):
            yield f"{prefix}{name}", value
        for name, value in self.entries(module.attributes.get("_buffers")):
            if name not in temporary:
                yield f"{prefix}{name}", value
        for name, child in self.entries(module.attributes.get("_modules")):
            if isinstance(child, StandIn):
                yield f"{prefix}{name}", child
                yield from self.module(child, prefix=f"{prefix}{name}.", depth=depth + 1)

    def entries(self, mapping: Any) -> Iterator[tuple[str, Any]]:
        """Yield the entries of a mapping whose keys are text; nothing for any other value."""
        if isinstance(mapping, Mapping):
            self._count(len(mapping))
            for name, value in mapping.items():
                if isinstance(name, str):
                    if len(name) > _MAX_NAME:
                        raise ArtifactError(f"it has a part whose name has {len(name)} characters")
                    yield name, value

    def _names(self, listed: Any) -> frozenset[str]:
        if not isinstance(listed, (list, tuple)):
            return frozenset()
        self._count(len(listed))
        return frozenset(name for name in listed if isinstance(name, str))

    def _count(self, entries: int) -> None:
        self.visited += entries
        if self.visited > _MAX_ENTRIES:
            raise ArtifactError(f"its model has more than {_MAX_ENTRIES} entries, far more than a detector has")


def _find_class_names(part: Any) -> tuple[str, ...] | None:
    """Return the `names` of a module or a mapping, which are a list, or a mapping from the numbers of the classes."""
    attributes = part.attributes if isinstance(part, StandIn) else part
    names = attributes.get("names") if isinstance(attributes, dict) else None
    if isinstance(names, dict):
        names = [names.get(i) for i in range(len(names))]
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None
