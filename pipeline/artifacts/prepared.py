"""The splits that `prepare` wrote."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.artifacts.files import existing, stage_folder
from yolov7.data.index import ImageIndex, load_index
from yolov7.data.selection import keep_images
from yolov7.settings import TrainSettings
from yolov7.training.data_recipe import NAME, Fitted, describe_data, fit_to_data


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


def load_training_images(settings: TrainSettings) -> ImageIndex:
    """Load the part of the prepared training split that a training uses.

    Args:
        settings: The settings of the training.

    Returns:
        The index.

    Raises:
        ArtifactError: If the split is missing or damaged.
    """
    return keep_images(load_split("train"), settings.max_images)


def has_split(split: str) -> bool:
    """Return whether a split is prepared."""
    return (stage_folder("prepare") / f"{split}.npz").is_file()


def fit_to_prepared(settings: TrainSettings) -> Fitted:
    """Replace the recipe `small` by the settings that it stands for with the prepared data.

    Args:
        settings: The settings of a variant.

    Returns:
        The settings and the reasons; the same settings without reasons if they name another recipe or none.

    Raises:
        ArtifactError: If the data are not prepared.
    """
    return prepared_fit(settings)(settings)


def prepared_fit(settings: TrainSettings) -> Callable[[TrainSettings], Fitted]:
    """Return `fit_to_prepared` for several variations of the settings of one training, which reads the data once.

    Args:
        settings: The settings, whose recipe and training images the variations share.

    Raises:
        ArtifactError: If the data are not prepared.
    """
    if settings.recipe != NAME:
        return lambda stated: Fitted(stated, ())
    facts = describe_data(load_training_images(settings))
    return lambda stated: fit_to_data(stated, facts)
