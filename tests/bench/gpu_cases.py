"""The cases of the benchmark of a GPU. On a machine without one they run at tiny sizes, which shows that they work."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.bench.bench_loader import jpeg_split, seconds_of_waiting
from tests.bench.bench_loss import ANCHORS, STRIDES, random_targets
from tests.bench.bench_nms import example
from tests.bench.comparison import Row, Stopwatch
from yolov7.criterion.assigners import OtaAssigner
from yolov7.criterion.candidates import Anchors
from yolov7.criterion.loss import DetectionLoss
from yolov7.data.dataset import DetectionDataset
from yolov7.data.loader import TrainLoader
from yolov7.engines.compiled import CompiledEngine, CudaGraphEngine
from yolov7.inference.engine import Engine, ModelEngine
from yolov7.inference.nms import suppress
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.settings import AugmentSettings, LossSettings, OptimSettings
from yolov7.spec.auxiliary import with_auxiliary
from yolov7.spec.graph import ModelSpec
from yolov7.spec.spec_files import spec_from_json
from yolov7.structures import Batch, HeadMaps, Targets
from yolov7.system.precision import precision_name
from yolov7.training.ema import Ema
from yolov7.training.optim import build_optimizer, build_schedule

SPECS = Path(__file__).with_name("specs.json")  # the packaged specifications as JSON, because yaml may be missing
CLASSES, OBJECTS = 80, 8
PAPER_FPS = {"yolov7": 161, "yolov7x": 114}  # of the paper's table 2, on a V100 with batch 1


@dataclass(frozen=True)
class Setup:
    """What is measured on a machine.

    Attributes:
        device: Where the models run.
        spec: The name of the model whose training is measured.
        larger: The name of the model whose inference is compared with it.
        wide: The name of the model that is trained with an auxiliary head.
        size: Side of the images, pixels.
        wide_sizes: Batch and side of the images of `wide`.
        batches: Images of a training step.
        repeats: How often a step is measured; inference ten times as often.
        dtype: The floating-point type of training.
    """

    device: torch.device
    spec: str
    larger: str
    wide: str
    size: int
    wide_sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, int]
    repeats: int
    dtype: torch.dtype

    @property
    def watch(self) -> Stopwatch:
        """A stopwatch that waits for the device."""
        return Stopwatch(self.repeats, partial(_now, self.device))

    @property
    def has_gpu(self) -> bool:
        """Whether this is the setup of a GPU."""
        return self.device.type == "cuda"


def find_setup() -> Setup:
    """Return the setup of the GPU of this machine, or tiny sizes for the CPU."""
    if not torch.cuda.is_available():
        cpu, sizes = torch.device("cpu"), ((2, 64),)
        return Setup(cpu, "nano", "nano", "nano", 64, sizes, (2, 4), 1, torch.float32)
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    sizes = ((16, 1280), (64, 640))
    return Setup(torch.device("cuda"), "yolov7", "yolov7x", "yolov7-w6", 640, sizes, (16, 64), 10, dtype)


def describe(setup: Setup) -> dict[str, object]:
    """Return the facts about the device that a table needs."""
    facts: dict[str, object] = {"torch": torch.__version__, "cores": len(os.sched_getaffinity(0))}
    if not setup.has_gpu:
        return {"device": "CPU at tiny sizes: these figures say nothing about a GPU", **facts}
    properties = torch.cuda.get_device_properties(setup.device)
    return {
        "device": properties.name,
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **facts,
    }


def load(name: str) -> ModelSpec:
    """Return a packaged specification."""
    return spec_from_json(json.dumps(json.loads(SPECS.read_text(encoding="utf-8"))[name]))


Wrap = Callable[[nn.Module, Tensor], nn.Module]


class Way(NamedTuple):
    """How a training step is computed: the type of numbers, the memory format, and the wrapper of the model."""

    name: str
    dtype: torch.dtype
    order: torch.memory_format = torch.channels_last
    wrap: Wrap = lambda model, _: model
    tunes_convolutions: bool = False


class TrainingStep:
    """A step as the training loop takes it: forward and backward pass, loss, check of the gradient, SGD, average."""

    def __init__(self, setup: Setup, spec: ModelSpec, way: Way, *, batch: int, size: int) -> None:
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = way.tunes_convolutions
        device, self._way, self._device = setup.device, way, setup.device
        self._model = DetectionModel(spec, num_classes=CLASSES).to(device, memory_format=way.order)  # type: ignore[call-overload]
        self._images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
        self._images = self._images.contiguous(memory_format=way.order)
        self._targets = targets_of(batch).to(device)
        self._loss = DetectionLoss(
            anchors_px=self._model.anchors_px,
            strides=self._model.strides,
            num_classes=CLASSES,
            image_size=size,
            settings=LossSettings(),
        )
        settings = OptimSettings()
        schedule = build_schedule(settings, batch_size=batch, steps_per_epoch=1000, epochs=10)
        self._optimizer = build_optimizer(self._model, settings, schedule=schedule)
        for group in self._optimizer.param_groups:
            group["lr"] = 1e-5
        self._ema = Ema(self._model, decay=settings.ema_decay, ramp=settings.ema_ramp)
        self._runner = way.wrap(self._model, self._scaled())

    def __call__(self) -> None:
        self.forward_and_backward()
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        assert torch.isfinite(nn.utils.get_total_norm(gradients))
        self._optimizer.step()
        self._ema.update(self._model)
        self._optimizer.zero_grad()

    def take(self, batch: Batch) -> None:
        """Train one step on a batch of a loader."""
        self._images = batch.images.to(self._device, non_blocking=True)
        self._targets = batch.targets.to(self._device)
        self()

    def forward_and_backward(self) -> Tensor:
        """Add the gradients of a step; return the total loss."""
        with torch.autocast(self._device.type, self._way.dtype, self._way.dtype != torch.float32, cache_enabled=False):
            maps = HeadMaps(*self._runner(self._scaled()))
        total = self._loss(maps, self._targets).total
        total.backward()  # type: ignore[no-untyped-call]
        return total.detach()

    def gradients(self) -> list[Tensor]:
        """Return the gradients of one step, on the CPU."""
        self._optimizer.zero_grad()
        self.forward_and_backward()
        return [p.grad.float().cpu() for p in self._model.parameters() if p.grad is not None]

    def _scaled(self) -> Tensor:
        return self._images.float().div_(255)


def targets_of(batch: int) -> Targets:
    """Return a few objects for each image."""
    return random_targets(batch=batch, objects=OBJECTS, classes=CLASSES, random=torch.Generator().manual_seed(0))


class Graphed(nn.Module):
    """A model whose forward and backward passes are CUDA graphs; loss and optimizer run outside of them."""

    def __init__(self, model: nn.Module, images: Tensor, *, dtype: torch.dtype) -> None:
        super().__init__()
        with torch.autocast("cuda", dtype, dtype != torch.float32, cache_enabled=False):
            self._run = torch.cuda.make_graphed_callables(_FlatMaps(model), (images,))
        self._levels = len(model.strides)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> HeadMaps:
        maps = self._run(images)
        return HeadMaps(maps[: self._levels], maps[self._levels :])


class _FlatMaps(nn.Module):
    """A model that returns the maps of both heads in one tuple, as CUDA graphs need it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self._model(images)
        return (*maps.lead, *maps.auxiliary)


