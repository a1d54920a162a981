"""Test SimOTA, task-aligned assignment and ATSS against loops over images, and on small cases by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.bench.plain_assigners import Positive, loop_simota, loop_tal
from yolov7.criterion import matching
from yolov7.criterion.aligned import AtssAssigner, ScoringAssigner, TaskAlignedAssigner
from yolov7.criterion.candidates import Assignment
from yolov7.criterion.grid import Grid
from yolov7.criterion.simota import SimOtaAssigner, SimOtaRule
from yolov7.structures import Targets

STRIDES = (8, 16, 32)
BINS = 8
NOTHING = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
COUNTS = ((6, 0, 9), (1,), (0, 12, 1), (30, 2))


def random_case(
    seed: int, counts: tuple[int, ...], *, outputs: int, classes: int = 3, size: tuple[int, int] = (64, 96)
) -> tuple[tuple[Tensor, ...], Targets]:
    random = torch.Generator().manual_seed(seed)
    shapes = [(len(counts), 1, size[0] // s, size[1] // s, outputs + classes) for s in STRIDES]
    maps = tuple(torch.randn(shape, generator=random) for shape in shapes)
    image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    image = image[torch.randperm(len(image), generator=random)]
    boxes = torch.rand(len(image), 4, generator=random) * torch.tensor([1.0, 1.0, 0.5, 0.5])
    return maps, Targets(image, torch.randint(classes, image.shape, generator=random), boxes + 0.02)


def triples(cells: Assignment, maps: tuple[Tensor, ...]) -> list[Positive]:
    sizes = [m.shape[2:4] for m in maps]
    starts = [sum(h * w for h, w in sizes[:level]) for level in range(len(maps))]
    rows = torch.stack((cells.level, cells.image, cells.row, cells.column, cells.target), dim=1).tolist()
    return [(i, starts[k] + y * sizes[k][1] + x, t) for k, i, y, x, t in rows]


def make_tal(*, ciou: bool = False, top: int = 13, alpha: float = 1.0) -> TaskAlignedAssigner:
    return TaskAlignedAssigner(STRIDES, BINS, top=top, alpha=alpha, beta=6.0, overlap="ciou" if ciou else "iou")


@pytest.mark.parametrize("rule", ["r25", "r15"])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_simota_equals_a_loop_over_images(counts: tuple[int, ...], rule: SimOtaRule) -> None:
    for seed in range(3):
        maps, targets = random_case(seed, counts, outputs=5)
        found = triples(SimOtaAssigner(STRIDES, rule=rule)(maps, targets), maps)
        assert sorted(found) == loop_simota(maps, targets, STRIDES, rule=rule)


@pytest.mark.parametrize(("ciou", "top", "alpha"), [(False, 13, 1.0), (True, 10, 0.5)])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_tal_equals_a_loop_over_images(counts: tuple[int, ...], ciou: bool, top: int, alpha: float) -> None:
    for seed in range(3):
        maps, targets = random_case(seed, counts, outputs=4 * BINS)
        found = make_tal(ciou=ciou, top=top, alpha=alpha)(maps, targets)
        scores = loop_tal(maps, targets, STRIDES, bins=BINS, top=top, alpha=alpha, beta=6.0, ciou=ciou)
        assert dict(zip(triples(found.cells, maps), found.score.tolist(), strict=True)) == pytest.approx(scores)


@pytest.mark.parametrize("assigner", [make_tal(), AtssAssigner(STRIDES, BINS)], ids=["tal", "atss"])
def test_chunks_of_objects_change_nothing(assigner: ScoringAssigner, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, targets = random_case(0, (9, 0, 20), outputs=4 * BINS)
    whole = assigner(maps, targets)
    monkeypatch.setattr(matching, "MAX_PAIRS", 1)
    parts = assigner(maps, targets)
    assert triples(parts.cells, maps) == triples(whole.cells, maps)
    assert torch.equal(parts.score, whole.score)


def test_chunks_of_images_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, targets = random_case(0, (9, 0, 20), outputs=5)
    assigner = SimOtaAssigner(STRIDES)
    whole = triples(assigner(maps, targets), maps)
    monkeypatch.setattr(matching, "MAX_PAIRS", 1)
    assert triples(assigner(maps, targets), maps) == whole


def test_an_object_takes_cells_near_its_centre_before_cheaper_ones() -> None:
    """A candidate of another object that predicts this object perfectly is only its last choice."""
    maps = tuple(torch.zeros(1, 1, 96 // s, 96 // s, 6) for s in STRIDES)
    far = maps[0][0, 0, 10, 10]  # centre (84, 84)
    far[:4] = torch.tensor([(12.0 - 80) / 8, (12.0 - 80) / 8, 0.0, 0.0])  # predicts a box of 8 px at (12, 12)
    far[4:] = 9.0
    table = torch.tensor([[12.0, 12, 8, 8], [84, 84, 8, 8]]) / 96
    targets = Targets(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), table)
    for rule in ("r25", "r15"):
        owner = {cell: target for _, cell, target in triples(SimOtaAssigner(STRIDES, rule=rule)(maps, targets), maps)}
        assert owner.get(10 * 12 + 10) != 0
        assert 0 in owner.values()


def test_pairs_inside_boxes_are_those_of_a_comparison_with_all_cells() -> None:
    random = torch.Generator().manual_seed(5)
    grid = Grid.of(random_case(0, (1,), outputs=5)[0], STRIDES)
    low = torch.rand(200, 2, generator=random) * 140 - 30
    boxes = torch.cat((low, low + torch.rand(200, 2, generator=random) * 90 - 5), dim=1)
    boxes[:100] = (boxes[:100] / 4).round() * 4  # sides on centres of cells, which are not inside
    expected = grid.inside(boxes).nonzero(as_tuple=True)
    assert len(expected[0]) > 500
    assert all(torch.equal(found, wanted) for found, wanted in zip(grid.pairs_inside(boxes), expected, strict=True))


def test_objects_outside_of_the_image_have_no_cells() -> None:
    first = torch.zeros(1, dtype=torch.int64)
    outside = Targets(first, first, torch.tensor([[3.0, 3.0, 0.1, 0.1]]))
    assert len(SimOtaAssigner(STRIDES)(random_case(0, (1,), outputs=5)[0], outside)) == 0
    assert len(make_tal()(random_case(0, (1,), outputs=4 * BINS)[0], outside).cells) == 0


@pytest.mark.parametrize("size", [(32, 64), (64, 32)])
def test_atss_on_levels_with_fewer_than_nine_cells(size: tuple[int, int]) -> None:
    maps, targets = random_case(1, (4, 3), outputs=4 * BINS, size=size)
    found = AtssAssigner(STRIDES, BINS)(maps, targets)
    assert len(found.cells) > 0
    assert bool(((found.score > 0) & (found.score <= 1)).all())


def test_atss_with_a_single_cell() -> None:
    maps = (torch.zeros(1, 1, 1, 1, 4 * BINS + 1),)
    targets = Targets(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), torch.full((1, 4), 0.5))
    assert len(AtssAssigner((32,), BINS)(maps, targets).cells) == 0  # no candidate is better than the mean


def test_nothing_to_assign() -> None:
    maps, _ = random_case(0, (1, 1), outputs=4 * BINS)
    for assigner in (make_tal(), AtssAssigner(STRIDES, BINS)):
        found = assigner(maps, NOTHING)
        assert len(found.cells) == len(found.score) == 0
    assert len(SimOtaAssigner(STRIDES)(random_case(0, (1, 1), outputs=5)[0], NOTHING)) == 0


def test_small_objects_have_four_candidates_if_wanted() -> None:
    random = torch.Generator().manual_seed(0)
    centres = torch.cat((torch.rand(200, 2, generator=random), torch.randint(0, 17, (200, 2), generator=random) / 16))
    targets = Targets(
        torch.arange(400), torch.zeros(400, dtype=torch.int64), torch.cat((centres, 0.03 * torch.ones(400, 2)), 1)
    )
    grid = Grid.of([torch.zeros(1, 1, 128 // s, 128 // s, 1) for s in STRIDES], STRIDES)
    boxes = grid.boxes_px(targets)
    finest = grid.level == 0
    counts = grid.inside(grid.widened(boxes))[:, finest].sum(1)
    assert counts.min() >= 4
    assert grid.inside(boxes)[:, finest].sum(1).min() == 0
    large = boxes.new_tensor([[3.0, 20.0, 33.0, 60.0]])
    assert torch.equal(grid.widened(large), large)


@pytest.mark.parametrize("kind", ["tal", "atss"])
def test_an_object_between_the_centres_of_cells_is_learned_if_wanted(kind: str) -> None:
    maps = tuple(torch.zeros(1, 1, 64 // s, 64 // s, 4 * BINS + 3) for s in STRIDES)
    box = torch.tensor([[32.0, 32.0, 5.0, 5.0]]) / 64  # the nearest centres are at 28 and 36
    targets = Targets(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), box)
    found = {}
    for four in (False, True):
        tal, atss = replace(make_tal(), four_cells=four), AtssAssigner(STRIDES, BINS, four_cells=four)
        found[four] = len((tal if kind == "tal" else atss)(maps, targets).cells)
    assert found[False] == 0
    assert found[True] >= 4
