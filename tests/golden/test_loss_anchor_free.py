"""Compare assigners and losses of heads without anchors with vectors of YOLOX, PP-YOLOE and YOLOv7-u6."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from yolov7.criterion.aligned import AtssAssigner, Scored, ScoringAssigner, TaskAlignedAssigner
from yolov7.criterion.anchor_free_loss import PPYOLOE_GAINS, U6_GAINS, DistributionLoss, YoloxLoss
from yolov7.criterion.candidates import Assignment
from yolov7.criterion.loss_parts import Loss, LossParts
from yolov7.criterion.simota import SimOtaAssigner, SimOtaRule
from yolov7.structures import HeadMaps, Targets

DATA = Path(__file__).parent / "data" / "baselines"
STRIDES = (8, 16, 32)
YOLOX, PPYOLOE, U6 = (
    sorted(path.stem for path in DATA.glob(f"loss_{family}_*.npz")) for family in ("yolox", "ppyoloe", "u6")
)
RULES: tuple[SimOtaRule, ...] = ("r25", "r15")


def load(name: str) -> dict[str, Any]:
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def as_map(raw: np.ndarray[Any, Any]) -> Tensor:
    """Return a leaf (B, 1, H, W, outputs) of raw outputs (B, outputs, H, W)."""
    return torch.from_numpy(raw.astype(np.float32)).permute(0, 2, 3, 1)[:, None].contiguous().requires_grad_()


def as_raw(m: Tensor | None) -> np.ndarray[Any, Any]:
    assert m is not None
    return m[:, 0].permute(0, 3, 1, 2).numpy()


def from_boxes(image: Any, label: Any, boxes_cxcywh_px: Any, case: dict[str, Any]) -> Targets:
    height, width = case["img_shape"].tolist()
    scale = torch.tensor([width, height] * 2, dtype=torch.float64)
    boxes = torch.as_tensor(boxes_cxcywh_px, dtype=torch.float64).view(-1, 4) / scale
    return Targets(torch.as_tensor(image).long(), torch.as_tensor(label).long(), boxes.float())


def rows(cells: Assignment, case: dict[str, Any], *, order: tuple[int, ...], number: Tensor) -> list[tuple[int, ...]]:
    """Return image, cell and object as in the golden files, whose cells are counted over the levels in `order`."""
    height, width = case["img_shape"].tolist()
    starts, start = {}, 0
    for level in order:
        starts[level] = start
        start += (height // STRIDES[level]) * (width // STRIDES[level])
    columns = torch.stack((cells.level, cells.image, cells.row, cells.column, number[cells.target]), 1).tolist()
    return [(i, starts[k] + y * (width // STRIDES[k]) + x, t) for k, i, y, x, t in columns]


def batch_of(case: dict[str, Any], key: str) -> int:
    return int(case[key].shape[0])


class YoloxCase:
    """The inputs of one file, and the loss for a rule."""

    def __init__(self, name: str) -> None:
        self.data = load(name)
        self.maps = HeadMaps(tuple(as_map(self.data[f"p{i}"]) for i in range(3)))
        labels = self.data["labels"]
        image, self.number = (labels.sum(2) > 0).nonzero()
        chosen = labels[image, self.number]
        self.targets = from_boxes(image, chosen[:, 0], chosen[:, 1:], self.data)

    def loss(self, rule: SimOtaRule) -> YoloxLoss:
        assigner = SimOtaAssigner(STRIDES, rule=rule)
        return YoloxLoss(STRIDES, assigner, uses_l1=bool(self.data["use_l1"]), nominal_batch=batch_of(self.data, "p0"))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", YOLOX)
def test_yolox(name: str, rule: SimOtaRule) -> None:
    case = YoloxCase(name)
    data, loss = case.data, case.loss(rule)
    if data[f"{rule}_tie_stable"]:
        cells = loss.assign(case.maps, case.targets).lead
        found = rows(cells, data, order=(0, 1, 2), number=torch.from_numpy(case.number))
        assert sorted(found) == sorted(map(tuple, data[f"{rule}_match"].tolist()))
    parts = loss(case.maps, case.targets)
    total, box, objectness, classes, l1, _ = data[f"{rule}_loss"].tolist()
    if not data[f"{rule}_tie_stable"]:
        assert parts.total.item() == pytest.approx(total, rel=2e-3)
        return
    expected = [total, box + l1, objectness, classes]
    assert [part.item() for part in parts] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    parts.total.backward()
    for i, m in enumerate(case.maps.lead):
        gradient = as_raw(m.grad)
        if rule == "r25":
            _compare(gradient, data[f"r25_grad{i}"], 1e-4)
        else:
            _compare(gradient.ravel()[data[f"r15_grad{i}_idx"]], data[f"r15_grad{i}_val"], 1e-4)
            assert np.abs(gradient, dtype=np.float64).sum() == pytest.approx(data[f"r15_grad{i}_stats"][1], rel=1e-4)


def _compare(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], tolerance: float) -> None:
    largest = max(np.abs(expected).max(), 1e-9)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * largest)


def check_scored(found: Scored, data: dict[str, Any], **how: Any) -> None:
    """Compare positives whose score is not 0; a zero score is arbitrary in the original and has no loss there."""
    ours = dict(zip(rows(found.cells, data, **how), found.score.tolist(), strict=True))
    theirs = {tuple(m): s for m, s in zip(data["match"].tolist(), data["match_score"].tolist(), strict=True) if s > 0}
    assert ours.keys() == theirs.keys()
    assert [ours[key] for key in theirs] == pytest.approx(list(theirs.values()), abs=1e-5)


@pytest.mark.parametrize("name", PPYOLOE)
def test_ppyoloe(name: str) -> None:
    data = load(name)
    levels = [2, 1, 0]  # in the files, the coarsest level is first
    maps = HeadMaps(tuple(as_map(np.concatenate([data[f"reg{i}"], data[f"cls{i}"]], axis=1)) for i in levels))
    image, number = data["gt_mask"].nonzero()
    corners = data["gt_bbox"][image, number].astype(np.float64)
    boxes = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
    targets = from_boxes(image, data["gt_class"][image, number], boxes, data)
    bins = int(data["reg_max"]) + 1
    assigner: ScoringAssigner = TaskAlignedAssigner(STRIDES, bins, top=13, alpha=1.0, beta=6.0, overlap="iou")
    if data["assigner"] == "atss":
        assigner = AtssAssigner(STRIDES, bins)
    check_scored(assigner(maps.lead, targets), data, order=(2, 1, 0), number=torch.from_numpy(number))
    loss = DistributionLoss(STRIDES, assigner, bins=bins, gains=PPYOLOE_GAINS, nominal_batch=batch_of(data, "cls0"))
    parts = loss(maps, targets)
    total, classes, iou, dfl, _ = data["loss_clipped"].tolist()
    assert [parts.total.item(), parts.classification.item()] == pytest.approx([total, classes], rel=2e-4)
    assert parts.box.item() == pytest.approx(2.5 * iou + 0.5 * dfl, rel=1e-5)
    parts.total.backward()
    clip = 1.0 if data["loss_is_nonfinite"] else min(1.0, float(data["scores_sum"]))
    for i, m in zip(levels, maps.lead, strict=True):
        expected = np.concatenate([data[f"grad_reg{i}"], data[f"grad_cls{i}"]], axis=1) * clip
        _compare(as_raw(m.grad), expected, 5e-5)


@pytest.mark.parametrize("name", U6)
def test_u6(name: str) -> None:
    data = load(name)
    maps = HeadMaps(tuple(as_map(data[f"p{i}"]) for i in range(3)))
    table = torch.from_numpy(data["targets"])
    targets = Targets(table[:, 0].long(), table[:, 1].long(), table[:, 2:])
    bins = int(data["reg_bins"])
    assigner = TaskAlignedAssigner(STRIDES, bins, top=10, alpha=0.5, beta=6.0, overlap="ciou")
    number = torch.arange(len(targets))
    for image in range(batch_of(data, "p0")):
        mine = targets.image == image
        number[mine] = torch.arange(int(mine.sum()))
    assert data["tie_stable_scored"]
    check_scored(assigner(maps.lead, targets), data, order=(0, 1, 2), number=number)
    loss: Loss = DistributionLoss(STRIDES, assigner, bins=bins, gains=U6_GAINS, nominal_batch=64)
    parts: LossParts = loss(maps, targets)
    parts.total.backward()
    if data["loss_is_nonfinite"]:
        assert torch.isfinite(parts.total)
        assert all(m.grad is not None and torch.isfinite(m.grad).all() for m in maps.lead)
        return
    clip = min(1.0, float(data["scores_sum"]))
    box, classes, dfl = (data["items"] * clip).tolist()
    assert parts.total.item() == pytest.approx(float(data["loss"]) * clip, rel=1e-5)
    assert [parts.box.item(), parts.classification.item()] == pytest.approx([box + dfl, classes], rel=1e-5)
    for i, m in enumerate(maps.lead):
        _compare(as_raw(m.grad), data[f"grad{i}"] * clip, 5e-5)
