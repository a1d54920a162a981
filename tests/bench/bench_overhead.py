"""The cost of Ray: an epoch through `train_with_ray` compared with the same loop called directly, and the start.

It takes minutes, and is therefore not among the other benchmarks: python -m tests.bench.bench_overhead [--images N]
[--epochs N] [--repeats N] [--threads N]. With one thread fewer than there are cores, the times of epochs vary little.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from pipeline.params import RaySettings
from pipeline.ray.trainer import train_with_ray
from tests.bench.comparison import Row
from tests.integration.runs import make_job, prepared
from yolov7.spec.spec_files import load_spec, spec_to_json
from yolov7.training.job import TrainJob
from yolov7.training.loop import fit
from yolov7.training.record import PROGRESS, read_epochs
from yolov7.training.worker import Worker

SIZE, BATCH = 128, 8


def main() -> None:
    """Train both ways in turn, each in its own process; print the median of all epochs except the first of each."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_overhead")
    parser.add_argument(
        "--images", type=int, default=1600, help="images of an epoch, which should take a minute or more"
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of the training")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        WAYS[options.one](TrainJob.model_validate_json(options.job.read_bytes()))
        return
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for torch in the processes that are started
    with TemporaryDirectory() as folder:
        for row in rows(Path(folder), images=options.images, epochs=options.epochs, repeats=options.repeats):
            print(row.line())


def rows(folder: Path, *, images: int, epochs: int, repeats: int) -> tuple[Row, Row]:
    """Return the rows for an epoch, and for the time from the command to the first step."""
    data = prepared(folder, train_images=images, val_images=8, image_size=SIZE)
    firsts: dict[str, list[float]] = {way: [] for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(repeats):
        for way in list(WAYS)[:: -1 if repeat % 2 else 1]:  # if the machine slows down, no way is always second
            job = _job(data, folder / "runs" / way / str(repeat), epochs=epochs)
            firsts[way].append(_seconds_to_first_step(job, way))
            _, *rates = [float(line["images_per_second"]) for line in read_epochs(job.run_folder)]
            seconds[way] += [images / rate for rate in rates]
            print(f"{way:8s} {', '.join(f'{images / rate:.1f}' for rate in rates)} s an epoch", flush=True)
    direct, ray = (median(seconds[way]) for way in WAYS)
    shortest = min(seconds["ray"]) / min(seconds["direct"])
    threads = os.environ["OMP_NUM_THREADS"]
    case = f"an epoch of {images} images, {SIZE} px, batch {BATCH}, threads {threads}: the loop, and through Ray"
    first = Row("from the command to the first step", min(firsts["direct"]), min(firsts["ray"]))
    return Row(case, direct, ray, f"{ray / direct:.3f} times the loop's; of the shortest {shortest:.3f}"), first


def _job(data: Path, run_folder: Path, *, epochs: int) -> TrainJob:
    changes = {"epochs": epochs, "batch_size": BATCH, "image_size": SIZE, "precision": "auto", "multi_scale": 0.0}
    quiet = {"checkpoint_minutes": 60, "validate_every": epochs, "loader_workers": 1}
    job = make_job(data, run_folder, **changes, **quiet)
    return job.model_copy(update={"spec_json": spec_to_json(load_spec("nano"))})


def _seconds_to_first_step(job: TrainJob, way: str) -> float:
    """Run a training to its end; return the seconds until its first step."""
    job.run_folder.mkdir(parents=True)
    path = job.run_folder.with_suffix(".json")
    path.write_text(job.model_dump_json())
    began, progress = time.monotonic(), job.run_folder / PROGRESS
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.bench_overhead", "--one", way, "--job", path])
    while not progress.is_file() and process.poll() is None:
        time.sleep(0.02)
    first = time.monotonic() - began
    if process.wait():
        raise RuntimeError(f"the training ended with {process.returncode}")
    return first


def _train_directly(job: TrainJob) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fit(job, Worker(device=device, loader_workers=1))


def _train_through_ray(job: TrainJob) -> None:
    settings = RaySettings(cpus_per_worker=torch.get_num_threads())
    train_with_ray(job, settings, on_tick=lambda: None)


WAYS: dict[str, Callable[[TrainJob], None]] = {"direct": _train_directly, "ray": _train_through_ray}


if __name__ == "__main__":
    main()
