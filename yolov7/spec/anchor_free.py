"""Anchor-free heads of specifications: replacing the anchor-based head of any specification, and requiring anchors.

This module does not import torch.
"""

from __future__ import annotations

from yolov7.errors import SpecError
from yolov7.spec.auxiliary import without_auxiliary
from yolov7.spec.block_schema import DetectRow, DflHeadRow, OneToOneHeadRow
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


def with_one_to_one_head(spec: ModelSpec) -> ModelSpec:
    """Return a specification with a head that needs no suppression on the maps of its head.

    Args:
        spec: The specification. Its head is anchor-based, that of YOLOv7-u6, or already one without suppression.

    Returns:
        The specification with the head, auxiliary branch included.

    Raises:
        SpecError: If it has another anchor-free head.
    """
    head = with_anchor_free_head(spec).head
    if isinstance(head, OneToOneHeadRow):
        return spec
    if not isinstance(head, DflHeadRow):
        raise SpecError(
            f"spec {spec.name!r} has the head {head.block!r}, which has no form without suppression; name a spec with "
            "the head 'detect' or 'detect_dfl'"
        )
    keys = head.model_dump(by_alias=True) | {"block": "detect_one_to_one"}
    row = OneToOneHeadRow.model_validate(keys)
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
