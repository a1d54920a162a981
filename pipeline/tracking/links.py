"""Find the runs that figures come from, to refer to them."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.report.runs import RunLink
from pipeline.tracking.addresses import StoreAddress, sqlite_file, store_address
from pipeline.tracking.availability import availability_of
from pipeline.tracking.records import RunKey
from pipeline.tracking.store import TrackingStore

_LOCAL_PAGE = "http://127.0.0.1:5000"  # where `yolov7 ui` shows the project's own store


def find_runs(experiment: str, keys: Iterable[RunKey]) -> dict[RunKey, RunLink]:
    """Find the runs of variants and seeds. Nothing is raised: a store that cannot be read has no runs.

    Args:
        experiment: The name of the MLflow experiment.
        keys: What identifies the runs.

    Returns:
        The runs that the store has.
    """
    address = store_address()
    availability = availability_of(f"MLflow at {address.name}")
    file = sqlite_file(address.uri)
    if availability.is_paused() or (file is not None and not file.is_file()):
        return {}
    try:
        return _find(TrackingStore(address.uri), address, experiment, keys)
    except Exception as error:
        availability.record_failure(error)
        return {}


def _find(
    store: TrackingStore, address: StoreAddress, experiment: str, keys: Iterable[RunKey]
) -> dict[RunKey, RunLink]:
    place = store.find_experiment(experiment)
    found: dict[RunKey, RunLink] = {}
    if place is None:
        return found
    for key in keys:
        run_id = store.find_run(place, key)
        if run_id is not None:
            tags = store.client.get_run(run_id).data.tags
            page = address.name.rstrip("/") if address.uri.startswith("http") else _LOCAL_PAGE
            link = f"{page}/#/experiments/{place}/runs/{run_id}"
            found[key] = RunLink(run_id, link, tags.get("mlflow.source.git.commit", ""))
    return found
