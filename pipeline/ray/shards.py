"""The files of a large prediction job, in a folder or a bucket: its plan, its shards, and which shards are finished.

    OUT/_plan.json            what is computed; a job continues only in a folder with the same plan
    OUT/_images.json.gz       the images, in order; shard i holds those from i * shard_size
    OUT/part-000000.jsonl     the results of a shard (or .parquet)
    OUT/_done/000000.json     counts and unreadable images of a finished shard, written after its results
    OUT/_summary.json         counts and unreadable images of the finished job

Names that start with an underscore are ignored by programs that read a folder of JSON lines or Parquet files.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, final

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from pipeline.tracking import without_secrets
from yolov7.data.images import IMAGE_SUFFIXES
from yolov7.detect.sources import describe_left_out
from yolov7.errors import DataError, SettingError, one_line, shown

ShardFormat = Literal["jsonl", "parquet"]
Row = dict[str, Any]

_REMEDY = "; AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY name the store and the key"


@final
class Folder:
    """A folder of this machine, or of an object store that pyarrow can read, such as s3://bucket/folder."""

    def __init__(self, address: str) -> None:
        """Connect to the folder.

        Args:
            address: A path, or a URI.

        Raises:
            DataError: If the URI cannot be used.
        """
        self.name = without_secrets(address)
        self._files: FileSystem
        with self._explained("opened"):
            if "://" in address:
                self._files, root = FileSystem.from_uri(address)
            else:
                self._files, root = LocalFileSystem(), str(Path(address).absolute())
        self._root = root.rstrip("/")

    def list_images(self, *, say: Callable[[str], object] = lambda _: None) -> list[str]:
        """Return the paths of all image files, relative to the folder and sorted.

        Args:
            say: Receives a sentence about files that are no images, if there are any.

        Raises:
            DataError: If the folder cannot be read.
        """
        paths = list(self._list(""))
        images = {path for path in paths if path.lower().endswith(tuple(IMAGE_SUFFIXES))}
        if left_out := describe_left_out(path for path in paths if path not in images):
            say(left_out)
        return sorted(images)

    def list_names(self, folder: str) -> list[str]:
        """Return the names of the files below a folder, relative to it; an empty list if there is no such folder.

        Args:
            folder: The folder, relative to this one.

        Raises:
            DataError: If the folder cannot be read.
        """
        return list(self._list(folder, allow_missing=True))

    def read(self, path: str) -> bytes | None:
        """Return the content of a file, or None if it is missing or may not be read.

        Args:
            path: The path relative to the folder.

        Raises:
            DataError: If the folder cannot be read, so that other files would fail too.
        """
        with self._explained("read"):
            try:
                with self._files.open_input_stream(f"{self._root}/{path}", compression=None) as stream:
                    return bytes(stream.read())
            except (FileNotFoundError, PermissionError, IsADirectoryError):
                return None

    def write(self, path: str, content: bytes) -> None:
        """Write a file, which appears complete or not at all.

        Args:
            path: The path relative to the folder; missing folders are created.
            content: The content.

        Raises:
            DataError: If the folder cannot be written.
        """
        target = f"{self._root}/{path}"
        with self._explained("written"):
            if not isinstance(self._files, LocalFileSystem):  # an object appears when it is complete
                with self._files.open_output_stream(target, compression=None) as stream:
                    stream.write(content)
                return
            self._files.create_dir(str(Path(target).parent), recursive=True)
            draft = f"{Path(target).parent}/.{Path(target).name}.{os.getpid()}.tmp"
            with self._files.open_output_stream(draft, compression=None) as stream:
                stream.write(content)
            self._files.move(draft, target)

    def _list(self, folder: str, *, allow_missing: bool = False) -> Iterator[str]:
        start = f"{self._root}/{folder}".rstrip("/")
        with self._explained("read"):
            found = self._files.get_file_info(FileSelector(start, recursive=True, allow_not_found=allow_missing))
        yield from (info.path.removeprefix(f"{start}/") for info in found if info.type == FileType.File)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ArrowException, ValueError) as error:  # pyarrow's messages may have many lines
            remedy = _REMEDY if self.name.startswith("s3://") else ""
            raise DataError(f"{self.name} cannot be {what} ({one_line(error)}){remedy}") from None


