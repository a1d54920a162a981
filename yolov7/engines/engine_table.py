"""All engines: what they run, where, and whether they are installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from yolov7.engines.onnx_runtime import has_gpu_provider
from yolov7.engines.open_vino import has_fast_bfloat16
from yolov7.errors import SettingError, shown, suggest

Kind = Literal["weights", "onnx", "openvino", "torchscript", "tensorrt"]
KINDS: dict[Kind, str] = {
    "weights": "weight file (.safetensors)",
    "onnx": "ONNX file (.onnx)",
    "openvino": "OpenVINO model (.xml)",
    "torchscript": "TorchScript file (.torchscript)",
    "tensorrt": "TensorRT engine (.engine)",
}
"""What can be opened."""


@dataclass(frozen=True)
class EngineInfo:
    """One engine.

    Attributes:
        name: Its name.
        runs: The kinds of files that it runs.
        devices: The devices that it can run on.
        precisions: The types in which it can compute.
        needs: What must be installed or present.
        missing: What is missing on this machine; empty if the engine is available.
    """

    name: str
    runs: tuple[Kind, ...]
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    needs: str
    missing: str

    @property
    def is_available(self) -> bool:
        """Whether the engine can run on this machine."""
        return not self.missing

    def runs_on_gpu(self) -> bool:
        """Return whether the engine, as it is installed here, can run on GPUs."""
        return "cuda" in self.devices and (self.name != "onnxruntime" or has_gpu_provider())

    def precisions_here(self) -> tuple[str, ...]:
        """Return the types in which the engine computes on this machine, where it must be available."""
        is_slow = self.name == "openvino" and not has_fast_bfloat16()
        return tuple(one for one in self.precisions if not (is_slow and one == "bfloat16"))


_FLOATS = ("float32", "bfloat16", "float16")
_BOTH = ("cpu", "cuda")
_GPU = "a GPU of NVIDIA"
_COMPILER = "a C++ compiler on CPUs"


def engines() -> tuple[EngineInfo, ...]:
    """Return all engines; of those that run the same kind of file, the fastest on CPUs is first.

    Returns:
        The engines, with what this machine lacks for them.
    """
    return (
        EngineInfo("torch", ("weights",), _BOTH, _FLOATS, "nothing more", ""),
        EngineInfo("torch-compile", ("weights",), _BOTH, _FLOATS, _COMPILER, _missing_compiler()),
        EngineInfo("cuda-graphs", ("weights",), ("cuda",), _FLOATS, _GPU, _missing_gpu()),
        EngineInfo(
            "openvino",
            ("onnx", "openvino"),
            ("cpu",),
            ("float32", "bfloat16", "int8"),
            "yolov7-pipeline[openvino]",
            _missing_package("openvino", extra="openvino"),
        ),
        EngineInfo(
            "onnxruntime",
            ("onnx",),
            _BOTH,
            ("float32", "float16", "int8"),
            "yolov7-pipeline[onnx]; on GPUs onnxruntime-gpu",
            _missing_package("onnxruntime", extra="onnx"),
        ),
        EngineInfo("torchscript", ("torchscript",), _BOTH, _FLOATS, "nothing more", ""),
        EngineInfo(
            "tensorrt",
            ("tensorrt",),
            ("cuda",),
            (*_FLOATS, "int8"),
            f"the package tensorrt and {_GPU}",
            _missing_package("tensorrt", extra="") or _missing_gpu(),
        ),
    )


def choose_engine(
    wanted: str, kind: Kind, *, made_for: Sequence[str] = (), verified: Sequence[str] = (), device: str = "auto"
) -> EngineInfo:
    """Return the engine that runs a file.

    Args:
        wanted: The name of an engine, or `auto` for the fastest one.
        kind: What the file is.
        made_for: The names of the engines that the file is made for; empty if all that run its kind are.
        verified: The names of the engines in which the file was verified; `auto` prefers them.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        The engine.

    Raises:
        SettingError: If the engine is unknown, is not available, or does not run the file.
    """
    every = engines()
    able = [one for one in every if kind in one.runs and (not made_for or one.name in made_for)]
    names = " or ".join(repr(one.name) for one in able) or "none of this version"
    if wanted == "auto":
        usable = [one for one in able if one.is_available]
        here = [one for one in usable if not device.startswith("cuda") or one.runs_on_gpu()] or usable
        if here:
            return next((one for one in here if one.name in verified), here[0])
        reasons = "; ".join(f"{one.name}: {one.missing}" for one in able)
        raise SettingError(f"no engine for this {KINDS[kind]} is available ({reasons or names})")
    chosen = next((one for one in every if one.name == wanted), None)
    if chosen is None:
        known = [one.name for one in every]
        raise SettingError(f"engine={shown(wanted)} is unknown; use 'auto', {names}{suggest(wanted, known)}")
    if chosen not in able:
        raise SettingError(f"engine={wanted!r} does not run this {KINDS[kind]}; use 'auto' or {names}")
    if chosen.missing:
        raise SettingError(f"engine={wanted!r} is not available: {chosen.missing}")
    return chosen


def _missing_package(name: str, *, extra: str) -> str:
    if importlib.util.find_spec(name) is not None:
        return ""
    install = f"yolov7-pipeline[{extra}]" if extra else name
    return f"the package {name} is not installed; install it with: pip install '{install}'"


def _missing_gpu() -> str:
    return "" if torch.cuda.is_available() else "torch finds no GPU"


def _missing_compiler() -> str:
    names = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    if torch.cuda.is_available() or any(shutil.which(name) for name in names if name):
        return ""
    return "there is no C++ compiler; install g++"
