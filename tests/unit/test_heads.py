"""Detection heads with and without anchors: decoding, initial values, weight files, changes of classes, specs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.experiment import parse_experiment
from tests.property.test_fuse import randomise
from tests.unit.exported import HEADS, NAMES, SIZE, annotate, small_spec, write_weights
from yolov7.engines.opened_model import open_model
from yolov7.errors import SettingError, SpecError
from yolov7.evaluation.split import evaluate_split
from yolov7.inference.nms import non_max_suppression
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel, build_head
from yolov7.settings import COCO_NMS, NmsSettings
from yolov7.spec.anchor_free import with_anchor_free_head
from yolov7.spec.auxiliary import with_auxiliary
from yolov7.spec.block_schema import DflHeadRow, HeadRow
from yolov7.spec.row import MapShape
from yolov7.spec.scaling import scale_spec
from yolov7.spec.spec_files import load_spec, resolve_spec
from yolov7.weights.adaptation import is_of_spec, select_classes
from yolov7.weights.transfer import transfer
from yolov7.weights.weight_files import load_weights, save_weights

ANCHOR_FREE = ("yolox", "ppyoloe", "dfl")
BINS = {"ppyoloe": 17, "dfl": 16, "one_to_one": 16}


def model_of(head: str, *, num_classes: int = 3, seed: int = 0) -> DetectionModel:
    torch.manual_seed(seed)
    model = DetectionModel(small_spec(head), num_classes=num_classes).eval()
    randomise(model, seed)
    return model


def images_of(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, SIZE, SIZE + 32, generator=torch.Generator().manual_seed(seed))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def one_cell(head: str, raw: list[float], x: int, y: int, stride: int, anchor: tuple[float, float]) -> list[float]:
    """Decode one prediction as the sources of the heads state it, without tensors."""
    if head == "detect":
        cx, cy = ((2 * sigmoid(raw[i]) - 0.5 + cell) * stride for i, cell in enumerate((x, y)))
        w, h = ((2 * sigmoid(raw[2 + i])) ** 2 * anchor[i] for i in range(2))
        return [cx, cy, w, h, *map(sigmoid, raw[4:])]
    if head == "yolox":  # the point is the corner of the cell
        cx, cy = (raw[0] + x) * stride, (raw[1] + y) * stride
        w, h = math.exp(raw[2]) * stride, math.exp(raw[3]) * stride
        return [cx, cy, w, h, *map(sigmoid, raw[4:])]
    bins, sides = BINS[head], []
    for side in range(4):
        weights = [math.exp(logit) for logit in raw[side * bins : (side + 1) * bins]]
        sides.append(sum(k * weight for k, weight in enumerate(weights)) / sum(weights) * stride)
    left, top, right, bottom = sides
    x1, y1, x2, y2 = (x + 0.5) * stride - left, (y + 0.5) * stride - top, (x + 0.5) * stride + right, 0.0
    y2 = (y + 0.5) * stride + bottom
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, 1.0, *map(sigmoid, raw[4 * bins :])]


@pytest.mark.parametrize("head", HEADS)
def test_decoding_is_that_of_a_loop_over_cells(head: str) -> None:
    model = model_of(head).double()
    with torch.no_grad():
        maps = model(images_of().double())
        decoded = model.decode(maps)
    expected = []
    for level, raw in enumerate(maps.lead):
        _, anchors, height, width, _ = raw.shape
        for a in range(anchors):
            anchor = tuple(model.anchors_px[level, a].tolist()) if head == "detect" else (0.0, 0.0)
            for y in range(height):
                for x in range(width):
                    expected.append(one_cell(head, raw[1, a, y, x].tolist(), x, y, model.strides[level], anchor))
    assert decoded[1, :, 4:].std() > 0.01
    torch.testing.assert_close(decoded[1], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("head", ANCHOR_FREE)
def test_the_score_of_the_only_class_is_its_probability_times_the_objectness(head: str) -> None:
    model = model_of(head, num_classes=1)
    with torch.no_grad():
        maps = model(images_of())
        (found, _) = non_max_suppression(model.decode(maps), settings=NmsSettings(confidence=0.0, iou=1.0))
    raw = torch.cat([level[0].flatten(0, 2) for level in maps.lead])
    scores = raw[:, -1].sigmoid() * (raw[:, 4].sigmoid() if head == "yolox" else 1)
    torch.testing.assert_close(found.scores, scores.sort(descending=True).values[: len(found)])


@pytest.mark.parametrize("head", ANCHOR_FREE)
def test_half_precision_maps_decode_to_finite_boxes_in_float32(head: str) -> None:
    model = model_of(head)
    outputs = 4 * BINS.get(head, 1) + 3 + (head == "yolox")
    largest = torch.full((1, 1, 1, 300, outputs), torch.finfo(torch.float16).max, dtype=torch.float16)
    decoded = model.decode(type(model(images_of()))((largest, largest)))
    assert decoded.dtype == torch.float32
    assert decoded.isfinite().all()
    assert decoded[..., 2:4].half().isfinite().all()
    middle = torch.zeros(1, 1, 1, 300, outputs, dtype=torch.bfloat16)
    decoded = model.decode(type(model(images_of()))((middle, middle)))
    corner = 299 if head == "yolox" else 299.5
    assert decoded[0, 299, 0] == corner * model.strides[0]


def test_biases_start_near_the_frequencies_of_objects() -> None:
    levels = [MapShape(64, 8), MapShape(128, 16), MapShape(256, 32)]

    def head_of(block: str, **keys: Any) -> Any:
        row = small_spec(block.removeprefix("detect_")).head.model_copy(update=keys)
        return build_head(row, levels, num_classes=80, activation="silu")

    yolox = head_of("detect_yolox", hidden=32)
    for conv in (*yolox.class_convs, *yolox.objectness_convs):
        torch.testing.assert_close(conv.bias, torch.full_like(conv.bias, -math.log(99)))
    ppyoloe = head_of("detect_ppyoloe")
    for box, classes in zip(ppyoloe.box_convs, ppyoloe.class_convs, strict=True):
        assert not box.weight.any()
        assert not classes.weight.any()
        torch.testing.assert_close(box.bias, torch.ones(68))
        torch.testing.assert_close(classes.bias, torch.full((80,), -math.log(99)))
    assert 0.0005 < ppyoloe.box_attentions[0].gate.weight.std() < 0.002
    dfl = head_of("detect_dfl")
    for box, classes, expected in zip(dfl.box_convs, dfl.class_convs, (-11.54, -10.15, -8.76), strict=True):
        torch.testing.assert_close(box.bias, torch.ones(64))
        torch.testing.assert_close(classes.bias, torch.full((80,), expected), atol=0.005, rtol=0)


def test_the_head_of_u6_has_the_parameters_of_its_source() -> None:
    levels = [MapShape(256, 8), MapShape(512, 16), MapShape(1024, 32)]
    row = DflHeadRow.model_validate({"block": "detect_dfl", "from": ["a", "b", "c"]})
    with torch.device("meta"):
        head = build_head(row, levels, num_classes=80, activation="silu")
    shapes = {name: tuple(parameter.shape) for name, parameter in head.named_parameters()}
    assert shapes["box_towers.2.0.conv.weight"] == (64, 1024, 3, 3)
    assert shapes["class_towers.2.1.conv.weight"] == (256, 256, 3, 3)
    assert shapes["ia_class.2"] == (1, 1024, 1, 1)
    assert (shapes["im_box.0"], shapes["im_class.0"]) == ((1, 64, 1, 1), (1, 80, 1, 1))


@pytest.mark.parametrize("head", ANCHOR_FREE)
def test_weights_are_read_as_they_were_written_before_and_after_fusing(head: str, tmp_path: Path) -> None:
    model = model_of(head)
    for one in (model, fuse(model)):
        save_weights(tmp_path / "w.safetensors", one, class_names=NAMES, image_size=SIZE, training={})
        read = load_weights(tmp_path / "w.safetensors").model
        assert (read.spec, read.fused, read.anchors_px.shape) == (model.spec, one.fused, (2, 0, 2))
        with torch.no_grad():
            for ours, theirs in zip(read(images_of()).lead, one(images_of()).lead, strict=True):
                assert torch.equal(ours, theirs)
                assert ours.std() > 0.001
        assert is_of_spec(read.spec, small_spec(head))
        assert not is_of_spec(read.spec, small_spec("detect"))


@pytest.mark.parametrize("head", ANCHOR_FREE)
def test_other_classes_keep_everything_but_the_outputs_of_classes(head: str, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "w.safetensors", head=head)
    source, model = load_weights(path).model, model_of(head, num_classes=7, seed=1)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    num_copied = transfer(model, load_weights(path).model, weights=path, places=(-1,) * 7)
    kept = [name for name in fresh if name.startswith(("head.class_convs.", "head.im_class."))]
    assert num_copied == len(fresh) - len(kept)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name in kept else source.state_dict()[name]), name


@pytest.mark.parametrize("head", ANCHOR_FREE)
@pytest.mark.parametrize("change", [lambda model: model, fuse])
def test_selected_classes_keep_their_outputs(head: str, change: Callable[[DetectionModel], DetectionModel]) -> None:
    model = change(model_of(head))
    chosen = select_classes(model, ("a", "b", "c"), ("c", "a"))
    assert chosen.num_classes == 2
    with torch.no_grad():
        for ours, theirs in zip(chosen(images_of()).lead, model(images_of()).lead, strict=True):
            torch.testing.assert_close(ours[..., :-2], theirs[..., :-3])
            torch.testing.assert_close(ours[..., -2:], theirs[..., [-1, -3]])


@pytest.mark.parametrize("head", ANCHOR_FREE)
def test_evaluation_finds_what_the_model_has_annotated(head: str, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "w.safetensors", head=head)
    index = annotate(weights, tmp_path / "images", count=3)
    engine = open_model(weights, precision="float32").engine
    figures = evaluate_split(engine, index, image_size=SIZE, batch_size=2, nms=COCO_NMS).figures
    assert len(index.labels) > 5
    assert figures.AP is not None
    assert figures.AP > 0.5


def test_another_kind_of_head_is_not_transferred(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "w.safetensors", head="yolox")
    model, source = model_of("dfl", seed=1), load_weights(path).model
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert transfer(model, load_weights(path).model, weights=path, places=(0, 1, 2)) == len(model.rows.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name.startswith("head.") else source.state_dict()[name])


@pytest.mark.parametrize("of", [True, False])
def test_implicit_knowledge_of_an_anchor_free_head_is_folded_or_made_neutral(of: bool, tmp_path: Path) -> None:
    def made(implicit: bool, seed: int) -> DetectionModel:
        torch.manual_seed(seed)
        rows = small_spec("dfl").model_dump(by_alias=True)["rows"]
        rows["head"]["implicit"] = implicit
        model = DetectionModel(resolve_spec({"rows": rows}, name="small"), num_classes=3).eval()
        randomise(model, seed)
        for vector in (*model.head.ia_box, *model.head.ia_class):
            torch.nn.init.zeros_(vector)
        return model

    source, model = made(of, 0), made(not of, 1)
    with torch.no_grad():
        expected = source(images_of()).lead
        transfer(model, source, weights="w", places=(0, 1, 2))
        for ours, theirs in zip(model(images_of()).lead, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_any_spec_can_have_the_anchor_free_head() -> None:
    for name in ("yolov7-tiny", "yolov7", "yolov7-w6"):
        spec, base = resolve_spec({"base": name, "head": "anchor_free"}, name="a"), load_spec(name)
        assert isinstance(spec.head, DflHeadRow)
        assert (spec.head.sources, spec.head.taps, spec.head.bins) == (base.head.sources, (), 16)
        assert {**spec.rows, "head": None} == {**base.rows, "head": None}
        assert with_anchor_free_head(spec) is spec
    with pytest.raises(SpecError, match=r"head: Input should be 'anchor_free' or 'one_to_one', not 'free'"):
        resolve_spec({"base": "yolov7", "head": "free"}, name="a")


def test_a_variant_can_have_the_anchor_free_head_but_no_auxiliary_head_with_it() -> None:
    def spec_of(**keys: Any) -> HeadRow:
        variants = {"a": {"spec": "yolov7-tiny", **keys}}
        return parse_experiment({"variants": variants}, source="params").variants["a"].spec.head

    assert spec_of(head="anchor_free").anchor_free
    assert not spec_of().anchor_free
    with pytest.raises(SettingError, match=r"anchor-free head 'head', which cannot have an auxiliary head; leave out"):
        spec_of(head="anchor_free", auxiliary=True)
    with pytest.raises(SpecError, match=r"cannot have an auxiliary head"):
        with_auxiliary(small_spec("ppyoloe"))


def test_the_hidden_width_of_the_head_of_yolox_is_scaled_with_the_widths() -> None:
    scaled = scale_spec(small_spec("yolox"), rule="width", width=2.0)
    assert (scaled.rows["p4"].out, scaled.head.hidden) == (48, 32)
