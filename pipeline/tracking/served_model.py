"""The model file that MLflow serves: images in, detections out. MLflow runs this file as a script ("model from code").

The `image` of a row is an encoded picture (JPEG, PNG, ...; as bytes, or as base64 text in JSON) or an array of
H x W x 3 RGB values from 0 to 255 (nested lists in JSON). The answer to a row is a mapping of lists: `boxes_xyxy` in
pixels of that image, `scores`, `labels` and `names`, the highest score first.
"""

from __future__ import annotations

import base64
import binascii
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types.schema import AnyType, ColSpec, ParamSchema, ParamSpec, Schema
from pydantic import ValidationError

from yolov7.data.images import decode_image
from yolov7.detect.detector import Detector
from yolov7.errors import UserError, one_line
from yolov7.settings import NmsSettings
from yolov7.structures import Detections

_RUNTIME = ("mlflow", "torch", "numpy", "opencv-python-headless", "pydantic", "safetensors", "jaxtyping", "pyyaml")
_ANSWER_LIMIT = 300  # characters of a message to a client
_BRIGHTEST = 255


@final
class InputError(MlflowException):  # type: ignore[misc]
    """An input that is no image. A client receives status 400 and one sentence."""

    def __init__(self, sentence: str) -> None:
        """Store the message.

        Args:
            sentence: The row, what it holds, and what it should hold.
        """
        self._sentence = one_line(sentence, limit=_ANSWER_LIMIT)
        super().__init__(self._sentence, error_code=BAD_REQUEST)

    @property
    def message(self) -> str:
        """The message. It is read-only, because MLflow's server would put the input in front of it."""
        return self._sentence

    @message.setter
    def message(self, _: str) -> None:
        pass


@final
class ServedDetector(PythonModel):  # type: ignore[misc]
    """A detector behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights that were logged with the model.

        Args:
            context: MLflow's context, which names the weight file.
        """
        self._detector = Detector.load(context.artifacts["weights"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Detect objects in each row.

        Args:
            context: MLflow's context.
            model_input: One image per row, in the column `image` or in the only column.
            params: `confidence` and `iou`, both from 0 to 1.

        Returns:
            One answer per row.

        Raises:
            InputError: If a row is no image, or a parameter is out of range.
        """
        images = [_to_image(value, row=row) for row, value in enumerate(_images(model_input))]
        try:
            nms = NmsSettings.model_validate(dict(params or {}))
        except ValidationError as error:
            wrong = error.errors()[0]
            raise InputError(f"params.{wrong['loc'][0]}={wrong['input']}: {wrong['msg']}") from None
        names = self._detector.class_names
        return [_to_json(found, names) for found in self._detector.predict(images, nms=nms)]


def save_served(folder: Path, weights: Path, *, about: Any) -> None:
    """Write the complete model: the weights, this file and the code of the detector.

    Args:
        folder: Where it is written.
        weights: The weight file.
        about: MLflow's `Model` object.
    """
    import mlflow

    import yolov7

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # MLflow warns that there is no input example
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


def _images(rows: pd.DataFrame | Sequence[Any]) -> list[Any]:
    """Return the value that represents an image in each row."""
    if not isinstance(rows, pd.DataFrame):
        rows = pd.DataFrame({"image": pd.Series(list(rows), dtype=object)})
    columns = list(rows.columns)
    if "image" not in columns and len(columns) != 1:
        raise InputError(f"the input has the columns {columns}; call the one with the images 'image'")
    return [image for value in rows["image" if "image" in columns else columns[0]] for image in _flatten(value)]


def _flatten(value: Any) -> list[Any]:
    """Return the images in one cell: `{"inputs": ["...", "..."]}` arrives as one row that holds a list of texts."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, (str, bytes, Mapping)) for one in value):
        return [image for one in value for image in _flatten(one)]
    return [value["image"]] if isinstance(value, Mapping) and set(value) == {"image"} else [value]


def _to_image(value: Any, *, row: int) -> np.ndarray:
    """Return an image in any accepted form as H W 3 RGB uint8."""
    if isinstance(value, str):
        value = _decode_base64(value, row=row)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _decode_picture(bytes(value), row=row)
    try:
        array = np.asarray(value)
    except ValueError:
        raise InputError(f"row {row}: the rows of an image array must have the same length") from None
    is_number = np.issubdtype(array.dtype, np.number)
    if array.ndim != 3 or array.shape[2] != 3 or not array.size or not is_number:
        kind = f"an array of shape {array.shape}" if is_number else type(value).__name__
        raise InputError(f"row {row}: an image array must be H x W x 3 numbers (RGB, 0 to 255); this is {kind}")
    return _check_pixels(array, row=row)


def _check_pixels(array: np.ndarray, *, row: int) -> np.ndarray:
    """Refuse values that cannot be pixels of 8 bits: they would become a black or a white picture."""
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= _BRIGHTEST):  # also NaN
        raise InputError(f"row {row}: pixels must be from 0 to 255, these are from {low:g} to {high:g}; scale them")
    if high <= 1 and (array != np.round(array)).any():
        raise InputError(f"row {row}: pixels must be from 0 to 255, these are fractions up to 1; multiply them by 255")
    return np.ascontiguousarray(np.rint(array), dtype=np.uint8)


def _decode_base64(text: str, *, row: int) -> bytes:
    compact = "".join(text.rpartition("base64,")[2].split())  # encoders break lines
    try:
        return base64.b64decode(compact.translate(str.maketrans("-_", "+/")), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"row {row}: a text must be an encoded picture in base64, and this is not base64") from None


def _decode_picture(content: bytes, *, row: int) -> np.ndarray:
    try:
        picture = decode_image(content)
    except UserError as error:  # too many pixels, for example
        raise InputError(f"row {row}: {error}") from None
    if picture is None:
        raise InputError(
            f"row {row}: {len(content)} bytes that are not a picture; send the content of a JPEG or PNG file"
        )
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
