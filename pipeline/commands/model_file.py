"""The file of a model that the user names. Only names that are no files need the packages of the pipeline."""

from __future__ import annotations

from pathlib import Path


def model_file(name: str) -> Path:
    """Return the file that a name stands for.

    Args:
        name: A path, a variant of params.yaml (`nano`, `nano/0`), or a registered model (`models:/yolov7@champion`).

    Returns:
        The path; the file may be missing if the name can only be a path.

    Raises:
        ArtifactError: If the model of the name does not exist yet.
        SettingError: If params.yaml or the name is wrong.
    """
    if Path(name).exists() or Path(name).suffix == ".safetensors":
        return Path(name)
    from pipeline.tracking.named_models import find_model

    return find_model(name) or Path(name)
