"""The view in which MLflow's page compares the variants: columns of the table of runs, and charts.

MLflow keeps a view that users share as a tag of the experiment, and opens it by its key. The names in the state are
those of MLflow's web page.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

VIEW_KEY = "variants"

_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"

_PARAMETERS = ("spec", "epochs", "image_size")
_COLUMNS = (
    "attributes.`Duration`",
    *(f"metrics.`{name}`" for name in ("evaluate/AP", "evaluate/AP50", "evaluate/AP75")),
    *(f"metrics.`{name}`" for name in ("reparam/parameters", "reparam/gflops", "benchmark/fps")),
    *(f"params.`{name}`" for name in _PARAMETERS),
    *(f"tags.`{name}`" for name in ("variant", "seed", "current")),
)
_SECTION, _CURVES = "comparison of the variants", "training"


def set_shared_view(client: MlflowClient, experiment: str) -> None:
    """Store the view with an experiment, unless it is there already.

    Args:
        client: MLflow's client.
        experiment: The id of the experiment.
    """
    state = shared_view()
    if client.get_experiment(experiment).tags.get(_TAG) != state:
        client.set_experiment_tag(experiment, _TAG, state)


def shared_view() -> str:
    """Return the state of the view, in the form in which MLflow's page reads it."""
    metrics = ["reparam/parameters", "reparam/gflops", "benchmark/fps", "evaluate/AP50", "evaluate/AP"]
    charts = [
        _chart("parallel", "PARALLEL", selectedMetrics=metrics, selectedParams=[], showAllRuns=False),
        _scatter("cost", "reparam/gflops", "evaluate/AP"),
        _scatter("speed", "benchmark/fps", "evaluate/AP"),
        _chart("ap", "BAR", metricKey="evaluate/AP"),
        _chart("fps", "BAR", metricKey="benchmark/fps"),
        _line("curve-ap", "train/AP"),
        _line("curve-box", "train/box"),
        _line("curve-objectness", "train/objectness"),
        _line("curve-classification", "train/classification"),
    ]
    state = {
        "selectedColumns": list(_COLUMNS),
        "runsExpanded": {},
        "compareRunCharts": charts,
        "compareRunSections": [_section(_SECTION, "Comparison of the variants"), _section(_CURVES, "Training")],
    }
    return json.dumps(state, separators=(",", ":"))


def _section(uuid: str, name: str) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name": name,
        "display": True,
        "isReordered": False,
        "deleted": False,
        "isGenerated": False,
    }


def _chart(uuid: str, kind: str, *, section: str = _SECTION, **content: Any) -> dict[str, Any]:
    shared = {"runsCountToCompare": 100, "deleted": False, "isGenerated": False}
    return {"uuid": uuid, "type": kind, "metricSectionId": section, **shared, **content}


def _scatter(uuid: str, x: str, y: str) -> dict[str, Any]:
    return _chart(uuid, "SCATTER", xaxis={"key": x, "type": "METRIC"}, yaxis={"key": y, "type": "METRIC"})


def _line(uuid: str, metric: str) -> dict[str, Any]:
    axes = {"xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear", "yAxisKey": "metric"}
    content = {"metricKey": metric, "selectedMetricKeys": [metric], "lineSmoothness": 0, "range": {}, **axes}
    return _chart(uuid, "LINE", section=_CURVES, **content)
