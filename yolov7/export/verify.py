"""The proof that an exported file computes what torch computes with the weights in float32."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from yolov7.boxes import pairwise_iou
from yolov7.data.index import ImageIndex
from yolov7.engines.engine_table import engines
from yolov7.engines.metadata import ExportMetadata
from yolov7.engines.open_vino import openvino_precisions
from yolov7.engines.opened_model import OpenedModel, open_model
from yolov7.errors import ArtifactError
from yolov7.evaluation.split import evaluate_split
from yolov7.export.report import Check, Tolerance
from yolov7.inference.engine import Engine, ModelEngine
from yolov7.inference.nms import non_max_suppression
from yolov7.nn.model import DetectionModel
from yolov7.settings import COCO_NMS, LetterboxMode, NmsSettings
from yolov7.structures import Detections
from yolov7.system.timing import Rounds, measure_interleaved

TOLERANCES = {
    "float32": Tolerance(output=1e-3, unmatched=0.01, AP=0.001),
    "float16": Tolerance(output=0.1, unmatched=0.05, AP=0.002),
    "bfloat16": Tolerance(output=0.5, unmatched=0.1, AP=0.003),
    "int8": Tolerance(output=1.0, unmatched=0.2, AP=0.005),
}
"""By precision. AP decides about the lower ones; single outputs may differ more."""

FUSE_TOLERANCE = 1e-4  # relative error of the raw outputs, as for the stage that re-parameterises
_SURE = 0.05  # by how much the score of a detection must exceed the confidence so that it must be found again
_SAME = 0.5  # IoU of two boxes that are the same detection
_BATCH = 8
_ROUNDS = Rounds(count=3, seconds=0.1, warmup_seconds=0.05)


@dataclass(frozen=True)
class Reference:
    """The weights with torch in float32, and what a file is compared on.

    Attributes:
        model: The model as the weight file has it, in evaluation mode.
        images: Letterboxed images (n, 3, S, S) uint8 RGB.
        index: The split on which AP is measured; None if there is none.
        nms: Settings of the suppression inside the file; None if there is none.
        fuse_error: What `check_fusing` returned for the model that was exported; None if it did not have to be fused.
        letterbox: How the model expects images to be brought to a square.
    """

    model: DetectionModel
    images: Tensor
    index: ImageIndex | None
    nms: NmsSettings | None
    fuse_error: float | None
    letterbox: LetterboxMode = "centre"

    @property
    def engine(self) -> Engine:
        """What runs the model."""
        return ModelEngine(self.model, torch.float32)

    @property
    def detection_settings(self) -> NmsSettings:
        """Settings with which detections are compared."""
        return self.nms or NmsSettings()

    def measure_ap(self, engine: Engine, *, settings: NmsSettings) -> float | None:
        """Return AP on the split; None if there is no split or it has no objects.

        Args:
            engine: What runs the model.
            settings: Settings of the suppression.
        """
        size = self.images.shape[-1]
        return measure_ap(engine, self.index, image_size=size, letterbox=self.letterbox, settings=settings)

    def reference_ap(self) -> float | None:
        """Return AP of the weights; None if there is no split or it has no objects."""
        return self.measure_ap(self.engine, settings=self.nms or COCO_NMS)


@dataclass(frozen=True)
class Verified:
    """What was measured of a file that passed.

    Attributes:
        checks: One for each engine and precision; the first one is what `open_model` chooses.
        AP: AP of the weights with torch in float32; None if it was not measured.
        AP_images: Number of images on which AP was measured; 0 if it was not.
        torch_ms: Shortest time of the weights for one image, milliseconds.
        fuse_error: See `Reference`.
        images: Number of images on which outputs were compared.
        tolerances: The tolerances by the precision of the computation.
    """

    checks: tuple[Check, ...]
    AP: float | None
    AP_images: int
    torch_ms: float
    fuse_error: float | None
    images: int
    tolerances: dict[str, Tolerance]


def measure_ap(
    engine: Engine,
    index: ImageIndex | None,
    *,
    image_size: int,
    letterbox: LetterboxMode,
    settings: NmsSettings = COCO_NMS,
) -> float | None:
    """Measure the AP of a model on a split.

    Args:
        engine: What runs the model.
        index: The split; None if there is none.
        image_size: Side of the square images, pixels.
        letterbox: How the model expects images to be brought to a square.
        settings: Settings of the suppression.

    Returns:
        AP; None if there is no split or it has no objects.
    """
    if index is None:
        return None
    result = evaluate_split(engine, index, image_size=image_size, batch_size=_BATCH, letterbox=letterbox, nms=settings)
    return result.figures.AP


def check_fusing(model: DetectionModel, deployed: DetectionModel, images: Tensor) -> float:
    """Return the largest relative difference of the raw outputs of two models.

    Args:
        model: The trained model.
        deployed: The re-parameterised model.
        images: Images (n, 3, S, S) uint8.

    Returns:
        The difference.

    Raises:
        ArtifactError: If it is too large, or not a number.
    """
    errors = []
    with torch.inference_mode():
        for image in torch.split(images.float() / 255, 1):
            pairs = zip(model(image).lead, deployed(image).lead, strict=True)
            errors += [float((got - expected).abs().max() / expected.abs().max()) for expected, got in pairs]
    largest = float(torch.tensor(errors).max())  # NaN if any of them is
    if not largest <= FUSE_TOLERANCE:
        raise ArtifactError(
            f"the re-parameterised model differs from the trained one: its largest output error is {largest:.2e}, and "
            f"{FUSE_TOLERANCE:.0e} is allowed; the weights may be damaged"
        )
    return largest


def verify(
    file: Path,
    metadata: ExportMetadata,
    reference: Reference,
    *,
    tolerance_ap: float | None,
    progress: Callable[[str], None],
) -> Verified:
    """Compare an exported file with torch, in every engine and precision that this machine has for it.

    Args:
        file: The file.
        metadata: What it says about itself.
        reference: What it is compared with.
        tolerance_ap: Largest change of AP; None for the default of each precision.
        progress: Called with the name of each step.

    Returns:
        What was measured.

    Raises:
        ArtifactError: If a difference exceeds its tolerance.
    """
    opened = _open_all(file, metadata)
    progress("AP of the weights with torch")
    expected_ap = reference.reference_ap()
    tolerances = {one.precision: _tolerance_of(one.precision, metadata.precision, tolerance_ap) for one in opened}
    checks = []
    for model in opened:
        progress(f"{model.engine_name} in {model.precision}")
        check = _compare(model, reference)
        _judge(check, tolerances[model.precision], reference, expected_ap)
        checks.append(check)
    progress("time")
    times = _measure([reference.engine, *(model.engine for model in opened)], reference.images[:1])
    return Verified(
        checks=tuple(replace(check, ms=ms) for check, ms in zip(checks, times[1:], strict=True)),
        AP=expected_ap,
        AP_images=0 if expected_ap is None or reference.index is None else len(reference.index),
        torch_ms=times[0],
        fuse_error=reference.fuse_error,
        images=len(reference.images),
        tolerances=tolerances,
    )


def _tolerance_of(computed: str, stored: str, tolerance_ap: float | None) -> Tolerance:
    """Return the tolerance of the less exact one of two precisions, with another change of AP if it is stated."""
    tolerance = max(TOLERANCES[computed], TOLERANCES[stored], key=lambda one: one.output)
    return tolerance if tolerance_ap is None else replace(tolerance, AP=tolerance_ap)


def _open_all(file: Path, metadata: ExportMetadata) -> list[OpenedModel]:
    """Open a file with every engine and precision; the first one is what `open_model` chooses."""
    default = open_model(file)
    cases = [
        (engine.name, precision)
        for engine in engines()
        if engine.is_available and engine.name in metadata.engines
        for precision in (openvino_precisions(metadata) if engine.name == "openvino" else (metadata.precision,))
    ]
    others = [case for case in cases if case != (default.engine_name, default.precision)]
    return [default, *(open_model(file, engine=name, precision=precision) for name, precision in others)]


def _compare(model: OpenedModel, reference: Reference) -> Check:
    settings, worst = reference.detection_settings, 0.0
    again = settings if reference.nms is None else settings.model_copy(update={"iou": 1.0})
    found: list[tuple[Detections, Detections]] = []
    for images in torch.split(reference.images, _BATCH):
        expected, got = reference.engine.decode(images).cpu(), model.engine.decode(images).cpu()
        if reference.nms is None:
            worst = max(worst, _output_error(expected, got))
        found += zip(
            non_max_suppression(expected, settings=settings, suppresses=reference.engine.needs_suppression),
            non_max_suppression(got, settings=again, suppresses=model.engine.needs_suppression),
            strict=True,
        )
    matched = [_match(*pair, confidence=settings.confidence) for pair in found]
    ap = reference.measure_ap(model.engine, settings=again if reference.nms else COCO_NMS)
    return Check(
        engine=model.engine_name,
        precision=model.precision,
        output_error=worst if reference.nms is None else None,
        box_error_px=max((one.box_error for one in matched), default=0.0),
        score_error=max((one.score_error for one in matched), default=0.0),
        detections=sum(one.detections for one in matched),
        unmatched=sum(one.unmatched for one in matched),
        AP=ap,
        ms=0.0,
    )


def _output_error(expected: Tensor, got: Tensor) -> float:
    """Return the largest error of boxes, relative to the largest coordinate, or of probabilities; NaN counts as 1e9."""
    if expected.shape != got.shape:
        raise ArtifactError(f"the output has the shape {tuple(got.shape)} and not {tuple(expected.shape)}")
    difference = (got - expected).abs()
    boxes = difference[..., :4].max() / expected[..., :4].abs().max()
    return float(torch.nan_to_num(torch.maximum(boxes, difference[..., 4:].max()), nan=1e9))


@dataclass(frozen=True)
class _Matched:
    detections: int
    unmatched: int
    box_error: float
    score_error: float


def _match(expected: Detections, got: Detections, *, confidence: float) -> _Matched:
    """Pair detections of one class by their overlap; only sure ones count as unmatched."""
    overlaps = pairwise_iou(expected.boxes_xyxy, got.boxes_xyxy)
    overlaps = torch.where(expected.labels[:, None] == got.labels, overlaps, 0.0)
    sure = [found.scores > confidence + _SURE for found in (expected, got)]
    best = [overlaps.amax(dim=dim) if overlaps.numel() else torch.zeros(overlaps.shape[1 - dim]) for dim in (1, 0)]
    unmatched = sum(int((is_sure & (overlap < _SAME)).sum()) for is_sure, overlap in zip(sure, best, strict=True))
    rows = (sure[0] & (best[0] >= _SAME)).nonzero()[:, 0]
    columns = overlaps[rows].argmax(dim=1) if len(rows) else rows
    boxes = (expected.boxes_xyxy[rows] - got.boxes_xyxy[columns]).abs()
    scores = (expected.scores[rows] - got.scores[columns]).abs()
    return _Matched(
        detections=int(sure[0].sum() + sure[1].sum()),
        unmatched=unmatched,
        box_error=float(boxes.max()) if len(rows) else 0.0,
        score_error=float(scores.max()) if len(rows) else 0.0,
    )


def _judge(check: Check, tolerance: Tolerance, reference: Reference, expected_ap: float | None) -> None:
    """Raise ArtifactError if a difference is above its tolerance."""
    name = f"the exported model, run by {check.engine} in {check.precision}, differs from torch in float32"
    if check.output_error is not None and not check.output_error <= tolerance.output:
        raise ArtifactError(f"{name}: its largest output error is {check.output_error:.2e}, above {tolerance.output:g}")
    if check.unmatched > max(1, tolerance.unmatched * check.detections):
        raise ArtifactError(
            f"{name}: {check.unmatched} of {check.detections} detections have no counterpart; "
            f"a share of {tolerance.unmatched:g} is allowed"
        )
    if check.output_error is None and not check.detections and not expected_ap:
        raise ArtifactError(
            f"the file with its suppression cannot be verified: with confidence="
            f"{reference.detection_settings.confidence:g}, the weights find no object in the {len(reference.images)} "
            "images; name data that show objects (--data), or a lower confidence"
        )
    if expected_ap is None or check.AP is None or reference.index is None:
        return
    allowed = max(tolerance.AP, 1 / max(1, len(reference.index.labels)))  # AP cannot resolve less than one box
    if not abs(check.AP - expected_ap) <= allowed:
        raise ArtifactError(
            f"{name}: AP is {check.AP:.4f} and was {expected_ap:.4f}, a change above {allowed:.2g}; "
            "use a higher precision, or state a larger tolerance"
        )


def _measure(runners: Sequence[Engine], image: Tensor) -> list[float]:
    """Return the shortest time of each engine for one image, milliseconds; they take turns."""

    def subject(engine: Engine) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            engine.decode(image).cpu()
            return time.perf_counter() - start

        return run

    samples = measure_interleaved([subject(one) for one in runners], rounds=_ROUNDS, generator=random.Random(0))
    return [1000 * min(column) for column in samples]
