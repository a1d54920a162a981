"""The letterbox against vectors of the reference: the geometry for every option, the pixels of two images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from yolov7.data.augment.letterbox import letterbox, letterbox_geometry

DATA = Path(__file__).parent / "data"
VECTORS = np.load(DATA / "letterbox.npz", allow_pickle=False)
COLUMNS = [str(name) for name in VECTORS["columns"]]


def test_geometry_of_every_row() -> None:
    for values in VECTORS["rows"]:
        row = dict(zip(COLUMNS, values.tolist(), strict=True))
        found = letterbox_geometry(
            int(row["w"]),
            int(row["h"]),
            size=(int(row["new_h"]), int(row["new_w"])),
            scale_up=bool(row["scaleup"]),
            stride=int(row["stride"]) if row["auto"] else None,
            mode="stretch" if row["scaleFill"] and not row["auto"] else "centre",
        )
        assert (found.out_h, found.out_w) == (row["out_h"], row["out_w"]), row
        expected = (row["ratio_w"], row["ratio_h"], row["dw"], row["dh"])
        assert (found.ratio_w, found.ratio_h, found.pad_w, found.pad_h) == pytest.approx(expected, abs=1e-9), row


@pytest.mark.parametrize("case", [0, 1])
def test_pixels(case: int) -> None:
    out, _ = letterbox(VECTORS[f"img{case}"], size=int(VECTORS[f"img{case}_new"]))
    np.testing.assert_array_equal(out, VECTORS[f"img{case}_out"])


def test_boxes_return_to_the_image() -> None:
    """The reference divides by the ideal ratio, ours by that of whole pixels; they differ by at most a frame pixel."""
    data = np.load(DATA / "scale_coords.npz", allow_pickle=False)
    (height, width), (frame_height, frame_width) = data["img0"].tolist(), data["img1"].tolist()
    geometry = letterbox_geometry(width, height, size=(frame_height, frame_width))
    ours = geometry.to_original(data["coords"])
    np.testing.assert_allclose(ours, data["out_auto"], rtol=0, atol=1 / geometry.ratio_w)
    at_border = np.isin(data["out_auto"], (0, width, height))
    np.testing.assert_array_equal(ours[at_border], data["out_auto"][at_border])
    assert at_border.any()
