"""YOLOv7 object detection: the detector as a library. Names are imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yolov7.cost import Cost, spec_cost
    from yolov7.detector import Detector
    from yolov7.errors import ArtifactError, DataError, SpecError
    from yolov7.graph import ModelSpec
    from yolov7.model import DetectionModel
    from yolov7.reference.interchange import export_checkpoint, import_checkpoint
    from yolov7.reparam import fuse
    from yolov7.scaling import scale_spec
    from yolov7.settings import NmsSettings, TrainSettings
    from yolov7.spec import list_specs, load_spec
    from yolov7.structures import Detections
    from yolov7.weights import load_weights, save_weights

_HOMES = {
    "ArtifactError": "errors",
    "Cost": "cost",
    "DataError": "errors",
    "DetectionModel": "model",
    "Detections": "structures",
    "Detector": "detector",
    "ModelSpec": "graph",
    "NmsSettings": "settings",
    "SpecError": "errors",
    "TrainSettings": "settings",
    "export_checkpoint": "reference.interchange",
    "fuse": "reparam",
    "import_checkpoint": "reference.interchange",
    "list_specs": "spec",
    "load_spec": "spec",
    "load_weights": "weights",
    "save_weights": "weights",
    "scale_spec": "scaling",
    "spec_cost": "cost",
}

__all__ = [
    "ArtifactError",
    "Cost",
    "DataError",
    "DetectionModel",
    "Detections",
    "Detector",
    "ModelSpec",
    "NmsSettings",
    "SpecError",
    "TrainSettings",
    "export_checkpoint",
    "fuse",
    "import_checkpoint",
    "list_specs",
    "load_spec",
    "load_weights",
    "save_weights",
    "scale_spec",
    "spec_cost",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'yolov7' has no attribute {name!r}")
    return getattr(import_module(f"yolov7.{_HOMES[name]}"), name)
