"""The Python examples of docs/python.md run literally, in their order."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import pytest
import torch

from tests.unit.media import noise, write_video
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec
from yolov7.weights.weight_files import save_weights

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = DetectionModel(load_spec("nano"), num_classes=2)
    save_weights("weights.safetensors", model, class_names=("cat", "dog"), image_size=64, training={})
    cv2.imwrite("image.jpg", noise(90, 120))
    write_video(tmp_path / "video.mp4", frames=3)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) > 8
    assert cv2.imread("drawn.jpg").shape == (360, 480, 3)
    assert len(names["results"]) > 10  # type: ignore[arg-type]
    assert "missing.jpg cannot be read" in capsys.readouterr().out
