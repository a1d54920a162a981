"""COCO's figures of files with many tied scores are those of pycocotools on the same files, whatever their order."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import yolov7
from tests.unit.data_files import write_coco

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
CLASSES = (7, 3)
IMAGES = 6


def near(box: list[float], draw: random.Random) -> list[float]:
    x, y, w, h = box
    return [x + draw.choice((0, 0, 1, 3)), y + draw.choice((0, 2)), w, h]


@pytest.mark.parametrize("seed", range(12))
def test_ties_count_as_in_pycocotools(tmp_path: Path, seed: int) -> None:
    """Ids of images, their order in the file, and the orders of objects and detections have nothing in common."""
    draw = random.Random(seed)
    ids = draw.sample(range(1000), IMAGES)
    objects: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in ids:
        for _ in range(draw.randrange(4)):
            box = [draw.uniform(0, 20), draw.uniform(0, 10), draw.uniform(8, 38), draw.uniform(8, 28)]
            label, is_crowd = draw.choice(CLASSES), int(draw.random() < 0.15)
            for shift in draw.choice(((0.0,), (0.0, 0.5))):  # some objects lie on each other
                outline = [box[0] + shift, *box[1:]]
                area = box[2] * box[3] * draw.choice((1.0, 0.7))
                objects.append(
                    {"image_id": image, "category_id": label, "bbox": outline, "area": area, "iscrowd": is_crowd}
                )
            for _ in range(draw.choice((2, 5, 120))):  # more than COCO's limit
                guess = label if draw.random() < 0.8 else draw.choice(CLASSES)
                score = draw.choice((0.25, 0.5))
                found.append({"image_id": image, "category_id": guess, "bbox": near(box, draw), "score": score})
    draw.shuffle(objects)
    draw.shuffle(found)
    truth = write_coco(tmp_path, images=[{"id": image} for image in ids], annotations=objects)
    results = tmp_path / "results.json"
    results.write_text(json.dumps(found))

    with contextlib.redirect_stdout(io.StringIO()):
        source = COCO(str(truth))
        peer = COCOeval(source, source.loadRes(str(results)), "bbox")
        peer.evaluate()
        peer.accumulate()
        peer.summarize()
    ours = yolov7.evaluate_results(results, truth).figures
    values = [-1.0 if (value := getattr(ours, name)) is None else value for name in FIGURES]
    assert values == pytest.approx(peer.stats.tolist(), abs=1e-12)
