"""A model learns from the labels: the demo's settings give a detector, and shuffled labels do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.data_settings import DataSettings, SyntheticSettings
from pipeline.experiment import load_experiment
from pipeline.stages.prepare import prepare
from yolov7.settings import TrainSettings
from yolov7.spec.spec_files import spec_to_json
from yolov7.training.job import TrainJob
from yolov7.training.loop import fit
from yolov7.training.record import read_epochs
from yolov7.training.worker import Worker

pytestmark = pytest.mark.slow

DEMO = load_experiment(Path(__file__).parents[2] / "experiments" / "demo.yaml")


def train_and_measure(folder: Path, monkeypatch: pytest.MonkeyPatch, *, shuffle_labels: bool) -> float:
    """Return AP on the validation split after a short training on a smaller version of the demo's data."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    synthetic = SyntheticSettings(train_images=400, val_images=80, image_size=128, shuffle_labels=shuffle_labels)
    prepare(DataSettings(synthetic=synthetic))
    changes = {"epochs": 8, "image_size": 128, "validate_every": 8}
    job = TrainJob(
        spec_json=spec_to_json(DEMO.variant("nano").spec),
        settings=TrainSettings.model_validate(DEMO.variant("nano").train.model_dump() | changes),
        seed=0,
        data_folder=folder / "artifacts" / "prepare",
        data_hash="",
        run_folder=folder / "run",
    )
    fit(job, Worker(device=torch.device("cpu"), loader_workers=1))
    return float(read_epochs(folder / "run")[-1]["AP"])


def test_labels_that_mean_nothing_teach_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = train_and_measure(tmp_path / "true", monkeypatch, shuffle_labels=False)
    control = train_and_measure(tmp_path / "shuffled", monkeypatch, shuffle_labels=True)
    assert control < 0.05
    assert learned > 0.1 > 3 * control
