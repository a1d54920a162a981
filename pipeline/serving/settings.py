"""The settings of the service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError

from yolov7.errors import SettingError
from yolov7.settings import NmsSettings
from yolov7.system.settings_base import Probability, Settings, describe_fault

_Count = Annotated[int, Field(ge=1, le=100_000)]
_NMS = NmsSettings()


class ServingSettings(Settings):
    """What is served, and the limits of a request."""

    weights: str = Field(
        min_length=1, description="a weight file, an exported file, or a folder with an exported model"
    )
    engine: str = Field("auto", description="what runs the model; auto is the fastest engine that is installed")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto distributes the replicas over all GPUs")
    precision: str = Field("auto", description="auto, float32, bfloat16 or float16")
    replicas: _Count = Field(1, description="number of copies of the model that work at the same time")
    confidence: Probability = Field(_NMS.confidence, description="lowest score, unless the request states another one")
    iou: Probability = Field(_NMS.iou, description="largest IoU, unless the request states another one")
    max_detections: _Count = Field(_NMS.max_detections, description="largest number of detections per image")
    max_batch: _Count = Field(8, description="largest number of waiting images that the model processes at once")
    max_queue: _Count = Field(64, description="number of requests that may be in progress; further ones get status 503")
    max_body_megabytes: _Count = Field(32, description="size of the largest request")
    max_megapixels: _Count = Field(50, description="size of the largest image, in millions of pixels")

    @property
    def nms(self) -> NmsSettings:
        """The thresholds and limits of a request that states no others."""
        stated = self.model_dump(include={"confidence", "iou", "max_detections"}, exclude_defaults=True)
        return NmsSettings.model_validate(stated)


def serving_settings(values: Mapping[str, Any]) -> ServingSettings:
    """Check settings.

    Args:
        values: The value of each setting by its name. Settings that are missing have their defaults.

    Returns:
        The settings.

    Raises:
        SettingError: If a value cannot be used or a name is unknown.
    """
    try:
        return ServingSettings.model_validate(dict(values))
    except ValidationError as error:
        raise SettingError(describe_fault(error, ServingSettings)) from None
