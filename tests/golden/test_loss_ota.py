"""Compare the loss with vectors of the reference: anchor matching, OTA, and OTA with an auxiliary head."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from yolov7.criterion.candidates import Anchors, Assignment
from yolov7.criterion.loss import DetectionLoss, LossParts, make_assigner
from yolov7.settings import LossSettings
from yolov7.structures import HeadMaps, Targets

DATA = Path(__file__).parent / "data"
CASES = sorted(path.stem for path in DATA.glob("loss_*.npz"))


class Case:
    """The inputs of the loss from one golden file."""

    def __init__(self, name: str) -> None:
        self.data: dict[str, Any] = dict(np.load(DATA / f"{name}.npz", allow_pickle=False))
        self.strides = tuple(int(stride) for stride in self.data["strides"])
        self.anchors = Anchors(torch.from_numpy(self.data["anchors_px"]), self.strides)
        self.maps = HeadMaps(self._head("p", 0), self._head("p", len(self.strides)))
        rows = torch.from_numpy(self.data["targets"])
        self.targets = Targets(rows[:, 0].long(), rows[:, 1].long(), rows[:, 2:])
        self.plain = name.startswith("loss_plain")
        self.settings = _settings(self.data, assigner="anchor" if self.plain else "ota")
        self.stable = bool(self.data["tie_stable"])

    def _head(self, name: str, start: int) -> tuple[Tensor, ...]:
        keys = [f"{name}{i}" for i in range(start, start + len(self.strides))]
        return tuple(
            torch.from_numpy(self.data[key].astype(np.float32)).requires_grad_() for key in keys if key in self.data
        )

    def positives(self) -> dict[str, Assignment]:
        """Return the assignments that do not depend on ties, by the prefix of their golden arrays."""
        found = make_assigner(self.anchors, self.settings)(self.maps, self.targets)
        heads = {"": found.lead} | ({"aux_": found.auxiliary} if self.maps.auxiliary else {})
        return {prefix: cells for prefix, cells in heads.items() if self._is_stable(prefix)}

    def _is_stable(self, prefix: str) -> bool:
        return bool(self.data.get(f"{prefix}match_tie_stable", self.stable))

    def loss(self) -> LossParts:
        loss = DetectionLoss(
            anchors_px=self.anchors.px,
            strides=self.strides,
            num_classes=int(self.data["nc"]),
            image_size=int(self.data["img_size"]),
            settings=self.settings,
        )
        return loss(self.maps, self.targets)


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
    assert len(CASES) == 25


def test_positives(case: Case) -> None:
    if not (found := case.positives()):
        pytest.skip("the reference's own result depends on how ties are broken")
    for prefix, positives in found.items():
        for level, cells in enumerate(positives.per_level(len(case.strides))):
            last = case.targets.label[cells.target] if case.plain else cells.target
            ours = torch.stack((cells.image, cells.anchor, cells.row, cells.column, last), dim=1)
            assert sorted(ours.tolist()) == sorted(case.data[f"{prefix}match{level}"].tolist())


def test_loss(case: Case) -> None:
    total, *parts = case.loss()
    tolerance = 1e-4 if case.stable else 5e-3
    assert total.item() == pytest.approx(float(case.data["loss"][0]), rel=tolerance)
    if case.stable:
        assert [part.item() for part in parts] == pytest.approx(case.data["items"][:3].tolist(), rel=1e-4, abs=1e-9)


def test_gradient(case: Case) -> None:
    if not case.stable:
        pytest.skip("the reference's own result depends on how ties are broken")
    case.loss().total.backward()
    for i, head_map in enumerate((*case.maps.lead, *case.maps.auxiliary)):
        assert head_map.grad is not None
        gradient = head_map.grad.flatten()
        ours = gradient[torch.from_numpy(case.data[f"grad{i}_idx"])].numpy()
        theirs = case.data[f"grad{i}_val"]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())
        wide = gradient.double()
        stats = [wide.sum().item(), wide.abs().sum().item(), wide.norm().item()]
        expected = case.data[f"grad{i}_stats"]
        np.testing.assert_allclose(stats, expected, rtol=1e-4, atol=1e-6 * expected[1])
