"""The stage `benchmark`: latency and FPS of every variant, before and after re-parameterisation, in one measurement.

A sample is one batch: the model, the decoding of its outputs, then non-maximum suppression with the detector's default
settings. Both times are taken in the same call, so rows with and without NMS differ by NMS alone.
"""

from __future__ import annotations

import csv
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from pipeline.artifacts.files import WEIGHTS, existing, stage_folder, whole_folder, write_json
from pipeline.artifacts.prepared import has_split, load_split
from pipeline.artifacts.reports import Benchmark, BenchmarkRow
from pipeline.console import console, stage_line
from pipeline.params import BenchmarkSettings
from pipeline.report.summary import headline_row
from yolov7.data.dataset import DetectionDataset
from yolov7.data.index import ImageIndex
from yolov7.inference.nms import non_max_suppression
from yolov7.nn.model import DetectionModel
from yolov7.settings import NmsSettings
from yolov7.structures import HeadMaps
from yolov7.system.precision import autocast, precision_name, resolve_device, resolve_precision
from yolov7.system.timing import Rounds, measure_interleaved, summarise
from yolov7.weights.weight_files import load_weights

FORMS = {"trained": "train", "deployed": "reparam"}  # each form, and the stage that makes its weights
_LIBRARIES = ("torch", "numpy", "opencv-python-headless")
_NMS = NmsSettings()


@dataclass(frozen=True)
class Case:
    """One model in one setting, on one batch of images (B, 3, S, S) in 0..1."""

    variant: str
    form: str
    engine: str
    dtype: torch.dtype
    images: Tensor
    model: DetectionModel
    forward: Callable[[Tensor], HeadMaps]

    @torch.inference_mode()
    def run(self) -> tuple[float, float]:
        """Return the seconds to the decoded boxes, and to the detections."""
        start = _now(self.images.device)
        with autocast(self.dtype, self.images.device):
            maps = self.forward(self.images)
        decoded = self.model.decode(maps)
        middle = _now(self.images.device)
        non_max_suppression(decoded, settings=_NMS)
        return middle - start, _now(self.images.device) - start


def benchmark(settings: BenchmarkSettings, variants: Sequence[str], *, seed: int, device: str = "auto") -> Benchmark:
    """Measure all variants in interleaved rounds, and write benchmark.json and benchmark.csv.

    Args:
        settings: Rounds, batch sizes and precisions.
        variants: The names of the variants.
        seed: The seed whose weights are measured.
        device: `auto`, or what torch calls the device.

    Returns:
        Latencies of every case, and what describes the device.
    """
    cases = list(_make_cases(settings, variants, seed=seed, device=resolve_device(device)))
    rounds = Rounds(settings.rounds, settings.seconds_per_round, settings.warmup_seconds)
    with _shown(cases, turns=(rounds.count + 1) * len(cases)) as on_turn:
        samples = measure_interleaved(
            [case.run for case in cases], rounds=rounds, generator=random.Random(0), on_turn=on_turn
        )
    result = _describe(cases, samples, device=cases[0].images.device)
    with whole_folder(stage_folder("benchmark")) as folder:
        write_json(folder / "benchmark.json", result)
        write_rows(folder / "benchmark.csv", result)
    return result


