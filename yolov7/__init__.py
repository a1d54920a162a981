"""The detector as a library. Names are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
    from yolov7.api.evaluate import Evaluation, evaluate, evaluate_results
    from yolov7.api.train import train
    from yolov7.detect.detections import Detections, draw
    from yolov7.detect.detector import Detector
    from yolov7.detect.tiles import Tiling
    from yolov7.errors import ArtifactError, DataError, SettingError, SpecError, TrainingError, UserError
    from yolov7.nn.cost import Cost, spec_cost
    from yolov7.nn.fuse import fuse
    from yolov7.nn.model import DetectionModel
    from yolov7.settings import NmsSettings, TrainSettings
    from yolov7.spec.graph import ModelSpec
    from yolov7.spec.scaling import scale_spec
    from yolov7.spec.spec_files import list_specs, load_spec
    from yolov7.system.plugins import allow_plugins
    from yolov7.training.callbacks import Callback, RunState
    from yolov7.weights.foreign.reference import export_checkpoint, import_checkpoint
    from yolov7.weights.weight_files import load_weights, save_weights

_HOMES = {
    "ArtifactError": "errors",
    "Callback": "training.callbacks",
    "Cost": "nn.cost",
    "DataError": "errors",
    "DetectionModel": "nn.model",
    "Detections": "detect.detections",
    "Detector": "detect.detector",
    "Evaluation": "api.evaluate",
    "ModelSpec": "spec.graph",
    "NmsSettings": "settings",
    "RunState": "training.callbacks",
    "SettingError": "errors",
    "SpecError": "errors",
    "Tiling": "detect.tiles",
    "TrainSettings": "settings",
    "TrainingError": "errors",
    "UserError": "errors",
    "allow_plugins": "system.plugins",
    "draw": "detect.detections",
    "evaluate": "api.evaluate",
    "evaluate_results": "api.evaluate",
    "export_checkpoint": "weights.foreign.reference",
    "fuse": "nn.fuse",
    "import_checkpoint": "weights.foreign.reference",
    "list_specs": "spec.spec_files",
    "load_spec": "spec.spec_files",
    "load_weights": "weights.weight_files",
    "save_weights": "weights.weight_files",
    "scale_spec": "spec.scaling",
    "spec_cost": "nn.cost",
    "train": "api.train",
}

__all__ = [
    "ArtifactError",
    "Callback",
    "Cost",
    "DataError",
    "DetectionModel",
    "Detections",
    "Detector",
    "Evaluation",
    "ModelSpec",
    "NmsSettings",
    "RunState",
    "SettingError",
    "SpecError",
    "Tiling",
    "TrainSettings",
    "TrainingError",
    "UserError",
    "__version__",
    "allow_plugins",
    "draw",
    "evaluate",
    "evaluate_results",
    "export_checkpoint",
    "fuse",
    "import_checkpoint",
    "list_specs",
    "load_spec",
    "load_weights",
    "save_weights",
    "scale_spec",
    "spec_cost",
    "train",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version  # an import that takes a noticeable time

        try:
            return version("yolov7-pipeline")
        except PackageNotFoundError:  # the code is used without being installed
            return "unknown"
    if name not in _HOMES:
        raise AttributeError(f"module 'yolov7' has no attribute {name!r}")
    return getattr(import_module(f"yolov7.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
