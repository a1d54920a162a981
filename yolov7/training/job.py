"""The description of a training run: plain values that can be sent to another process or machine."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from pathlib import Path

from yolov7.settings import Settings, TrainSettings
from yolov7.spec.spec_files import ModelSpec, spec_from_json
from yolov7.system.locks import exclusive

# Settings that do not affect the result. A recipe is expanded into its keys; weights are identified by their content.
NO_EFFECT = {
    "recipe",
    "weights",
    "checkpoint_every",
    "checkpoint_minutes",
    "checkpoints_kept",
    "loader_workers",
    "cache_images",
}

# Settings that were added later. At their defaults, they are left out of fingerprints, so that those of runs that were
# made before stay the same.
_ADDED = {
    "loss": ("simota", "atss_epochs", "objectness_balance"),
    "optim": ("nesterov", "clip_norm", "decay", "flat_share", "decay_biases", "ema"),
}

_PATIENCE = 30.0  # seconds that a worker process of an earlier start may take to end


class TrainJob(Settings):
    """One training run.

    Attributes:
        spec_json: The resolved spec of the model, as JSON.
        settings: The settings that decide the result.
        seed: The seed of all random numbers.
        data_folder: The absolute path of the folder with `train.npz` and, if there is a validation split, `val.npz`.
        data_hash: Identifies the prepared images and boxes.
        weights_hash: Identifies the weights that training starts from; empty if there are none.
        run_folder: The absolute path of the folder for checkpoints and results, on storage that every worker sees.
        continued_from: Earlier runs with fewer epochs that this run continues, oldest first, each as
            `fingerprint@epoch`; see `continuation`.
        notes: What the user should know about the settings; they do not affect the result.
    """

    spec_json: str
    settings: TrainSettings
    seed: int
    data_folder: Path
    data_hash: str
    weights_hash: str = ""
    run_folder: Path
    continued_from: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def spec(self) -> ModelSpec:
        """The spec of the model."""
        return spec_from_json(self.spec_json)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that depend on the data and on every setting that affects the result.

        They also depend on the runs that are continued, because the result depends on them.
        """
        unset = {part: _added_defaults(getattr(self.settings, part), names) for part, names in _ADDED.items()}
        settings = self.settings.model_dump_json(exclude={**dict.fromkeys(NO_EFFECT, True), **unset})
        parts = (self.spec_json, settings, str(self.seed), self.data_hash, self.weights_hash, *self.continued_from)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    def sole_writer(self) -> AbstractContextManager[None]:
        """Return a context manager that holds the lock of the run folder.

        The lock file is beside the folder, because the folder itself may be deleted. Entering the context raises
        ArtifactError if another process still holds the lock after 30 seconds.
        """
        lock = self.run_folder.with_name(f"{self.run_folder.name}.lock")
        return exclusive(lock, what=f"the run folder {self.run_folder}", patience=_PATIENCE)


def _added_defaults(settings: Settings, names: tuple[str, ...]) -> set[str]:
    """Return which of these settings have their defaults."""
    fields = type(settings).model_fields
    return {name for name in names if getattr(settings, name) == fields[name].default}
