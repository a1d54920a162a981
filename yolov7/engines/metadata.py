"""What an exported file says about itself: texts by name, which every format can hold.

A file of any format can be opened from these texts alone.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError, model_validator

from yolov7.errors import ArtifactError, one_line
from yolov7.settings import LetterboxMode, NmsSettings
from yolov7.system.files import is_file, open_regular

EXPORT_FORMAT: Literal["yolov7-pipeline export 1"] = "yolov7-pipeline export 1"
INPUT = "images"
DECODED = ("decoded",)
DETECTED = ("num", "boxes", "scores", "labels")
Layout = Literal["rgb_nchw", "rgb_nhwc", "bgr_nhwc"]
StoredPrecision = Literal["float32", "float16", "bfloat16", "int8"]
REMEDY = "export the model again, or name another file"

_METADATA_PROPS = 14  # the number of this field in ONNX's ModelProto
_MAX_TEXT = 64 * 2**20  # bytes


class ExportMetadata(BaseModel):
    """The metadata of an exported file.

    Attributes:
        format: Identifies exported files of this program.
        class_names: Names by label.
        image_size: Side in pixels of the square that images are fitted into.
        strides: Stride of each level in pixels, finest first.
        letterbox: How images are brought to the square.
        letterbox_value: Grey level of the padding.
        fixed_size: Whether images must have the size `image_size`; otherwise sides are multiples of the last stride.
        input: Order of the channels and axes of the uint8 input.
        precision: Type of the stored numbers.
        engines: Names of the engines that the file is made for, the fastest first.
        nms: Settings of the suppression inside the file; None if the output is the decoded predictions.
        spec: The specification as JSON.
        weights_sha256: Hash of the weight file that was exported.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    format: Literal["yolov7-pipeline export 1"] = EXPORT_FORMAT
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    image_size: Annotated[int, Field(ge=1, le=8192)]
    strides: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    letterbox: LetterboxMode = "centre"
    letterbox_value: Annotated[int, Field(ge=0, le=255)]
    fixed_size: bool
    input: Layout
    precision: StoredPrecision
    engines: tuple[str, ...]
    nms: NmsSettings | None
    spec: str
    weights_sha256: str

    @model_validator(mode="after")
    def _check_spec(self) -> ExportMetadata:
        name = json.loads(self.spec).get("name")
        if not isinstance(name, str):
            raise ValueError("the specification has no name")
        return self

    @property
    def spec_name(self) -> str:
        """Name of the specification."""
        return str(json.loads(self.spec)["name"])

    @property
    def needs_suppression(self) -> bool:
        """Whether several predictions of the model may be of one object."""
        rows = json.loads(self.spec).get("rows", {}).values()
        return all(row.get("block") != "detect_one_to_one" for row in rows)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return DECODED if self.nms is None else DETECTED

    def to_texts(self) -> dict[str, str]:
        """Return the metadata as texts by name; all but `format` and `spec` are JSON."""
        fields = self.model_dump(mode="json")
        plain = {"format": self.format, "spec": self.spec}
        return plain | {k: json.dumps(v, ensure_ascii=False) for k, v in fields.items() if k not in plain}


class _Texts(BaseModel):
    """The texts, of which all but two are JSON."""

    format: str
    spec: Json[dict[str, object]]
    class_names: Json[list[str]]
    image_size: Json[int]
    strides: Json[list[int]]
    letterbox: Json[str] = "centre"
    letterbox_value: Json[int]
    fixed_size: Json[bool]
    input: Json[str]
    precision: Json[str]
    engines: Json[list[str]]
    nms: Json[dict[str, object] | None]
    weights_sha256: Json[str]


def check_outputs(path: Path, names: Iterable[str], metadata: ExportMetadata) -> None:
    """Raise ArtifactError unless a file has the outputs that its metadata state.

    Args:
        path: The file, for error messages.
        names: The names of its outputs, in their order.
        metadata: What it says about itself.

    Raises:
        ArtifactError: If the outputs differ.
    """
    found = tuple(names)
    if found != metadata.outputs:
        raise ArtifactError(f"{path}: its outputs are {found} and not {metadata.outputs}; {REMEDY}")


def read_texts(path: Path, texts: Mapping[str, str]) -> ExportMetadata:
    """Return the metadata of a file.

    Args:
        path: The file, for error messages.
        texts: What the file holds.

    Returns:
        The metadata.

    Raises:
        ArtifactError: If this program did not export the file, or if its metadata are damaged.
    """
    if texts.get("format") != EXPORT_FORMAT:
        raise ArtifactError(f"{path}: was not exported by this program (it has no {EXPORT_FORMAT!r}); {REMEDY}")
    try:
        values = _Texts.model_validate(texts).model_dump() | {"spec": texts["spec"]}
        return ExportMetadata.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in details["loc"])
        fault = one_line(f"{key}: {details['msg']}")
        raise ArtifactError(f"{path}: its metadata cannot be used ({fault}); {REMEDY}") from None


def read_onnx_texts(path: Path) -> dict[str, str]:
    """Return the `metadata_props` of an ONNX file; no package is needed for that, and the graph is not read.

    Args:
        path: The file.

    Returns:
        The texts by name.

    Raises:
        ArtifactError: If the file is missing, damaged or not an ONNX file.
    """
    if not is_file(path):
        raise ArtifactError(f"{path}: there is no such file; {REMEDY}")
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            return dict(_entry(content) for content in _fields(file, size, number=_METADATA_PROPS))
    except ValueError as error:
        raise ArtifactError(f"{path}: is damaged or not an ONNX file ({one_line(error)}); {REMEDY}") from None


def _fields(file: BinaryIO, size: int, *, number: int) -> Iterator[bytes]:
    """Yield the content of each field of that number of a message; the others are skipped."""
    while file.tell() < size:
        tag = _varint(file)
        match tag & 7:
            case 0:  # a number
                _varint(file)
            case 1:  # eight bytes
                file.seek(8, 1)
            case 5:  # four bytes
                file.seek(4, 1)
            case 2:  # bytes after their length
                length = _varint(file)
                if length > size - file.tell():
                    raise ValueError("it ends too early")
                if tag >> 3 != number:
                    file.seek(length, 1)
                elif length > _MAX_TEXT:
                    raise ValueError("a text is too long")
                else:
                    yield file.read(length)
            case kind:
                raise ValueError(f"a field has the unknown type {kind}")


def _entry(content: bytes) -> tuple[str, str]:
    """Return the key (field 1) and the value (field 2) of an entry."""
    texts = []
    for number in (1, 2):
        found = list(_fields(io.BytesIO(content), len(content), number=number))
        texts.append(found[-1].decode() if found else "")
    return texts[0], texts[1]


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends too early")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number is too long")
