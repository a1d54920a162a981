"""Log deployed detectors: as a model of the run, as a version of the registered model, and perhaps as its champion."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.tracking.availability import UnexpectedAnswerError
from pipeline.tracking.champion import ChampionDecision, VersionEvaluation, decide, first_champion
from pipeline.tracking.records import RunKey
from yolov7.system.files import sha256_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
_DIGEST = "weights"  # the tag that holds the hash of the weights, by which a model and a version are found again
_EVALUATED = "evaluate."  # prefix of the tags that hold the evaluation of a version


def log_model(client: MlflowClient, run_id: str, weights: Path, *, key: RunKey, registered: str | None) -> None:
    """Log a detector in a form that `mlflow models serve` serves, once for the same weights.

    Args:
        client: MLflow's client.
        run_id: The run of the detector.
        weights: The weight file.
        key: What identifies the run.
        registered: The registered model of which it becomes a version; None for no version.
    """
    digest = sha256_of(weights)
    model_id = _find_model(client, run_id, digest) or _upload_model(client, run_id, weights, digest=digest)
    _link_to_run(client, run_id, model_id)
    if registered is None or _find_version(client, registered, digest, key) is not None:
        return
    with suppress(Exception):  # it may exist already; any other failure shows in the next request
        client.create_registered_model(registered)
    tags = key.tags() | {_DIGEST: digest}
    with _default_store(client.tracking_uri):
        client.create_model_version(registered, f"models:/{model_id}", run_id=run_id, tags=tags, model_id=model_id)


@contextmanager
def _default_store(uri: str) -> Iterator[None]:
    """Make a store MLflow's default, because its model registry looks up the logged model in the default store.

    Without this, MLflow would open the store of the current folder, and make a folder with an encoded name for it.
    """
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


def has_model(client: MlflowClient, run_id: str, weights: Path, *, key: RunKey, registered: str | None) -> bool:
    """Return whether the store holds what `log_model` logs.

    Args:
        client: MLflow's client.
        run_id: The run of the detector.
        weights: The weight file.
        key: What identifies the run.
        registered: The registered model, or None.

    Returns:
        True if the model and its version are there.
    """
    digest = sha256_of(weights)
    if _find_model(client, run_id, digest) is None:
        return False
    return registered is None or _find_version(client, registered, digest, key) is not None


def log_version_evaluation(client: MlflowClient, weights: Path, *, key: RunKey, content: Mapping[str, Any]) -> str:
    """Tag a version with its evaluation, and give it the alias `champion` if it is the best.

    Args:
        client: MLflow's client.
        weights: The weight file of the version.
        key: What identifies the run.
        content: `model` (the registered model), `AP`, and `basis` (what the AP was measured on).

    Returns:
        The decision about the alias in one line.

    Raises:
        UnexpectedAnswerError: If the store holds no version with these weights.
    """
    name = content["model"]
    version = _find_version(client, name, sha256_of(weights), key)
    if version is None:
        raise UnexpectedAnswerError(f"{name!r} has no version with the weights of {key.variant} seed {key.seed}")
    for tag, value in _evaluation_tags(content).items():
        client.set_model_version_tag(name, version.version, tag, value)
    decision = _decide(client, name, str(version.version))
    if decision.version is not None:
        client.set_registered_model_alias(name, CHAMPION, decision.version)
    return f"{name}: {decision.reason}"


def has_evaluation(client: MlflowClient, weights: Path, *, key: RunKey, content: Mapping[str, Any]) -> bool:
    """Return whether the store holds what `log_version_evaluation` logs.

    Args:
        client: MLflow's client.
        weights: The weight file of the version.
        key: What identifies the run.
        content: As for `log_version_evaluation`.

    Returns:
        True if the version has the tags of its evaluation.
    """
    version = _find_version(client, content["model"], sha256_of(weights), key)
    return version is not None and _evaluation_tags(content).items() <= version.tags.items()


def _evaluation_tags(content: Mapping[str, Any]) -> dict[str, str]:
    return {f"{_EVALUATED}{tag}": value for tag, value in {"AP": repr(content["AP"]), **content["basis"]}.items()}


def _decide(client: MlflowClient, name: str, evaluated: str) -> ChampionDecision:
    known = {str(version.version): _evaluation(version) for version in _versions(client, name)}
    champion = client.get_registered_model(name).aliases.get(CHAMPION)
    now = known.get(evaluated)
    if now is None:
        raise UnexpectedAnswerError(f"version {evaluated} of {name!r} does not hold its evaluation")
    if champion is None:
        return first_champion(now)
    before = known.get(str(champion))
    if before is None:
        return ChampionDecision(
            None, f"version {champion} stays champion: it was not evaluated by this pipeline, {now} was"
        )
    return decide(before, now, [one for one in known.values() if one is not None])


def _evaluation(version: ModelVersion) -> VersionEvaluation | None:
    tags = {tag.removeprefix(_EVALUATED): value for tag, value in version.tags.items() if tag.startswith(_EVALUATED)}
    if "AP" not in tags:
        return None
    name = f"{version.tags.get('variant')}/{version.tags.get('seed')}"
    return VersionEvaluation(str(version.version), name, float(tags.pop("AP")), tags)


def _find_version(client: MlflowClient, name: str, digest: str, key: RunKey) -> ModelVersion | None:
    wanted = key.tags() | {_DIGEST: digest}
    found = [version for version in _versions(client, name) if wanted.items() <= version.tags.items()]
    return min(found, key=lambda version: int(version.version), default=None)


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    versions, token = [], None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        versions += page
        token = page.token
        if not token:
            return versions


def _find_model(client: MlflowClient, run_id: str, digest: str) -> str | None:
    """Return the complete model with these weights; delete models whose upload was interrupted."""
    experiment = client.get_run(run_id).info.experiment_id
    whole = None
    for model in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        if model.tags.get(_DIGEST) == digest and str(model.status) == "READY":
            whole = str(model.model_id)
        elif str(model.status) == "PENDING":
            client.delete_logged_model(model.model_id)
    return whole


def _upload_model(client: MlflowClient, run_id: str, weights: Path, *, digest: str) -> str:
    from mlflow.models import Model

    from pipeline.tracking.served_model import save_served

    experiment = client.get_run(run_id).info.experiment_id
    made = client.create_logged_model(experiment, "detector", run_id, tags={_DIGEST: digest}, model_type="")
    model_id = str(made.model_id)
    if not model_id:
        raise UnexpectedAnswerError("the answer contains no id of a model")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "detector"
        save_served(folder, weights, about=Model(run_id=run_id, model_uuid=model_id, model_id=model_id))
        client.log_model_artifacts(model_id, str(folder))
        _confirm_upload(client, model_id, folder)
    client.finalize_logged_model(model_id, "READY")
    return model_id


def _confirm_upload(client: MlflowClient, model_id: str, folder: Path) -> None:
    """Check that the store holds the model file and the weights: a proxy may have answered instead of it."""
    top = {info.path for info in client.list_logged_model_artifacts(model_id)}
    below = {info.path: info.file_size for info in client.list_logged_model_artifacts(model_id, "artifacts")}
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in (folder / "artifacts").iterdir()}
    if "MLmodel" not in top or not sizes.items() <= below.items():
        raise UnexpectedAnswerError("the server accepted the files of a model, but does not hold them")


def _link_to_run(client: MlflowClient, run_id: str, model_id: str) -> None:
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    if model_id not in {model.model_id for model in (outputs.model_outputs if outputs else ())}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
