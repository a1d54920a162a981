"""Compare the training graph in float32 with the deployed model in several forms, for one image on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from tests.bench.comparison import Row, Stopwatch
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec
from yolov7.system.precision import autocast

SPEC, SIZE = "yolov7-tiny", 640
CPU = torch.device("cpu")


def rows(watch: Stopwatch) -> Iterator[Row]:
    """Compare each form with the eager, unfused, contiguous model in float32."""
    torch.manual_seed(0)
    model = DetectionModel(load_spec(SPEC), num_classes=80).eval()
    image = torch.rand(1, 3, SIZE, SIZE)
    plain = partial(_run, model, image, torch.float32)
    for name, ours in _ways(model, image).items():
        yield watch.compare(f"inference: {SPEC}, {SIZE} px, batch 1, {name}", plain, ours)


def _ways(model: DetectionModel, image: Tensor) -> dict[str, Callable[[], object]]:
    """Return the forms of a deployed model; bfloat16 only if the CPU multiplies it in hardware."""
    fused = fuse(model)
    last = fuse(model).to(memory_format=torch.channels_last)
    image_last = image.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(last, dynamic=False)
    ways: dict[str, Callable[[], object]] = {
        "fused": partial(_run, fused, image, torch.float32),
        "fused, channels_last": partial(_run, last, image_last, torch.float32),
        "fused, channels_last, compiled": partial(_run, compiled, image_last, torch.float32),
    }
    if torch.cpu._is_amx_tile_supported():
        ways["fused, channels_last, bfloat16"] = partial(_run, last, image_last, torch.bfloat16)
        ways["fused, channels_last, compiled, bfloat16"] = partial(_run, compiled, image_last, torch.bfloat16)
    return ways


@torch.inference_mode()
def _run(model: Callable[[Tensor], object], image: Tensor, dtype: torch.dtype) -> object:
    with autocast(dtype, CPU):
        return model(image)
