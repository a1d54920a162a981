"""What `precision: auto` chooses on CPUs that multiply bfloat16 numbers in hardware, and on those that do not."""

from __future__ import annotations

import pytest
import torch

from yolov7.system.precision import resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_vnni": True}, torch.float32),  # Intel up to Ice Lake
        ({"avx512_f": True, "avx512_bf16": True, "amx_tile": False}, torch.bfloat16),  # AMD Zen 4
        ({"avx512_bf16": True, "amx_tile": True, "amx_bf16": True}, torch.bfloat16),  # Intel Sapphire Rapids
        ({"neon": True, "bf16": True, "sve": True}, torch.bfloat16),  # ARM Neoverse V1
        ({"neon": True, "bf16": False, "fp16_arith": True}, torch.float32),  # ARM Neoverse N1
        ({}, torch.float32),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_multiplies_it(
    flags: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert resolve_precision("auto", CPU) == dtype
    assert resolve_precision("float32", CPU) == torch.float32
    assert resolve_precision("bfloat16", CPU) == torch.bfloat16


def test_auto_is_float32_without_the_library_that_uses_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True, "bf16": True})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert resolve_precision("auto", CPU) == torch.float32
