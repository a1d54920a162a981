"""Compare single blocks in evaluation mode with vectors of the reference."""

from __future__ import annotations

import torch
from torch import nn

from tests.golden.vectors import load_vectors
from yolov7.nn.blocks import DownC, Reorg
from yolov7.nn.pooling import Sppcspc


def test_sppcspc() -> None:
    check(Sppcspc(12, 8, activation="silu"), "block_sppcspc")


def test_down_c() -> None:
    check(DownC(6, 5, activation="silu"), "block_downc")


def test_reorg() -> None:
    check(Reorg(), "block_reorg")


def check(block: nn.Module, name: str) -> None:
    """Compare the outputs. Modules have the order of the reference, so weights are copied in order."""
    golden = load_vectors(name)
    own = [key for key in block.state_dict() if not key.endswith("num_batches_tracked")]
    given = [value for key, value in golden.items() if key.startswith("sd.")]
    block.eval().load_state_dict(dict(zip(own, given, strict=True)), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(block(golden["x"]), golden["y"])
