"""TorchScript, with torch itself."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from yolov7.engines.arrays import check_size, to_decoded
from yolov7.engines.metadata import REMEDY, ExportMetadata
from yolov7.errors import ArtifactError, one_line

TEXTS_FILE = "yolov7.json"
"""The name of the metadata in the archive."""


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive that this program exported.

    Args:
        path: Any path.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(f"extra/{TEXTS_FILE}") for name in archive.namelist())


def read_torchscript_texts(path: Path) -> dict[str, str]:
    """Return the texts that a TorchScript file holds, without loading the model.

    Args:
        path: The file.

    Returns:
        The texts by name; empty if this program did not write the file.

    Raises:
        ArtifactError: If the file is damaged or is not an archive.
    """
    import json

    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith(f"extra/{TEXTS_FILE}")), None)
            texts = json.loads(archive.read(name)) if name else {}
            return {str(key): str(value) for key, value in texts.items()}
    except (zipfile.BadZipFile, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path}: is damaged or not a TorchScript file ({one_line(error)}); {REMEDY}") from None


@final
class TorchScriptEngine:
    """Runs a TorchScript file, in the precision of the file."""

    def __init__(self, path: Path, metadata: ExportMetadata, *, device: torch.device) -> None:
        """Load the file.

        Args:
            path: The file.
            metadata: What it says about itself.
            device: The CPU or a GPU.

        Raises:
            ArtifactError: If the file is damaged.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                self._run: Any = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ArtifactError(f"{path}: torch cannot load it ({one_line(error)}); {REMEDY}") from None
        self._metadata = metadata
        self.needs_suppression = metadata.needs_suppression
        self._device = device

    @torch.inference_mode()
    def decode(self, images: Tensor) -> Tensor:
        """Compute the decoded predictions of a batch.

        Args:
            images: Letterboxed images (B, 3, H, W) uint8 RGB, on any device and in any memory format.

        Returns:
            Predictions (B, boxes, 5 + classes) on the engine's device.
        """
        check_size(images, self._metadata)
        return to_decoded([self._run(images.to(self._device))], self._metadata)
