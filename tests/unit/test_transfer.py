"""Transfer of weights: between different classes and forms of heads; weights that cannot be used are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.property.test_fuse import randomise
from tests.unit.exported import small_spec
from yolov7.errors import ArtifactError
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.anchor_free import with_one_to_one_head
from yolov7.spec.auxiliary import with_auxiliary
from yolov7.spec.spec_files import ModelSpec, load_spec, resolve_spec
from yolov7.weights.adaptation import match_classes
from yolov7.weights.transfer import describe_new_head, transfer
from yolov7.weights.weight_files import load_weights, save_weights

IMAGES = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
PLAIN = resolve_spec({"base": "nano", "swap": {"head": {"implicit": False}}}, name="plain")


def model_of(spec: ModelSpec, *, num_classes: int, seed: int) -> DetectionModel:
    torch.manual_seed(seed)
    model = DetectionModel(spec, num_classes=num_classes).eval()
    for vector in (*model.head.ia, *model.head.im):
        torch.nn.init.uniform_(vector, 0.5, 1.5)
    return model


def saved(path: Path, model: DetectionModel) -> Path:
    names = tuple(f"class {i}" for i in range(model.num_classes))
    save_weights(path, model, class_names=names, image_size=320, training={})
    return path


def transfer_from(path: Path, model: DetectionModel) -> int:
    """Transfer all class outputs if there are equally many classes, and none otherwise."""
    source = load_weights(path).model
    count = model.num_classes
    places = tuple(range(count)) if source.num_classes == count else (-1,) * count
    return transfer(model, source, weights=path, places=places)


def maps_of(model: DetectionModel) -> list[Tensor]:
    with torch.no_grad():
        return list(model(IMAGES).lead)


@pytest.mark.parametrize("num_classes", [7, 3, 1])
def test_all_but_the_class_channels_are_kept(tmp_path: Path, num_classes: int) -> None:
    source = model_of(load_spec("nano"), num_classes=5, seed=0)
    model = model_of(load_spec("nano"), num_classes=num_classes, seed=1)
    fresh = model_of(load_spec("nano"), num_classes=num_classes, seed=1)
    num_copied = transfer_from(saved(tmp_path / "w.safetensors", source), model)
    assert num_copied == len(model.state_dict())
    for ours, theirs in zip(maps_of(model), maps_of(source), strict=True):
        torch.testing.assert_close(ours[..., :5], theirs[..., :5])
    for i, conv in enumerate(model.head.convs):
        kept = fresh.head.convs[i].weight.view(3, 5 + num_classes, -1)[:, 5:]
        assert torch.equal(conv.weight.view(3, 5 + num_classes, -1)[:, 5:], kept)


def test_the_same_classes_are_kept_wholly(tmp_path: Path) -> None:
    source, model = (model_of(load_spec("nano"), num_classes=5, seed=seed) for seed in (0, 1))
    transfer_from(saved(tmp_path / "w.safetensors", source), model)
    torch.testing.assert_close(model.state_dict(), source.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("of", "to"), [(load_spec("nano"), PLAIN), (PLAIN, load_spec("nano"))])
def test_between_heads_with_and_without_implicit_knowledge(tmp_path: Path, of: ModelSpec, to: ModelSpec) -> None:
    source, model = model_of(of, num_classes=5, seed=0), model_of(to, num_classes=5, seed=1)
    transfer_from(saved(tmp_path / "w.safetensors", source), model)
    torch.testing.assert_close(maps_of(model), maps_of(source))


def test_an_auxiliary_head_that_the_weights_lack_is_left_alone(tmp_path: Path) -> None:
    source = model_of(load_spec("nano"), num_classes=5, seed=0)
    model = model_of(with_auxiliary(load_spec("nano")), num_classes=5, seed=1)
    before = model.head.auxiliary_convs[0].weight.clone()
    transfer_from(saved(tmp_path / "w.safetensors", source), model)
    torch.testing.assert_close(maps_of(model), maps_of(source))
    assert torch.equal(model.head.auxiliary_convs[0].weight, before)


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    source = model_of(load_spec("nano"), num_classes=5, seed=0)
    path = saved(tmp_path / "fused.safetensors", fuse(source))
    with pytest.raises(
        ArtifactError, match=r"fused.safetensors: is re-parameterised and cannot be trained further; name"
    ):
        transfer_from(path, source)
    path = saved(tmp_path / "nano.safetensors", source)
    other = DetectionModel(load_spec("yolov7-tiny"), num_classes=5)
    with pytest.raises(
        ArtifactError, match=r"its spec is 'nano', and it fits only \d+ of the \d+ tensors of spec 'yolov7-tiny'"
    ):
        transfer_from(path, other)


SPECS = {
    "detect": load_spec("nano"),
    "plain": PLAIN,
    "auxiliary": with_auxiliary(load_spec("nano")),
    "yolox": small_spec("yolox"),
    "ppyoloe": small_spec("ppyoloe"),
    "dfl": small_spec("dfl"),
    "one_to_one": with_one_to_one_head(small_spec("dfl")),
}


def randomised(spec: ModelSpec, *, num_classes: int, seed: int) -> DetectionModel:
    torch.manual_seed(seed)
    model = DetectionModel(spec, num_classes=num_classes).eval()
    randomise(model, seed)
    return model


def all_maps(model: DetectionModel) -> list[Tensor]:
    with torch.no_grad():
        maps = model(IMAGES, auxiliary=True)
    return [*maps.lead, *maps.auxiliary]


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize(
    ("names", "known", "places"),
    [
        ("abc", "cab", (1, 2, 0)),
        ("bxa", "abc", (1, -1, 0)),
        ("b", "abc", (1,)),
        ("xby", "b", (-1, 0, -1)),
        ("x", "b", (-1,)),
        ("B", "b", (0,)),
    ],
)
def test_class_outputs_are_taken_by_name(kind: str, names: str, known: str, places: tuple[int, ...]) -> None:
    source = randomised(SPECS[kind], num_classes=len(known), seed=0)
    expected = all_maps(source)
    model, fresh = (randomised(SPECS[kind], num_classes=len(names), seed=1) for _ in range(2))
    assert match_classes(names, known).places == places
    transfer(model, source, weights="w", places=places)
    found = all_maps(model)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        boxes = theirs.shape[-1] - len(known)
        assert torch.equal(ours[..., :boxes], theirs[..., :boxes])
        for i, place in enumerate(places):
            if place >= 0:
                torch.testing.assert_close(ours[..., boxes + i], theirs[..., boxes + place])
    for name, tensor in model.head.state_dict().items():
        if model.head.has_class_outputs(name):
            before = model.head.by_anchor(name, fresh.head.state_dict()[name])
            kept = [model.head.num_box_outputs + i for i, place in enumerate(places) if place < 0]
            assert torch.equal(model.head.by_anchor(name, tensor)[:, kept], before[:, kept])


def test_heads_with_other_numbers_of_anchors_share_no_outputs_even_if_their_shapes_are_equal() -> None:
    anchors = [[float(side) for side in range(2, 10)]] * 3
    spec = resolve_spec({"base": "nano", "swap": {"head": {"anchors": anchors}}}, name="four")
    source, model = (randomised(s, num_classes=n, seed=n) for s, n in ((load_spec("nano"), 7), (spec, 4)))
    before = model.head.convs[0].weight.clone()
    assert source.head.convs[0].weight.shape == before.shape
    assert "(3 per cell and not 4)" in describe_new_head(model, source)
    transfer(model, source, weights="w", places=(0, 1, 2, 3))
    assert torch.equal(model.head.convs[0].weight, before)


def test_what_is_said_about_the_classes_of_weights() -> None:
    def note(names: tuple[str, ...], known: tuple[str, ...]) -> str:
        return match_classes(names, known).note

    assert note(("a", "b"), ("a", "b")) == ""
    assert note(("a", "a"), ("a", "a")) == ""
    taken = "of 2 class outputs, {} are taken from the weights by name and {} start anew"
    assert note(("a", "b"), ("b", "a")) == taken.format(2, 0)
    one = "of 2 class outputs, 1 is taken from the weights by name and 1 starts anew: that of 'b'"
    assert note(("a", "b"), ("a", "c", "d")) == one
    assert note(("a", "b"), ("c", "d")) == taken.format(0, 2) + ", e.g. that of 'a'"
    assert (
        note(("a",), ("b",)) == "of 1 class output, 0 are taken from the weights by name and 1 starts anew: that of 'a'"
    )
    assert note(("a", "b"), ("0", "1")) == "the weights have no class names; their 2 class outputs are taken by number"
    assert match_classes(("a", "b"), ("0", "1")).places == (0, 1)
    assert match_classes(("1", "2", "3"), ("0", "1", "2")).places == (0, 1, 2)  # numbers from 1 are names like others
    unnamed = taken.format(0, 2) + " (the weights have 3 classes and no class names)"
    assert note(("a", "b"), ("0", "1", "2")) == unnamed
    assert match_classes(("9", "1"), tuple(map(str, range(10)))).places == (9, 1)  # digits are names here


@pytest.mark.parametrize("kind", ["yolox", "dfl"])
def test_another_kind_of_head_is_said_to_start_anew(kind: str) -> None:
    model, source = randomised(SPECS["detect"], num_classes=2, seed=0), randomised(SPECS[kind], num_classes=2, seed=1)
    expected = f"the head starts anew, because that of the weights is 'detect_{kind}' and that of the model 'detect'"
    assert describe_new_head(model, source) == expected
    assert describe_new_head(model, model) == ""
