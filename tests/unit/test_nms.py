"""Test non-maximum suppression: equality with the plain greedy loop, small cases, limits and order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.naive import naive_nms
from yolov7.boxes import pairwise_iou
from yolov7.inference import nms
from yolov7.inference.nms import best_first, non_max_suppression, suppress
from yolov7.settings import NmsSettings

BOX = [50.0, 50.0, 20.0, 20.0]


def decoded(*rows: list[float]) -> Tensor:
    return torch.tensor([rows])


def test_best_class_only_or_every_class() -> None:
    rows = decoded([*BOX, 1.0, 0.9, 0.6])
    best = non_max_suppression(rows, settings=NmsSettings())[0]
    assert (best.labels.tolist(), len(best)) == ([0], 1)
    every = non_max_suppression(rows, settings=NmsSettings(multi_label=True))[0]
    assert every.labels.tolist() == [0, 1]
    torch.testing.assert_close(every.scores, torch.tensor([0.9, 0.6]))
    torch.testing.assert_close(every.boxes_xyxy[0], torch.tensor([40.0, 40.0, 60.0, 60.0]))


def test_agnostic_suppresses_across_classes() -> None:
    rows = decoded([*BOX, 1.0, 0.9, 0.1], [*BOX, 1.0, 0.1, 0.8])
    assert len(non_max_suppression(rows, settings=NmsSettings())[0]) == 2
    assert non_max_suppression(rows, settings=NmsSettings(agnostic=True))[0].labels.tolist() == [0]


def test_one_class_scores_by_objectness() -> None:
    rows = decoded([*BOX, 0.7, 0.1])
    torch.testing.assert_close(non_max_suppression(rows, settings=NmsSettings())[0].scores, torch.tensor([0.7]))


def test_far_boxes_of_another_class_stay() -> None:
    rows = decoded([8200.0, 8200.0, 20, 20, 1.0, 0.9, 0.0], [8200.0 - 4096, 8200.0 - 4096, 20, 20, 1.0, 0.0, 0.8])
    assert len(non_max_suppression(rows, settings=NmsSettings())[0]) == 2


def test_equals_the_greedy_loop_in_large_images() -> None:
    random = torch.Generator().manual_seed(1)
    corner = torch.rand(300, 2, generator=random) * 9000
    boxes = torch.cat((corner, corner + 500 + 3000 * torch.rand(300, 2, generator=random)), dim=1)
    groups = torch.randint(90, (300,), generator=random) % 4 * 29
    ours = suppress(boxes, groups=groups, threshold=0.4, limit=300)
    assert ours.tolist() == naive_nms(boxes, groups, threshold=0.4)


def test_nothing_found_and_no_rows() -> None:
    for rows in (torch.zeros(2, 5, 8), torch.zeros(2, 0, 8)):
        found = non_max_suppression(rows, settings=NmsSettings())
        assert [len(detections) for detections in found] == [0, 0]
        assert found[0].boxes_xyxy.shape == (0, 4)


def test_limits() -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.rand(1, 400, 7, generator=random) * torch.tensor([5000, 5000, 5, 5, 1, 1, 1])
    few = non_max_suppression(rows, settings=NmsSettings(confidence=0.01, max_detections=10))[0]
    many = non_max_suppression(rows, settings=NmsSettings(confidence=0.01))[0]
    assert torch.equal(few.scores, many.scores[:10])
    assert len(non_max_suppression(rows, settings=NmsSettings(confidence=0.01, max_candidates=7))[0]) == 7


def test_equal_scores_keep_their_order() -> None:
    scores = torch.tensor([0.5, 0.7, 0.5, 0.7, 0.5])
    assert best_first(scores, limit=9).tolist() == [1, 3, 0, 2, 4]
    assert best_first(scores, limit=3).tolist() == [1, 3, 0]


def test_chain_of_overlaps() -> None:
    # Each box overlaps only the next one, so greedy suppression keeps every second box.
    boxes = torch.tensor([[float(i), 0.0, i + 2.0, 1.0] for i in range(9)])
    kept = suppress(boxes, groups=torch.zeros(9, dtype=torch.int64), threshold=0.3, limit=99)
    assert kept.tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("block", [1, 7, 64, 512])
@pytest.mark.parametrize("num_groups", [1, 5])
def test_equals_the_greedy_loop(block: int, num_groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nms, "_BLOCK", block)
    for seed in range(5):
        random = torch.Generator().manual_seed(seed)
        corner = torch.rand(300, 2, generator=random) * 60
        boxes = torch.cat((corner, corner + 5 + 30 * torch.rand(300, 2, generator=random)), dim=1)
        groups = torch.randint(num_groups, (300,), generator=random)
        for limit in (2000, 12):
            expected = naive_nms(boxes, groups, threshold=0.4)[:limit]
            assert suppress(boxes, groups=groups, threshold=0.4, limit=limit).tolist() == expected


@pytest.mark.parametrize("label", [0, 79, 999, 1200, 9999, 10**6])
def test_small_boxes_are_kept_alike_whatever_their_class(label: int) -> None:
    """Two boxes of 8 px and IoU 0.441 at threshold 0.45; a shift of 4096 px per class in float32 loses half pixels."""
    boxes = torch.tensor([[300.0, 300.0, 308.0, 308.0], [303.1, 300.0, 311.1, 308.0]])
    iou = float(pairwise_iou(boxes[:1], boxes[1:]))
    assert iou == pytest.approx(0.441, abs=1e-3)
    groups = torch.full((2,), label)
    assert suppress(boxes, groups=groups, threshold=0.45, limit=9).tolist() == [0, 1]
    assert suppress(boxes, groups=groups, threshold=0.43, limit=9).tolist() == [0]


@pytest.mark.parametrize("limit", [300, 5000])
@pytest.mark.parametrize(("extent", "num_groups"), [(60.0, 1000), (60.0, 5), (3e6, 3), (3e6, 2000)])
def test_equals_the_greedy_loop_for_many_classes_and_large_coordinates(
    extent: float, num_groups: int, limit: int
) -> None:
    random = torch.Generator().manual_seed(2)
    corner = torch.rand(300, 2, generator=random, dtype=torch.float64) * 60 + extent
    boxes = torch.cat((corner, corner + 5 + 30 * torch.rand(300, 2, generator=random)), dim=1).float()
    groups = torch.randint(3, (300,), generator=random) * (num_groups // 3)
    ours = suppress(boxes, groups=groups, threshold=0.4, limit=limit)
    assert ours.tolist() == naive_nms(boxes.double(), groups, threshold=0.4)


def test_half_precision() -> None:
    rows = decoded([*BOX, 1.0, 0.9, 0.5]).half()
    assert non_max_suppression(rows, settings=NmsSettings())[0].scores.dtype == torch.float32
