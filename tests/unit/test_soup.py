"""The command `soup` on small, untrained models: what it writes, and which files it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.artifacts.files import stage_folder
from pipeline.commands.soup import make_soup
from tests.artifacts import NAMES, SMALL, write_prepared
from yolov7.errors import ArtifactError
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import resolve_spec
from yolov7.training.averaging import weights_id
from yolov7.weights.weight_files import load_weights, save_weights


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_prepared(images=4)
    shutil.copy(stage_folder("prepare") / "val.npz", stage_folder("prepare") / "train.npz")


def write(
    name: str, *, seed: int, ancestors: list[str], names: tuple[str, ...] = NAMES, fused: bool = False, **changes: Any
) -> Path:
    torch.manual_seed(seed)
    model = DetectionModel(resolve_spec({**SMALL, **changes}, name="small"), num_classes=len(names)).eval()
    training = {"ancestors": ancestors}
    save_weights(name, fuse(model) if fused else model, class_names=names, image_size=64, training=training)
    return Path(name)


@pytest.mark.parametrize("greedy", [False, True])
def test_it_averages_measures_and_remembers_where_it_comes_from(
    greedy: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [write("a.safetensors", seed=0, ancestors=["w"]), write("b.safetensors", seed=1, ancestors=["v", "w"])]
    make_soup(paths, output=Path("soup.safetensors"), greedy=greedy)
    soup, first, second = (load_weights(path) for path in ("soup.safetensors", *paths))
    assert soup.training["ancestors"] == ["w"]
    assert weights_id(first.model) in soup.training["soup"]
    if not greedy:
        assert soup.training["soup"] == [weights_id(first.model), weights_id(second.model)]
        mean = (first.model.head.convs[0].weight + second.model.head.convs[0].weight) / 2  # type: ignore[operator]
        torch.testing.assert_close(soup.model.head.convs[0].weight, mean)
    told = capsys.readouterr().out
    assert told.count("AP ") == 3
    assert "compared with the best file" in told


def test_it_can_be_made_of_soups_and_their_ingredients() -> None:
    first = write("a.safetensors", seed=0, ancestors=["w"])
    make_soup([first, write("b.safetensors", seed=1, ancestors=["w"])], output=Path("ab.safetensors"), greedy=False)
    make_soup([Path("ab.safetensors"), first], output=Path("aab.safetensors"), greedy=False)
    assert load_weights("aab.safetensors").training["ancestors"] == ["w"]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"ancestors": ["v"]}, "not trained from the same weights (started from w and started from v)"),
        ({"ancestors": []}, "started from unknown weights"),
        ({"ancestors": ["w"], "names": ("a", "b", "c")}, "different classes"),
        ({"ancestors": ["w"], "image_size": 128}, "different specs"),
        ({"ancestors": ["w"], "fused": True}, "is re-parameterised"),
    ],
)
def test_what_cannot_be_averaged_is_refused_with_the_reason(other: dict[str, Any], reason: str) -> None:
    paths = [write("a.safetensors", seed=0, ancestors=["w"]), write("b.safetensors", seed=1, **other)]
    with pytest.raises(ArtifactError) as error:
        make_soup(paths, output=Path("soup.safetensors"), greedy=False)
    assert reason in str(error.value)
    assert "b.safetensors" in str(error.value)
    assert not Path("soup.safetensors").exists()


def test_the_same_file_twice_is_no_soup() -> None:
    path = write("a.safetensors", seed=0, ancestors=["w"])
    with pytest.raises(ArtifactError, match="two weight files and got 1 different"):
        make_soup([path, path], output=Path("soup.safetensors"), greedy=False)


def test_without_val_a_uniform_soup_is_not_measured_and_a_greedy_one_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (stage_folder("prepare") / "val.npz").unlink()
    paths = [write("a.safetensors", seed=0, ancestors=["w"]), write("b.safetensors", seed=1, ancestors=["w"])]
    with pytest.raises(ArtifactError, match=r"data\.val"):
        make_soup(paths, output=Path("soup.safetensors"), greedy=True)
    make_soup(paths, output=Path("soup.safetensors"), greedy=False)
    assert "is not measured, because" in capsys.readouterr().out
