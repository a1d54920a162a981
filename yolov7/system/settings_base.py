"""The base of all settings: types of numbers, and errors of one line. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from yolov7.errors import shown, suggest, wanted_list

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]

AUTO_BATCH = 0
"""The value of `batch_size` that stands for `auto`, until a number is chosen."""

AUTO_NORM = -1.0
"""The number by which the setting `clip_norm` represents `auto`."""


def _read_auto(number: float) -> WrapValidator:
    """Return a validator that reads `auto` as this number, which is outside of the range of the setting."""

    def validate(given: Any, read: ValidatorFunctionWrapHandler) -> Any:
        return number if given == "auto" else read(given)

    return WrapValidator(validate)


def _write_auto(number: float) -> PlainSerializer:
    """Return a serializer that writes this number as `auto`."""
    return PlainSerializer(lambda value: "auto" if value == number else value)


BatchSize = Annotated[int, Field(ge=1, le=1_000_000), _read_auto(AUTO_BATCH), _write_auto(AUTO_BATCH)]
ClipNorm = Annotated[float, Field(ge=0.0, le=1e9), _read_auto(AUTO_NORM), _write_auto(AUTO_NORM)]


class Settings(BaseModel):
    """Frozen settings that reject unknown keys with an error that names the key."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Child = Callable[[type[Settings] | None, str], type[Settings] | None]


def nested_settings(model: type[Settings] | None, key: str) -> type[Settings] | None:
    """Return the class of the settings below a key; None if there are none.

    Args:
        model: The class that has the key; None has none.
        key: The key.
    """
    field = model.model_fields.get(key) if model else None
    annotation = field.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None


def describe_fault(
    error: ValidationError,
    model: type[Settings],
    *,
    child: _Child = nested_settings,
) -> str:
    """Describe the first fault of a validation, such as `optim.lr: unknown key; did you mean 'lr0'?`.

    Args:
        error: What pydantic raised.
        model: The class that was validated, to suggest keys.
        child: Returns the class of the settings below a key of a class.

    Returns:
        One line, with the number of further faults.
    """
    details = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in details["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if details["type"] == "extra_forbidden":
        return f"{key}: unknown key{_suggestion(details['loc'], model, child)}{more}"
    if details["type"] == "value_error":
        message = str(details["ctx"]["error"])
        return f"{key}: {message}{more}" if key else message + more
    got = "" if details["type"] == "missing" else f", got {shown(details['input'])}"
    message = details["msg"][0].lower() + details["msg"][1:]
    if details["type"] == "tuple_type":
        message = wanted_list(details["input"])
    return f"{key}: {message}{got}{more}"


def _suggestion(
    location: tuple[int | str, ...],
    root: type[Settings],
    child: _Child,
) -> str:
    model: type[Settings] | None = root
    for part in location[:-1]:
        model = child(model, str(part))
    names = list(model.model_fields) if model else []
    possible = f"; possible keys: {', '.join(names)}" if names else ""
    return suggest(str(location[-1]), names) or possible
