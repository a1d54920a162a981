"""The images of a training run: the training split, or a part of it."""

from __future__ import annotations

from yolov7.data.index import ImageIndex, load_index
from yolov7.data.selection import keep_images
from yolov7.errors import counted
from yolov7.settings import TrainSettings
from yolov7.training.job import TrainJob


def load_training_split(job: TrainJob) -> ImageIndex:
    """Load the images that a run is trained on.

    Args:
        job: The run.

    Returns:
        Their index.

    Raises:
        ArtifactError: The prepared index is missing or damaged.
    """
    return keep_images(load_index(job.data_folder / "train.npz"), job.settings.max_images)


def describe_images(index: ImageIndex, settings: TrainSettings) -> tuple[str, ...]:
    """Return a note on the number of training images if `max_images` is set, else nothing.

    Args:
        index: The images that the run is trained on.
        settings: The settings of the run.
    """
    if not settings.max_images:
        return ()
    images = counted(len(index), "image")
    return (f"training uses {images} of the training split (max_images={settings.max_images})",)
