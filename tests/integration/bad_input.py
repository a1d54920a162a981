"""What tests of bad input share: small data sets, a tiny spec, and the one line of an error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data_settings import DataSettings
from tests.unit.data_files import write_image
from yolov7.errors import is_mendable, told

BOX = [10, 5, 30, 25]
TINY = {
    "image_size": 64,
    "rows": {
        "s1": {"block": "conv", "out": 8, "s": 2},
        "s2": {"block": "conv", "out": 8, "s": 2},
        "p2": {"block": "elan", "out": 8, "hidden": 8, "depth": 1},
        "d3": {"block": "mp", "out": 16},
        "head": {"block": "detect", "from": ["p2", "d3"], "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]]},
    },
}


def write_set(
    root: Path,
    annotations: Sequence[Mapping[str, Any]],
    *,
    images: int | Sequence[Mapping[str, Any]] = 3,
    classes: int = 2,
    size: tuple[int, int] = (60, 40),
) -> DataSettings:
    """A COCO data set of images drawn unless they say `skip`, and the settings that read it as train and val."""
    rows = []
    for number, image in enumerate([{}] * images if isinstance(images, int) else images):
        row = {"id": number + 1, "file_name": f"{number}.jpg", "width": size[0], "height": size[1]} | dict(image)
        if not row.pop("skip", False):
            write_image(root / "images" / row["file_name"], width=size[0], height=size[1], seed=number)
        rows.append(row)
    boxes = [
        {"id": number + 1, "image_id": 1, "category_id": 1, "bbox": BOX} | dict(row)
        for number, row in enumerate(annotations)
    ]
    categories = [{"id": number + 1, "name": f"class {number + 1}"} for number in range(classes)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "train.json").write_text(json.dumps({"images": rows, "annotations": boxes, "categories": categories}))
    return coco_settings(root, val="train")


def coco_settings(root: Path, **changes: Any) -> DataSettings:
    """A COCO data set with the split train alone, unless the changes say more."""
    return DataSettings.model_validate({"format": "coco", "path": str(root), "val": None} | changes)


def one_line_of(error: BaseException) -> str:
    """What a user sees of an error that is theirs to mend."""
    message = told(error)
    assert is_mendable(error), repr(error)
    assert "\n" not in str(error)
    return message
