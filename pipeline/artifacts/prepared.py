"""The splits that `prepare` wrote."""

from __future__ import annotations

from pipeline.artifacts.files import existing, stage_folder
from yolov7.data.index import ImageIndex, load_index


def load_split(split: str) -> ImageIndex:
    """Load the index of a prepared split.

    Args:
        split: `train`, `val` or `test`.

    Returns:
        The index.

    Raises:
        ArtifactError: If it is missing or damaged; the message names the command that makes it.
    """
    return load_index(existing(stage_folder("prepare") / f"{split}.npz", made_by="prepare"))


def has_split(split: str) -> bool:
    """Return whether a split is prepared."""
    return (stage_folder("prepare") / f"{split}.npz").is_file()
