"""A project's artifacts made up in a folder: real weights and images, invented figures; for tests of the reporting."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
import torch

from pipeline.artifacts.files import stage_folder, write_json
from pipeline.artifacts.reports import Benchmark, BenchmarkRow, Metrics, PreparedData, ReparamReport, TrainSummary
from pipeline.experiment import Experiment
from yolov7.data.build_index import AnnotatedImage, build_index
from yolov7.data.index import save_index
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import resolve_spec
from yolov7.weights.weight_files import save_weights

NAMES = ("red", "green", "blue")
SMALL = {"base": "nano", "image_size": 64, "scale": {"rule": "width", "width": 0.5}}


def write_prepared(*, images: int = 3, class_names: tuple[str, ...] = NAMES) -> None:
    """A val split of noise."""
    folder = stage_folder("prepare")
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    annotated = []
    for i in range(images):
        path = folder / "images" / f"{i}.png"
        cv2.imwrite(str(path), generator.integers(0, 256, (48, 80, 3), np.uint8))
        boxes = np.array([[4.0, 4.0, 30.0, 40.0]])
        annotated.append(AnnotatedImage(path.resolve(), boxes, np.array([i % 3]), np.array([False])))
    index, _ = build_index(annotated, class_names=class_names)
    save_index(folder / "val.npz", index)
    data = PreparedData(
        class_names=class_names, splits={"val": images}, boxes={"val": images}, source="noise", content_hash="0" * 64
    )
    write_json(folder / "dataset.json", data)


def write_weights(variant: str, *, seed: int = 0, image_size: int = 64) -> None:
    """Untrained weights before and after re-parameterisation."""
    torch.manual_seed(seed)
    model = DetectionModel(resolve_spec(SMALL, name="small"), num_classes=len(NAMES)).eval()
    for stage, made in (("train", model), ("reparam", fuse(model))):
        path = stage_folder(stage, variant, seed) / "weights.safetensors"
        save_weights(path, made, class_names=NAMES, image_size=image_size, training={})


def write_results(params: Experiment, *, figures: dict[tuple[str, int], float], images: int = 3) -> None:
    """Train, reparam and evaluate reports; `figures` is the AP of each variant and seed."""
    for (variant, seed), ap in figures.items():
        train = stage_folder("train", variant, seed)
        write_json(train / "train.json", train_summary(variant, seed, ap))
        lines = "".join(f"{epoch},{ap * epoch / 5:.4f}\n" for epoch in range(1, 6))
        (train / "curve.csv").write_text("epoch,AP\n" + lines, encoding="utf-8")
        write_json(stage_folder("reparam", variant, seed) / "reparam.json", _reparam_report(variant, seed))
        write_json(stage_folder("evaluate", variant, seed) / "metrics.json", metrics_of(ap, images=images))
    write_json(stage_folder("benchmark") / "benchmark.json", benchmark_of(params.variants))


def metrics_of(ap: float, *, images: int) -> Metrics:
    """Figures that hang on the AP alone; none of large objects."""
    names = ("AP75", "APs", "APm", "AR1", "AR10", "AR100", "ARs", "ARm")
    figures = dict.fromkeys(names, ap / 2)
    return Metrics(
        AP=ap,
        AP50=ap + 0.2,
        APl=None,
        ARl=None,
        AP_before_reparam=ap,
        per_class_AP=dict.fromkeys(NAMES, ap),
        split="val",
        images=images,
        **figures,
    )


def benchmark_of(variants: Iterable[str]) -> Benchmark:
    """100 FPS as trained, 160 deployed; half with suppression."""
    rows = [
        BenchmarkRow(
            variant=variant,
            form=form,
            engine="torch",
            precision="float32",
            batch=1,
            nms=nms,
            image_size=64,
            p50_ms=1000 / fps,
            p90_ms=1200 / fps,
            p99_ms=1500 / fps,
            mean_ms=1000 / fps,
            fps=fps / 2 if nms else fps,
            samples=30,
        )
        for variant in variants
        for form, fps in (("trained", 100.0), ("deployed", 160.0))
        for nms in (False, True)
    ]
    return Benchmark(device="a CPU", threads=2, clock_mhz=2500.0, versions={"torch": "2.13.0"}, rows=tuple(rows))


def train_summary(variant: str, seed: int, ap: float) -> TrainSummary:
    """Return how a run ended; its fingerprint is the variant and the seed."""
    return TrainSummary(
        variant=variant,
        seed=seed,
        fingerprint=f"{variant}{seed}",
        epochs=5,
        seconds=10.0,
        images_per_second=100.0,
        loader_wait_share=0.01,
        skipped_steps=0,
        AP=ap,
        AP50=ap + 0.2,
        precision="float32",
        device="cpu",
        workers=1,
    )


def _reparam_report(variant: str, seed: int) -> ReparamReport:
    return ReparamReport(
        variant=variant,
        seed=seed,
        parameters_before=412_866,
        parameters_after=409_709,
        gflops_before=0.22,
        gflops_after=0.21,
        images=4,
        max_error_float32=1e-6,
        mean_error_float32=1e-7,
        max_error_float64=1e-14,
        mean_error_float64=1e-15,
    )
