"""The description of a training run: plain values that can be sent to another process or machine."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pydantic import Field

from yolov7.errors import SettingError
from yolov7.recipes import RECIPES
from yolov7.settings import TrainSettings
from yolov7.spec.spec_files import ModelSpec, spec_from_json
from yolov7.system.locks import exclusive
from yolov7.system.plugins import BLOCK, allow_plugins, load_plugin, source_hash
from yolov7.system.settings_base import AUTO_NORM, Settings

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

UNHASHED: dict[str, Any] = {**dict.fromkeys(NO_EFFECT, True), "distil": {"teacher"}}  # the teacher, by its content too

# Settings that were added later. At their defaults, they are left out of fingerprints, so that those of runs that were
# made before stay the same.
_ADDED = {
    "loss": ("simota", "atss_epochs", "objectness_balance", "objectness_by_size", "four_cells"),
    "augment": ("plugins",),
    "optim": ("nesterov", "decay", "flat_share", "decay_biases", "ema", "layer_decay"),
}
_ADDED_ABOVE = (  # the same for settings that are in no part
    "average_best",
    "callbacks",
    "distil",
    "freeze_batch_norm",
    "low_resolution",
    "low_resolution_share",
    "max_images",
    "unfreeze_epochs",
)

_CLIP_NORM: float = RECIPES["u6"]["optim"]["clip_norm"]
_CLIPPED_HEADS = {"detect_dfl", "detect_one_to_one"}
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
        teacher_hash: Identifies the weights of the teacher; empty if there is none.
        run_folder: The absolute path of the folder for checkpoints and results, on storage that every worker sees.
        own_code: Digests of the sources of own code, by its dotted name (see `hash_own_code`). Workers may import it.
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
    teacher_hash: str = ""
    run_folder: Path
    own_code: dict[str, str] = Field(default_factory=dict)
    continued_from: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def spec(self) -> ModelSpec:
        """The spec of the model."""
        return spec_from_json(self.spec_json)

    @property
    def largest_norm(self) -> float:
        """The largest allowed norm of the gradient of a step; 0 if there is no limit.

        With SGD and no limit, models with the heads of YOLOv7-u6 often diverge in the first epochs.
        """
        if (stated := self.settings.optim.clip_norm) != AUTO_NORM:
            return stated
        blocks = {row["block"] for row in json.loads(self.spec_json).get("rows", {}).values()}
        return _CLIP_NORM if blocks & _CLIPPED_HEADS else 0.0

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that depend on the data and on every setting that affects the result.

        They also depend on the runs that are continued, because the result depends on them.
        """
        unset: dict[str, Any] = {
            part: _added_defaults(getattr(self.settings, part), names) for part, names in _ADDED.items()
        }
        unset |= dict.fromkeys(_added_defaults(self.settings, _ADDED_ABOVE), True)
        limit = self.largest_norm
        if not limit:
            unset["optim"].add("clip_norm")
        optim = self.settings.optim.model_copy(update={"clip_norm": limit})
        settings = self.settings.model_copy(update={"optim": optim}).model_dump_json(exclude=UNHASHED | unset)
        own_code = [f"{name} {digest}" for name, digest in sorted(self.own_code.items())]
        parts = [self.spec_json, settings, str(self.seed), self.data_hash, self.weights_hash, *own_code]
        parts += [self.teacher_hash] if self.teacher_hash else []
        parts += self.continued_from
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    @property
    def origin(self) -> dict[str, Any]:
        """What weight files say about the run that made them."""
        origin: dict[str, Any] = {"fingerprint": self.fingerprint, "seed": self.seed}
        origin |= {"own_code": self.own_code} if self.own_code else {}
        origin |= {"teacher": self.teacher_hash} if self.teacher_hash else {}
        return origin | ({"continued_from": list(self.continued_from)} if self.continued_from else {})

    def sole_writer(self) -> AbstractContextManager[None]:
        """Return a context manager that holds the lock of the run folder.

        The lock file is beside the folder, because the folder itself may be deleted. Entering the context raises
        ArtifactError if another process still holds the lock after 30 seconds.
        """
        lock = self.run_folder.with_name(f"{self.run_folder.name}.lock")
        return exclusive(lock, what=f"the run folder {self.run_folder}", patience=_PATIENCE)


def hash_own_code(spec: ModelSpec, settings: TrainSettings) -> dict[str, str]:
    """Return digests of the sources of all own code of a training, after checking that it can be used.

    Args:
        spec: The spec of the model, which may name own blocks.
        settings: The settings of the training.

    Returns:
        A digest of the source file by dotted name.

    Raises:
        SettingError: A block may not be imported, or cannot be used.
    """
    for name, row in spec.plugin_rows.items():
        try:
            load_plugin(row.of, BLOCK, options=row.options)
        except SettingError as error:
            raise SettingError(f"{name}: {error} (spec {spec.name})") from None
    kinds = settings.own_code | {row.of: BLOCK for row in spec.plugin_rows.values()}
    return {name: source_hash(name, kind) for name, kind in kinds.items()}


def check_own_code(job: TrainJob) -> None:
    """Check that own code is here what it was where the run was described, and allow its blocks.

    Args:
        job: The run.

    Raises:
        SettingError: A source file has another content.
    """
    blocks = {row.of for row in job.spec.plugin_rows.values()}
    allow_plugins(sorted(blocks & job.own_code.keys()))
    found = hash_own_code(job.spec, job.settings)
    changed = [name for name, digest in found.items() if job.own_code.get(name) != digest]
    if changed:
        raise SettingError(
            f"the source file of {changed[0]} is not the one with which this training began; it was edited meanwhile, "
            "or this machine has another version. Start the training again"
        )


def _added_defaults(settings: Settings, names: tuple[str, ...]) -> set[str]:
    """Return which of these settings have their defaults."""
    fields = type(settings).model_fields
    return {name for name in names if getattr(settings, name) == fields[name].default}
