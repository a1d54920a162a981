"""Auxiliary heads of specs: adding one to any spec, taking it away (the paper's section 4.2). Imports no torch."""

from __future__ import annotations

from yolov7.errors import SpecError
from yolov7.spec.block_schema import Auxiliary, ConvRow, RepConvRow
from yolov7.spec.graph import IMAGE, ModelSpec, infer_shapes, row_of
from yolov7.spec.row import Shape


def with_auxiliary(spec: ModelSpec, *, partial: bool = False) -> ModelSpec:
    """The spec with an auxiliary head; one that has its own comes back as it is.

    On every level it taps the top-down map of the lead's stride, n3, n4, n5 of YOLOv7, and has the lead's widths.
    `partial`: where that map is an E-ELAN's, its last branch before the addition (Table 8); it is an error if none is.
    """
    if spec.head.auxiliary is not None:
        return spec
    shapes = infer_shapes(spec)
    taps = [_find_tap(spec, source, shapes) for source in spec.head.sources]
    if partial:
        taps = [_last_branch(spec, tap) for tap in taps]
        if not any("." in tap for tap in taps):
            raise SpecError(f"spec {spec.name!r} has no E-ELAN that a partial auxiliary head could tap; leave it out")
    return _with_head(spec, Auxiliary.model_validate({"from": taps}))


def without_auxiliary(spec: ModelSpec) -> ModelSpec:
    """The spec without its auxiliary head, if it has one: what is deployed."""
    return spec if spec.head.auxiliary is None else _with_head(spec, None)


def auxiliary_widths(spec: ModelSpec) -> tuple[int, ...]:
    """The widths of the auxiliary head's 3x3 convolutions, finest level first; none without such a head."""
    if spec.head.auxiliary is None:
        return ()
    shapes = infer_shapes(spec)
    return spec.head.auxiliary.out or tuple(shapes[source].channels for source in spec.head.sources)


def _with_head(spec: ModelSpec, auxiliary: Auxiliary | None) -> ModelSpec:
    head = spec.head.model_copy(update={"auxiliary": auxiliary})
    return ModelSpec.model_validate({**dict(spec), "rows": spec.rows | {spec.head_name: head}})


def _find_tap(spec: ModelSpec, source: str, shapes: dict[str, Shape]) -> str:
    """From a lead's map upwards to where the way up joined: the lateral there is the top-down map of this stride.

    Where no way up leads to it, it is what the lead's own convolution takes, or the lead's map itself.
    """
    stride = shapes[source].stride
    row = spec.rows[row_of(source)]
    own = isinstance(row, ConvRow | RepConvRow) and shapes[row.sources[0]].stride == stride
    tap = row.sources[0] if own else source
    name = source
    while shapes[name].stride == stride and name != IMAGE:
        main, *laterals = spec.rows[row_of(name)].sources
        if laterals and shapes[main].stride < stride:
            return laterals[0]
        name = main
    return tap


def _last_branch(spec: ModelSpec, tap: str) -> str:
    branches = spec.rows[tap].num_branches
    return f"{tap}.{branches}" if branches > 1 else tap
