"""What a training run is: plain values that can travel to another process or node."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from pathlib import Path

from yolov7.settings import Settings, TrainSettings
from yolov7.spec.spec_files import ModelSpec, spec_from_json
from yolov7.system.locks import exclusive

# Settings that do not affect what is learned. A recipe is expanded into its keys; of weights, the content counts.
NO_EFFECT = {
    "recipe",
    "weights",
    "checkpoint_every",
    "checkpoint_minutes",
    "checkpoints_kept",
    "loader_workers",
    "cache_images",
}

_PATIENCE = 30.0  # seconds that an orphaned worker of an earlier start may take to end


class TrainJob(Settings):
    """One run: a model, its settings, a seed, where the prepared data are and where the run keeps its state."""

    spec_json: str
    settings: TrainSettings
    seed: int
    data_folder: Path  # absolute; holds train.npz and, where there is one, val.npz
    data_hash: str  # of the prepared images and boxes
    weights_hash: str = ""  # of the weights that it starts from, if there are any; their path is absolute
    run_folder: Path  # absolute, on storage that every worker sees

    @property
    def spec(self) -> ModelSpec:
        return spec_from_json(self.spec_json)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change when the data or any parameter that the result hangs on does."""
        settings = self.settings.model_dump_json(exclude=NO_EFFECT)
        parts = (self.spec_json, settings, str(self.seed), self.data_hash, self.weights_hash)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    def sole_writer(self) -> AbstractContextManager[None]:
        """The lock of the run folder, beside it: the folder itself may be emptied."""
        lock = self.run_folder.with_name(f"{self.run_folder.name}.lock")
        return exclusive(lock, what=f"the run folder {self.run_folder}", patience=_PATIENCE)
