"""Write weights in the formats of other implementations, with the deterministic values of the golden rows."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "golden" / "data" / "foreign"
MULTIMEDIATECHLAB = "multimediatechlab/v7.pt"
LIBREYOLO_15 = "libreyolo-1.5/LibreYOLO7b.pt[model]"
LIBREYOLO_2026_01 = "libreyolo-2026-01/libreyolo7.pt"


def keys_of(peer: str) -> list[tuple[str, list[int], str]]:
    """Return name, shape and type of each tensor in a file of another implementation, in its order."""
    with gzip.open(DATA / "keys.json.gz", "rt") as file:
        return [(name, shape, dtype) for name, shape, dtype in json.load(file)[peer]]


def peer_values(*, gain: float) -> list[Tensor]:
    """Return the values of the golden rows in the order of MultimediaTechLab's file."""
    return [
        torch.zeros(shape, dtype=torch.int64) if dtype == "int64" else _draw(i, name, shape, gain=gain)
        for i, (name, shape, dtype) in enumerate(keys_of(MULTIMEDIATECHLAB))
    ]


def darknet_order(name: str) -> dict[str, Any]:
    """Return size and convolutions of one of darknet's files, with their names in this library."""
    with gzip.open(DATA / "darknet_order.json.gz", "rt") as file:
        order: dict[str, Any] = json.load(file)[name]
    return order


def darknet_values(name: str) -> bytes:
    """Return the values of one of darknet's files as the golden rows were made with; each kernel is drawn first."""
    generator, parts = np.random.default_rng(7), []
    for conv in darknet_order(name)["convs"]:
        width, fan_in = conv["shape"][0], np.prod(conv["shape"][1:])
        kernel = generator.standard_normal(conv["shape"]) * np.sqrt(2 / fan_in)
        vectors = [0.1 * generator.standard_normal(width)]
        if conv["bn"]:
            scale, mean, variance = (generator.standard_normal(width) for _ in range(3))
            vectors += [1 + 0.1 * scale, 0.1 * mean, 1 + 0.1 * abs(variance)]
        parts += [np.concatenate([*vectors, kernel.ravel()]).astype("<f4").tobytes()]
    return b"".join(parts)


def write_darknet(path: Path, values: bytes, *, version: tuple[int, int, int] = (0, 2, 5)) -> Path:
    """Write a darknet file; before version 0.2, the number of images has 4 bytes."""
    images = struct.pack("<q" if version >= (0, 2, 0) else "<i", 32_013_312)
    path.write_bytes(struct.pack("<3i", *version) + images + values)
    return path


def _draw(index: int, name: str, shape: list[int], *, gain: float) -> Tensor:
    n = np.random.default_rng(index).standard_normal(shape)
    if "implicit" in name:
        values = 0.02 * n if "implicit_a" in name else 1 + 0.02 * n
    elif name.endswith("running_var"):
        values = 1 + 0.1 * abs(n)
    elif n.ndim == 4:
        values = n * np.sqrt(gain / np.prod(shape[1:]))
    else:
        values = 1 + 0.1 * n if name.endswith(".weight") else 0.1 * n
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
