"""The Python examples of docs/python.md and docs/evaluate.md run literally, in their order."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import pytest
import torch

from tests.unit.data_files import write_voc
from tests.unit.media import noise, write_video
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec
from yolov7.weights.weight_files import save_weights

DOCS = Path(__file__).parents[2] / "docs"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = DetectionModel(load_spec("nano"), num_classes=2)
    save_weights("weights.safetensors", model, class_names=("cat", "dog"), image_size=64, training={})
    cv2.imwrite("image.jpg", noise(90, 120))
    write_video(tmp_path / "video.mp4", frames=3)
    write_voc(tmp_path / "dataset", {f"{n}": [("cat", 1, 1, 30, 30), ("dog", 5, 5, 40, 38)] for n in range(2)})
    names: dict[str, object] = {}
    for page, count in (("python.md", 11), ("evaluate.md", 1)):
        blocks = re.findall(
            r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
        assert len(blocks) >= count
        for block in blocks:
            exec(compile(block, page, "exec"), names)
    assert Path("runs/first/weights.safetensors").is_file()
    assert cv2.imread("drawn.jpg").shape == (360, 480, 3)
    assert len(names["results"]) > 10  # type: ignore[arg-type]
    assert "missing.jpg cannot be read" in capsys.readouterr().out
