"""The stage `benchmark`: latency and FPS of every variant, before and after re-parameterisation, in one measurement.

A sample is one batch, for which three times are taken in the same call: the model with the decoding of its outputs, as
in the paper; with non-maximum suppression; and from image files to detections. Rows differ by these parts alone.
"""

from __future__ import annotations

import csv
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
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
from yolov7.data.augment.letterbox import letterbox
from yolov7.data.images import read_image
from yolov7.data.selection import keep_images
from yolov7.engines.engine_table import engines
from yolov7.engines.opened_model import OpenedModel, open_model
from yolov7.errors import counted
from yolov7.export.export_model import MOST_TRAINING_IMAGES, ExportData, export_model
from yolov7.export.verify import measure_ap
from yolov7.inference.engine import ModelEngine
from yolov7.inference.nms import non_max_suppression
from yolov7.settings import LetterboxMode, NmsSettings
from yolov7.system.precision import precision_name, resolve_device, resolve_precision
from yolov7.system.threads import LoadMeter, Threads, use_free_cpus
from yolov7.system.timing import Rounds, measure_interleaved, summarise
from yolov7.weights.weight_files import load_weights

FORMS = {"trained": "train", "deployed": "reparam"}  # each form, and the stage that makes its weights
_LIBRARIES = ("torch", "numpy", "opencv-python-headless", "onnxruntime", "openvino", "tensorrt")
_FORMATS = {"onnxruntime": "onnx", "openvino": "openvino", "tensorrt": "tensorrt"}
_NMS = NmsSettings()
_BUSY = 0.5  # CPUs that other processes use, from which on the figures say less about the model
_SLOWER = 1.15  # from the first to the last third of the rounds: the machine was busy, or reduced its clock

_Parts = tuple[float, float, float]
_PARTS = ((False, False), (True, False), (True, True))  # of each time: with suppression, from files


