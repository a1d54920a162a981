"""Readers of the project's own files meet damaged files: each is refused in one line, or an older file is used."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from yolov7.errors import ArtifactError
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import resolve_spec, spec_to_json
from yolov7.weights.weight_files import load_weights, save_weights

MUTATIONS = 1000
MINIATURE = resolve_spec(
    {
        "activation": "silu",
        "image_size": 64,
        "rows": {
            "stem": {"block": "conv", "out": 4, "s": 2},
            "head": {"block": "detect", "from": ["stem"], "anchors": [[4, 4, 8, 8]]},
        },
    },
    name="miniature",
)


def mutate(content: bytes, generator: random.Random, *, within: int | None = None) -> bytes:
    """Return the content with one to three random changes in its first `within` bytes."""
    changed, end = bytearray(content), within or len(content)
    for _ in range(generator.randint(1, 3)):
        place = generator.randrange(min(end, len(changed)))
        match generator.randrange(6):
            case 0:
                changed[place] ^= 1 << generator.randrange(8)
            case 1:
                changed[place] = generator.randrange(256)
            case 2:
                del changed[place : place + generator.randint(1, 20)]
            case 3:
                changed[place:place] = generator.randbytes(generator.randint(1, 20))
            case 4:
                changed[place:place] = changed[generator.randrange(len(changed)) :][: generator.randint(1, 40)]
            case _:
                del changed[max(place, 1) :]
        if not changed:
            return b""
    return bytes(changed)


def assert_refused_in_one_line(error: ArtifactError, path: Path) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


# ---- weight files


@pytest.fixture
def weight_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = DetectionModel(MINIATURE, num_classes=2)
    path = tmp_path / "weights.safetensors"
    save_weights(path, model, class_names=("a", "b"), image_size=64, training={"epochs": 3, "ancestors": ["x"]})
    return path


def split_header(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_header(header: dict[str, Any], values: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + values


def read_or_refuse(path: Path) -> bool:
    try:
        load_weights(path)
    except ArtifactError as error:
        assert_refused_in_one_line(error, path)
        return False
    return True


def test_mutated_weight_files_are_read_or_refused(weight_file: Path) -> None:
    content, generator = weight_file.read_bytes(), random.Random(0)
    header_end = 8 + struct.unpack_from("<Q", content)[0]
    refused = 0
    for i in range(MUTATIONS):
        weight_file.write_bytes(mutate(content, generator, within=header_end if i % 4 else None))
        refused += not read_or_refuse(weight_file)
    assert refused > MUTATIONS / 2


def hostile_values() -> Iterator[tuple[str, str]]:
    """Yield pairs of a metadata key and a text that the key must not have."""
    wrong = ["", "null", "3", "-1", "1e400", "true", '"x"', "[]", "{}", "[1]", "[[]]", "NaN", "[" * 10**5, "9" * 5000]
    lists = ['[["a"], "b"]', '["a", null]', '{"0": "a", "1": "b"}', '["a", "\\ud800"]']
    for key in ("class_names", "fused", "image_size", "spec", "format"):
        yield from ((key, text) for text in wrong if (key, text) not in {("fused", "true"), ("image_size", "3")})
    yield from (("class_names", text) for text in lists)
    yield from (("image_size", text) for text in ("0", "10000000", "64.0", '"64"', str(2**70)))
    yield from (("fused", text) for text in ("1", "0", '"false"'))
    yield from (("training", text) for text in wrong if text != "{}")
    yield from (("training", text) for text in ('{"ancestors": 3}', '{"ancestors": [3]}', '{"ancestors": "abc"}'))
    plain = json.loads(spec_to_json(MINIATURE))
    deep = {"block": "elan", "from": ["stem"], "out": 8, "hidden": 8, "depth": 100, "cardinality": 4096}
    rows = plain["rows"]
    yield "spec", json.dumps(plain | {"rows": {"stem": rows["stem"], "deep": deep, "head": rows["head"]}})
    yield "spec", json.dumps(plain | {"rows": {"stem": rows["stem"] | {"out": 65_536}, "head": rows["head"]}})
    yield "spec", json.dumps(plain | {"rows": rows["stem"]})


@pytest.mark.parametrize(("key", "text"), hostile_values())
def test_hostile_metadata_is_refused(weight_file: Path, key: str, text: str) -> None:
    header, values = split_header(weight_file.read_bytes())
    header["__metadata__"][key] = text
    weight_file.write_bytes(join_header(header, values))
    assert not read_or_refuse(weight_file)


def test_tensors_of_another_type_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    model = DetectionModel(MINIATURE, num_classes=2).half()
    save_weights(path, model, class_names=("a", "b"), image_size=64, training={})
    with pytest.raises(ArtifactError, match=r"head\.anchors.* has values of type F16|of type F16, its spec asks for F32"):
        load_weights(path)


def test_equal_saves_give_equal_bytes(weight_file: Path) -> None:
    """The library writes the keys of the metadata in a random order, so a few repetitions would differ."""
    content, loaded = weight_file.read_bytes(), load_weights(weight_file)
    for _ in range(8):
        save_weights(
            weight_file,
            loaded.model,
            class_names=loaded.class_names,
            image_size=loaded.image_size,
            training=loaded.training,
        )
        assert weight_file.read_bytes() == content
