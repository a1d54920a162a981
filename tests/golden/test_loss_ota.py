"""The OTA and the anchor loss against vectors of the reference implementation (tests/golden/data/loss_*.npz)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from yolov7.assign import Anchors, Assigner
from yolov7.loss import DetectionLoss, make_assigner
from yolov7.settings import LossSettings
from yolov7.structures import HeadMaps, Targets

DATA = Path(__file__).parent / "data"
CASES = sorted(path.stem for kind in ("ota", "plain") for path in DATA.glob(f"loss_{kind}_*.npz"))


class Case:
    """One golden file as what the loss takes."""

    def __init__(self, name: str) -> None:
        self.data: dict[str, Any] = dict(np.load(DATA / f"{name}.npz", allow_pickle=False))
        self.strides = tuple(int(stride) for stride in self.data["strides"])
        self.anchors = Anchors(torch.from_numpy(self.data["anchors_px"]), self.strides)
        self.maps = tuple(torch.from_numpy(self.data[f"p{i}"].astype(np.float32)).requires_grad_() for i in range(3))
        rows = torch.from_numpy(self.data["targets"])
        self.targets = Targets(rows[:, 0].long(), rows[:, 1].long(), rows[:, 2:])
        self.plain = name.startswith("loss_plain")
        self.settings = _settings(self.data, assigner="anchor" if self.plain else "ota")
        self.stable = bool(self.data["tie_stable"])

    def assigner(self) -> Assigner:
        return make_assigner(self.anchors, self.settings)

    def loss(self) -> DetectionLoss:
        return DetectionLoss(
            anchors_px=self.anchors.px,
            strides=self.strides,
            num_classes=int(self.data["nc"]),
            image_size=int(self.data["img_size"]),
            settings=self.settings,
        )


def _settings(data: dict[str, Any], *, assigner: Literal["ota", "anchor"]) -> LossSettings:
    raw = dict(zip(data["hyp_keys"].tolist(), data["hyp_raw"].tolist(), strict=True))
    return LossSettings(
        assigner=assigner,
        box=raw["box"],
        objectness=raw["obj"],
        classification=raw["cls"],
        classification_pos_weight=raw["cls_pw"],
        objectness_pos_weight=raw["obj_pw"],
        anchor_threshold=raw["anchor_t"],
        focal_gamma=raw["fl_gamma"],
        label_smoothing=raw["label_smoothing"],
        merge_duplicate_cells=False,
    )


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_all_cases_are_here() -> None:
    assert len(CASES) == 16


def test_positives(case: Case) -> None:
    if not case.stable:
        pytest.skip("the reference's own result depends on how ties are broken")
    positives = case.assigner()([m.detach() for m in case.maps], case.targets)
    for level, cells in enumerate(positives.per_level(3)):
        last = case.targets.label[cells.target] if case.plain else cells.target
        ours = torch.stack((cells.image, cells.anchor, cells.row, cells.column, last), dim=1)
        assert sorted(ours.tolist()) == sorted(case.data[f"match{level}"].tolist())


def test_loss(case: Case) -> None:
    total, *parts = case.loss()(HeadMaps(case.maps), case.targets)
    tolerance = 1e-4 if case.stable else 5e-3
    assert total.item() == pytest.approx(float(case.data["loss"][0]), rel=tolerance)
    if case.stable:
        assert [part.item() for part in parts] == pytest.approx(case.data["items"][:3].tolist(), rel=1e-4, abs=1e-9)


def test_gradient(case: Case) -> None:
    if not case.stable:
        pytest.skip("the reference's own result depends on how ties are broken")
    case.loss()(HeadMaps(case.maps), case.targets).total.backward()
    for level, level_map in enumerate(case.maps):
        assert level_map.grad is not None
        gradient = level_map.grad.flatten()
        ours = gradient[torch.from_numpy(case.data[f"grad{level}_idx"])].numpy()
        theirs = case.data[f"grad{level}_val"]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())
        wide = gradient.double()
        stats = [wide.sum().item(), wide.abs().sum().item(), wide.norm().item()]
        expected = case.data[f"grad{level}_stats"]
        np.testing.assert_allclose(stats, expected, rtol=1e-4, atol=1e-6 * expected[1])
