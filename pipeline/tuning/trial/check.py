"""What a trial left: its AP, and whether its model and settings are the sampled ones."""

from __future__ import annotations

import torch

from pipeline.tuning.search.space import Candidate
from pipeline.tuning.search.train_space import read_setting
from pipeline.tuning.trial.training import SETTINGS_FILE
from yolov7.data.index import load_index
from yolov7.nn.cost import count_parameters
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.spec_files import spec_from_json
from yolov7.training.anchors import differ_in_anchors_only
from yolov7.training.checkpoint import load_checkpoint
from yolov7.training.job import TrainJob
from yolov7.training.loop import WEIGHTS
from yolov7.training.record import best_line, final_line, read_epochs
from yolov7.weights.weight_files import first_difference, load_weights


def final_ap(job: TrainJob) -> float | None:
    """Return the AP of the weights that a complete run left, or None if it was not measured.

    These are the weights of the last epoch, or of the best ones if the settings ask for them.
    """
    lines = read_epochs(job.run_folder)
    AP = final_line(lines, best=job.settings.best_epochs > 0).get("AP") if lines else None
    return None if AP is None else float(AP)


def trained_values(candidate: Candidate, job: TrainJob) -> dict[str, float]:
    """Return the varied settings of a trial as its process recorded them; empty if it recorded none.

    Args:
        candidate: The sampled settings.
        job: The training.
    """
    path = job.run_folder / SETTINGS_FILE
    if not path.is_file():
        return {}
    recorded = TrainSettings.model_validate_json(path.read_bytes())
    return {key: read_setting(recorded, key) for key, _ in candidate.train}


def find_mismatch(candidate: Candidate, job: TrainJob) -> str:
    """Compare what a trial trained with the model and the settings that were sampled.

    Training may fit the anchors to the data, and `patience` may end it before its last epoch; neither is a mismatch.

    Args:
        candidate: The sampled model, or the sampled settings.
        job: The training.

    Returns:
        The first difference, or an empty string if there is none.
    """
    if candidate.train and (difference := _find_settings_mismatch(candidate, job)):
        return difference
    path = job.run_folder / WEIGHTS
    if not path.is_file():
        return _find_checkpoint_mismatch(candidate, job)
    weights = load_weights(path)
    sampled, trained = spec_from_json(candidate.spec_json), weights.model.spec
    same = sampled == trained if job.settings.anchors == "spec" else differ_in_anchors_only(sampled, trained)
    if not same:
        names = [name for name, row in sampled.rows.items() if trained.rows.get(name) != row]
        return f"the trained spec differs from the sampled one (rows: {', '.join(names) or 'other ones'})"
    pairs = {
        "parameters": (candidate.parameters, count_parameters(weights.model)),
        "image_size": (candidate.image_size, weights.image_size),
        "fingerprint": (job.fingerprint, weights.training.get("fingerprint")),
    }
    if not _ended_by_patience(job, epochs=weights.training.get("epochs")):
        pairs["epochs"] = (job.settings.epochs, weights.training.get("epochs"))
    different = [f"{name} of the sampled model is {a}, but {b} was trained" for name, (a, b) in pairs.items() if a != b]
    return different[0] if different else ""


def _find_settings_mismatch(candidate: Candidate, job: TrainJob) -> str:
    """Compare the settings that the process recorded with the sampled ones.

    That the weights were trained with the recorded settings follows from the fingerprint, which is compared later: it
    is that of `job`, and the recorded settings must give the same one.
    """
    path = job.run_folder / SETTINGS_FILE
    if not path.is_file():
        return f"the trial left no {SETTINGS_FILE}"
    recorded = job.model_copy(update={"settings": TrainSettings.model_validate_json(path.read_bytes())})
    for key, value in candidate.train:
        trained = read_setting(recorded.settings, key)
        if trained != value:
            return f"{key} of the sampled settings is {value:g}, but {trained:g} was trained"
    if recorded.fingerprint != job.fingerprint:
        return "the recorded settings differ from the sampled ones in a setting that is not varied"
    return ""


def _ended_by_patience(job: TrainJob, *, epochs: object) -> bool:
    lines = read_epochs(job.run_folder)
    best = best_line(lines) if job.settings.patience else None
    return best is not None and lines[-1]["epoch"] == epochs and epochs - best["epoch"] >= job.settings.patience


def _find_checkpoint_mismatch(candidate: Candidate, job: TrainJob) -> str:
    """Compare the checkpoint of a trial that did not reach its end."""
    paths = sorted(job.run_folder.glob("checkpoint-*.pt"))
    if not paths:
        return "the trial left neither weights nor a checkpoint"
    checkpoint = load_checkpoint(paths[-1])
    if checkpoint.fingerprint != job.fingerprint:
        return f"fingerprint of the sampled model is {job.fingerprint}, but {checkpoint.fingerprint} was trained"
    num_classes = len(load_index(job.data_folder / "train.npz").class_names)
    with torch.device("meta"):
        sampled = DetectionModel(spec_from_json(candidate.spec_json), num_classes=num_classes)
    parameters = {name: tuple(value.shape) for name, value in sampled.named_parameters()}
    if count_parameters(sampled) != candidate.parameters:
        return f"the sampled model has {candidate.parameters} parameters, but its spec has {count_parameters(sampled)}"
    trained = {name: tuple(value.shape) for name, value in checkpoint.model.items() if name in parameters}
    return first_difference(parameters, trained)
