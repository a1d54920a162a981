"""Images that a web server sends."""

from __future__ import annotations

import base64
import re
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from yolov7.data.image_headers import read_header
from yolov7.data.images import MAX_BYTES, Image, decode_image, explain_refusal
from yolov7.errors import DataError, one_line

VIDEO_SUFFIXES = frozenset(
    {".avi", ".flv", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)
_SECONDS = 10.0  # after which a silent server is given up
_START = 65_536  # bytes that identify the format of an image
_STREAM_TYPES = ("video/", "multipart/x-mixed-replace", "application/vnd.apple.mpegurl", "application/x-mpegurl")
_USER = re.compile(r"(?<=://)[^/?#]*@")


def is_web_address(name: str) -> bool:
    """Return whether a name is an http or https address.

    Args:
        name: Any text.
    """
    return name.lower().startswith(("http://", "https://"))


def without_password(address: str) -> str:
    """Return an address without user name and password, to be shown.

    Args:
        address: An address such as `rtsp://user:password@camera/1`, or any other text.
    """
    return _USER.sub("", address)


def fetch_image(address: str) -> Image:
    """Download and decode an image.

    Args:
        address: An http or https address.

    Returns:
        The image (H, W, 3) uint8 RGB.

    Raises:
        DataError: If the server does not send an image.
    """
    image = fetch_image_unless_stream(address)
    if image is None:
        raise DataError(f"{without_password(address)} is a video and not an image; read its frames one by one")
    return image


def fetch_image_unless_stream(address: str) -> Image | None:
    """Download and decode an image; return None without reading on if the server sends a video.

    Args:
        address: An http or https address.

    Returns:
        The image (H, W, 3) uint8 RGB, or None.

    Raises:
        DataError: If the server is unreachable, or sends neither an image nor a video.
    """
    shown = without_password(address)
    try:
        request = urllib.request.Request(shown, headers={"User-Agent": "yolov7-pipeline"})
        parts = urlsplit(address)
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            login = f"Basic {base64.b64encode(user.encode()).decode()}"
            request.add_unredirected_header("Authorization", login)  # it is for this server only
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            content = _read(response, address)
    except DataError:
        raise
    except urllib.error.HTTPError as error:
        raise DataError(f"{shown}: the server answered {error.code} {error.reason}; check the address") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{shown} cannot be read ({one_line(reason)}); check the address and the server") from None
    if content is None:
        return None
    image = decode_image(content)
    if image is None:
        raise DataError(f"image {shown} {explain_refusal(content)} ({len(content)} bytes); check the address")
    return image


def _read(response: HTTPResponse, address: str) -> bytes | None:
    """Return the content of an image; None if the answer is a video."""
    kind = response.headers.get_content_type()
    suffix = PurePosixPath(urlsplit(address).path).suffix.lower()
    if kind.startswith(_STREAM_TYPES) or (kind == "application/octet-stream" and suffix in VIDEO_SUFFIXES):
        return None
    start = response.read(_START)
    if read_header(start) is None and not kind.startswith("image/"):
        raise DataError(
            f"{without_password(address)} is of the type {one_line(kind, limit=60)}, which is neither an image nor a "
            "video; use the address of the file itself"
        )
    content = start + response.read(MAX_BYTES + 1 - len(start))
    if len(content) > MAX_BYTES:
        raise DataError(f"image {without_password(address)} has more than {MAX_BYTES:,} bytes; use a smaller one")
    return content
