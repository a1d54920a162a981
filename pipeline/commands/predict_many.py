"""`predict --ray`: detect objects in a folder or bucket of images with a pool of Ray actors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.commands.model_file import model_file
from pipeline.console import console, stage_line
from pipeline.ray.predict_at_scale import predict_at_scale
from pipeline.ray.shards import ShardFormat
from yolov7.errors import SettingError, counted
from yolov7.settings import NmsSettings

_SHOWN = 10  # unreadable images that are printed; _summary.json lists all of them


def predict_many(
    weights: str,
    sources: Sequence[str],
    out: str,
    *,
    format: str,
    actors: int,
    batch_size: int,
    nms: NmsSettings,
    engine: str,
    device: str,
    precision: str,
) -> int:
    """Detect objects in many images and print the progress. The same command continues an interrupted job.

    Args:
        weights: A weight file, an exported file or folder, a variant, or a registered model.
        sources: One folder, or one URI such as s3://bucket/folder.
        out: The folder or URI of the results.
        format: `jsonl` or `parquet`.
        actors: Number of processes that detect objects.
        batch_size: Number of images that a model processes at once.
        nms: Thresholds and limits.
        engine: Name of the engine.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `float32`, `bfloat16` or `float16`.

    Returns:
        The number of images that cannot be read.

    Raises:
        UserError: If a source, a setting or the model cannot be used, or if Ray cannot be started.
    """
    formats: dict[str, ShardFormat] = {"jsonl": "jsonl", "parquet": "parquet"}
    if format not in formats:
        raise SettingError(f"--format={format} is unknown; use jsonl or parquet")
    if len(sources) != 1:
        raise SettingError(f"--ray takes one SOURCE, a folder or a URI, and not {len(sources)}")
    summary = predict_at_scale(
        str(model_file(weights)),
        sources[0],
        out,
        format=formats[format],
        actors=actors,
        batch_size=batch_size,
        nms=nms,
        engine=engine,
        device=device,
        precision=precision,
        say=lambda text: console.print(stage_line("predict", sources[0], text)),
        on_progress=lambda done, total: console.print(
            stage_line("predict", sources[0], f"{done:,} of {counted(total, 'image')}")
        ),
    )
    _say_result(out, summary)
    return len(summary["bad"])


def _say_result(out: str, summary: Mapping[str, Any]) -> None:
    bad = summary["bad"]
    for path, error in list(bad.items())[:_SHOWN]:
        console.print(stage_line("predict", path, error))
    unread = f", {counted(len(bad), 'image')} unreadable (listed in _summary.json)" if bad else ""
    found = f"{counted(summary['images'], 'image')}, {counted(summary['detections'], 'detection')}{unread}"
    console.print(stage_line("predict", out, found))
