"""Test what blocks concatenate and add, for blocks that no vector of the reference covers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from yolov7.nn.blocks import Bottlenecks, Csp, Upsample
from yolov7.nn.csp_blocks import CspRep, CspTiny
from yolov7.nn.pooling import Spp
from yolov7.spec.block_schema import BottleneckRow, CspRepRow, CspRow, CspTinyRow
from yolov7.spec.row import MapShape


def row(kind: type, **keys: object) -> object:
    return kind.model_validate({"from": ["image"], **keys})


def input_of(part: nn.Module, block: nn.Module, x: Tensor) -> Tensor:
    """Return the input of a part of a block when the block runs."""
    seen: list[Tensor] = []
    handle = part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        block.eval()(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", ["csp_a", "csp_b", "csp_c"])
def test_csp_concatenates_the_dark_path_before_the_other(name: str) -> None:
    block = Csp(row(CspRow, block=name, out=16, depth=2), [MapShape(8, 8)], activation="silu")
    x = torch.rand(1, 8, 4, 4)
    merged = input_of(block.merge, block, x)
    with torch.no_grad():
        first = block.a(x)
        dark = block.chain(first)
        ways = [block.behind(dark), block.b(first if name == "csp_b" else x)]
    torch.testing.assert_close(merged, torch.cat(ways, dim=1))
    assert merged.shape[1] == (32 if name == "csp_b" else 16)
    assert isinstance(block.behind, nn.Identity) == (name != "csp_c")


def test_dark_blocks_add_their_input() -> None:
    x = torch.rand(1, 16, 4, 4)
    for shortcut in (True, False):
        chain = Bottlenecks(row(BottleneckRow, block="bottleneck", out=16, shortcut=shortcut), 16, activation="silu")
        dark = chain.eval().chain[0]
        with torch.no_grad():
            torch.testing.assert_close(chain(x) - dark.second(dark.first(x)), x if shortcut else torch.zeros_like(x))
    wider = Bottlenecks(row(BottleneckRow, block="bottleneck", out=32, depth=2), 16, activation="silu")
    assert [dark.adds for dark in wider.chain] == [False, True]


def test_reversed_dark_blocks_start_with_the_3x3() -> None:
    block = Csp(row(CspRow, block="csp_a", out=16, depth=1, reversed=True), [MapShape(8, 8)], activation="silu")
    dark = block.chain[0]
    assert (dark.first.conv.kernel_size, dark.second.conv.kernel_size) == ((3, 3), (1, 1))


def test_laterals_are_behind_the_upsampled_map() -> None:
    block, x, lateral = Upsample(8, 4, activation="silu").eval(), torch.rand(1, 8, 2, 3), torch.rand(1, 5, 4, 6)
    with torch.no_grad():
        y = block(x, lateral)
        torch.testing.assert_close(y[:, 4:], lateral)
        torch.testing.assert_close(y[:, :4, 1::2, ::2], block.top(x))


def test_the_pyramid_starts_with_the_map_itself() -> None:
    block, x = Spp(8, 6, activation="silu"), torch.rand(1, 8, 9, 9)
    merged = input_of(block.merge, block, x)
    with torch.no_grad():
        reduced = block.reduce(x)
    pools = [nn.functional.max_pool2d(reduced, side, 1, side // 2) for side in (5, 9, 13)]
    torch.testing.assert_close(merged, torch.cat([reduced, *pools], dim=1))


def test_the_block_of_ppyoloe_pools_in_the_middle_and_weights_its_channels() -> None:
    backbone = CspRep(row(CspRepRow, block="csp_rep_res", out=8, depth=2), [MapShape(12, 8)], activation="silu")
    x = torch.rand(1, 12, 9, 9)
    merged = input_of(backbone.merge, backbone, x)
    with torch.no_grad():
        joined = torch.cat([backbone.bypass(x), backbone.chain[1](backbone.chain[0](backbone.reduce(x)))], dim=1)
        weights = backbone.attention.conv(joined.mean((2, 3), keepdim=True)) / 6 + 0.5
    torch.testing.assert_close(merged, joined * weights.clamp(0, 1))
    neck = CspRep(row(CspRepRow, block="csp_rep", out=8, depth=3, spp=True), [MapShape(12, 8)], activation="silu")
    pooled = input_of(neck.spp, neck, x)
    with torch.no_grad():
        second = neck.eval().chain[1](neck.chain[0](neck.reduce(x)))
    pools = [nn.functional.max_pool2d(second, side, 1, side // 2) for side in (5, 9, 13)]
    torch.testing.assert_close(pooled, torch.cat([second, *pools], dim=1))
    assert [block.adds for block in (*backbone.chain, *neck.chain)] == [True] * 2 + [False] * 3


@pytest.mark.parametrize("half", ["first", "second"])
def test_the_block_of_yolov4_tiny_takes_one_half(half: str) -> None:
    block, x = (
        CspTiny(row(CspTinyRow, block="csp_tiny", out=8, half=half), 8, activation="silu"),
        torch.rand(1, 8, 4, 4),
    )
    merged = input_of(block.merge, block, x)
    with torch.no_grad():
        first = block.first(x[:, :4] if half == "first" else x[:, 4:])
        torch.testing.assert_close(merged, torch.cat([block.second(first), first], dim=1))
