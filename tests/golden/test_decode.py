from __future__ import annotations

import torch

from tests.golden.vectors import load_vectors
from yolov7.nn.fuse import fuse_detect
from yolov7.nn.heads import Detect, decode_maps
from yolov7.spec.block_schema import DetectRow
from yolov7.spec.row import MapShape

TOLERANCE = {"rtol": 1e-5, "atol": 1e-4}  # boxes are in pixels


def test_decode_detect() -> None:
    for name in ("decode_detect_p5", "decode_detect_p6"):
        golden = load_vectors(name)
        maps = [golden[f"raw{i}"] for i in range(len(golden["strides"]))]
        decoded = decode_maps(maps, anchors_px=golden["anchors_px"], strides=golden["strides"].int().tolist())
        torch.testing.assert_close(decoded, golden["decoded"], **TOLERANCE)


def test_head_splits_channels_anchor_major() -> None:
    golden = load_vectors("decode_detect_p5")
    maps = [golden[f"x{i}"] for i in range(3)]
    head = _make_head(golden, implicit=False, channels=[x.shape[1] for x in maps])
    for conv in head.convs:
        torch.nn.init.dirac_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    for i, raw in enumerate(head(*maps).lead):
        torch.testing.assert_close(raw, golden[f"raw{i}"])


def test_implicit_head_unfused_and_fused() -> None:
    golden = load_vectors("decode_idetect")
    head = _make_head(golden, implicit=True, channels=[golden[f"w{i}"].shape[1] for i in range(3)])
    names = {"convs.{}.weight": "w{}", "convs.{}.bias": "b{}", "ia.{}": "ia{}", "im.{}": "im{}"}
    head.load_state_dict({own.format(i): golden[given.format(i)] for own, given in names.items() for i in range(3)})
    _check_head(head, golden, decoded="decoded_unfused")
    with torch.no_grad():
        fused = fuse_detect(head)
    for i, conv in enumerate(fused.convs):
        torch.testing.assert_close(conv.weight, golden[f"fused_w{i}"].view_as(conv.weight))
        torch.testing.assert_close(conv.bias, golden[f"fused_b{i}"].view_as(conv.bias))
    _check_head(fused, golden, decoded="decoded_fused")


def test_half_precision_maps_decode_in_float32() -> None:
    raw = torch.zeros(1, 1, 1, 300, 6, dtype=torch.bfloat16)
    decoded = decode_maps([raw], anchors_px=torch.tensor([[[10.0, 20.0]]]), strides=[8])
    assert decoded.dtype == torch.float32
    assert decoded[0, 299, :4].tolist() == [299.5 * 8, 4.0, 10.0, 20.0]


def _make_head(golden: dict, *, implicit: bool, channels: list[int]) -> Detect:
    levels = [MapShape(width, stride) for width, stride in zip(channels, golden["strides"].int().tolist(), strict=True)]
    anchors, sources = [[1.0] * 6] * len(levels), [str(i) for i in range(len(levels))]
    row = DetectRow.model_validate({"block": "detect", "from": sources, "anchors": anchors, "implicit": implicit})
    return Detect(row, levels, num_classes=golden["nc"])


def _check_head(head: Detect, golden: dict, *, decoded: str) -> None:
    maps = head(*(golden[f"x{i}"] for i in range(3))).lead
    for i, raw in enumerate(maps):
        torch.testing.assert_close(raw, golden[f"raw{i}"])
    boxes = decode_maps(maps, anchors_px=golden["anchors_px"], strides=golden["strides"].int().tolist())
    torch.testing.assert_close(boxes, golden[decoded], **TOLERANCE)
