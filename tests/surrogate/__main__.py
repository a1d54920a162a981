"""Makes the table: `python -m tests.surrogate FOLDER`, about a quarter of an hour on one core; it may be interrupted.

Every model is trained from the start with each seed, on the embedded data drawn small, all with the same settings and
the same number of images.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.params import DataSettings, SyntheticSettings
from pipeline.stages.prepare import prepare
from pipeline.tuning.space import Candidate
from tests.surrogate.table import PATH, make_candidates
from yolov7.settings import TrainSettings
from yolov7.train.job import TrainJob
from yolov7.train.loop import fit
from yolov7.train.record import read_epochs
from yolov7.train.worker import Worker

SEEDS = (0, 1)
IMAGES = SyntheticSettings(train_images=96, val_images=48, image_size=128)
TRAINING: dict[str, Any] = {
    "epochs": 8,
    "batch_size": 8,
    "precision": "float32",
    "validate_every": 8,
    "checkpoint_every": 8,
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
    torch.set_num_threads(1)
    os.chdir(sys.argv[1])
    if not Path("artifacts/prepare").exists():
        prepare(DataSettings(synthetic=IMAGES))
    known = _read()
    candidates = make_candidates()
    for seed in SEEDS:
        for candidate in candidates:
            values = known.setdefault(candidate.key, {})
            if str(seed) not in values:
                values[str(seed)] = _train(candidate, seed)
                Path("known.json").write_text(json.dumps(known))
    _write(candidates, known)


def _read() -> dict[str, dict[str, float]]:
    path = Path("known.json")
    known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.is_file() else {}
    return known


def _train(candidate: Candidate, seed: int) -> float:
    began = time.monotonic()
    folder = Path("runs", f"{candidate.key}-{seed}").resolve()
    job = TrainJob(
        spec_json=candidate.spec_json,
        settings=TrainSettings.model_validate({**TRAINING, "image_size": candidate.image_size}),
        seed=seed,
        data_folder=Path("artifacts/prepare").resolve(),
        data_hash="",
        run_folder=folder,
    )
    fit(job, Worker(device=torch.device("cpu")))
    AP = float(read_epochs(folder)[-1]["AP"])
    for path in folder.glob("*"):
        path.unlink()
    print(
        f"{candidate.label:<36} {candidate.gflops:.4f} GFLOPs  {AP:.4f}  {time.monotonic() - began:.1f} s", flush=True
    )
    return AP


def _write(candidates: tuple[Candidate, ...], known: dict[str, dict[str, float]]) -> None:
    rows = [
        {
            "key": candidate.key,
            "label": candidate.label,
            "features": dict(candidate.features),
            "gflops": candidate.gflops,
            "parameters": candidate.parameters,
            "AP": [round(known[candidate.key][str(seed)], 5) for seed in SEEDS],
        }
        for candidate in candidates
    ]
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    how = {
        "made_by": "python -m tests.surrogate",
        "training": TRAINING,
        "data": IMAGES.model_dump(),
        "seeds": SEEDS,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    PATH.write_text(f'{{"how": {json.dumps(how)},\n "models": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
