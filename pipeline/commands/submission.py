"""The command `submission`: a variant's detections on images without annotations, for COCO's evaluation server."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts.files import WEIGHTS, existing, stage_folder
from pipeline.console import console, stage_line
from pipeline.experiment import Experiment, ResolvedVariant
from yolov7.data.read.coco import find_coco_file
from yolov7.data.read.coco_images import read_image_list
from yolov7.errors import SettingError, counted
from yolov7.evaluation.submission import write_submission
from yolov7.inference.engine import ModelEngine
from yolov7.system.precision import resolve_device, resolve_precision
from yolov7.weights.weight_files import load_weights

_LINES = 10  # of progress


def make_submission(
    experiment: Experiment, variant: ResolvedVariant, *, seed: int, images: str, output: Path | None
) -> str:
    """Write the archive that COCO's server takes, with the settings of `evaluate`.

    Args:
        experiment: The resolved content of params.yaml.
        variant: The variant, of which `reparam` has made the deployed weights.
        seed: Its seed.
        images: The name of the list of images in the folder of the data set, such as `image_info_test-dev2017`.
        output: The archive; None for `detections_<split>_<variant>_results.zip` in artifacts/submission.

    Returns:
        A line that says what was written.

    Raises:
        SettingError: If the data are not in COCO's format.
        DataError: If the list or its images cannot be used.
        ArtifactError: If the deployed weights are missing.
    """
    if experiment.data.format != "coco":
        raise SettingError(f"data.format={experiment.data.format!r} has no lists of images; it must be 'coco'")
    root = Path(experiment.data.path)
    path = existing(stage_folder("reparam", variant.name, seed) / WEIGHTS, made_by=f"reparam {variant.name}")
    device = resolve_device()
    weights = load_weights(path, device=device)
    file = find_coco_file(root, images)
    index = read_image_list(file, root=root, class_names=weights.class_names)
    split = file.stem.removeprefix("image_info_")
    name = f"detections_{split}_{variant.name}_results.zip"
    target = output or stage_folder("submission") / name
    count = write_submission(
        target,
        ModelEngine(weights.model, resolve_precision("auto", device)),
        index,
        image_size=weights.image_size,
        letterbox=weights.letterbox,
        batch_size=experiment.evaluate.batch_size,
        nms=experiment.evaluate.nms,
        progress=lambda done, total: _show(variant.name, done, total, step=experiment.evaluate.batch_size),
    )
    return f"{target}: {counted(count, 'detection')} on {counted(len(index), 'image')} of {split}"


def _show(variant: str, done: int, total: int, *, step: int) -> None:
    """Print a line after each tenth of the images."""
    if done * _LINES // total != (done - step) * _LINES // total and total >= 1000:
        console.print(stage_line("submission", variant, f"{done:,} of {total:,} images"))
