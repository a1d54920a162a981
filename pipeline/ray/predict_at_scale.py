"""Detect objects in all images of a folder or bucket with a pool of Ray actors. Interrupted jobs can be continued."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

from pipeline.params import RaySettings
from pipeline.ray.cluster import connect, nodes_alive
from pipeline.ray.placement import Node
from pipeline.ray.shard_detector import ShardDetector, ShardWork
from pipeline.ray.shards import Folder, ShardFormat, ShardStore
from pipeline.serving.content_hash import hash_content
from yolov7.errors import DataError, SettingError
from yolov7.settings import NmsSettings

Progress = Callable[[int, int], None]
"""Receives the number of images that are done, and the number of all images."""


def predict_at_scale(
    weights: str,
    source: str,
    out: str,
    *,
    format: ShardFormat = "jsonl",
    actors: int = 1,
    batch_size: int = 16,
    shard_size: int = 256,
    nms: NmsSettings = NmsSettings(),  # noqa: B008  # frozen
    engine: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    say: Callable[[str], object] = lambda _: None,
    on_progress: Progress = lambda _done, _all: None,
) -> Mapping[str, Any]:
    """Detect objects in many images, and write one row per image to shards of JSON lines or Parquet.

    A shard appears complete or not at all. When the same call is repeated after an interruption, finished shards are
    not repeated, and every image is in the result exactly once. An image that cannot be read has a row with an error.

    Args:
        weights: A weight file, an exported file, or a folder with an exported model; every node must have it.
        source: A folder that every node has, or a URI such as s3://bucket/folder; images in its folders are included.
        out: The folder or URI of the results.
        format: `jsonl` or `parquet`.
        actors: Number of processes that detect objects; each has its own model, and a GPU if there are enough.
        batch_size: Number of images that a model processes at once.
        shard_size: Number of images in a shard.
        nms: Thresholds and limits.
        engine: Name of the engine; `auto` is the fastest one that is installed and that runs the file.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `float32`, `bfloat16` or `float16`.
        say: Receives a sentence about files that are left out when the job starts.
        on_progress: Receives how many images are done, at the start and after each shard.

    Returns:
        `images`, `detections`, and under `bad` what is wrong with each unreadable image, by path.

    Raises:
        ClusterError: If Ray cannot be reached or started.
        DataError: If a folder cannot be used or has no images, or if a node cannot open the model.
        OSError: If there is no such weight file.
        SettingError: If a setting cannot be used, or if `out` holds the results of other settings.
    """
    _check(actors=actors, batch_size=batch_size, shard_size=shard_size)
    work = ShardWork(
        weights=str(Path(weights).absolute()),
        source=source if "://" in source else str(Path(source).absolute()),
        out=out if "://" in out else str(Path(out).absolute()),
        format=format,
        nms=nms,
        batch_size=batch_size,
        engine=engine,
        device=device,
        precision=precision,
    )
    store = ShardStore(work.out)
    _finish_shards(work, store, shard_size=shard_size, actors=actors, say=say, on_progress=on_progress)
    return store.summarise()


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise SettingError(f"{name}={value} must be at least 1")


def _finish_shards(
    work: ShardWork,
    store: ShardStore,
    *,
    shard_size: int,
    actors: int,
    say: Callable[[str], object],
    on_progress: Progress,
) -> None:
    """Detect objects in the images of all shards that are not finished."""
    source = Folder(work.source)
    plan = {
        "source": source.name,
        "weights_sha256": hash_content(Path(work.weights)),
        "format": work.format,
        "shard_size": shard_size,
        "nms": work.nms.model_dump(),
        "engine": work.engine,
        "precision": work.precision,
    }
    images = store.start_or_continue(plan, source, say=say)
    finished = store.finished()
    shards: list[dict[str, Any]] = [
        {"shard": number, "paths": images[start : start + shard_size]}
        for number, start in enumerate(range(0, len(images), shard_size))
        if number not in finished
    ]
    done = len(images) - sum(len(shard["paths"]) for shard in shards)
    on_progress(done, len(images))
    if not shards:
        return
    actors = min(actors, len(shards))
    with connect(RaySettings(workers=actors)):
        for count in _run(work, shards, actors=actors):
            done += count
            on_progress(done, len(images))


def _run(work: ShardWork, todo: Sequence[dict[str, Any]], *, actors: int) -> Iterator[int]:
    """Yield the number of images of each shard as soon as it is finished."""
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # otherwise Ray reports every execution
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    cpus, gpus = share_of_actor(nodes_alive(), actors=actors, device=work.device)
    shards = ray.data.from_items(list(todo), override_num_blocks=len(todo)).map(
        ShardDetector,
        fn_constructor_args=(replace(work, cpus=cpus),),
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    for row in shards.iter_rows():
        if row["problem"]:
            raise DataError(row["problem"])
        yield int(row["images"])


def share_of_actor(nodes: Sequence[Node], *, actors: int, device: str) -> tuple[int, float]:
    """Return what an actor may use, such that all actors have room.

    Args:
        nodes: The nodes of the cluster.
        actors: Number of actors.
        device: The device of the model; `cpu` uses no GPU.

    Returns:
        Number of CPUs, and number of GPUs or share of a GPU.
    """
    offers = [int(node.cpus) for node in nodes if node.cpus >= 1]  # none if nodes start on demand
    cpus = max(1, min(offers, default=1) // ceil(actors / max(1, len(offers))))
    all_gpus = int(sum(node.gpus for node in nodes))
    if not all_gpus or device == "cpu":
        return cpus, 0.0
    return cpus, 1.0 / ceil(actors / all_gpus)
