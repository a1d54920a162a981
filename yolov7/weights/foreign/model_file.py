"""The tensors of a foreign file by the reference's names, whatever wrote the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import safetensors
from torch import Tensor

from yolov7.errors import ArtifactError, one_line
from yolov7.weights.foreign.checkpoint import read_checkpoint
from yolov7.weights.foreign.key_schemes import translate_names
from yolov7.weights.foreign.torch_file import naming_file, open_torch_file

_MAX_TENSORS = 20_000


@final
@dataclass(frozen=True)
class ForeignModel:
    """A model in a file of another implementation, whose tensors are not read yet.

    Attributes:
        path: The file.
        shapes: The shapes of its tensors by the reference's names.
        class_names: The names of its classes; None if the file does not have them.
        activations: The classes of its activation modules, such as `SiLU`; empty for a state dict.
        remarks: What the user should know about the implementation that wrote the file.
        read: A function that reads tensors: it takes the reference's names by any keys, and returns the tensors, on the
            CPU, by the same keys. It raises ArtifactError if the file is damaged.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    class_names: tuple[str, ...] | None
    activations: frozenset[str]
    remarks: tuple[str, ...]
    read: Callable[[Mapping[str, str]], dict[str, Tensor]]


def open_torch_model(path: Path) -> ForeignModel:
    """Open a file that torch.save wrote. Nothing in its pickle is executed.

    Args:
        path: A checkpoint with a module or a state dict.

    Returns:
        The model.

    Raises:
        ArtifactError: The file is missing, damaged, of another kind, or requires code to be executed.
    """
    file = open_torch_file(path)
    checkpoint = read_checkpoint(file)
    with naming_file(path):
        translation = translate_names(checkpoint.tensors)
    notes = {name: checkpoint.tensors[own] for name, own in translation.names.items()}
    return ForeignModel(
        path=path,
        shapes={name: note.shape for name, note in notes.items()},
        class_names=checkpoint.class_names,
        activations=checkpoint.activations,
        remarks=translation.remarks,
        read=lambda names: file.read({key: notes[name] for key, name in names.items()}),
    )


def open_safetensors_model(path: Path) -> ForeignModel:
    """Open a state dict in a safetensors file.

    Args:
        path: The file.

    Returns:
        The model.

    Raises:
        ArtifactError: The file is damaged.
    """

    def read(names: Mapping[str, str]) -> dict[str, Tensor]:
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(translation.names[name]) for key, name in names.items()}
        except (safetensors.SafetensorError, OSError) as error:
            raise _damaged(path, error) from None

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            own = list(file.keys())
            if len(own) > _MAX_TENSORS:
                raise ArtifactError(f"{path}: has {len(own)} tensors, far more than a detector has; give another file")
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in own}
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(path, error) from None
    with naming_file(path):
        translation = translate_names(own)
    return ForeignModel(
        path=path,
        shapes={name: shapes[key] for name, key in translation.names.items()},
        class_names=None,
        activations=frozenset(),
        remarks=translation.remarks,
        read=read,
    )


def _damaged(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{path}: is not a safetensors file, or is damaged ({one_line(error)}); give another file")
