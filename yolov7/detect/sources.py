"""Where images come from: files, folders, patterns, lists, videos, cameras and addresses."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

from yolov7.data.images import IMAGE_SUFFIXES
from yolov7.detect.web import VIDEO_SUFFIXES, is_web_address, without_password
from yolov7.errors import DataError, one_line, shown

SourceKind = Literal["image", "stdin", "web", "video", "camera", "stream"]
_MOST_SUFFIXES = 5
_STREAM = re.compile(r"(rtsps?|rtmps?|udp|tcp|srt|rtp)://", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """One image, video or stream.

    Attributes:
        kind: `image` (a file), `stdin` (an encoded image on standard input), `web` (an image or a video at an http
            address, known only when it is opened), `video` (a file), `camera` or `stream`.
        location: The path, the address, or the number of the camera.
        output: Relative path, without suffix, of files about this source.
    """

    kind: SourceKind
    location: str
    output: str

    @property
    def name(self) -> str:
        """The location without a password, to be shown."""
        return without_password(self.location)


def find_sources(
    names: Sequence[str], *, ignored: Path | None = None, say: Callable[[str], object] = lambda _: None
) -> list[Source]:
    """Return the images, videos and streams that names stand for.

    Args:
        names: Each is the path of an image, of a video, of a folder (all images and videos in it and in its subfolders,
            sorted), or of a text file (`.txt`) that lists paths and addresses; a pattern such as `images/*.jpg`; the
            number of a camera; an address (http, https, rtsp, ...); or `-` for an encoded image on standard input.
        ignored: A folder below which files are no sources, because results are written there, unless a name is this
            folder or is below it.
        say: Receives a sentence about each folder in which files were left out.

    Returns:
        The sources in the order of the names.

    Raises:
        DataError: If a file is missing, a folder has no images, or a pattern has no match.
    """
    return [source for name in names for source in _find(name, ignored=ignored, say=say)]


def describe_left_out(paths: Iterable[str]) -> str:
    """Describe files that are left out, with the number of each suffix.

    Args:
        paths: The files; hidden ones do not count.

    Returns:
        A sentence; empty if there are no such files.
    """
    counts = Counter(Path(path).suffix.lower() or "no suffix" for path in paths if not Path(path).name.startswith("."))
    if not counts:
        return ""
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    kinds = ", ".join(f"{suffix}: {number}" for suffix, number in ordered[:_MOST_SUFFIXES])
    rest = ", ..." if len(counts) > _MOST_SUFFIXES else ""
    return f"files of other types were left out ({kinds}{rest})"


def _find(name: str, *, ignored: Path | None, say: Callable[[str], object]) -> list[Source]:
    direct = _not_a_path(name)
    if direct is not None:
        return [direct]
    path = Path(name)
    if path.is_dir():
        return _in_folder(path, ignored=ignored, say=say)
    if path.exists():
        return _in_list(path) if path.suffix.lower() == ".txt" else [_file(path, output=path.stem)]
    if glob.has_magic(name):
        found = [Path(match) for match in sorted(glob.glob(name, recursive=True))]  # noqa: PTH207  # may be absolute
        files = [path for path in found if path.is_file()]
        if not files:
            raise DataError(f"the pattern {shown(name)} matches no file; check it, and put it in quotes")
        return [_file(path, output=path.stem) for path in files]
    if re.match(r"\w+://", name):
        raise DataError(f"the address {without_password(name)} is of an unknown kind; use http, https, rtsp or rtmp")
    raise DataError(f"there is no file, folder or camera {shown(name)}; check the path")


def _not_a_path(name: str) -> Source | None:
    """Return the source that a name stands for if it is not the name of a file."""
    if name == "-":
        return Source("stdin", name, "stdin")
    if is_web_address(name) or _STREAM.match(name):
        try:
            parts = urlsplit(name)
        except ValueError as error:
            raise DataError(f"the address {without_password(name)} is wrong ({one_line(error)}); check it") from None
        stem = PurePosixPath(unquote(parts.path)).stem or parts.hostname or "stream"
        return Source("web" if is_web_address(name) else "stream", name, re.sub(r"[^\w.-]+", "_", stem))
    if name.isdecimal() and not Path(name).exists():
        return Source("camera", name, f"camera-{name}")
    return None


def _file(path: Path, *, output: str) -> Source:
    return Source("video" if path.suffix.lower() in VIDEO_SUFFIXES else "image", str(path), output)


def _in_folder(folder: Path, *, ignored: Path | None, say: Callable[[str], object]) -> list[Source]:
    without = None if _is_below(folder, ignored) else ignored
    files = list(_files_below(folder, ignored=without))
    found = [path for path in files if _is_media(path)]
    if left_out := describe_left_out(str(path) for path in files if not _is_media(path)):
        say(f"{folder}: {left_out}")
    if not found:
        raise DataError(f"the folder {shown(str(folder))} has no images and no videos; check the path")
    return [_file(path, output=path.relative_to(folder).with_suffix("").as_posix()) for path in sorted(found)]


def _files_below(folder: Path, *, ignored: Path | None) -> Iterator[Path]:
    seen: set[str] = set()
    for parent, names, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen or _is_below(Path(parent), ignored):  # a link leads back, or these are results
            names.clear()
            continue
        seen.add(real)
        yield from (Path(parent) / name for name in files)


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and not path.name.startswith(".")


def _is_below(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


def _in_list(path: Path) -> list[Source]:
    """Return the sources of a list. Paths are relative to the folder of the list."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"the list {path} is not a text file in UTF-8; write one path or address per line") from None
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise DataError(f"the list {path} names no image; write one path or address per line")
    found = []
    for name in names:
        direct = _not_a_path(name)
        found.append(direct if direct is not None else _file(path.parent / name, output=Path(name).stem))
    return found
