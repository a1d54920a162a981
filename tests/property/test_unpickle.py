"""Reading any pickle gives inert values or an error of one line."""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from yolov7.errors import ArtifactError
from yolov7.weights.foreign.pickle_reader import Global, StandIn, StorageNote, TensorNote, unpickle

INERT = (type(None), bool, int, float, str, bytes, list, tuple, dict, Global, StandIn, StorageNote, TensorNote)
OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


def read(program: bytes) -> Any:
    """Return the value of a pickle, or the error with which it is refused."""
    try:
        return unpickle(io.BytesIO(program)).value
    except ArtifactError as error:
        return error


def is_safe(outcome: Any) -> bool:
    return "\n" not in str(outcome) if isinstance(outcome, ArtifactError) else isinstance(outcome, INERT)


@given(PLAIN, st.sampled_from([2, 3, 4, 5]))
def test_plain_values_come_out_as_they_went_in(value: Any, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol=protocol)) == value


@given(st.lists(st.sampled_from(OPCODES) | st.binary(max_size=4), max_size=60).map(b"".join))
def test_any_program(program: bytes) -> None:
    assert is_safe(read(b"\x80\x04" + program + b"."))


@given(st.data())
def test_damaged_pickles(data: st.DataObject) -> None:
    program = bytearray(pickle.dumps({"model": [1, ("a", 2.5), {"b": None}], "names": ["x"] * 3}, protocol=2))
    for _ in range(data.draw(st.integers(1, 4))):
        program[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    assert is_safe(read(bytes(program)))
