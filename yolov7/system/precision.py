"""Which device, which floating-point type: `auto` takes what is fast here."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from yolov7.errors import SettingError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str = "auto") -> torch.device:
    """`auto`: the first GPU where there is one, else the CPU; ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingError(f"device={name!r}: no GPU is visible to torch; use 'cpu' or 'auto'")
    return device


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the device multiplies it in hardware (recent GPUs, CPUs with AMX), else float32."""
    if precision != "auto":
        return _DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if _cpu_has_amx() else torch.float32


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Mixed precision in that type; nothing for float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device_type=device.type, dtype=dtype)


def precision_name(dtype: torch.dtype) -> str:
    """`float32`, `bfloat16` or `float16`."""
    return str(dtype).removeprefix("torch.")


def _cpu_has_amx() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())
