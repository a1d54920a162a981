"""Compare the loss with anchor matching with vectors of YOLOv5 r6.1 and of the PyTorch port of YOLOv4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from yolov7.criterion.loss import DetectionLoss
from yolov7.settings import LossSettings
from yolov7.structures import HeadMaps, Targets

DATA = Path(__file__).parent / "data" / "baselines"
CASES = sorted(path.stem for family in ("yolov5", "yolov4") for path in DATA.glob(f"loss_{family}_*.npz"))


@pytest.mark.parametrize("name", CASES)
def test_positives_loss_and_gradient(name: str) -> None:
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        data: dict[str, Any] = {key: file[key] for key in file.files}
    port = name.startswith("loss_yolov4")
    levels = np.argsort(data["strides"], kind="stable").tolist()  # the port's tiny model has the coarsest level first
    maps = HeadMaps(tuple(torch.from_numpy(data[f"p{i}"].astype(np.float32)).requires_grad_() for i in levels))
    table = torch.from_numpy(data["targets"])
    targets = Targets(table[:, 0].long(), table[:, 1].long(), table[:, 2:])
    raw = dict(zip(data["hyp_keys"].tolist(), data["hyp_raw"].tolist(), strict=True))
    loss = DetectionLoss(
        anchors_px=torch.from_numpy(data["anchors_px"]).float()[levels],
        strides=tuple(data["strides"][levels].tolist()),
        num_classes=int(data["nc"]),
        image_size=int(data["img_shape"].max()),
        settings=LossSettings(
            assigner="anchor",
            box=raw["box"],
            objectness=raw["obj"],
            classification=raw["cls"],
            anchor_threshold=raw["anchor_t"],
            label_smoothing=raw["label_smoothing"],
            objectness_by_size=not port,
            objectness_balance="coarse" if levels[0] else "fine",
        ),
    )
    for i, cells in zip(levels, loss.assign(maps, targets).lead.per_level(len(levels)), strict=True):
        label = targets.label[cells.target]
        found = torch.stack((cells.image, cells.anchor, cells.row, cells.column, label), dim=1).tolist()
        assert sorted(found) == sorted(data[f"match{i}"].tolist())
    parts = loss(maps, targets)
    assert parts.total.item() == pytest.approx(float(data["loss"][0]), rel=1e-5)
    box, objectness, classes = data["items"].tolist()
    assert [part.item() for part in parts[1:]] == pytest.approx([box, objectness, classes], rel=1e-5, abs=1e-7)
    parts.total.backward()
    for i, m in zip(levels, maps.lead, strict=True):
        assert m.grad is not None
        expected = data[f"grad{i}_val"]
        gradient = m.grad.flatten()[torch.from_numpy(data[f"grad{i}_idx"])].numpy()
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert m.grad.double().abs().sum().item() == pytest.approx(data[f"grad{i}_stats"][1], rel=1e-5)
