"""Download of one file over HTTP: resumed after interruptions, retried after faults, verified at the end.

Unfinished content is in `NAME.part`. Beside it, `NAME.part.json` states the address and what identifies the version of
the file on the server (ETag or Last-Modified), so that parts of two versions are never joined.
"""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, final
from urllib.parse import urlsplit

from yolov7.errors import DataError, SettingError, one_line
from yolov7.system.files import write_whole
from yolov7.system.locks import exclusive

Progress = Callable[[int, int | None], None]
"""A function that is told how many bytes of how many (None if the server does not say) are complete."""

_CHUNK = 1 << 20  # bytes
_RESERVE = 64 << 20  # bytes of the disk that stay free
_MAX_WAIT = 300.0  # seconds that a server may ask for
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_NO_RANGE = 416  # the status of a range that the file does not have
_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml")


@final
@dataclass(frozen=True)
class Retries:
    """How faults are retried.

    Attributes:
        attempts: How often the server may fail in a row; an attempt that delivers content starts the count anew.
        first_wait: Seconds before the first retry. Each further wait is twice as long.
        timeout: Seconds that the server may be silent.
    """

    attempts: int = 6
    first_wait: float = 1.0
    timeout: float = 60.0


@final
class _TransientError(Exception):
    """A fault that may be over at the next attempt."""

    def __init__(self, reason: object, *, wait: float | None = None) -> None:
        super().__init__(one_line(reason, limit=200))
        self.wait = wait


