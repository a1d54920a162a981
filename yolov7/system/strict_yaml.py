"""A YAML parser that limits the size of the content and in which a repeated key is an error.

A few lines of YAML can stand for billions of values, or for a value that contains itself. The size of a file is
therefore limited while it is parsed, and again, with every alias and merge key counted as often as it is used, before
any of them is expanded.
"""

from __future__ import annotations

from typing import Any

import yaml

from yolov7.errors import shown

MAX_VALUES = 20_000  # values in a file, each alias counted as often as it is used
MAX_DEPTH = 32  # levels of nesting
MAX_BITS = 64  # size of an integer
_MAX_DIGITS = 400  # characters of a number or a date

# Besides its own errors, yaml passes on errors of Python for values that do not fit their tag, such as `!!bool x`.
_UNUSABLE = (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
_SHORT_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp", "bool", "null")}


def parse_yaml(text: str) -> Any:
    """Return the value that a text in YAML describes.

    Args:
        text: The text.

    Returns:
        Plain values. Aliases and merge keys are expanded.

    Raises:
        ValueError: If the text is not YAML, too large or nested too deeply, or contains a key twice.
    """
    loader = None
    try:
        loader = _StrictLoader(text)
        return loader.get_single_data()
    except _UNUSABLE as error:
        raise ValueError(str(_describe(error))) from None
    finally:
        if loader is not None:
            loader.dispose()


def _describe(error: Exception) -> object:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return error
    mark = error.problem_mark
    return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"


class _StrictLoader(yaml.SafeLoader):
    """A YAML loader that limits the size of the content and in which a repeated key is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._count = 0
        self._extents: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Count nodes and levels while the file is parsed, before anything is expanded."""
        self._count += 1
        self._depth += 1
        _check_extent(self._count, self._depth)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_document(self, node: yaml.Node) -> Any:
        """Check the size of the expanded content before it is constructed."""
        self._check_node(node, depth=1)
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Refuse numbers that are too long to be meant as numbers, and texts that no name or path can be."""
        if node.tag in _SHORT_TAGS and len(node.value) > _MAX_DIGITS:
            raise ValueError(f"the number or date {shown(node.value)} has more than {_MAX_DIGITS} characters")
        value = super().construct_object(node, deep)
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise ValueError(f"the integer {shown(node.value)} has more than {MAX_BITS} bits")
        if isinstance(value, str) and any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in value):
            raise ValueError(f"the text {shown(value)} contains a null character or half of a surrogate pair")
        return value

    def _check_node(self, node: yaml.Node, *, depth: int) -> tuple[int, int]:
        """Return the number of values and of levels below a node with all aliases expanded; visit each node once."""
        if id(node) not in self._extents:
            _check_extent(0, depth)
            parts = node.value if isinstance(node, yaml.SequenceNode) else ()
            if isinstance(node, yaml.MappingNode):
                self._check_keys(node)
                parts = [part for pair in node.value for part in pair]
            count, levels = 1, 1
            for part in parts:
                inner_count, inner_levels = self._check_node(part, depth=depth + 1)
                count, levels = count + inner_count, max(levels, 1 + inner_levels)
            self._extents[id(node)] = count, levels
        count, levels = self._extents[id(node)]
        _check_extent(count, depth + levels - 1)
        return count, levels

    def _check_keys(self, node: yaml.MappingNode) -> None:
        """Refuse repeated keys; plain YAML would use the last one without a message."""
        seen: set[Any] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            value = "<<" if key.tag == "tag:yaml.org,2002:merge" else self.construct_object(key)
            if value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is written twice", key.start_mark)
            seen.add(value)


def _check_extent(count: int, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    if count > MAX_VALUES:
        raise ValueError(f"it contains more than {MAX_VALUES:,} values")
