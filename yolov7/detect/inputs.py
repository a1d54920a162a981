"""Conversion of what users pass as an image to an array (H, W, 3) uint8 RGB."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeGuard, Union

import numpy as np
import torch
from torch import Tensor

from yolov7.data.images import Image, read_image
from yolov7.detect.web import fetch_image, is_web_address
from yolov7.errors import DataError

if TYPE_CHECKING:
    import PIL.Image

ImageInput: TypeAlias = Union[str, "os.PathLike[str]", Image, Tensor, "PIL.Image.Image"]
"""The path or the web address of an image file, an array, a tensor or a Pillow image."""

_EXPECTED = (
    "an image is a uint8 array of shape (H, W, 3), RGB, the path of a file, a tensor (3, H, W) or a Pillow image"
)


def as_image(value: ImageInput, *, number: int = 0) -> Image:
    """Convert an image to an array.

    Args:
        value: The path or the http(s) address of an image file; an array (H, W, 3) uint8 RGB; a tensor (3, H, W) of
            uint8 or of floating-point values from 0 to 1, RGB, on any device; or a Pillow image. The EXIF rotation is
            applied to files, but not to Pillow images, whose pixels are taken as they are.
        number: Position of the image among those that the user passed, for error messages.

    Returns:
        The image (H, W, 3) uint8 RGB. It shares memory with `value` where that is an array.

    Raises:
        DataError: If the value is something else, or its file cannot be read.
    """
    if isinstance(value, (str, os.PathLike)):
        name = os.fspath(value)
        return fetch_image(name) if isinstance(name, str) and is_web_address(name) else read_image(Path(value))
    if _is_pillow_image(value):
        image = _from_pillow(value, number=number)
    elif isinstance(value, Tensor):
        image = _from_tensor(value, number=number)
    elif _is_rgb_array(value):
        image = value
    else:
        raise DataError(f"image {number} is {describe(value)}; {_EXPECTED}{_conversion(value)}")
    if 0 in image.shape:
        raise DataError(f"image {number} has the shape {image.shape}; an image must have pixels")
    return image


def describe(value: object) -> str:
    """Return the kind of a value for an error message.

    Args:
        value: Any value.

    Returns:
        For example `a float32 array of shape (4, 6, 3)` or `NoneType`.
    """
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {value.shape}"
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} Tensor of shape {tuple(value.shape)}"
    return type(value).__name__


def _is_rgb_array(value: object) -> TypeGuard[Image]:
    return isinstance(value, np.ndarray) and value.ndim == 3 and value.shape[2] == 3 and value.dtype == np.uint8


def _is_pillow_image(value: object) -> TypeGuard[PIL.Image.Image]:
    """Return whether a value is a Pillow image, without importing Pillow."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _from_pillow(value: PIL.Image.Image, *, number: int) -> Image:
    if value.mode[0] in "IF":
        raise DataError(
            f"image {number} is a Pillow image of mode {value.mode!r}, whose range of values is unknown; "
            "scale it to 0..255 and convert it to mode 'RGB'"
        )
    try:
        return np.asarray(value.convert("RGB"))
    except OSError as error:  # Pillow reads the pixels of a file only now
        raise DataError(
            f"image {number} is a Pillow image that cannot be decoded ({error}); restore its file"
        ) from None


def _from_tensor(value: Tensor, *, number: int) -> Image:
    if value.ndim != 3 or value.shape[0] != 3:
        remedy = "; for channels last, use tensor.permute(2, 0, 1)" if value.ndim == 3 and value.shape[2] == 3 else ""
        remedy = "; for a batch, pass list(tensor)" if value.ndim == 4 else remedy
        raise DataError(f"image {number} is {describe(value)}; a tensor must have the shape (3, H, W), RGB{remedy}")
    pixels = value.detach().cpu()
    if pixels.is_floating_point():
        low, high = (float(limit) for limit in pixels.aminmax()) if pixels.numel() else (0.0, 0.0)
        if not (low >= 0.0 and high <= 1.0):  # also false for NaN
            raise DataError(
                f"image {number} is a tensor with values from {low:g} to {high:g}; floating-point values must be from "
                "0 to 1, without the subtraction of a mean"
            )
        pixels = (pixels.float() * 255).round().to(torch.uint8)
    elif pixels.dtype != torch.uint8:
        raise DataError(f"image {number} is {describe(value)}; the type of a tensor must be uint8 or floating point")
    return np.asarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _conversion(image: object) -> str:
    """Describe how to convert an array of another kind to an image."""
    if not isinstance(image, np.ndarray):
        return "; convert it with np.asarray(image)" if hasattr(image, "__array__") else ""
    if np.issubdtype(image.dtype, np.floating):
        return "; for values of 0..1, use (image * 255).round().astype(np.uint8)"
    if image.dtype == np.uint16:
        return "; for values of 0..65535, use (image / 257).round().astype(np.uint8)"
    if image.dtype != np.uint8:
        return "; for values of 0..255, use image.astype(np.uint8)"
    if image.ndim == 2:
        return "; for a grey image, use np.stack([image] * 3, axis=-1)"
    if image.ndim == 3 and image.shape[2] == 1:
        return "; for a grey image, use np.repeat(image, 3, axis=-1)"
    if image.ndim == 3 and image.shape[2] == 4:
        return "; for an image with an alpha channel, use image[..., :3]"
    if image.ndim == 3 and image.shape[0] == 3:
        return "; for channels first, use image.transpose(1, 2, 0)"
    return ""