@dataclass(frozen=True)
class Case:
    """One model in one setting, on one batch of image files."""

    variant: str
    form: str
    model: OpenedModel
    paths: tuple[Path, ...]
    device: torch.device
    AP: float | None

    def run(self) -> _Parts:
        """Return the seconds to the decoded boxes, to the detections, and from files to detections."""
        begin = _now(self.device)
        model = self.model
        images = read_batch(self.paths, image_size=model.image_size, mode=model.letterbox).to(self.device)
        start = _now(self.device)
        decoded = self.model.engine.decode(images)
        middle = _now(self.device)
        non_max_suppression(decoded, settings=_NMS, suppresses=self.model.engine.needs_suppression)
        end = _now(self.device)
        return middle - start, end - start, end - begin


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
    where = resolve_device(device)
    threads = use_free_cpus()  # before engines take over the number
    with whole_folder(stage_folder("benchmark")) as folder:
        cases = list(_make_cases(settings, variants, seed=seed, device=where, exports=folder / "exports"))
        rounds = Rounds(settings.rounds, settings.seconds_per_round, settings.warmup_seconds)
        load = LoadMeter()
        with _shown(cases, turns=(rounds.count + 1) * len(cases)) as on_turn:
            samples = measure_interleaved(
                [case.run for case in cases], rounds=rounds, generator=random.Random(0), on_turn=on_turn
            )
        threads = replace(threads, busy=load.busy())
        result = _describe(cases, samples, device=where, threads=threads)
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
    """Return the FPS of a variant as trained and as deployed: by torch, with the smallest batch, without NMS.

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
    settings: BenchmarkSettings, variants: Sequence[str], *, seed: int, device: torch.device, exports: Path
) -> Iterator[Case]:
    split = "val" if has_split("val") else "train"
    index = load_split(split)
    data = ExportData(
        index=keep_images(index, MOST_TRAINING_IMAGES) if split == "train" else index,
        images=index.paths,
        calibration=load_split("train").paths if "int8" in settings.precisions else (),
        name=f"the split {split}",
    )
    for variant in variants:
        for form, stage in FORMS.items():
            path = existing(stage_folder(stage, variant, seed) / WEIGHTS, made_by=f"{stage} {variant}")
            models = (
                ((model, None) for model in _open_trained(path, settings, device))
                if form == "trained"
                else _open_deployed(path, settings, device=device, exports=exports / variant, data=data)
            )
            for model, ap in models:
                for batch in settings.batch_sizes:
                    paths = tuple(index.paths[i % len(index)] for i in range(batch))
                    yield Case(variant, form, model, paths, device, ap)


def _open_trained(path: Path, settings: BenchmarkSettings, device: torch.device) -> Iterator[OpenedModel]:
    """Yield the model as it was trained; `open_model` would re-parameterise it."""
    weights = load_weights(path, device=device)
    model = weights.model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name in _float_precisions(settings, device):
        engine = ModelEngine(model, resolve_precision(name, device))
        names, size = weights.class_names, weights.image_size
        yield OpenedModel(engine, "torch", name, names, size, path, letterbox=weights.letterbox)


def _open_deployed(
    path: Path, settings: BenchmarkSettings, *, device: torch.device, exports: Path, data: ExportData
) -> Iterator[tuple[OpenedModel, float | None]]:
    """Yield the deployed model for each engine and precision, together with its AP."""
    for engine in settings.engines:
        if engine in _FORMATS:
            yield from _export(path, engine, settings, device=device, exports=exports, data=data)
        else:
            for precision in _float_precisions(settings, device):
                model = open_model(path, engine=engine, device=str(device), precision=precision)
                size, mode = model.image_size, model.letterbox
                yield model, measure_ap(model.engine, data.index, image_size=size, letterbox=mode)


def _export(
    path: Path, engine: str, settings: BenchmarkSettings, *, device: torch.device, exports: Path, data: ExportData
) -> Iterator[tuple[OpenedModel, float | None]]:
    """Export the model, which also measures its AP, and yield it in the precisions that the engine has."""
    possible = next(info.precisions_here() for info in engines() if info.name == engine)
    asked = _float_precisions(settings, device)
    floats = [name for name in asked if name in possible]
    for name in asked:
        if name not in possible:
            text = f"the engine {engine} does not compute in {name} on this machine; it is left out"
            console.print(stage_line("benchmark", exports.name, text))
    is_quantised = "int8" in settings.precisions and "int8" in possible
    wanted = {"float32": floats or ([] if is_quantised else ["float32"]), "int8": ["auto"] if is_quantised else []}
    for stored, precisions in wanted.items():
        if not precisions:
            continue
        output = exports / f"{engine}-{stored}"
        report, file = export_model(path, format=_FORMATS[engine], output=output, precision=stored, data=data)
        for precision in precisions:
            model = open_model(file, engine=engine, device=str(device), precision=precision)
            measured = {(check.engine, check.precision): check.AP for check in report.checks}
            yield model, measured.get((engine, model.precision))


def _float_precisions(settings: BenchmarkSettings, device: torch.device) -> list[str]:
    """Return the names of the floating-point types to measure, each once."""
    names = (precision_name(resolve_precision(one, device)) for one in settings.precisions if one != "int8")
    return list(dict.fromkeys(names))


def read_batch(paths: Sequence[Path], *, image_size: int, mode: LetterboxMode = "centre") -> Tensor:
    """Read image files, and bring them to the size of the model.

    Args:
        paths: The files.
        image_size: Side S of the square, pixels.
        mode: How images are brought to the square.

    Returns:
        Images (B, 3, S, S) uint8 RGB, channels last in memory, as the detector passes them.
    """
    arrays = [letterbox(read_image(path), size=image_size, mode=mode)[0] for path in paths]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _describe(cases: list[Case], samples: list[list[_Parts]], *, device: torch.device, threads: Threads) -> Benchmark:
    rows = [
        _row(case, [sample[part] for sample in taken], part=part)
        for case, taken in zip(cases, samples, strict=True)
        for part in range(len(_PARTS))
    ]
    return Benchmark(
        device=_device_name(device),
        threads=threads.count,
        cpus=threads.cpus,
        busy_cpus=None if threads.busy is None else round(threads.busy, 2),
        clock_mhz=_clock_mhz(device),
        versions={"python": platform.python_version(), **_versions()},
        notes=(*_load(threads), *_drift(samples)),
        rows=tuple(rows),
    )


def _row(case: Case, seconds: list[float], *, part: int) -> BenchmarkRow:
    latency, batch = summarise(seconds), len(case.paths)
    nms, from_file = _PARTS[part]
    return BenchmarkRow(
        variant=case.variant,
        form=case.form,
        engine=case.model.engine_name,
        precision=case.model.precision,
        batch=batch,
        nms=nms,
        from_file=from_file,
        image_size=case.model.image_size,
        AP=case.AP,
        p50_ms=latency.p50_ms,
        p90_ms=latency.p90_ms,
        p99_ms=latency.p99_ms,
        mean_ms=latency.mean_ms,
        fps=1000 * batch / latency.p50_ms,
        samples=latency.samples,
    )


def _load(threads: Threads) -> tuple[str, ...]:
    """Say whether other processes used the CPUs meanwhile."""
    if threads.busy is None or threads.busy < _BUSY:
        return ()
    return (
        f"other processes kept {threads.busy:.1f} of {threads.cpus} CPUs busy during the measurement, and "
        f"{counted(threads.count, 'thread')} computed; measure again on a quiet machine",
    )


def _drift(samples: list[list[_Parts]]) -> tuple[str, ...]:
    """Say whether the machine became slower while it was measured."""
    ratios = []
    for taken in samples:
        third = max(1, len(taken) // 3)
        first, last = (float(np.median([sample[0] for sample in part])) for part in (taken[:third], taken[-third:]))
        ratios.append(last / first)
    change = float(np.median(ratios))
    if change < _SLOWER:
        return ()
    return (
        f"the last third of the measurement was {change:.2f} times as slow as the first: other programs were running, "
        "or the clock of the processor was reduced; measure again on a quiet, cool machine",
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _setting(row: BenchmarkRow) -> str:
    scope = "_from_file" if row.from_file else "_nms" if row.nms else ""
    return f"fps_{row.form}_{row.engine}_{row.precision}_batch{row.batch}{scope}"


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
