"""Training checkpoints: everything that going on exactly where a run stopped needs, in one file."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from yolov7.errors import ArtifactError
from yolov7.files import write_whole


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two epochs.

    Augmentation and sampling draw from generators made of (seed, epoch, image), so `epoch` is their whole state.
    """

    fingerprint: str  # of the data and settings that it belongs to
    epoch: int  # epochs that are done
    step: int
    skipped_steps: int
    seconds: float  # of training so far
    model: dict[str, Any]
    ema: dict[str, Any]
    ema_updates: int
    optimizer: dict[str, Any]
    scaler: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint; the file at `path` is always whole."""
    buffer = io.BytesIO()
    torch.save({name: getattr(checkpoint, name) for name in _FIELDS}, buffer)
    write_whole(path, buffer.getvalue())


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint, tensors and plain containers only; ArtifactError for a damaged one."""
    try:
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, TypeError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ArtifactError(f"checkpoint {path} is damaged ({reason}); delete it to train from the start") from None


_FIELDS = tuple(Checkpoint.__dataclass_fields__)
