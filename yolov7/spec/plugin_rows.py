"""The row of a block that the user has written. Its shape is stated in the row, so that nothing is imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, final

from pydantic import Field, JsonValue

from yolov7.spec.row import Count, MapShape, RowBase
from yolov7.system.plugins import is_dotted

BLOCK = "plugin"


@final
class PluginRow(RowBase):
    """A block from a package of the user.

    In files it is written as `{block: mypkg.blocks.Gate, out: 64, s: 2, OPTION: VALUE}`.

    Attributes:
        of: Its dotted name.
        out: Channels of its map; those of its first source by default.
        stride: The stride of its map relative to that of its first source.
        options: Keyword arguments of the block.
    """

    block: Literal["plugin"]
    of: Annotated[str, Field(max_length=200)]
    out: Count | None = None
    stride: Literal[1, 2] = Field(1, alias="s")
    options: Annotated[dict[str, JsonValue], Field(default_factory=dict, max_length=64)]

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map; see `RowBase`."""
        return MapShape(self.out or inputs[0].channels, inputs[0].stride * self.stride)


def expand_plugin(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write a row of an own block in full: its name in `of`, and keys that rows do not have in `options`.

    Args:
        row: The keys of any row.

    Returns:
        The keys of the row in full; the argument itself if the row has no own block.
    """
    block = row.get("block")
    if not isinstance(block, str) or not (is_dotted(block) or block == BLOCK):
        return row
    named = {"block": BLOCK, "of": block} if is_dotted(block) else {}
    known = {key: value for key, value in row.items() if key in _KEYS}
    others = {key: value for key, value in row.items() if key not in _KEYS}
    options = known.get("options", {})
    if others and isinstance(options, Mapping):
        known["options"] = {**options, **others}
    return known | named


_KEYS = {field.alias or name for name, field in PluginRow.model_fields.items()}
