"""Deployed detectors in MLflow: a logged model of the run, a version of the registered model, and its champion."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.tracking.champion import Decision, Evaluation, decide, first_champion
from pipeline.tracking.records import RunKey

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
_DIGEST = "weights"  # the tag by which a model and a version are found again: the hash of the weights
_EVALUATED = "evaluate."  # before the tags of a version's evaluation


def log_model(client: MlflowClient, run_id: str, weights: Path, *, key: RunKey, registered: str | None) -> None:
    """The detector in a form that `mlflow models serve` serves, and as a version; once for the same weights."""
    digest = _digest_of(weights)
    model_id = _find_model(client, run_id, digest) or _upload_model(client, run_id, weights, digest=digest)
    _link_to_run(client, run_id, model_id)
    if registered is None or _find_version(client, registered, digest, key) is not None:
        return
    with suppress(Exception):  # it is there already; what else is wrong shows in the next line
        client.create_registered_model(registered)
    tags = key.tags() | {_DIGEST: digest}
    client.create_model_version(registered, f"models:/{model_id}", run_id=run_id, tags=tags, model_id=model_id)


def log_version_evaluation(client: MlflowClient, weights: Path, *, key: RunKey, content: Mapping[str, Any]) -> str:
    """Notes on a version how it was evaluated, and gives it the alias `champion` where it deserves it; says so."""
    name = content["model"]
    version = _find_version(client, name, _digest_of(weights), key)
    if version is None:
        raise ValueError(f"{name!r} has no version with the weights of {key.variant} seed {key.seed}")
    for tag, value in {"AP": repr(content["AP"]), **content["basis"]}.items():
        client.set_model_version_tag(name, version.version, f"{_EVALUATED}{tag}", value)
    decision = _decide(client, name, str(version.version))
    if decision.version is not None:
        client.set_registered_model_alias(name, CHAMPION, decision.version)
    return f"{name}: {decision.reason}"


def _decide(client: MlflowClient, name: str, evaluated: str) -> Decision:
    known = {str(version.version): _evaluation(version) for version in _versions(client, name)}
    champion = client.get_registered_model(name).aliases.get(CHAMPION)
    now = known[evaluated]
    assert now is not None
    if champion is None:
        return first_champion(now)
    before = known.get(str(champion))
    if before is None:
        return Decision(None, f"version {champion} stays champion: it was not evaluated by this pipeline, {now} was")
    return decide(before, now, [one for one in known.values() if one is not None])


def _evaluation(version: ModelVersion) -> Evaluation | None:
    tags = {tag.removeprefix(_EVALUATED): value for tag, value in version.tags.items() if tag.startswith(_EVALUATED)}
    if "AP" not in tags:
        return None
    name = f"{version.tags.get('variant')}/{version.tags.get('seed')}"
    return Evaluation(str(version.version), name, float(tags.pop("AP")), tags)


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
    """The whole model with these weights; those of which an upload was broken off are removed."""
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
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "detector"
        save_served(folder, weights, about=Model(run_id=run_id, model_uuid=model_id, model_id=model_id))
        client.log_model_artifacts(model_id, str(folder))
    client.finalize_logged_model(model_id, "READY")
    return model_id


def _link_to_run(client: MlflowClient, run_id: str, model_id: str) -> None:
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    if model_id not in {model.model_id for model in (outputs.model_outputs if outputs else ())}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def _digest_of(weights: Path) -> str:
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
