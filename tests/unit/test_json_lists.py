"""The reader of large JSON files: it accepts and refuses what the standard library does."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.property.test_fuzz import mutate_text
from yolov7.data.read.json_lists import iterate_lists


def read(text: str) -> dict[str, list[Any]]:
    return {name: list(elements) for name, elements in iterate_lists(text, ("a", "b"))}


@pytest.mark.parametrize(
    "text",
    [
        "{}", " { } ", '{"a": []}', '{"a":[1,2 , 3]}', ' {"x": {"a": [1]}, "a" : [ {"b": [1]} , null ] , "b": []}\n',

        '{"a": 7, "b": ["\\ud800", NaN, -Infinity, 1e999]}', '{"a": {"b": [1]}}', '{"x": [[[]]], "b": [[1], []]}',
    ],
)  # fmt: skip
def test_lists_are_those_of_the_text(text: str) -> None:
    expected = {key: value for key, value in json.loads(text).items() if key in "ab" and isinstance(value, list)}
    assert repr(read(text)) == repr(expected)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "{", '{"a"', '{"a":', '{"a": [', '{"a": [1', '{"a": [1,', '{"a": [1,]}',
        '{"a": [,1]}', '{"a": [1 2]}',
        '{"a": [1]',
        '{"a": [1],}', '{"a": [1]} x', '{"a": [1]}{', "{a: []}", '{"a": [1], "a": [2]}', "{1: 2}", '{"a": []]}',
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(text)


def test_mutations_are_judged_as_by_the_standard_library() -> None:
    good = json.dumps({"x": 1, "a": [{"id": i, "bbox": [1, 2.5, 3]} for i in range(3)], "b": [None, "é"]}).encode()
    judged = 0
    for number in range(1000):
        text = mutate_text(good, random.Random(number)).decode(errors="replace")
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        try:
            ours = read(text)
        except (ValueError, RecursionError):
            assert not isinstance(content, dict) or text.count('"a"') + text.count('"b"') > 2
        else:
            assert isinstance(content, dict)
            assert all(content[name] == values for name, values in ours.items() if "nan" not in repr(values))
            judged += 1
    assert judged > 50
