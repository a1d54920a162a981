"""The model file that MLflow serves: images in, detections out. MLflow runs this file as a script ("model from code").

The `image` of a row is an encoded picture (JPEG, PNG, ...; as bytes, or as base64 text in JSON) or an array of
H x W x 3 RGB values from 0 to 255 (nested lists in JSON). The answer to a row is the one of `yolov7 serve`: the size of
the image under `image`, and under `detections` the box, score, label and class name of each object.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types.schema import AnyType, ColSpec, ParamSchema, ParamSpec, Schema
from pydantic import ValidationError

from yolov7.data.images import Image
from yolov7.detect.detector import Detector
from yolov7.detect.messages import Answer, answer_of, image_from_message
from yolov7.errors import DataError, one_line
from yolov7.settings import NmsSettings

_RUNTIME = ("mlflow", "torch", "numpy", "opencv-python-headless", "pydantic", "safetensors", "jaxtyping", "pyyaml")
_ANSWER_LIMIT = 300  # characters of a message to a client


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
    ) -> list[Answer]:
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
        return [
            answer_of(found, class_names=self._detector.class_names, width=image.shape[1], height=image.shape[0])
            for found, image in zip(self._detector.predict(images, nms=nms), images, strict=True)
        ]


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


def _to_image(value: Any, *, row: int) -> Image:
    """Return an image in any accepted form as H W 3 RGB uint8."""
    try:
        return image_from_message(value)
    except DataError as error:
        raise InputError(f"row {row}: {error}") from None


set_model(ServedDetector())