@final
class ShardStore:
    """The output folder of a job."""

    def __init__(self, out: str) -> None:
        """Connect to the folder.

        Args:
            out: A path, or a URI.

        Raises:
            DataError: If the URI cannot be used.
        """
        self.folder = Folder(out)

    def start_or_continue(
        self, plan: Mapping[str, Any], source: Folder, *, say: Callable[[str], object] = lambda _: None
    ) -> list[str]:
        """Return the images of the job, which are listed when it starts and kept when it continues.

        Args:
            plan: What is computed.
            source: The folder with the images.
            say: Receives a sentence about files that are left out when the job starts.

        Returns:
            Paths relative to the source.

        Raises:
            DataError: If there are no images, or a folder cannot be used.
            SettingError: If the output folder has finished shards of a job with another plan.
        """
        content = self.folder.read("_plan.json")
        known = None if content is None else json.loads(content)
        if known is not None and (known == plan or self.finished()):  # a job without finished shards may be replaced
            self._check_plan(known, plan)
            listed = self.folder.read("_images.json.gz")
            if listed is None:
                raise DataError(f"{self.folder.name}: _images.json.gz is missing; choose another output folder")
            return list(json.loads(gzip.decompress(listed)))
        images = source.list_images(say=say)
        if not images:
            raise DataError(
                f"{source.name} has no image files ({', '.join(sorted(IMAGE_SUFFIXES))}); name another folder"
            )
        self.folder.write("_images.json.gz", gzip.compress(json.dumps(images).encode(), mtime=0))
        self.folder.write("_plan.json", _to_json(plan))
        return images

    def finished(self) -> set[int]:
        """Return the numbers of the finished shards.

        Raises:
            DataError: If the folder cannot be read.
        """
        names = self.folder.list_names("_done")
        return {int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdecimal()}

    def finish(self, shard: int, rows: Sequence[Row], *, format: ShardFormat) -> None:
        """Write the results of a shard, and then that it is finished.

        Args:
            shard: The number of the shard.
            rows: One row per image.
            format: The format of the results.

        Raises:
            DataError: If the folder cannot be written.
        """
        content = _to_parquet(rows) if format == "parquet" else b"".join(_to_json(row, indent=None) for row in rows)
        self.folder.write(f"part-{shard:06d}.{format}", content)
        bad = {row["path"]: row["error"] for row in rows if "error" in row}
        detections = sum(len(row.get("detections", ())) for row in rows)
        self.folder.write(
            f"_done/{shard:06d}.json", _to_json(_counts(images=len(rows), detections=detections, bad=bad))
        )

    def summarise(self) -> dict[str, Any]:
        """Write the summary of the finished job.

        Returns:
            `images`, `detections`, and under `bad` what is wrong with each unreadable image, by path.

        Raises:
            DataError: If the folder cannot be read or written.
        """
        parts = [json.loads(self.folder.read(f"_done/{shard:06d}.json") or b"{}") for shard in sorted(self.finished())]
        summary = _counts(
            images=sum(part["images"] for part in parts),
            detections=sum(part["detections"] for part in parts),
            bad={path: error for part in parts for path, error in part["bad"].items()},
        )
        self.folder.write("_summary.json", _to_json(summary))
        return summary

    def _check_plan(self, known: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        for name in (*plan, *known):
            if known.get(name) != plan.get(name):
                raise SettingError(
                    f"{self.folder.name} holds a job with {name}={shown(known.get(name))}, and this one has "
                    f"{shown(plan.get(name))}; choose another output folder"
                )


def _counts(*, images: int, detections: int, bad: Mapping[str, str]) -> dict[str, Any]:
    return {"images": images, "detections": detections, "bad": dict(bad)}


def _to_json(value: Mapping[str, Any], *, indent: int | None = 1) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode()


def _to_parquet(rows: Sequence[Row]) -> bytes:
    """Return a table with one row per image and a list per image in each column of detections."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(
        {
            "path": pa.string(),
            "error": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "boxes_xyxy": pa.list_(pa.list_(pa.float32(), 4)),
            "scores": pa.list_(pa.float32()),
            "labels": pa.list_(pa.int32()),
            "class_names": pa.list_(pa.string()),
        }
    )
    table = pa.Table.from_pylist([_to_columns(row) for row in rows], schema=schema)
    content = io.BytesIO()
    parquet.write_table(table, content)
    return content.getvalue()


def _to_columns(row: Row) -> Row:
    if "error" in row:
        return {"path": row["path"], "error": row["error"]}
    found = row["detections"]
    return {
        "path": row["path"],
        **row["image"],
        "boxes_xyxy": [one["box_xyxy"] for one in found],
        "scores": [one["score"] for one in found],
        "labels": [one["label"] for one in found],
        "class_names": [one["class_name"] for one in found],
    }
