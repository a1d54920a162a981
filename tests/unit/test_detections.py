"""Test detections as users receive them: indexing, filters, exports, and every kind of input image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from yolov7 import Detections, Detector, Tiling, draw
from yolov7.detect.detections import Detection
from yolov7.errors import DataError, SettingError
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec
from yolov7.weights.weight_files import save_weights

NAMES = ("cat", "dog", "cow")


def made(source: Any = None) -> Detections:
    boxes = torch.tensor([[2.0, 3.0, 10.0, 9.0], [0.0, 0.0, 40.0, 30.0], [38.5, 29.5, 40.0, 30.0]])
    return Detections(boxes, torch.tensor([0.9, 0.6, 0.3]), torch.tensor([1, 0, 1]), NAMES, (40, 30), source)


def test_detections_are_a_sequence_of_single_detections() -> None:
    found = made()
    assert len(found) == len(list(found)) == 3
    assert found[0] == Detection((2.0, 3.0, 10.0, 9.0), pytest.approx(0.9), 1, "dog")
    assert found[-1] == list(found)[2]
    assert found[np.int64(1)].name == "cat"  # type: ignore[call-overload]
    with pytest.raises(IndexError, match="detection 3 is out of range; there are 3"):
        found[3]
    assert repr(found) == "Detections(2 dog, 1 cat; image of 40 x 30 pixels)"
    assert repr(found[:0]) == "Detections(none; image of 40 x 30 pixels)"


@pytest.mark.parametrize(
    ("index", "labels"),
    [
        (slice(1, None), [0, 1]),
        ([True, False, True], [1, 1]),
        (torch.tensor([False, True, False]), [0]),
        (np.array([2, 0]), [1, 1]),
        ([], []),
        (slice(None, None, 2), [1, 1]),
    ],
)
def test_slices_masks_and_lists_select(index: Any, labels: list[int]) -> None:
    part = made()[index]
    assert isinstance(part, Detections)
    assert part.labels.tolist() == labels
    assert part.boxes_xyxy.shape == (len(labels), 4)
    assert (part.class_names, part.image_size) == (NAMES, (40, 30))


def test_filters_by_score_and_by_class() -> None:
    found = made()
    assert found.filter(confidence=0.6).labels.tolist() == [1, 0]
    assert found.filter(classes=["dog"]).scores.tolist() == pytest.approx([0.9, 0.3])
    assert found.filter(classes=[0, "cow"]).labels.tolist() == [0]
    assert found.filter(confidence=0.5, classes=["1"]).labels.tolist() == [1]
    assert len(found.filter(classes=[])) == 0
    with pytest.raises(SettingError, match=r"class 'dgo' is unknown; .* cat, dog, cow .* did you mean 'dog'\?"):
        found.filter(classes=["dgo"])
    with pytest.raises(SettingError, match="class 3 is unknown"):
        found.filter(classes=[3])
    with pytest.raises(SettingError, match=r"must be a list of names or numbers; use \['dog'\]"):
        found.filter(classes="dog")


def test_exports() -> None:
    found = made()
    boxes, scores, labels = found.numpy()
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int64)
    assert found.to("cpu").labels.tolist() == labels.tolist()
    assert found.counts() == {"dog": 2, "cat": 1}
    first = found.to_coco(7)[0]
    assert first == {"image_id": 7, "category_id": 2, "bbox": [2.0, 3.0, 8.0, 6.0], "score": pytest.approx(0.9)}
    assert found.to_coco("a", category_ids=[5, 9, 11])[1]["category_id"] == 5


def test_supervision_receives_the_same_detections() -> None:
    supervision = pytest.importorskip("supervision")
    theirs = made().to_supervision()
    assert isinstance(theirs, supervision.Detections)
    assert theirs.data["class_name"].tolist() == ["dog", "cat", "dog"]
    assert theirs[theirs.confidence > 0.5].xyxy.tolist() == made().boxes_xyxy[:2].tolist()
    drawn = supervision.LabelAnnotator().annotate(np.zeros((30, 40, 3), np.uint8), theirs)
    assert drawn.any()
    assert len(made()[:0].to_supervision()) == 0


def test_pictures_and_crops_come_from_the_source(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    found = made(path)
    assert [crop.shape for crop in found.crops()] == [(6, 8, 3), (30, 40, 3), (1, 2, 3)]
    assert (found.crops()[0] == pixels[3:9, 2:10]).all()
    assert (found.plot() == draw(pixels, found)).all()
    assert (found.plot() != found[:0].plot()).any()
    written = found.save(tmp_path / "new" / "drawn.jpg")
    assert cv2.imread(str(written)).shape == found.plot().shape
    with pytest.raises(ValueError, match="do not know their image"):
        made().plot()


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("detections") / "weights.safetensors"
    model = DetectionModel(load_spec("nano"), num_classes=3)
    for conv in model.head.convs:
        conv.weight.data *= 30  # scores far apart, so that rounding does not change their order
    save_weights(path, model, class_names=NAMES, image_size=64, training={})
    return Detector.load(path, device="cpu", precision="float32")


def test_one_image_gives_detections_and_a_list_gives_a_list(detector: Detector) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    one = detector(image, confidence=0.001, max_detections=7)
    assert isinstance(one, Detections)
    assert len(one) == 7
    assert (one.image_size, one.class_names) == ((70, 50), NAMES)
    assert one.source is image
    several = detector([image, image], confidence=0.001)
    assert [type(found) for found in several] == [Detections, Detections]
    assert torch.equal(several[0].boxes_xyxy, several[1].boxes_xyxy)
    assert detector([]) == []
    only = detector(image, confidence=0.001, classes=["cow"])
    assert set(only.labels.tolist()) == {2}
    with pytest.raises(SettingError, match="class 'horse' is unknown"):
        detector(image, classes=["horse"])
    with pytest.raises(SettingError, match=r"confidence=1.5 must be from 0 to 1"):
        detector(image, confidence=1.5)
    with pytest.raises(SettingError, match="max_detections=0 must be at least 1"):
        detector(image, max_detections=0)


def test_every_kind_of_image_gives_the_same_detections(detector: Detector, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    pillow = PillowImage.fromarray(image)
    kinds = [path, str(path), image, tensor, tensor / 255, tensor.double() / 255, pillow, pillow.convert("RGBA")]
    expected, *others = detector(kinds, confidence=0.001)
    assert len(expected) > 5
    for found in others:
        torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy)
        assert found.labels.tolist() == expected.labels.tolist()
    grey = PillowImage.fromarray(image[..., 0])
    assert len(detector(grey, confidence=0.001)) == len(detector(np.repeat(image[..., :1], 3, -1), confidence=0.001))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 3, 8, 8), r"a float32 Tensor of shape \(1, 3, 8, 8\).*for a batch, pass list\(tensor\)"),
        (torch.zeros(8, 8, 3), r"must have the shape \(3, H, W\), RGB; .* use tensor.permute\(2, 0, 1\)"),
        (torch.full((3, 8, 8), 2.0), "values from 2 to 2; floating-point values must be from 0 to 1"),
        (torch.full((3, 8, 8), float("nan")), "values from nan to nan"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "a int64 Tensor .* must be uint8 or floating point"),
        (torch.zeros(3, 0, 8), "an image must have pixels"),
        (PillowImage.new("I;16", (8, 8)), "a Pillow image of mode 'I;16'"),
        (PillowImage.new("F", (8, 8)), "a Pillow image of mode 'F'"),
    ],
)
def test_what_is_not_an_image(detector: Detector, image: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        detector([np.zeros((8, 8, 3), np.uint8), image])
    assert str(caught.value).startswith("image 1 is ") or "image 1 has" in str(caught.value)
    assert str(caught.value).isprintable()


def test_options_of_the_detector(detector: Detector) -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    plain, tiled = (detector(image, confidence=0.001, tiling=tiling) for tiling in (None, Tiling(64)))
    assert tiled.image_size == (150, 100)
    assert not torch.equal(tiled.scores, plain.scores)
    augmented = detector.augmented()(image, confidence=0.001)
    assert len(augmented) != len(plain)
    assert (augmented.boxes_xyxy >= 0).all()
