"""Weight files of darknet: number of classes, epsilon of batch norm, and files that are refused in one line."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.foreign_files import write_darknet
from yolov7.data.coco_names import COCO_NAMES
from yolov7.errors import ArtifactError
from yolov7.nn.blocks import ConvBnAct
from yolov7.nn.fuse import fold_norm
from yolov7.spec.spec_files import load_spec, resolve_spec
from yolov7.weights.foreign.reference import import_checkpoint, open_weights

NUM_TINY = 24_967_560 // 4 - 5  # values of yolov7-tiny with 80 classes, behind a header of 20 bytes
PER_CLASS = 3 * (128 + 256 + 512 + 3)


def tiny(*, num_classes: int = 80, value: float = 0.1) -> bytes:
    return np.full(NUM_TINY + PER_CLASS * (num_classes - 80), value, "<f4").tobytes()


def refusal(path: Path, **given: Any) -> str:
    with pytest.raises(ArtifactError) as caught:
        import_checkpoint(path, **given)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("version", [(0, 1, 0), (0, 2, 5)])
def test_both_headers(tmp_path: Path, version: tuple[int, int, int]) -> None:
    path = write_darknet(tmp_path / "x.bin", tiny(), version=version)
    weights, remarks = import_checkpoint(path)
    assert (weights.model.spec.name, weights.class_names) == ("yolov7-tiny", COCO_NAMES)
    assert remarks == ("it has no implicit knowledge",)


def test_other_decodings_are_mentioned(tmp_path: Path) -> None:
    path = write_darknet(tmp_path / "x.weights", tiny())
    spec = resolve_spec({"base": "yolov7-tiny"}, name="other")
    assert import_checkpoint(path, spec=spec).remarks[-1].startswith("its boxes are decoded as those of YOLOv7")


def test_the_size_tells_the_number_of_classes(tmp_path: Path) -> None:
    path = write_darknet(tmp_path / "x.weights", tiny(num_classes=3))
    assert "has 3 classes but not their names" in refusal(path)
    assert import_checkpoint(path, class_names=("a", "b", "c")).weights.model.num_classes == 3
    assert open_weights(path, spec=load_spec("nano")).class_names == ("0", "1", "2")


def test_the_scale_makes_up_for_the_smaller_epsilon(tmp_path: Path) -> None:
    path = write_darknet(tmp_path / "x.weights", tiny(value=0.25))
    block = import_checkpoint(path).weights.model.get_submodule("rows.s1.conv")
    assert isinstance(block, ConvBnAct)
    kernel, bias = fold_norm(block.conv.weight, block.bn)
    scale = 0.25 / (0.25 + 1e-6) ** 0.5
    torch.testing.assert_close(kernel, torch.full_like(kernel, 0.25 * scale), rtol=1e-7, atol=0)
    torch.testing.assert_close(bias, torch.full_like(bias, 0.25 - 0.25 * scale), rtol=1e-6, atol=0)


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.weights"
    sizes = (
        "yolov7-tiny has 24,967,560, yolov7 has 147,898,248, yolov7x has 285,638,760, yolov4 has 257,717,640, "
        "yolov4-tiny has 24,251,276"
    )
    for values in (tiny()[:-4], tiny() + bytes(4), b"\0" * 4):
        write_darknet(path, values)
        assert f"bytes fit no number of classes (with 80 classes, {sizes}); download it again" in refusal(path)
    write_darknet(path, tiny())
    assert "(with 80 classes, nano has " in refusal(path, spec=load_spec("nano"))
    for values in (tiny()[:-1], b"", b"\0\0\0"):
        write_darknet(path, values)
        assert "are not a header and whole numbers; download it again" in refusal(path)
    for start in (struct.pack("<3iq", 0, 2_000_000, 5, 0), struct.pack("<3iq", -1, 2, 5, 0), b"<html></html>"):
        path.write_bytes(start + tiny()[:400])
        assert "does not start with a version of darknet" in refusal(path)
    path.write_bytes(b"")
    assert "is none of the kinds of files that are read" in refusal(path)
    for value in (float("nan"), float("inf"), -1.0):
        write_darknet(path, tiny(value=value))
        assert "holds values of rows.s1.conv.conv that no training gives" in refusal(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"<!DOCTYPE html><html></html>")
    assert "is none of the kinds of files that are read: torch.save, safetensors, darknet" in refusal(path)
    assert "there is no such file" in refusal(tmp_path / "y.weights")
