"""Reading of large JSON files: the elements of their lists one by one, so that they are never in memory together."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from json import JSONDecodeError, JSONDecoder
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
_DECODER = JSONDecoder()


def iterate_lists(text: str, names: Sequence[str]) -> Iterator[tuple[str, Iterator[Any]]]:
    """Iterate over some lists of the object that a JSON text holds.

    Args:
        text: The text.
        names: The keys of the lists.

    Yields:
        A key and an iterator over the elements of its list, in the order of the text. Other values are skipped.

    Raises:
        ValueError: If the text is not valid JSON, is no object, or has one of the keys twice.
        RecursionError: If it is nested too deeply.
    """
    position = _skip(text, _expect(text, 0, "{"))
    seen: set[str] = set()
    is_first = True
    while not (is_first and text.startswith("}", position)):
        is_first = False
        key, position = _decode(text, position)
        if not isinstance(key, str):
            raise JSONDecodeError("Expecting property name enclosed in double quotes", text, position)
        position = _skip(text, _expect(text, position, ":"))
        if key in names and text.startswith("[", position):
            if key in seen:
                raise JSONDecodeError(f"Key {key!r} given twice", text, position)
            seen.add(key)
            rest = _Elements(text, position + 1)
            yield key, iter(rest)
            position = rest.end()
        else:
            _, position = _decode(text, position)
        position = _skip(text, position)
        if text.startswith("}", position):
            break
        position = _skip(text, _expect(text, position, ","))
    if _skip(text, position + 1) != len(text):
        raise JSONDecodeError("Extra data", text, position + 1)


class _Elements:
    """The elements of a list, and where it ends."""

    def __init__(self, text: str, position: int) -> None:
        self._text, self._end = text, -1
        self._generator = self._decode_all(position)

    def __iter__(self) -> Generator[Any, None, None]:
        return self._generator

    def end(self) -> int:
        """Return the position behind the list; elements that nobody asked for are read first."""
        for _ in self._generator:
            pass
        return self._end

    def _decode_all(self, position: int) -> Generator[Any, None, None]:
        text, decode = self._text, _DECODER.raw_decode
        position = _skip(text, position)
        has_more = not text.startswith("]", position)
        while has_more:
            value, position = decode(text, position)
            yield value
            comma = _COMMA.match(text, position)
            has_more = comma is not None
            position = comma.end() if comma is not None else _skip(text, position)
        self._end = _expect(text, position, "]")


def _decode(text: str, position: int) -> tuple[Any, int]:
    value, end = _DECODER.raw_decode(text, _skip(text, position))
    return value, end


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    assert found is not None  # it matches the empty text too
    return found.end()


def _expect(text: str, position: int, sign: str) -> int:
    position = _skip(text, position)
    if not text.startswith(sign, position):
        raise JSONDecodeError(f"Expecting {sign!r}", text, position)
    return position + 1
