"""Auxiliary heads of specifications: adding one to any specification, and removing it (section 4.2 of the paper).

This module does not import torch.
"""

from __future__ import annotations

from yolov7.errors import SpecError
from yolov7.spec.block_schema import Auxiliary, ConvRow, DetectRow, OneToOneHeadRow, RepConvRow
from yolov7.spec.graph import IMAGE, ModelSpec, infer_shapes, row_of
from yolov7.spec.row import MapShape


def with_auxiliary(spec: ModelSpec, *, partial: bool = False) -> ModelSpec:
    """Return a specification with an auxiliary head.

    On every level, the head taps the top-down map of the stride of the lead head (n3, n4 and n5 of YOLOv7) and has the
    widths of the lead head.

    Args:
        spec: The specification. If it has an auxiliary head, it is returned unchanged.
        partial: Tap the last branch of an E-ELAN before the addition (Table 8).

    Returns:
        The specification with the head.

    Raises:
        SpecError: If the head is anchor-free, or a partial head is wanted and no tapped row is an E-ELAN.
    """
    if not isinstance(spec.head, DetectRow):
        raise SpecError(
            f"spec {spec.name!r} has the anchor-free head {spec.head_name!r}, which cannot have an auxiliary head; "
            "leave out the auxiliary head, or use the anchor-based head"
        )
    if spec.head.auxiliary is not None:
        return spec
    shapes = infer_shapes(spec)
    taps = [_find_tap(spec, source, shapes) for source in spec.head.sources]
    if partial:
        branches = [spec.rows[tap].num_branches if tap in spec.rows else 1 for tap in taps]
        if max(branches) == 1:
            raise SpecError(f"spec {spec.name!r} has no E-ELAN that a partial auxiliary head could tap; leave it out")
        taps = [f"{tap}.{number}" if number > 1 else tap for tap, number in zip(taps, branches, strict=True)]
    return _with_head(spec, Auxiliary.model_validate({"from": taps}))


def without_auxiliary(spec: ModelSpec) -> ModelSpec:
    """Return a specification without its auxiliary head: the deployed model.

    Args:
        spec: The specification.

    Returns:
        The specification without the head; unchanged if it has none.
    """
    return _with_head(spec, None) if spec.head.taps else spec


def auxiliary_widths(spec: ModelSpec) -> tuple[int, ...]:
    """Return the widths of the 3x3 convolutions of the auxiliary head.

    Args:
        spec: The specification.

    Returns:
        Widths, finest level first; empty without an auxiliary head.
    """
    if not isinstance(spec.head, DetectRow) or spec.head.auxiliary is None:
        return ()
    shapes = infer_shapes(spec)
    return spec.head.auxiliary.out or tuple(shapes[source].channels for source in spec.head.sources)


def _with_head(spec: ModelSpec, auxiliary: Auxiliary | None) -> ModelSpec:
    off: Auxiliary | bool | None = False if isinstance(spec.head, OneToOneHeadRow) else auxiliary
    head = spec.head.model_copy(update={"auxiliary": off})
    return ModelSpec.model_validate({**dict(spec), "rows": spec.rows | {spec.head_name: head}})


def _find_tap(spec: ModelSpec, source: str, shapes: dict[str, MapShape]) -> str:
    """Follow the graph upwards from a map of the lead head to the transition that concatenates a top-down map.

    The lateral of that transition is the top-down map of this stride. Without such a transition, the tap is the input
    of the last convolution of the lead head, or else the map of the lead head itself.
    """
    stride = shapes[source].stride
    row = spec.rows.get(row_of(source))  # None for the image
    is_own = isinstance(row, ConvRow | RepConvRow) and shapes[row.sources[0]].stride == stride
    tap = row.sources[0] if row and is_own else source
    name = source
    while shapes[name].stride == stride and name != IMAGE:
        main, *laterals = spec.rows[row_of(name)].sources
        if laterals and shapes[main].stride < stride:
            return laterals[0]
        name = main
    return tap