def small_steps(setup: Setup) -> Iterator[Row]:
    """Compare the ways to compute a training step with the small batch."""
    half = setup.dtype
    ways = [
        Way("contiguous", torch.float32, torch.contiguous_format),
        Way("contiguous", half, torch.contiguous_format),
        Way("channels_last", half),
        Way("channels_last, cudnn.benchmark", half, tunes_convolutions=True),
    ]
    different = list(dict.fromkeys(ways)) if setup.has_gpu else ways[1:3]
    yield from _steps(setup, setup.spec, different, batch=setup.batches[0], size=setup.size)


def large_steps(setup: Setup) -> Iterator[Row]:
    """Compare the ways to compute a training step with the large batch."""
    ways = [Way("contiguous", setup.dtype, torch.contiguous_format), Way("channels_last", setup.dtype)]
    yield from _steps(setup, setup.spec, ways, batch=setup.batches[1], size=setup.size)


def wide_steps(setup: Setup) -> Iterator[Row]:
    """Measure training steps of a model with an auxiliary head."""
    for batch, size in setup.wide_sizes:
        yield from _steps(setup, setup.wide, [Way("channels_last", setup.dtype)], batch=batch, size=size)


def graph_steps(setup: Setup) -> Iterator[Row]:
    """Compare a training step with one whose model is a CUDA graph."""
    if not setup.has_gpu:
        yield Row("training step with CUDA graphs", figure="needs a GPU")
        return
    graphed: Wrap = partial(Graphed, dtype=setup.dtype)
    ways = [Way("channels_last", setup.dtype), Way("channels_last, CUDA graphs", setup.dtype, wrap=graphed)]
    for batch in setup.batches:
        yield from _steps(setup, setup.spec, ways, batch=batch, size=setup.size)


