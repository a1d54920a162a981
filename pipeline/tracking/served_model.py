"""The model file that MLflow serves: images in, detections out; MLflow runs it as a script (model from code).

A row's `image` is an encoded picture (JPEG, PNG, ...; its bytes, or base64 text as JSON carries it) or an array
H W 3 of RGB values 0-255 (nested lists in JSON). The answer to a row is a mapping of lists: `boxes_xyxy` in pixels of
that image, `scores`, `labels` and `names`, best first.
"""

from __future__ import annotations

import base64
import binascii
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types.schema import AnyType, ColSpec, ParamSchema, ParamSpec, Schema

from yolov7.data.images import decode_image
from yolov7.detect.detector import Detector
from yolov7.settings import NmsSettings
from yolov7.structures import Detections

_RUNTIME = ("mlflow", "torch", "numpy", "opencv-python-headless", "pydantic", "safetensors", "jaxtyping", "pyyaml")


@final
class ServedDetector(PythonModel):  # type: ignore[misc]
    """A detector behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the weights that were logged with the model."""
        self._detector = Detector.load(context.artifacts["weights"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """One answer a row; `params` may hold `confidence` and `iou`. ValueError names the row that is no image."""
        images = [_to_image(value, row=row) for row, value in enumerate(_image_column(model_input))]
        nms = NmsSettings.model_validate(dict(params or {}))
        names = self._detector.class_names
        return [_to_json(found, names) for found in self._detector.predict(images, nms=nms)]


def save_served(folder: Path, weights: Path, *, about: Any) -> None:
    """Writes the model, whole: the weights, this file and the detector's code; `about` is MLflow's `Model`."""
    import mlflow

    import yolov7

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is no example of an input
        mlflow.pyfunc.save_model(
            path=str(folder),
            mlflow_model=about,
            python_model=__file__,
            artifacts={"weights": str(weights.absolute())},
            code_paths=[str(Path(str(yolov7.__file__)).parent)],
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in _RUNTIME],
            signature=_signature(),
        )


def _signature() -> ModelSignature:
    defaults = NmsSettings()
    params = [ParamSpec(name, "double", getattr(defaults, name)) for name in ("confidence", "iou")]
    return ModelSignature(Schema([ColSpec(AnyType(), "image")]), Schema([ColSpec(AnyType())]), ParamSchema(params))


def _image_column(rows: pd.DataFrame) -> list[Any]:
    columns = list(rows.columns)
    if "image" not in columns and len(columns) != 1:
        raise ValueError(f"the input has the columns {columns}: name the one with the images 'image'")
    return list(rows["image" if "image" in columns else columns[0]])


def _to_image(value: Any, *, row: int) -> np.ndarray:
    """H W 3 RGB uint8 of whatever form an image came in."""
    if isinstance(value, str):
        value = _decode_base64(value, row=row)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _decode_picture(bytes(value), row=row)
    array = np.asarray(value)
    if array.ndim != 3 or array.shape[2] != 3 or not array.size or not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"row {row}: an image array is H x W x 3 numbers (RGB, 0-255), this is {array.shape}")
    return np.ascontiguousarray(np.clip(array, 0, 255), dtype=np.uint8)


def _decode_base64(text: str, *, row: int) -> bytes:
    try:
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"row {row}: a text is an encoded picture in base64, and this is not base64") from None


def _decode_picture(content: bytes, *, row: int) -> np.ndarray:
    picture = decode_image(content)
    if picture is None:
        raise ValueError(f"row {row}: {len(content)} bytes that are no picture; send a JPEG or PNG file's bytes")
    return picture


def _to_json(found: Detections, names: tuple[str, ...]) -> dict[str, Any]:
    labels = found.labels.tolist()
    return {
        "boxes_xyxy": found.boxes_xyxy.tolist(),
        "scores": found.scores.tolist(),
        "labels": labels,
        "names": [names[label] for label in labels],
    }


set_model(ServedDetector())
