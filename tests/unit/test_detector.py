"""Test the detector: sizes, batches, coordinates, and input of the wrong kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from yolov7.detect.detector import Detector
from yolov7.errors import ArtifactError, DataError, SettingError
from yolov7.nn.model import DetectionModel
from yolov7.settings import NmsSettings
from yolov7.spec.spec_files import load_spec
from yolov7.weights.weight_files import save_weights

LOW = NmsSettings(confidence=0.0005, max_detections=20)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("detector") / "weights.safetensors"
    model = DetectionModel(load_spec("nano"), num_classes=2)
    for conv in model.head.convs:
        conv.weight.data *= 30  # scores far apart, so that rounding does not change their order
    save_weights(path, model, class_names=("cat", "dog"), image_size=64, training={})
    return path


@pytest.fixture(scope="module")
def detector(weights: Path) -> Detector:
    return Detector.load(weights, device="cpu", precision="float32")


@pytest.fixture
def images() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    sizes = ((64, 64), (200, 90), (31, 77), (480, 640), (1, 5))
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def test_boxes_lie_in_each_image(detector: Detector, images: list[np.ndarray]) -> None:
    found = detector.predict(images, nms=LOW)
    assert len(found) == len(images)
    assert any(len(one) for one in found)
    for image, one in zip(images, found, strict=True):
        limits = torch.tensor([image.shape[1], image.shape[0]] * 2)
        assert ((one.boxes_xyxy >= 0) & (one.boxes_xyxy <= limits)).all()
        assert (one.scores.diff() <= 0).all()
        assert set(one.labels.tolist()) <= {0, 1}


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_batches_change_nothing(detector: Detector, images: list[np.ndarray], batch_size: int) -> None:
    expected = [detector.predict([image], nms=LOW)[0] for image in images]
    for one, other in zip(detector.predict(images, nms=LOW, batch_size=batch_size), expected, strict=True):
        torch.testing.assert_close(one.scores, other.scores)
        torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy, atol=1e-2, rtol=1e-4)


def test_files_and_arrays_are_the_same(detector: Detector, images: list[np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), cv2.cvtColor(images[1], cv2.COLOR_RGB2BGR))
    by_path, by_name, by_array = detector.predict([path, str(path), images[1]], nms=LOW)
    torch.testing.assert_close(by_path.boxes_xyxy, by_array.boxes_xyxy)
    torch.testing.assert_close(by_name.scores, by_array.scores)


def test_no_images(detector: Detector) -> None:
    assert detector.predict([]) == []


def _rgb(dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (4, 6, 3)).astype(dtype)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (_rgb(np.float32), "a float32 array of shape (4, 6, 3); an image is a uint8 array of shape (H, W, 3), RGB"),
        (_rgb(np.float64), "use (image * 255).round().astype(np.uint8)"),
        (_rgb(np.float16), "use (image * 255)"),
        (_rgb(np.uint16), "use (image / 257)"),
        (_rgb(np.int64), "use image.astype(np.uint8)"),
        (_rgb(np.bool_), "a bool array"),
        (_rgb()[..., 0], "use np.stack([image] * 3, axis=-1)"),
        (_rgb()[..., :1], "use np.repeat(image, 3, axis=-1)"),
        (np.zeros((4, 6, 4), np.uint8), "use image[..., :3]"),
        (_rgb().transpose(2, 0, 1), "use image.transpose(1, 2, 0)"),
        (np.zeros((1, 4, 6, 3), np.uint8), "a uint8 array of shape (1, 4, 6, 3)"),
        (np.zeros((0, 4, 3), np.uint8), "an image must have pixels"),
        (np.array("x"), "array of shape ()"),
        (np.array([None]), "a object array"),
        (torch.zeros(4, 6, 3, dtype=torch.uint8), "Tensor"),
        (7, "image 1 is int"),
        (None, "image 1 is NoneType"),
        ("no/such/file.jpg", "no/such/file.jpg"),
    ],
)  # fmt: skip
def test_what_is_not_an_image_is_one_line(detector: Detector, image: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        detector.predict([_rgb(), image])  # type: ignore[list-item]
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "images", [_rgb(), np.zeros((2, 4, 6, 3), np.uint8), "image.jpg", Path("image.jpg"), b"x", iter([_rgb()]), None]
)
def test_what_is_not_a_list_of_images(detector: Detector, images: Any) -> None:
    with pytest.raises(DataError, match=r"predict\(\[image\]\)"):
        detector.predict(images)


def test_views_of_arrays_are_images(detector: Detector) -> None:
    image = np.random.default_rng(1).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    views = [image[:, ::-1], np.asfortranarray(image), image[::2, ::2], image[..., ::-1]]
    copies = [np.ascontiguousarray(view) for view in views]
    for one, other in zip(detector.predict(views, nms=LOW), detector.predict(copies, nms=LOW), strict=True):
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)


def test_batch_sizes_are_positive(detector: Detector) -> None:
    with pytest.raises(SettingError, match="batch_size=0 must be at least 1"):
        detector.predict([_rgb()], batch_size=0)


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        Detector.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "precision='fp16' is unknown; use one of 'auto', 'float32', 'bfloat16', 'float16'"),
        ({"precision": "double"}, "precision='double' is unknown"),
        ({"precision": None}, "precision=None is unknown"),
        ({"device": "gpu"}, "device='gpu' is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:N'"),
        ({"device": "meta"}, "device='meta' is unknown"),
        ({"device": "cpu:3"}, "device='cpu:3' is unknown"),
        ({"device": "cuda:x"}, "device='cuda:x' is unknown"),
        ({"device": "cuda:99"}, "device='cuda:99' is not available"),
        ({"device": ""}, "device='' is unknown"),
    ],
)
def test_unknown_devices_and_precisions_name_the_valid_values(
    weights: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError) as caught:
        Detector.load(weights, **({"device": "cpu"} | options))
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()
