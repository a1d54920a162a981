"""Weight files by name: the variants of params.yaml, and the registered models of MLflow."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from pipeline.artifacts.files import RUNS, WEIGHTS, existing, stage_folder, whole_folder
from pipeline.experiment import load_experiment
from pipeline.params import PARAMS_FILE
from pipeline.tracking.addresses import project_folder, redact, sqlite_file, store_address
from pipeline.tracking.availability import OtherSchemaError
from pipeline.tracking.models import CHAMPION
from pipeline.tracking.store import TrackingStore
from yolov7.errors import ArtifactError, SettingError, UserError, one_line, shown, suggest

_REGISTERED = "models:/"
_LOGGED_WEIGHTS = f"artifacts/{WEIGHTS}"  # in the folder of a logged model


def find_model(name: str) -> Path | None:
    """Return the weight file that a name stands for.

    Args:
        name: A variant of params.yaml (`nano`, which means its first seed), a variant with a seed (`nano/1`), or a
            registered model (`models:/yolov7@champion`, `models:/yolov7/3`).

    Returns:
        The file; None if the name is of no such kind, so that it can only be a path.

    Raises:
        ArtifactError: If the weights do not exist yet, or the registered model cannot be read.
        SettingError: If the name or params.yaml is wrong.
    """
    if name.startswith(_REGISTERED):
        return _registered(name)
    match = re.fullmatch(r"([^/.\\][^/\\]*?)(?:/(\d+))?", name)
    if match is None or (Path(name).suffix and not Path(PARAMS_FILE).is_file()):
        return None
    if not Path(PARAMS_FILE).is_file():
        raise ArtifactError(
            f"there is no file {shown(name)}, and no {PARAMS_FILE} in this folder that could have such a variant"
        )
    experiment = load_experiment()
    variant, seed = match[1], int(match[2]) if match[2] else experiment.seeds[0]
    if variant not in experiment.variants:
        if Path(name).suffix:
            return None
        raise ArtifactError(
            f"there is no file {shown(name)}, and {PARAMS_FILE} has no such variant; it has: "
            f"{', '.join(experiment.variants)}{suggest(variant, experiment.variants)}"
        )
    if seed not in experiment.seeds:
        raise SettingError(f"seed {seed} is not in {PARAMS_FILE}; it has the seeds {list(experiment.seeds)}")
    return existing(stage_folder("reparam", variant, seed) / WEIGHTS, made_by=f"reparam {variant}")


def _registered(name: str) -> Path:
    """Return the weights of a version of a registered model; they are downloaded once if the store is remote."""
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", name)
    if match is None:
        raise SettingError(
            f"{shown(name)} must name an alias or a version of a registered model, as models:/yolov7@{CHAMPION} or "
            "models:/yolov7/3"
        )
    address = store_address()
    file = sqlite_file(address.uri)
    if file is not None and not file.exists():
        raise ArtifactError(f"{shown(name)} cannot be found, because there is no tracking store {address.name}")
    import mlflow

    try:
        client = TrackingStore(address.uri).client
        model, alias, number = match.groups()
        version = client.get_model_version_by_alias(model, alias) if alias else client.get_model_version(model, number)
        digest = hashlib.sha256(str(version.source).encode()).hexdigest()[:16]  # a new store counts from 1 again
        folder = project_folder() / RUNS / "models" / f"{model}-{version.version}-{digest}"
        if not folder.exists():
            weights = f"{_REGISTERED}{model}/{version.version}/{_LOGGED_WEIGHTS}"
            with whole_folder(folder) as draft:
                mlflow.artifacts.download_artifacts(weights, dst_path=str(draft), tracking_uri=address.uri)
    except (UserError, OtherSchemaError):
        raise
    except Exception as error:  # MLflow raises many kinds
        raise ArtifactError(f"{shown(name)} cannot be read from {address.name} ({redact(one_line(error))})") from None
    return folder / _LOGGED_WEIGHTS
