"""The cases of the benchmark of a GPU. On a machine without one they run at tiny sizes, which shows that they work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from tests.bench.bench_loader import jpeg_split, seconds_of_waiting
from tests.bench.bench_loss import ANCHORS, STRIDES
from tests.bench.bench_nms import example
from tests.bench.comparison import Row
from tests.bench.gpu_setup import CLASSES, OBJECTS, Setup, describe_peak, forget_peak, load
from tests.bench.gpu_training import (
    TrainingStep,
    Way,
    compiled_steps,
    graph_steps,
    large_steps,
    one_rank,
    small_steps,
    targets_of,
    wide_steps,
)
from yolov7.criterion.assigners import OtaAssigner
from yolov7.criterion.candidates import Anchors
from yolov7.data.dataset import DetectionDataset
from yolov7.data.loader import TrainLoader
from yolov7.engines.compiled import CompiledEngine, CudaGraphEngine
from yolov7.inference.engine import Engine, ModelEngine
from yolov7.inference.nms import suppress
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.settings import AugmentSettings
from yolov7.system.precision import precision_name

PAPER_FPS = {"yolov7": 161, "yolov7x": 114}  # of the paper's table 2, on a V100 with batch 1


def inference(setup: Setup) -> Iterator[Row]:
    """Compare ways to run both models for one image, and the ratio of both with that of the paper."""
    ways: dict[str, Callable[[DetectionModel], Engine]] = {"eager": partial(ModelEngine, dtype=_half(setup))}
    if setup.has_gpu:
        ways["CUDA graph"] = partial(CudaGraphEngine, dtype=_half(setup))
    yield from _compare_models(setup, ways)


def compiled_inference(setup: Setup) -> Iterator[Row]:
    """Run both models with torch.compile."""
    yield from _compare_models(setup, {"compiled": partial(CompiledEngine, dtype=_half(setup))})


def _half(setup: Setup) -> torch.dtype:
    return torch.float16 if setup.has_gpu else torch.float32


def _compare_models(setup: Setup, ways: dict[str, Callable[[DetectionModel], Engine]]) -> Iterator[Row]:
    image = torch.randint(0, 256, (1, 3, setup.size, setup.size), dtype=torch.uint8, device=setup.device)
    models = [_deployed(setup, name) for name in (setup.spec, setup.larger)]
    watch = replace(setup.watch, repeats=10 * setup.repeats)
    plain = [partial(ModelEngine(model, torch.float32).decode, image) for model in models]
    ratio = PAPER_FPS["yolov7"] / PAPER_FPS["yolov7x"]
    for name, make in ways.items():
        forget_peak(setup)
        rows = [
            watch.compare(
                f"inference: {spec}, {setup.size} px, batch 1, {name} {precision_name(_half(setup))}",
                slow,
                partial(make(model).decode, image),
            )
            for spec, model, slow in zip((setup.spec, setup.larger), models, plain, strict=True)
        ]
        rates = [1 / row.ours for row in rows if row.ours]
        for row, rate in zip(rows, rates, strict=True):
            yield replace(row, figure=f"{rate:.0f} images/s{describe_peak(setup)}")
        figure = f"{rates[0] / rates[1]:.2f}; in the paper 161 : 114 = {ratio:.2f} (V100, float16)"
        yield Row(f"speed of {setup.spec} : {setup.larger}, {name}", figure=figure)


def _deployed(setup: Setup, name: str) -> DetectionModel:
    torch.manual_seed(0)
    model = fuse(DetectionModel(load(name), num_classes=CLASSES).eval())
    return model.to(setup.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def exported_inference(setup: Setup) -> Iterator[Row]:
    """Run an exported model with ONNX Runtime and TensorRT, if they are installed."""
    import tempfile
    from importlib.util import find_spec

    from yolov7.weights.weight_files import save_weights

    image = torch.randint(0, 256, (1, 3, setup.size, setup.size), dtype=torch.uint8)
    for format, package, engine in (("onnx", "onnxruntime", "onnxruntime"), ("tensorrt", "tensorrt", "tensorrt")):
        needed = [name for name in ("onnx", "onnxscript", package) if not _is_installed(name, find_spec)]
        name = f"inference: {setup.spec}, {setup.size} px, batch 1, {engine}"
        if needed or not setup.has_gpu:
            yield Row(name, figure=f"not measured: {', '.join(needed)} missing" if needed else "needs a GPU")
            continue
        from yolov7.engines.opened_model import open_model
        from yolov7.export.export_model import export_model

        with tempfile.TemporaryDirectory() as folder:
            weights, names = Path(folder) / "weights.safetensors", tuple(map(str, range(CLASSES)))
            model = _deployed(setup, setup.spec).cpu()
            save_weights(weights, model, class_names=names, image_size=setup.size, training={})
            _, file = export_model(weights, format=format, precision="float16", output=Path(folder) / format)
            opened = open_model(file, engine=engine, device="cuda")
            plain = partial(ModelEngine(_deployed(setup, setup.spec), torch.float32).decode, image)
            watch = replace(setup.watch, repeats=10 * setup.repeats)
            yield watch.compare(f"{name} {opened.precision}", plain, partial(opened.engine.decode, image))


def _is_installed(name: str, find: Callable[[str], object]) -> bool:
    try:
        return find(name) is not None
    except ModuleNotFoundError:
        return False


def equality(setup: Setup) -> Iterator[Row]:
    """Compare the assigner and the suppression on the device with those on the CPU: results and time."""
    batch, size = setup.batches[0], setup.size
    random = torch.Generator().manual_seed(0)
    maps = [torch.randn(batch, 3, size // s, size // s, 5 + CLASSES, generator=random) - 2 for s in STRIDES]
    targets, there = targets_of(batch), [m.to(setup.device) for m in maps]
    assigner = OtaAssigner(Anchors(ANCHORS, STRIDES), threshold=4.0, merge_duplicates=True)
    far = targets.to(setup.device)
    one, other = assigner(maps, targets), assigner(there, far)
    cells = [set(zip(*(getattr(a, field).tolist() for field in _FIELDS), strict=True)) for a in (one, other)]
    verdict = "equal results" if cells[0] == cells[1] else f"{len(cells[0] ^ cells[1])} of {len(cells[0])} cells differ"
    watch = setup.watch
    name = f"assigner: batch {batch}, {OBJECTS} objects, {size} px, CPU and {setup.device.type}"
    yield watch.compare(name, partial(assigner, maps, targets), partial(assigner, there, far), figure=verdict)
    boxes, groups = example(30_000 if setup.has_gpu else 300, classes=CLASSES, clusters=40)
    far_boxes, far_groups = boxes.to(setup.device), groups.to(setup.device)
    run = partial(suppress, boxes, groups=groups, threshold=0.65, limit=300)
    run_far = partial(suppress, far_boxes, groups=far_groups, threshold=0.65, limit=300)
    same = torch.equal(run(), run_far().cpu())
    name = f"suppression: {len(boxes)} candidates, {CLASSES} classes, limit 300, CPU and {setup.device.type}"
    yield watch.compare(name, run, run_far, figure="equal results" if same else "results differ")


_FIELDS = ("level", "image", "anchor", "row", "column", "target")


def gradients(setup: Setup) -> Iterator[Row]:
    """Compare the gradients of a training step in float32 on the device with those on the CPU."""
    torch.backends.cudnn.allow_tf32 = False
    way, cpu = Way("", torch.float32), replace(setup, device=torch.device("cpu"))
    steps = [TrainingStep(one, load(setup.spec), way, batch=2, size=64) for one in (cpu, setup)]
    expected, found = (step.gradients() for step in steps)
    worst = max(float((a - b).norm() / a.norm().clamp(min=1e-6)) for a, b in zip(expected, found, strict=True))
    name = f"gradients of {setup.spec}, 64 px, batch 2, float32, CPU and {setup.device.type}"
    yield Row(name, figure=f"largest relative difference of a tensor {worst:.1e}")


def loader(setup: Setup) -> Iterator[Row]:
    """Measure how long training waits for its loader, with decoded images in memory and with JPEG files."""
    cores = len(os.sched_getaffinity(0))
    workers, batch = max(1, min(cores - 1, 16)), setup.batches[0]
    count = 20 * batch if setup.has_gpu else 3 * batch
    step = TrainingStep(setup, load(setup.spec), Way("", setup.dtype), batch=batch, size=setup.size)
    for cache, what in (("memory", "decoded images in memory"), ("none", "JPEG files")):
        with jpeg_split(width=640, height=480, count=count) as index:
            dataset = DetectionDataset(index, image_size=setup.size, augment=AugmentSettings(), cache=cache)  # type: ignore[arg-type]
            batches = TrainLoader(dataset, batch_size=batch, num_workers=workers)
            waited, total = seconds_of_waiting(batches, step.take, clock=setup.watch.clock)
            alone = time.perf_counter()
            drawn = sum(len(one.index) for one in batches.epoch(1))
            rate = drawn / (time.perf_counter() - alone)
        name = f"training step of {setup.spec}, {setup.size} px, batch {batch}, waits for its loader ({what})"
        share = f"{waited / total:.1%} of {total:.1f} s"
        yield Row(name, figure=f"{share}; {workers} workers alone prepare {rate:.0f} images/s")


class Case(NamedTuple):
    """A case of the benchmark and how many seconds it may take on a GPU."""

    rows: Callable[[Setup], Iterator[Row]]
    seconds: int
    is_for_cpu: bool = True


CASES = {  # by importance: the last ones are left out if time is short
    "equality": Case(equality, 40),
    "gradients": Case(gradients, 40),
    "step": Case(small_steps, 60),
    "inference": Case(inference, 45),
    "step-large": Case(large_steps, 60),
    "step-wide": Case(wide_steps, 75),
    "step-graphs": Case(graph_steps, 75),
    "one-rank": Case(one_rank, 45),
    "loader": Case(loader, 75),
    "inference-compiled": Case(compiled_inference, 150, is_for_cpu=False),
    "step-compiled": Case(compiled_steps, 200, is_for_cpu=False),
    "inference-exported": Case(exported_inference, 120),
}
