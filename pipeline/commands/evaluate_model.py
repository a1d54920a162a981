"""Measure any model, or a results file, on any data set, without touching the artifacts of the pipeline."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pipeline.commands.model_file import model_file
from yolov7.api import evaluate as evaluation
from yolov7.errors import SettingError, counted
from yolov7.evaluation.figures import coco_results
from yolov7.system.files import write_whole
from yolov7.system.threads import use_free_cpus

_MOST_CLASSES = 20
_ROWS = (
    ("AP", "AP", "AP50", "AP75"),
    ("AP by size", "APs", "APm", "APl"),
    ("AR at 1, 10, 100", "AR1", "AR10", "AR100"),
)


@dataclass(frozen=True)
class EvaluateOptions:
    """What `yolov7 evaluate` was asked for.

    Attributes:
        weights: A weight file, an exported model, a variant, or a registered model.
        predictions: A results file, which is measured instead of a model.
        data: The folder of a data set, a data.yaml, or a COCO file.
        split: The split; None chooses one.
        out: The folder for metrics.json and predictions.json; None writes nothing.
        as_json: Whether to print JSON.
        engine: What runs the model.
        device: Where it runs.
        precision: The floating-point type.
        batch_size: Images in a batch.
    """

    weights: str | None
    predictions: Path | None
    data: Path | None
    split: str | None
    out: Path | None
    as_json: bool
    engine: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 16


def evaluate_model(options: EvaluateOptions) -> None:
    """Measure a model or a results file, and print the figures.

    Args:
        options: What to measure, and how.

    Raises:
        SettingError: If the options do not fit together.
        ArtifactError: If the model cannot be opened.
        DataError: If the data or the results file cannot be read.
    """
    if options.data is None:
        raise SettingError("--weights and --predictions need --data: a folder, a data.yaml, or a COCO file")
    if (options.weights is None) == (options.predictions is None):
        raise SettingError("--data needs either --weights or --predictions")
    if options.predictions is not None:
        for name in ("engine", "device", "precision", "batch_size"):
            if (value := getattr(options, name)) != getattr(EvaluateOptions, name):
                option = f"--{name.replace('_', '-')} {value}"
                raise SettingError(f"{option} has no effect with --predictions, because no model runs; leave it out")
    result = _measure(options, options.data)
    content = _content(options, result)
    if options.out is not None:
        _write(options.out, content, result)
    if options.as_json:
        print(json.dumps(content, indent=1, ensure_ascii=False))
        return
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    print(_text(content))


def _measure(options: EvaluateOptions, data: Path) -> evaluation.Evaluation:
    with _bars() as progress:
        if options.predictions is not None:
            return evaluation.evaluate_results(options.predictions, data, split=options.split, progress=progress)
        use_free_cpus()
        return evaluation.evaluate(
            model_file(str(options.weights)),
            data,
            split=options.split,
            engine=options.engine,
            device=options.device,
            precision=options.precision,
            batch_size=options.batch_size,
            progress=progress,
        )


def _content(options: EvaluateOptions, result: evaluation.Evaluation) -> dict[str, Any]:
    model = result.model
    what: dict[str, Any] = {"predictions": str(options.predictions)}
    if model is not None:
        what = {
            "weights": options.weights,
            "engine": model.engine_name,
            "precision": model.precision,
            "image_size": model.image_size,
            **model.source,
        }
    counts = {"images": len(result.index), "objects": result.index.num_boxes}
    where = {"data": result.data, "split": result.split, **counts, "data_hash": result.index.evaluation_hash()}
    return {**what, **where, **result.figures.as_dict(), "notes": list(result.notes)}


def _write(folder: Path, content: dict[str, Any], result: evaluation.Evaluation) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "metrics.json", json.dumps(content, indent=1, ensure_ascii=False).encode())
    if result.model is not None:
        rows = coco_results(result.index, result.detections)
        write_whole(folder / "predictions.json", json.dumps(rows).encode())


def _text(content: dict[str, Any]) -> str:
    lines = [content["data"]]
    images, objects = counted(content["images"], "image"), counted(content["objects"], "object")
    subject = content.get("weights", content.get("predictions"))
    how = f", {content['engine']} in {content['precision']}, {content['image_size']} px" if "engine" in content else ""
    lines.append(f"{subject} on {content['split']}: {images}, {objects}{how}")
    for title, *names in _ROWS:
        lines.append(f"{title:<18}" + "".join(f"{name:<6}{_figure(content[name]):<9}" for name in names).rstrip())
    classes: dict[str, float | None] = content["per_class_AP"]
    ordered = sorted(classes.items(), key=lambda one: (one[1] is None, -(one[1] or 0.0)))
    if len(classes) > 1:
        lines += [f"  {_figure(value):<8}{name}" for name, value in ordered[:_MOST_CLASSES]]
    if len(classes) > _MOST_CLASSES:
        lines.append(f"  and {len(classes) - _MOST_CLASSES} more classes; --json prints all")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


@contextmanager
def _bars() -> Iterator[evaluation.Progress]:
    """Show a bar on standard error for each part of the work."""
    from rich.console import Console

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as bars:
        tasks: dict[str, Any] = {}

        def show(part: str, done: int, of: int) -> None:
            if part not in tasks:
                tasks[part] = bars.add_task(part, total=of)
            bars.update(tasks[part], completed=done)

        yield show
