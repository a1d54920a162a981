"""Anchor-free heads of specifications: replacing the anchor-based head of any specification, and requiring anchors.

This module does not import torch.
"""

from __future__ import annotations

from yolov7.errors import SpecError
from yolov7.spec.auxiliary import without_auxiliary
from yolov7.spec.block_schema import DetectRow, DflHeadRow
from yolov7.spec.graph import ModelSpec


def with_anchor_free_head(spec: ModelSpec) -> ModelSpec:
    """Return a specification with the anchor-free head of YOLOv7-u6 on the maps of its anchor-based head.

    All other rows stay. The new head has implicit knowledge if the old one has, and no auxiliary head.

    Args:
        spec: The specification. If its head is anchor-free, it is returned unchanged.

    Returns:
        The specification with the head.
    """
    head = without_auxiliary(spec).head
    if not isinstance(head, DetectRow):
        return spec
    row = DflHeadRow.model_validate({"block": "detect_dfl", "from": head.sources, "implicit": head.implicit})
    return ModelSpec.model_validate({**dict(spec), "rows": spec.rows | {spec.head_name: row}})


def anchor_based_head(spec: ModelSpec) -> DetectRow:
    """Return the row of an anchor-based head.

    Args:
        spec: The specification.

    Returns:
        The row.

    Raises:
        SpecError: If the head is anchor-free.
    """
    if not isinstance(spec.head, DetectRow):
        raise SpecError(
            f"spec {spec.name!r} has the anchor-free head {spec.head.block!r}; name a spec with an anchor-based head "
            "(block 'detect')"
        )
    return spec.head