def compiled_steps(setup: Setup) -> Iterator[Row]:
    """Compare a training step with a compiled one; say after how many steps compilation has paid."""
    batch, size = setup.batches[0], setup.size
    plain = TrainingStep(setup, load(setup.spec), Way("channels_last", setup.dtype), batch=batch, size=size)
    way = Way("compiled", setup.dtype, wrap=lambda model, _: torch.compile(model))  # type: ignore[return-value]
    step = TrainingStep(setup, load(setup.spec), way, batch=batch, size=size)
    began = time.perf_counter()
    step()
    step()
    start = time.perf_counter() - began
    row = setup.watch.compare(f"{_name(setup.spec, batch, size)}: channels_last, compiled", plain, step)
    assert row.plain
    assert row.ours
    gain = row.plain - row.ours
    pays = f"pays after {start / gain:.0f} steps" if gain > 0 else "never pays"
    yield replace(row, figure=f"{batch / row.ours:.0f} images/s; compilation takes {start:.0f} s and {pays}")


def one_rank(setup: Setup) -> Iterator[Row]:
    """Compare a training step with one of DistributedDataParallel in a group of one process."""
    backend = "nccl" if setup.has_gpu else "gloo"
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    dist.init_process_group(backend, store=store, rank=0, world_size=1)

    def wrap(model: nn.Module, _: Tensor) -> nn.Module:
        return DistributedDataParallel(model, device_ids=[0] if setup.has_gpu else None)

    ways = [Way("alone", setup.dtype), Way(f"one rank of {backend}", setup.dtype, wrap=wrap)]
    yield from _steps(setup, setup.spec, ways, batch=setup.batches[0], size=setup.size)
    dist.destroy_process_group()


def _steps(setup: Setup, spec: str, ways: list[Way], *, batch: int, size: int) -> Iterator[Row]:
    """Measure each way, compared with the first one that fits into memory; say how much memory it takes."""
    plain = None
    spec_of_steps = load(spec)
    if setup.wide == spec and spec_of_steps.head.auxiliary is None:
        spec_of_steps = with_auxiliary(spec_of_steps)
    for way in ways:
        name = f"{_name(spec, batch, size)}: {way.name}, {precision_name(way.dtype)}"
        _forget_peak(setup)
        try:
            seconds = setup.watch.seconds(TrainingStep(setup, spec_of_steps, way, batch=batch, size=size))
        except torch.OutOfMemoryError:
            yield Row(name, figure="out of memory")
            continue
        plain = plain or seconds
        yield Row(name, plain, seconds, f"{batch / seconds:.0f} images/s{_peak(setup)}")


def _name(spec: str, batch: int, size: int) -> str:
    return f"training step: {spec}, {size} px, batch {batch}"


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
        _forget_peak(setup)
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
            yield replace(row, figure=f"{rate:.0f} images/s{_peak(setup)}")
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


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _forget_peak(setup: Setup) -> None:
    if setup.has_gpu:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setup.device)


def _peak(setup: Setup) -> str:
    if not setup.has_gpu:
        return ""
    return f", peak memory {torch.cuda.max_memory_allocated(setup.device) / 2**30:.1f} GiB"


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
