"""The command `data download`: a published data set, or any archive, downloaded and unpacked."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pipeline.console import console
from yolov7.errors import DataError, SettingError, counted, shown, suggest
from yolov7.system.downloads.http_download import Retries, check_url, download
from yolov7.system.downloads.unpack import unpack
from yolov7.system.files import write_whole

_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_JOURNAL = ".downloads"  # the folder, in that of a data set, with one file per archive that is completely unpacked
_AT_ONCE = 4


@dataclass(frozen=True)
class Archive:
    """An archive of a data set.

    Attributes:
        path: Its path below the address of the data set.
        size: Its size in bytes; 0 if it is not known.
        sha256: The published SHA-256; None if none is published.
    """

    path: str
    size: int = 0
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The name of the file."""
        return unquote(urlsplit(self.path).path).rpartition("/")[2]


class DataSet(NamedTuple):
    """A published data set.

    Attributes:
        address: The address below which the archives are.
        parts: The archives by the names of the parts.
        usual: The parts that are downloaded by default.
        settings: The lines of params.yaml that read the data.
        terms: Where its terms of use are.
    """

    address: str
    parts: dict[str, Archive]
    usual: tuple[str, ...]
    settings: str
    terms: str


# Sizes and sums: tables of TensorFlow Datasets 4.9.10 (Apache-2.0); the publishers of the data state none.
DATA_SETS = {
    "coco2017": DataSet(
        address="http://images.cocodataset.org",
        parts={
            "train": Archive(
                "zips/train2017.zip",
                19_336_861_798,
                "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            ),
            "val": Archive(
                "zips/val2017.zip", 815_585_330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"
            ),
            "annotations": Archive(
                "annotations/annotations_trainval2017.zip",
                252_907_541,
                "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            ),
            "test": Archive(
                "zips/test2017.zip", 6_646_970_404, "c7908c3c9f94ba2f3340ebbeec58c25db6be8774f18d68c2f15d0e369d95baba"
            ),
            "test_info": Archive(
                "annotations/image_info_test2017.zip",
                1_144_034,
                "e52f412dd7195ac8f98d782b44c6dd30ea10241e9f42521f67610fbe055a74f8",
            ),
        },
        usual=("train", "val", "annotations"),
        settings="data: {{format: coco, path: {folder}}}",
        terms="https://cocodataset.org/#termsofuse",
    ),
    "voc2012": DataSet(
        address="http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
        parts={
            "trainval": Archive(
                "VOCtrainval_11-May-2012.tar",
                1_999_639_040,
                "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
            ),
        },
        usual=("trainval",),
        settings="data: {{format: voc, path: {folder}/VOCdevkit/VOC2012}}",
        terms="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    ),
}


def download_data(
    name: str,
    *,
    mirror: str | None = None,
    parts: Sequence[str] | None = None,
    sha256: str | None = None,
    folder: Path | None = None,
    retries: Retries = Retries(),  # noqa: B008  (a frozen value)
) -> str:
    """Download a data set and unpack it.

    What is complete already is not downloaded again, and interrupted downloads are continued.

    Args:
        name: A name of `DATA_SETS`, or the address of an archive.
        mirror: An address that has the same files below it as the publisher's.
        parts: The parts of a data set; None for the usual ones.
        sha256: The SHA-256 of the archive, if an address is given.
        folder: The folder to unpack to; None for `data/NAME`.
        retries: How faults of the server are retried.

    Returns:
        Lines that say where the data are and how to use them.

    Raises:
        SettingError: The name, the parts or an address cannot be used.
        DataError: An archive cannot be downloaded or unpacked, or the disk has too little space.
    """
    known = DATA_SETS.get(name)
    if known is None:
        archives, final = [_archive_of(name, mirror=mirror, parts=parts, sha256=sha256)], "data: {{path: {folder}}}"
        address = ""
    else:
        if sha256 is not None:
            raise SettingError(f"--sha256 is for an address, and the sums of {name} are known; leave it out")
        archives, final = [known.parts[part] for part in _chosen(name, known, parts)], known.settings
        address = check_url(mirror or known.address).rstrip("/") + "/"
        console.print(f"{name}: its terms of use are at {known.terms}")
    folder = folder or Path("data") / (name if known else Path(archives[0].name).name.partition(".")[0])
    missing = [archive for archive in archives if not _is_unpacked(folder, archive)]
    _check_space(folder, missing)
    try:
        with _progress() as bar:
            _run(lambda archive: _fetch(address, archive, folder, bar=bar, retries=retries), missing)
    except KeyboardInterrupt:
        console.print(f"{folder}: what was received is kept; run the same command again to continue")
        raise
    done = counted(len(archives) - len(missing), "archive") if len(missing) < len(archives) else ""
    lines = [f"{folder}: complete" + (f" ({done} had been unpacked before)" if done else "")]
    return "\n".join([*lines, f"in params.yaml: {final.format(folder=folder)}"])


def _archive_of(url: str, *, mirror: str | None, parts: Sequence[str] | None, sha256: str | None) -> Archive:
    if "://" not in url:
        raise SettingError(
            f"no data set {url!r}{suggest(url, DATA_SETS)} (name one of {', '.join(DATA_SETS)}, or the address of an "
            "archive)"
        )
    if mirror is not None or parts is not None:
        raise SettingError("--mirror and --parts are for data sets, not for an address; leave them out")
    if not Archive(check_url(url)).name.strip("."):
        raise SettingError(f"{url!r} names no file; give the address of a zip or tar file")
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise SettingError(f"--sha256={shown(sha256)} must consist of 64 hexadecimal digits")
    return Archive(url, sha256=sha256)


def _chosen(name: str, known: DataSet, parts: Sequence[str] | None) -> Sequence[str]:
    for part in parts or ():
        if part not in known.parts:
            raise SettingError(f"--parts: {name} has no part {part!r}; it has {', '.join(known.parts)}")
    return list(dict.fromkeys(parts)) if parts else known.usual


def _check_space(folder: Path, archives: Sequence[Archive]) -> None:
    """Raise DataError if the disk has no space for the unpacked files and the largest archive beside them."""
    needed = sum(archive.size for archive in archives) + max((archive.size for archive in archives), default=0)
    needed -= sum(_size(_target(folder, archive)) for archive in archives)
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DataError(
            f"{folder}: about {needed / 1e9:.1f} GB are needed, but {free / 1e9:.1f} GB are free; free some space, "
            "choose another folder with --out, or fewer --parts"
        )


def _fetch(address: str, archive: Archive, folder: Path, *, bar: Progress | None, retries: Retries) -> None:
    target = _target(folder, archive)
    task = bar.add_task(archive.name, total=archive.size or None) if bar else None

    def show(done: int, total: int | None) -> None:
        if bar is not None and task is not None:
            bar.update(task, completed=done, total=total)

    if not target.is_file():
        if bar is None:
            console.print(f"{archive.name}: downloading")
        found = download(address + archive.path, target, sha256=archive.sha256, progress=show, retries=retries)
        console.print(f"{archive.name}: {target.stat().st_size:,} bytes, sha256 {found}" + _judged(archive))
    if bar is not None and task is not None:
        bar.update(task, description=f"{archive.name} (unpacking)", completed=0, total=None)
    count = unpack(target, folder, progress=lambda done: show(done, None))
    write_whole(_record(folder, archive), json.dumps({"archive": archive.path, "files": count}).encode())
    target.unlink()
    console.print(f"{archive.name}: {counted(count, 'file')} unpacked to {folder}")


def _judged(archive: Archive) -> str:
    return ", as published" if archive.sha256 else " (no sum is published)"


def _target(folder: Path, archive: Archive) -> Path:
    return folder / _JOURNAL / archive.name


def _record(folder: Path, archive: Archive) -> Path:
    target = _target(folder, archive)
    return target.with_name(f"{target.name}.unpacked.json")


def _is_unpacked(folder: Path, archive: Archive) -> bool:
    try:
        record = json.loads(_record(folder, archive).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("archive") == archive.path


def _size(target: Path) -> int:
    """Return how many bytes of an archive are on the disk already."""
    return sum(path.stat().st_size for path in (target, target.with_name(f"{target.name}.part")) if path.is_file())


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """Show progress bars on a terminal, and nothing elsewhere."""
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield bar


def _run(work: Callable[[Archive], None], archives: Sequence[Archive]) -> None:
    """Do the work for several archives at once, and raise the first error when all have ended.

    The threads are daemons, so that Ctrl-C ends the program at once; what was received until then is kept.
    """
    waiting, errors, lock = list(archives), list[Exception](), threading.Lock()

    def run() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                archive = waiting.pop(0)
            try:
                work(archive)
            except Exception as error:  # raised below, in the main thread
                errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(_AT_ONCE, len(archives)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # join without a timeout would not react to Ctrl-C on every system
            thread.join(0.2)
    if errors:
        raise errors[0]