def write_rows(path: Path, result: Benchmark) -> None:
    """Write the rows as CSV, for DVC's plots.

    Args:
        path: The file.
        result: What `benchmark` measured.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(BenchmarkRow.model_fields))
        writer.writeheader()
        writer.writerows(row.model_dump() for row in result.rows)


def fps_before_and_after(result: Benchmark, variant: str) -> tuple[float | None, float | None]:
    """Return the FPS of a variant as trained and as deployed: eager, with the smallest batch, without NMS.

    Args:
        result: What `benchmark` measured.
        variant: The variant's name.

    Returns:
        Both figures; None for what was not measured.
    """
    before = headline_row(result, variant=variant, form="trained")
    after = headline_row(result, variant=variant, form="deployed")
    return (before.fps if before else None, after.fps if after else None)


def benchmark_metrics(result: Benchmark, variant: str) -> dict[str, float | None]:
    """Return all FPS of a variant by their names in MLflow.

    Args:
        result: What `benchmark` measured.
        variant: The variant's name.

    Returns:
        `benchmark/fps`, `benchmark/fps_trained`, and one figure per row.
    """
    before, after = fps_before_and_after(result, variant)
    settings = {f"benchmark/{_setting(row)}": row.fps for row in result.rows if row.variant == variant}
    return {"benchmark/fps": after, "benchmark/fps_trained": before} | settings


def _make_cases(
    settings: BenchmarkSettings, variants: Sequence[str], *, seed: int, device: torch.device
) -> Iterator[Case]:
    index = load_split("val" if has_split("val") else "train")
    for variant in variants:
        for form, stage in FORMS.items():
            path = stage_folder(stage, variant, seed) / WEIGHTS
            weights = load_weights(existing(path, made_by=f"{stage} {variant}"), device=device)
            for engine, forward in _engines(weights.model, settings):
                for dtype in dict.fromkeys(resolve_precision(name, device) for name in settings.precisions):
                    for batch in settings.batch_sizes:
                        images = read_images(index, image_size=weights.image_size, count=batch).to(device)
                        yield Case(variant, form, engine, dtype, images, weights.model, forward)


def read_images(index: ImageIndex, *, image_size: int, count: int) -> Tensor:
    """Read the first images of a split, letterboxed; repeat them if there are too few.

    Args:
        index: The split.
        image_size: Side S of the square, pixels.
        count: Number of images.

    Returns:
        (count, 3, S, S) in 0..1, channels last in memory, as the detector passes its images.
    """
    dataset = DetectionDataset(index, image_size=image_size, cache="none")
    arrays = [dataset.letterboxed(i % len(index))[0] for i in range(count)]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def _engines(model: DetectionModel, settings: BenchmarkSettings) -> Iterator[tuple[str, Callable[[Tensor], HeadMaps]]]:
    yield "eager", model
    if settings.compile:
        yield "compile", torch.compile(model, dynamic=False)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _describe(cases: list[Case], samples: list[list[tuple[float, float]]], *, device: torch.device) -> Benchmark:
    rows = [
        _row(case, [sample[nms] for sample in taken], nms=bool(nms))
        for case, taken in zip(cases, samples, strict=True)
        for nms in (0, 1)
    ]
    return Benchmark(
        device=_device_name(device),
        threads=torch.get_num_threads(),
        clock_mhz=_clock_mhz(device),
        versions={"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        rows=tuple(rows),
    )


def _row(case: Case, seconds: list[float], *, nms: bool) -> BenchmarkRow:
    latency = summarise(seconds)
    batch, side = case.images.shape[0], case.images.shape[-1]
    return BenchmarkRow(
        variant=case.variant,
        form=case.form,
        engine=case.engine,
        precision=precision_name(case.dtype),
        batch=batch,
        nms=nms,
        image_size=side,
        p50_ms=latency.p50_ms,
        p90_ms=latency.p90_ms,
        p99_ms=latency.p99_ms,
        mean_ms=latency.mean_ms,
        fps=1000 * batch / latency.p50_ms,
        samples=latency.samples,
    )


def _setting(row: BenchmarkRow) -> str:
    nms = "_nms" if row.nms else ""
    return f"fps_{row.form}_{row.engine}_{row.precision}_batch{row.batch}{nms}"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _clock_mhz(device: torch.device) -> float | None:
    """Read the clock right after the measurement, while the device is warm; None if it cannot be read."""
    import psutil

    try:
        if device.type == "cuda":
            return float(torch.cuda.clock_rate(device))
        frequency = psutil.cpu_freq()
    except (RuntimeError, ImportError, OSError, NotImplementedError):  # no driver library, or the machine hides it
        return None
    return float(frequency.current) if frequency and frequency.current else None


@contextmanager
def _shown(cases: list[Case], *, turns: int) -> Iterator[Callable[[int], None]]:
    """Show a live bar on a terminal, and one line elsewhere."""
    if not console.is_terminal:
        names = ", ".join(dict.fromkeys(case.variant for case in cases))
        console.print(stage_line("benchmark", "", f"{len(cases)} cases in interleaved rounds: {names}").rstrip())
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("benchmark", total=turns)
        yield lambda i: bar.update(
            task, advance=1, description=stage_line("benchmark", cases[i].variant, f"{cases[i].form:<8}")
        )
