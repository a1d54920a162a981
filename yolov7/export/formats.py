"""The formats of exported models, and the options that each of them supports."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from yolov7.engines.engine_table import engines
from yolov7.engines.metadata import Layout, StoredPrecision
from yolov7.errors import SettingError, shown, suggest
from yolov7.settings import NmsSettings

Format = Literal["onnx", "openvino", "torchscript", "tensorrt"]


@dataclass(frozen=True)
class FormatInfo:
    """What can be exported in a format.

    Attributes:
        suffix: Ending of the file.
        precisions: Types of the stored numbers.
        engines: Names of the engines that run the files, the fastest first.
        layouts: Orders of the channels and axes of the input.
        has_nms: Whether the suppression can be part of the file.
        packages: Packages that are needed to write the file, and the extra that installs each.
    """

    suffix: str
    precisions: tuple[StoredPrecision, ...]
    engines: tuple[str, ...]
    layouts: tuple[Layout, ...]
    has_nms: bool
    packages: dict[str, str]


_ONNX = dict.fromkeys(("onnxscript", "onnx"), "yolov7-pipeline[onnx]")
_OPENVINO = dict.fromkeys((*_ONNX, "openvino"), "yolov7-pipeline[openvino]")
_NCHW: tuple[Layout, ...] = ("rgb_nchw",)
FORMATS: dict[Format, FormatInfo] = {
    "onnx": FormatInfo(".onnx", ("float32", "float16", "int8"), ("openvino", "onnxruntime"), _NCHW, True, _ONNX),
    "openvino": FormatInfo(
        ".xml",
        ("float32", "float16", "int8"),
        ("openvino",),
        ("rgb_nchw", "rgb_nhwc", "bgr_nhwc"),
        True,
        _OPENVINO,
    ),
    "torchscript": FormatInfo(".torchscript", ("float32", "float16", "bfloat16"), ("torchscript",), _NCHW, False, {}),
    "tensorrt": FormatInfo(
        ".engine",
        ("float32", "float16", "bfloat16"),
        ("tensorrt",),
        _NCHW,
        True,
        _ONNX | {"tensorrt": ""},
    ),
}


@dataclass(frozen=True)
class ExportSettings:
    """What to export.

    Attributes:
        format: The format.
        nms: Settings of the suppression inside the file; None for decoded predictions as output.
        dynamic: Whether the file takes images of any size.
        precision: Type of the stored numbers.
        layout: Order of the channels and axes of the input.
    """

    format: Format
    nms: NmsSettings | None
    dynamic: bool
    precision: StoredPrecision
    layout: Layout


def check_settings(
    format: str, *, nms: NmsSettings | None, dynamic: bool, precision: str, layout: str
) -> ExportSettings:
    """Return the settings of an export if the format can be written in that way.

    Args:
        format: Name of the format.
        nms: Settings of the suppression inside the file; None for none.
        dynamic: Whether the file takes images of any size.
        precision: Type of the stored numbers.
        layout: Order of the channels and axes of the input.

    Returns:
        The settings.

    Raises:
        SettingError: If the format cannot be written in that way, or needs a package that is not installed.
    """
    known = next((name for name in FORMATS if name == format), None)
    if known is None:
        raise SettingError(f"format={shown(format)} is unknown; use one of {list(FORMATS)}{suggest(format, FORMATS)}")
    info = FORMATS[known]
    stored = next((one for one in info.precisions if one == precision), None)
    if stored is None:
        also = "; OpenVINO computes a float32 file in bfloat16 where the CPU can" if precision == "bfloat16" else ""
        raise SettingError(
            f"precision={shown(precision)} is not available for {format}; use one of {list(info.precisions)}{also}"
        )
    order = next((one for one in info.layouts if one == layout), None)
    if order is None:
        raise SettingError(f"layout={shown(layout)} is not available for {format}; use one of {list(info.layouts)}")
    if nms is not None and not info.has_nms:
        able = [name for name, one in FORMATS.items() if one.has_nms]
        raise SettingError(f"nms: a {format} file cannot contain the suppression; leave it out, or use one of {able}")
    if dynamic and known == "tensorrt":
        raise SettingError("dynamic: a TensorRT engine is built for one image size; leave it out")
    _check_packages(known)
    if stored == "int8":
        _check_quantiser(known)
    return ExportSettings(known, nms, dynamic, stored, order)


def installed(package: str) -> str | None:
    """Return the version of a package; None if it is not installed.

    Args:
        package: Its name in the package index.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def engines_of(format: Format, precision: StoredPrecision) -> tuple[str, ...]:
    """Return the names of the engines that run a file, the fastest first.

    A file that was quantised for ONNX Runtime gives wrong detections in OpenVINO.

    Args:
        format: The format.
        precision: Type of the stored numbers.
    """
    return ("onnxruntime",) if (format, precision) == ("onnx", "int8") else FORMATS[format].engines


def _check_quantiser(format: Format) -> None:
    package, extra = ("nncf", "openvino") if format == "openvino" else ("onnxruntime", "onnx")
    if installed(package) is None:
        raise SettingError(
            f"precision='int8' needs the package {package}; install it with: pip install 'yolov7-pipeline[{extra}]'"
        )


def _check_packages(format: Format) -> None:
    """Raise SettingError if a package for writing the format, or a GPU that it needs, is missing."""
    for package, extra in FORMATS[format].packages.items():
        if installed(package) is None:
            raise SettingError(
                f"format={format!r} needs the package {package}; install it with: pip install '{extra or package}'"
            )
    missing = [engine.missing for engine in engines() if engine.name == "tensorrt"]
    if format == "tensorrt" and missing[0]:
        raise SettingError(f"format={format!r} is not available: {missing[0]}")
