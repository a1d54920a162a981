from __future__ import annotations

import pytest
import torch

from tests.golden.vectors import load_vectors
from yolov7.nn.blocks import ConvBnAct, RepConv
from yolov7.nn.fuse import fuse_conv, fuse_rep_conv


def test_conv_with_batch_norm() -> None:
    golden = load_vectors("convbn_fuse")
    block = ConvBnAct(6, 10, 3, 2, activation="silu").eval()
    state = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}
    block.load_state_dict(
        {"conv.weight": golden["w"], **{f"bn.{own}": golden[name] for own, name in state.items()}}, strict=False
    )
    with torch.no_grad():
        fused = fuse_conv(block)
        torch.testing.assert_close(block(golden["x"]), golden["y_unfused"])
        torch.testing.assert_close(fused(golden["x"]), golden["y_fused"])
    torch.testing.assert_close(fused.conv.weight.data, golden["fused_w"])
    torch.testing.assert_close(fused.conv.bias.data, golden["fused_b"])


@pytest.mark.parametrize("name", ["identity", "noident", "stride2"])
def test_rep_conv(name: str) -> None:
    golden = load_vectors(f"repconv_{name}")
    width, channels = golden["sd.rbr_dense.0.weight"].shape[:2]
    block = RepConv(channels, width, golden["stride"], identity=name == "identity", activation="silu").eval()
    block.load_state_dict(_renamed(golden), strict=False)
    with torch.no_grad():
        fused = fuse_rep_conv(block)
        torch.testing.assert_close(block(golden["x"]), golden["y_unfused"])
        torch.testing.assert_close(fused(golden["x"]), golden["y_fused"])
    torch.testing.assert_close(fused.conv.weight.data, golden["fused_weight"])
    torch.testing.assert_close(fused.conv.bias.data, golden["fused_bias"])


def _renamed(golden: dict) -> dict:
    names = {"rbr_identity": "identity", "rbr_dense": "dense", "rbr_1x1": "pointwise"}
    state = {}
    for key in (key.removeprefix("sd.") for key in golden if key.startswith("sd.")):
        branch, _, rest = key.partition(".")
        state[f"{names[branch]}.{rest}"] = golden[f"sd.{key}"]
    return state
