"""Choice of the device and of the floating-point type."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext

import torch

from yolov7.errors import SettingError, shown, suggest

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")
"""Instructions of CPUs that multiply bfloat16 numbers: of Intel's AMX, of AVX-512, of ARM."""


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device of a name.

    Args:
        name: `auto`, `cpu`, `cuda` or `cuda:N`. `auto` is the first GPU if there is one, else the CPU.

    Returns:
        The device.

    Raises:
        SettingError: If the name is not one of these, or if the machine does not have the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    named = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", str(name))
    if not named:
        raise SettingError(f"device={shown(name)} is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if named[0] == "cpu":
        return torch.device("cpu")
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not number:
        raise SettingError(f"device={shown(name)} is not available: torch finds no GPU; use 'cpu' or 'auto'")
    if int(named[1] or 0) >= number:
        raise SettingError(f"device={shown(name)} is not available: the last GPU is 'cuda:{number - 1}'; use that one")
    return torch.device(named[0])


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the floating-point type of a name.

    Args:
        precision: `auto`, `float32`, `bfloat16` or `float16`. `auto` is bfloat16 if the device multiplies it in
            hardware (see `multiplies_bfloat16`); otherwise it is float16 on GPUs and float32 on CPUs.
        device: Where the model runs.

    Returns:
        The type.

    Raises:
        SettingError: If the name is not one of these.
    """
    if precision in _DTYPES:
        return _DTYPES[precision]
    if precision != "auto":
        names = ", ".join(repr(name) for name in ("auto", *_DTYPES))
        near = suggest(str(precision), _DTYPES)
        raise SettingError(f"precision={shown(precision)} is unknown; use one of {names}{near}")
    if multiplies_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 numbers in hardware, which is then faster than float32.

    The answer follows from the instructions that the device has. A measurement would sometimes choose another type on a
    busy machine, and so change the result.

    Args:
        device: A GPU or the CPU. CPUs have the instructions with AMX-BF16 (Intel from Sapphire Rapids on), AVX512-BF16
            (Intel from Cooper Lake on, AMD from Zen 4 on) or BF16 (ARM from Neoverse V1 and N2 on); torch uses them
            through oneDNN.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities()
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and any(has.get(name, False) for name in _BFLOAT16)


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Return a context for mixed precision; it has no effect for float32.

    Args:
        dtype: Type of the convolutions and matrix products.
        device: Where the model runs.

    Returns:
        The context manager.
    """
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device_type=device.type, dtype=dtype)


def precision_name(dtype: torch.dtype) -> str:
    """Return the name of a type.

    Args:
        dtype: A floating-point type of torch.

    Returns:
        `float32`, `bfloat16` or `float16`.
    """
    return str(dtype).removeprefix("torch.")
