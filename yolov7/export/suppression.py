"""Non-maximum suppression as part of an ONNX graph, with the result of `yolov7.inference.nms`.

If boxes may have several classes (`multi_label`), they are not rounded as the reference implementation rounds them.
Pairs whose IoU equals the threshold to about six digits may then be decided otherwise.

The graph contains ONNX's own operator NonMaxSuppression, whose number of results depends on the values. Its results
are scattered into tensors of fixed shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from yolov7.inference.nms import REFERENCE_EXTENT, REFERENCE_STEP
from yolov7.settings import NmsSettings


@torch.library.custom_op("yolov7::nms", mutates_args=())
def _nms(boxes: Tensor, scores: Tensor, limit: int, iou: float, confidence: float) -> Tensor:
    raise NotImplementedError("this operator exists only in exported graphs")


@_nms.register_fake
def _(boxes: Tensor, scores: Tensor, limit: int, iou: float, confidence: float) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), 3, dtype=torch.int64)  # image, class, box


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the translation of this module's operator for `torch.onnx.export`."""
    from onnxscript import opset20 as op

    def translate(boxes: Any, scores: Any, limit: int, iou: float, confidence: float) -> Any:
        return op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[limit]),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[confidence]),
        )

    return {torch.ops.yolov7.nms.default: translate}


def suppress_in_graph(
    decoded: Tensor, *, settings: NmsSettings, num_boxes: int | None, suppresses: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the detections of each image, by descending score. It can be exported, but not run by torch.

    Args:
        decoded: Predictions (B, boxes, 5 + classes): cx, cy, w, h in pixels, objectness and class probabilities.
        settings: Thresholds and limits; K is the largest number of detections.
        num_boxes: Number of predictions for an image; None if it is not fixed.
        suppresses: Whether overlapping detections are suppressed; see `non_max_suppression`.

    Returns:
        Number of detections (B,) int64, corners (B, K, 4) in pixels, scores (B, K), and labels (B, K) int64. The rows
        after the last detection have the score 0.
    """
    centre, half = decoded[..., :2], decoded[..., 2:4] / 2
    boxes = torch.cat((centre - half, centre + half), dim=-1)
    num_classes = decoded.shape[-1] - 5
    # As in `yolov7.inference.nms`, the score of the only class is the objectness.
    scores = decoded[..., 5:] * decoded[..., 4:5] if num_classes > 1 else decoded[..., 4:5]
    labels = scores.argmax(dim=-1)  # B boxes
    compared = boxes
    if settings.agnostic:
        # The suppression across classes keeps at most the best class of a box, because a box overlaps itself.
        scores = scores.amax(dim=-1, keepdim=True)
    elif not settings.multi_label:
        compared = _round_as_reference(boxes, labels)
        is_best = torch.arange(num_classes, device=scores.device) == labels[..., None]
        scores = torch.where(is_best, scores, 0.0)
    by_class = scores.transpose(1, 2).contiguous()  # B classes boxes
    size = None if num_boxes is None else num_boxes * by_class.shape[1]
    by_class = _limit_candidates(by_class, limit=settings.max_candidates, size=size)
    if suppresses:
        image, label, box = torch.ops.yolov7.nms(
            compared, by_class, settings.max_detections, settings.iou, settings.confidence
        ).unbind(1)
        kept = torch.zeros_like(by_class).index_put((image, label, box), by_class[image, label, box])
    else:
        kept = torch.where(by_class > settings.confidence, by_class, 0.0)
    top, place = _pad(kept.flatten(1), settings.max_detections, size).topk(settings.max_detections, dim=1)
    place = torch.where(top > 0, place, 0)
    label = place // boxes.shape[1]
    box = place - label * boxes.shape[1]
    if settings.agnostic:
        label = labels.gather(1, box)
    return (top > 0).sum(1), boxes.gather(1, box[..., None].expand(-1, -1, 4)), top, label


def _round_as_reference(boxes: Tensor, labels: Tensor) -> Tensor:
    """Shift boxes (B, boxes, 4) by class, whose rounding decides where an IoU almost equals the threshold."""
    shift = labels * REFERENCE_STEP
    is_fine = shift + boxes.abs().amax(dim=(1, 2))[:, None] < REFERENCE_EXTENT
    return boxes + torch.where(is_fine, shift, 0.0)[..., None]


def _limit_candidates(scores: Tensor, *, limit: int, size: int | None) -> Tensor:
    """Set all but the highest `limit` scores (B, classes, boxes) of an image to 0."""
    if size is not None and size <= limit:
        return scores
    lowest = _pad(scores.flatten(1), limit, size).topk(limit, dim=1).values[:, -1]
    return torch.where(scores >= lowest[:, None, None], scores, 0.0)


def _pad(values: Tensor, length: int, size: int | None) -> Tensor:
    """Append zeros to rows (B, size) that may be shorter than `length`."""
    if size is not None and size >= length:
        return values
    return torch.cat((values, values.new_zeros(values.shape[0], length)), dim=1)