def check_url(url: str) -> str:
    """Return an address if it can be downloaded.

    Args:
        url: An address with the scheme http or https.

    Raises:
        SettingError: The address has another scheme or no host.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingError(f"{one_line(url, limit=200)!r} is not an address; it must start with http:// or https://")
    return url


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    progress: Progress = lambda _done, _total: None,
    retries: Retries = Retries(),
) -> str:
    """Download a file, or continue an interrupted download.

    Args:
        url: The address, with the scheme http or https.
        path: The file to write. It appears when it is complete and verified; missing parent folders are created.
        sha256: The published SHA-256 of the file in hexadecimal digits; None if none is published.
        md5: The published MD5 of the file; None if none is published.
        progress: It is called after each piece.
        retries: How faults are retried.

    Returns:
        The SHA-256 of the file.

    Raises:
        SettingError: The address cannot be used.
        DataError: The server does not deliver the file, or delivers another one than the sums say.
        OSError: The file cannot be written, for example because the disk is full.
    """
    check_url(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with exclusive(path.with_name(f".{path.name}.lock"), what=f"the download of {path}"):
        failed = 0
        while True:
            before = _size(part)
            try:
                _receive(url, part, progress=progress, timeout=retries.timeout)
                break
            except _TransientError as error:
                failed = 1 if _size(part) > before else failed + 1
                if failed >= retries.attempts:
                    raise DataError(
                        f"{url}: {error}, {failed} times in a row; try again later to continue the download"
                    ) from None
                time.sleep(retries.first_wait * 2 ** (failed - 1) if error.wait is None else error.wait)
        found = _verify(url, part, sha256=sha256, md5=md5)
        part.replace(path)
        _state_path(part).unlink(missing_ok=True)
    return found


def _receive(url: str, part: Path, *, progress: Progress, timeout: float) -> None:
    """Receive what is missing of a file.

    Raises:
        _TransientError: A retry may help; what was received is kept.
        DataError: A retry cannot help.
    """
    state, done = _read_state(part, url), _size(part)
    version = state.get("version")
    if done and not version:  # nothing says that the rest would belong to the same version
        part.unlink()
        done = 0
    headers = {"User-Agent": "yolov7-pipeline", "Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": str(version)}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == _NO_RANGE and done:
                if state.get("total") == done:
                    return
                _restart(part)
                raise _TransientError("the file on the server has changed", wait=0.0) from None
            raise _refusal(url, error) from None
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise _TransientError(getattr(error, "reason", error)) from None
    with response:
        if response.status == http.client.PARTIAL_CONTENT:
            if _range_start(response.headers) != done or _version(response.headers) not in (version, None):
                _restart(part)
                raise _TransientError("the server sent a part of another file", wait=0.0)
        else:  # the server sends ranges never, or not of a file that has changed
            done = 0
        total = _total(response.headers, done=done)
        _check_space(url, part, missing=None if total is None else total - done)
        if not done:
            _write_state(part, url=url, headers=response.headers, total=total)
        _copy(url, response, part, done=done, total=total, progress=progress)


def _copy(url: str, response: Any, part: Path, *, done: int, total: int | None, progress: Progress) -> None:
    """Append the content of a response to a file, and raise _TransientError if it is cut short."""
    try:
        with part.open("ab" if done else "wb") as file:
            progress(done, total)
            while chunk := _read(response):
                if not done and chunk[:64].lstrip().lower().startswith(_PAGE_STARTS):
                    raise DataError(f"{url}: the server sent a web page instead of a file; check the address")
                file.write(chunk)
                done += len(chunk)
                progress(done, total)
    except DataError:
        _restart(part)
        raise
    if total is not None and done < total:
        raise _TransientError(f"the connection ended after {done:,} of {total:,} bytes")
    if total is not None and done > total:
        _restart(part)
        raise _TransientError(f"the server sent {done:,} bytes, but announced {total:,}")


def _read(response: Any) -> bytes:
    try:
        chunk: bytes = response.read1(_CHUNK)
        return chunk
    except (OSError, http.client.HTTPException) as error:
        raise _TransientError(error) from None


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    """Return the exception for a status that is an error."""
    if error.code in _TRANSIENT:
        return _TransientError(f"the server answered {error.code} {error.reason}", wait=_wait_of(error.headers))
    reason = "the address redirects in a circle" if "redirect" in str(error.reason) else f"{error.code} {error.reason}"
    return DataError(one_line(f"{url}: the server answered: {reason}; check the address, or name a mirror"))


def _wait_of(headers: Message) -> float | None:
    """Return the seconds that a server asks to wait (Retry-After, as a number or a date), at most five minutes."""
    value = headers.get("Retry-After", "")
    try:
        seconds = (
            float(value) if value.isdigit() else email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        )
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), _MAX_WAIT)


def _range_start(headers: Message) -> int | None:
    """Return the first place of the range that a response holds: 5 of `bytes 5-9/10`."""
    start = headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(start) if start.isdigit() else None


def _total(headers: Message, *, done: int) -> int | None:
    length = headers.get("Content-Length", "")
    return done + int(length) if length.isdigit() else None


def _check_space(url: str, part: Path, *, missing: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if missing is not None and missing + _RESERVE > free:
        raise DataError(
            f"{url}: {missing / 1e9:.1f} GB are missing, but {part.parent} has only {free / 1e9:.1f} GB free; "
            "free some space, or choose another folder"
        )


def _verify(url: str, part: Path, *, sha256: str | None, md5: str | None) -> str:
    """Return the SHA-256 of a complete file, and delete the file if it is not the published one."""
    sums = {}
    for name, expected in (("sha256", sha256), ("md5", md5)):
        if name == "sha256" or expected is not None:
            with part.open("rb") as file:
                sums[name] = hashlib.file_digest(file, name).hexdigest()
        if expected is not None and sums[name] != expected.lower():
            _restart(part)
            raise DataError(
                f"{url}: the {name} of the downloaded file is {sums[name]}, but {expected} is expected; "
                "the file was damaged or replaced, and was deleted: download it again, or from another mirror"
            )
    return sums["sha256"]


def _read_state(part: Path, url: str) -> dict[str, Any]:
    try:
        state = json.loads(_state_path(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) and state.get("url") == url else {}


def _write_state(part: Path, *, url: str, headers: Message, total: int | None) -> None:
    part.unlink(missing_ok=True)
    state = {"url": url, "version": _version(headers), "total": total}
    write_whole(_state_path(part), json.dumps(state).encode())


def _version(headers: Message) -> str | None:
    """Return what identifies the version of a file; a weak ETag does not."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _restart(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state_path(part).unlink(missing_ok=True)


def _state_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(part: Path) -> int:
    try:
        return part.stat().st_size
    except OSError:
        return 0
