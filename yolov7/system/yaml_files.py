"""Reading of YAML files that people write: a mapping of plain values, in which no key is written twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from yolov7.errors import ArtifactError, one_line
from yolov7.system.files import is_file

MAX_VALUES = 20_000  # that a file may hold, each alias counted as often as it is used
MAX_DEPTH = 32
MAX_BITS = 1024  # of an integer; Python itself writes none of more than 4300 digits


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping that a file holds; ValueError in one line for every fault, also for what only looks like YAML."""
    if not is_file(path):
        raise ArtifactError(f"{path} does not exist; check its name")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
        _check_extent(content)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); give yourself the right to it") from None
    except _UNUSABLE as error:
        raise ArtifactError(f"{path} is not YAML: {one_line(_reason(error))}") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} must hold a mapping of names to values; it holds {type(content).__name__}")
    return content


def _reason(error: Exception) -> object:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return error
    mark = error.problem_mark
    return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"


# besides its own errors, yaml lets through those of Python for values that their tags do not fit, such as !!bool x
_UNUSABLE = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key written twice is an error; plainly, the second would win."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "a mapping was expected", node.start_mark)
        seen: set[tuple[str, str]] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is written twice", key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _check_extent(content: object) -> None:
    """Few lines of aliases of aliases hold billions of values, or themselves; what walks through them never ends."""
    waiting, count = [(content, 1)], 0
    while waiting:
        value, depth = waiting.pop()
        inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise ValueError(f"it holds an integer of {value.bit_length()} bits")
        if isinstance(inner, (list, set, tuple)):
            count += len(inner)
            if count > MAX_VALUES:
                raise ValueError(f"it holds more than {MAX_VALUES:,} values")
            waiting += [(item, depth + 1) for item in inner]
