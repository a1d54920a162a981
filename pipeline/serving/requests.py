"""Read the image out of the body of a request: an image file, a form, or JSON."""

from __future__ import annotations

import json
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header

from yolov7.data.images import Image
from yolov7.detect.messages import image_from_message
from yolov7.errors import DataError, shown


def image_of_request(body: bytes, *, content_type: str, max_pixels: int) -> Image:
    """Return the image of a request.

    Args:
        body: A form with one file (`multipart/form-data`), JSON such as `{"image": ...}` (`application/json`), or, with
            any other content type, the bytes of an image file.
        content_type: The header of this name; empty if there is none.
        max_pixels: Largest width times height.

    Returns:
        The image (H, W, 3) uint8 RGB.

    Raises:
        DataError: If there is no image in the request. The message is one sentence.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        return image_from_message(_from_form(body, options.get(b"boundary", b"")), max_pixels=max_pixels)
    if kind == b"application/json":
        return image_from_message(_from_json(body), max_pixels=max_pixels)
    if not body:
        raise DataError("the request is empty; send an image as its body, as a form, or as JSON")
    return image_from_message(body, max_pixels=max_pixels)


def _from_json(body: bytes) -> object:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):  # the latter for deeply nested lists
        raise DataError('the body is not valid JSON; send {"image": ...}') from None
    if not isinstance(content, dict) or set(content) != {"image"}:
        what = f"the keys {shown(sorted(content))}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f'the JSON must be {{"image": ...}} with base64 text or H x W x 3 pixel values; it has {what}')
    return content["image"]


def _from_form(body: bytes, boundary: bytes) -> bytes:
    """Return the content of the only file of a form."""
    if not boundary:
        raise DataError("the content type multipart/form-data must state its boundary")
    files: list[bytes] = []

    def keep(file: Any) -> None:
        file.file_object.seek(0)
        files.append(file.file_object.read())
        file.close()

    # The whole body is in memory already, so that a temporary file would only cost time.
    parser = FormParser(
        "multipart/form-data", None, keep, boundary=boundary, config={"MAX_MEMORY_FILE_SIZE": len(body) + 1}
    )
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise DataError("the body is not a valid form (multipart/form-data)") from None
    if len(files) != 1:
        raise DataError(f"the form has {len(files)} complete files; send exactly one, such as: curl -F image=@FILE URL")
    return files[0]
