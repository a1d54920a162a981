"""Samples do not depend on the processor: with and without AVX and FMA, compiled and not, they have the same bytes."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolov7.data.augment import colour
from yolov7.data.build_index import AnnotatedImage, build_index
from yolov7.data.dataset import DetectionDataset
from yolov7.settings import AugmentSettings

PLAIN_PROCESSOR = {  # what OpenCV, NumPy and its BLAS would do on a processor with SSE only
    "OPENCV_CPU_DISABLE": "AVX2,AVX,FP16",
    "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": "Prescott",
    "OPENCV_LOG_LEVEL": "ERROR",
}
SETTINGS = (
    AugmentSettings(mixup=0.5),
    AugmentSettings(degrees=20.0, shear=5.0, mosaic_nine=0.5, paste_in=1.0, copy_paste=0.5),
    AugmentSettings(degrees=20.0, perspective=0.001, mosaic=0.5),
)


def digest_of_samples() -> str:
    """Return a hash of samples with objects that have outlines and objects that have none."""
    generator, annotated, digest = np.random.default_rng(0), [], hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(6):
            width, height = (int(side) for side in generator.integers(90, 260, 2))
            path = Path(folder) / f"{i}.png"
            coarse = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            cv2.imwrite(str(path), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST))
            low = generator.uniform(0, [width * 0.6, height * 0.6], (4, 2))
            boxes = np.concatenate([low, low + generator.uniform(0.1, 0.35, (4, 2)) * [width, height]], axis=1)
            outlines = [
                (box[[[0, 1], [2, 1], [0, 3]]].astype(np.float32),) if n % 2 else () for n, box in enumerate(boxes)
            ]
            labels = np.arange(4) % 2
            annotated.append(AnnotatedImage(path, boxes, labels, np.zeros(4, bool), outlines=tuple(outlines)))
        index, _ = build_index(annotated, class_names=("a", "b"))
        for settings in SETTINGS:
            dataset = DetectionDataset(index, image_size=320, augment=settings, seed=1)
            for i in range(len(index)):
                sample = dataset.sample(i, epoch=i)
                digest.update(np.ascontiguousarray(sample.image))
                digest.update(sample.boxes_cxcywh.tobytes())
    return digest.hexdigest()


def test_samples_are_the_same_without_the_compiled_part(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = digest_of_samples()
    monkeypatch.setattr(colour, "_colour", None)
    assert digest_of_samples() == expected


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="switches off what only x86-64 has")
def test_samples_are_the_same_on_a_processor_without_avx() -> None:
    program = "from tests.unit.test_same_samples import digest_of_samples; print(digest_of_samples())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=Path(__file__).parents[2],
        env=os.environ | PLAIN_PROCESSOR,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == digest_of_samples()
