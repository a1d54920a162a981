"""Make the table with `python -m tests.surrogate FOLDER`, in about two hours of one core; it can be interrupted.

Each model is trained from random weights with each seed, on images of discs and squares that take a minute to
learn. All models have the same settings and see the same number of images. A process with one thread trains
on each core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from pipeline.tuning.search.space import Candidate
from tests.surrogate.table import CLASSES, PATH, make_candidates
from yolov7.data.build_index import AnnotatedImage, build_index
from yolov7.data.index import save_index
from yolov7.settings import TrainSettings
from yolov7.system.files import write_whole
from yolov7.training.job import TrainJob
from yolov7.training.loop import fit
from yolov7.training.record import read_epochs
from yolov7.training.worker import Worker

SEEDS = (0, 1, 2)
IMAGES = {"train": 256, "val": 128}
SIDE = 128  # of the images, pixels
EPOCHS = 24
TRAINING: dict[str, Any] = {
    "epochs": EPOCHS,
    "batch_size": 8,
    "precision": "float32",
    "validate_every": EPOCHS,
    "checkpoint_every": EPOCHS,
    "loader_workers": 0,
    "augment": {"mosaic": 0.0, "mixup": 0.0, "scale": 0.15, "hsv_saturation": 0.3, "hsv_value": 0.2},
    "loss": {"box": 0.8, "objectness": 16.0, "classification": 8.0},
    "optim": {
        "optimizer": "adamw",
        "lr0": 0.004,
        "momentum": 0.9,
        "weight_decay": 0.01,
        "nominal_batch": 8,
        "ema_decay": 0.98,
        "ema_ramp": 20,
    },
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.surrogate")
    parser.add_argument("folder", type=Path, help="for the images and for the results so far")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.folder)
    for split, count in IMAGES.items():
        _draw_split(split, count)
    candidates = make_candidates()
    runs = [(candidate, seed) for seed in SEEDS for candidate in candidates]
    with ProcessPoolExecutor(arguments.processes) as pool:
        found = list(pool.map(_train, *zip(*runs, strict=True)))
    _write(candidates, {(candidate.key, seed): AP for (candidate, seed), AP in zip(runs, found, strict=True)})


def _draw_split(split: str, count: int) -> None:
    generator = np.random.default_rng(len(split))
    images = []
    for i in range(count):
        pixels, boxes, labels = _draw(generator)
        path = Path("data", split, f"{i}.png").resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pixels)
        images.append(AnnotatedImage(path, boxes, labels, np.zeros(len(labels), bool)))
    save_index(Path("data", f"{split}.npz"), build_index(images, class_names=CLASSES)[0])


def _draw(generator: np.random.Generator) -> tuple[Any, Any, Any]:
    """Draw bright discs and squares of 12 to 60 pixels on grey noise, and return them with boxes and labels."""
    pixels = generator.integers(40, 120, (SIDE, SIDE, 3), dtype=np.uint8)
    boxes, labels = [], []
    for _ in range(generator.integers(1, 5)):
        radius = int(generator.integers(6, 31))
        x, y = (int(generator.integers(radius, SIDE - radius)) for _ in range(2))
        colour, label = generator.integers(150, 256, 3).tolist(), int(generator.integers(2))
        if label == 0:
            cv2.circle(pixels, (x, y), radius, colour, -1)
        else:
            cv2.rectangle(pixels, (x - radius, y - radius), (x + radius, y + radius), colour, -1)
        boxes.append([x - radius, y - radius, x + radius, y + radius])
        labels.append(label)
    return pixels, np.array(boxes, float), np.array(labels)


def _train(candidate: Candidate, seed: int) -> float:
    """Return the AP after the last epoch; a result in the folder is not computed again."""
    known = Path("known", f"{candidate.key}-{seed}")
    if known.is_file():
        return float(known.read_text())
    torch.set_num_threads(1)
    began = time.monotonic()
    folder = Path("runs", f"{candidate.key}-{seed}").resolve()
    job = TrainJob(
        spec_json=candidate.spec_json,
        settings=TrainSettings.model_validate({**TRAINING, "image_size": candidate.image_size}),
        seed=seed,
        data_folder=Path("data").resolve(),
        data_hash="",
        run_folder=folder,
    )
    fit(job, Worker(device=torch.device("cpu")))
    AP = float(read_epochs(folder)[-1]["AP"])
    write_whole(known, str(AP).encode(), durable=False)
    shutil.rmtree(folder)
    taken = time.monotonic() - began
    print(f"{candidate.label:<36} {candidate.gflops:.4f} GFLOPs  seed {seed}  {AP:.4f}  {taken:.0f} s", flush=True)
    return AP


def _write(candidates: tuple[Candidate, ...], AP: dict[tuple[str, int], float]) -> None:
    rows = [
        {
            "key": candidate.key,
            "label": candidate.label,
            "features": dict(candidate.features),
            "gflops": candidate.gflops,
            "parameters": candidate.parameters,
            "AP": [round(AP[candidate.key, seed], 5) for seed in SEEDS],
        }
        for candidate in candidates
    ]
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    how = {
        "made_by": "python -m tests.surrogate",
        "training": TRAINING,
        "images": IMAGES,
        "seeds": SEEDS,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    PATH.write_text(f'{{"how": {json.dumps(how)},\n "models": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
