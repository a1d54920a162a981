"""Test the assigners on small cases by hand and against a plain implementation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.naive import Cell, naive_ota
from yolov7.criterion import matching
from yolov7.criterion.assigners import AnchorAssigner, OtaAssigner
from yolov7.criterion.candidates import Anchors, Assignment, find_candidates
from yolov7.structures import Targets

STRIDES = (8, 16)
ANCHORS = torch.tensor([[[8.0, 8.0], [16.0, 16.0]], [[32.0, 32.0], [64.0, 64.0]]])
NOTHING = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))


def cells_of(assignment: Assignment) -> list[Cell]:
    fields = (assignment.level, assignment.image, assignment.anchor, assignment.row, assignment.column)
    return [tuple(row) for row in torch.stack((*fields, assignment.target), dim=1).tolist()]


def objects(*rows: tuple[int, int, float, float, float, float], size: float = 1.0) -> Targets:
    """Targets from (image, label, cx, cy, w, h)."""
    table = torch.tensor(rows, dtype=torch.float32)
    return Targets(table[:, 0].long(), table[:, 1].long(), table[:, 2:] / size)


def random_case(
    seed: int, *, batch: int, counts: tuple[int, ...], classes: int, size: int = 64
) -> tuple[tuple[Tensor, ...], Targets]:
    random = torch.Generator().manual_seed(seed)
    maps = tuple(2 * torch.randn(batch, 2, size // s, size // s, 5 + classes, generator=random) for s in STRIDES)
    image = torch.repeat_interleave(torch.arange(batch), torch.tensor(counts))
    image = image[torch.randperm(len(image), generator=random)]
    labels = torch.randint(classes, image.shape, generator=random)
    centre = torch.rand(len(image), 2, generator=random)
    return maps, Targets(image, labels, torch.cat((centre, 0.05 + 0.5 * torch.rand(centre.shape, generator=random)), 1))


def test_candidates_of_one_object() -> None:
    # 64 px image: the centre (20, 30) px is (2.5, 3.75) cells of 8 px, so the cells are (2, 3) and the one below
    targets = objects((0, 0, 20, 30, 8, 8), size=64)
    maps = [torch.zeros(1, 2, 8, 8, 6)]
    found = find_candidates(targets, maps=maps, anchors=Anchors(ANCHORS[:1], (8,)), threshold=1.5)
    assert cells_of(found) == [(0, 0, 0, 3, 2, 0), (0, 0, 0, 4, 2, 0)]


def test_candidates_at_a_corner_are_inside_the_grid() -> None:
    targets = objects((0, 0, 1.0, 1.0, 0.125, 0.125), (0, 0, 0.0, 0.0, 0.125, 0.125))
    maps = [torch.zeros(1, 2, 8, 8, 6)]
    found = find_candidates(targets, maps=maps, anchors=Anchors(ANCHORS[:1], (8,)), threshold=1.5)
    assert set(cells_of(found)) == {(0, 0, 0, 7, 7, 0), (0, 0, 0, 0, 0, 1)}


def test_coarse_candidates_reach_all_four_neighbours() -> None:
    targets = objects((0, 0, 36, 36, 8, 8), size=64)
    maps = [torch.zeros(1, 2, 8, 8, 6)]
    anchors = Anchors(ANCHORS[:1], (8,))
    found = find_candidates(targets, maps=maps, anchors=anchors, threshold=1.5, reach=1.0)
    assert {cell[3:5] for cell in cells_of(found)} == {(4, 4), (4, 3), (3, 4), (4, 5), (5, 4)}


def test_boxes_scale_by_width_and_height() -> None:
    targets = objects((0, 0, 0.5, 0.25, 0.25, 0.5))  # 16 x 16 px in an image of 64 x 32
    maps = [torch.zeros(1, 2, 4, 8, 6)]
    found = find_candidates(targets, maps=maps, anchors=Anchors(ANCHORS[:1], (8,)), threshold=1.5)
    assert {(cell[2], cell[3], cell[4]) for cell in cells_of(found)} == {(1, 1, 4), (1, 1, 3)}


def test_the_better_prediction_becomes_positive() -> None:
    # Both candidates predict the same kind of box, but only one of them predicts the class.
    maps = torch.zeros(1, 2, 8, 8, 7)
    maps[0, 0, 3, 2, 5], maps[0, 0, 4, 2, 5] = -9.0, 9.0
    targets = objects((0, 0, 20, 31, 8, 8), size=64)
    found = OtaAssigner(Anchors(ANCHORS[:1], (8,)), threshold=1.5, merge_duplicates=True)([maps], targets)
    assert cells_of(found) == [(0, 0, 0, 4, 2, 0)]


def test_ties_go_to_the_first_candidate() -> None:
    targets = objects((0, 0, 20, 32, 8, 8), size=64)  # the centre is on the border of two cells
    maps = [torch.zeros(1, 2, 8, 8, 6)]
    maps[0][..., 1] = 0.0
    anchors = Anchors(ANCHORS[:1], (8,))
    mine, theirs = (
        OtaAssigner(anchors, threshold=1.5, merge_duplicates=merge)(maps, targets) for merge in (True, False)
    )
    assert len(mine) == len(theirs) == 1
    assert cells_of(theirs)[0] == cells_of(find_candidates(targets, maps=maps, anchors=anchors, threshold=1.5))[0]


def test_a_cell_of_two_objects_goes_to_the_cheaper_one() -> None:
    maps = torch.zeros(1, 2, 8, 8, 7)
    maps[..., 5:] = torch.tensor([3.0, -3.0])
    targets = objects((0, 1, 20, 28, 8, 8), (0, 0, 20, 28, 8, 8), size=64)  # same place, labels 1 and 0
    found = OtaAssigner(Anchors(ANCHORS[:1], (8,)), threshold=1.5, merge_duplicates=True)([maps], targets)
    cells = cells_of(found)
    assert len({cell[:5] for cell in cells}) == len(cells)
    assert {cell[5] for cell in cells} == {1}


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize(
    ("batch", "counts", "classes"),
    [(3, (4, 0, 7), 3), (1, (5,), 1), (4, (1, 1, 1, 9), 80), (2, (0, 6), 2), (2, (12, 12), 1)],
)
def test_equals_the_plain_form(merge: bool, batch: int, counts: tuple[int, ...], classes: int) -> None:
    for seed in range(3):
        maps, targets = random_case(seed, batch=batch, counts=counts, classes=classes)
        ours = OtaAssigner(Anchors(ANCHORS, STRIDES), threshold=4.0, merge_duplicates=merge)(maps, targets)
        assert cells_of(ours) == naive_ota(maps, targets, anchors_px=ANCHORS, strides=STRIDES, merge=merge)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, targets = random_case(0, batch=4, counts=(3, 9, 0, 5), classes=4)
    assigner = OtaAssigner(Anchors(ANCHORS, STRIDES), threshold=4.0, merge_duplicates=False)
    whole = cells_of(assigner(maps, targets))
    monkeypatch.setattr(matching, "MAX_PAIRS", 1)
    assert cells_of(assigner(maps, targets)) == whole


def test_without_duplicates_both_behaviours_agree() -> None:
    maps, targets = random_case(1, batch=3, counts=(1, 1, 1), classes=4)
    anchors = Anchors(ANCHORS, STRIDES)
    mine, theirs = (
        OtaAssigner(anchors, threshold=4.0, merge_duplicates=merge)(maps, targets) for merge in (True, False)
    )
    assert set(cells_of(mine)) == set(cells_of(theirs))


def test_nothing_to_assign() -> None:
    maps, _ = random_case(0, batch=2, counts=(1, 1), classes=2)
    anchors = Anchors(ANCHORS, STRIDES)
    assert len(OtaAssigner(anchors, threshold=4.0, merge_duplicates=True)(maps, NOTHING)) == 0
    assert len(AnchorAssigner(anchors, threshold=4.0)(maps, NOTHING)) == 0
    far = objects((1, 0, 0.5, 0.5, 1.0, 0.001))  # no anchor fits this shape
    assert len(OtaAssigner(anchors, threshold=4.0, merge_duplicates=True)(maps, far)) == 0


def test_extreme_logits_have_finite_costs() -> None:
    logits = torch.tensor([[-200.0, 0.0, 200.0]])
    for objectness in (-200.0, 0.0, 200.0):
        negatives, switch = matching.class_costs(logits, torch.tensor([objectness]))
        assert torch.isfinite(negatives).all()
        assert torch.isfinite(switch).all()


def test_small_objects_take_four_candidates_if_wanted() -> None:
    """Boxes that are predicted far too large have small IoUs, whose sum is below 1."""
    maps = tuple(torch.full((1, 2, 64 // s, 64 // s, 6), 1.0) for s in STRIDES)
    targets = objects((0, 0, 20, 30, 6, 6), (0, 0, 44, 44, 32, 32), size=64)
    counts = {}
    for four in (False, True):
        assigner = OtaAssigner(Anchors(ANCHORS, STRIDES), threshold=4.0, merge_duplicates=True, four_cells=four)
        counts[four] = torch.bincount(assigner(maps, targets).target, minlength=2).tolist()
    assert counts[False][0] == 1
    assert counts[True][0] == 4
    assert counts[True][1] == counts[False][1]
