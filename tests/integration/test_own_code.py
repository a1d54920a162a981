"""Trainings with own code: the examples of the documentation, and callbacks that are interrupted."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import yolov7
from tests.artifacts import SMALL
from tests.integration.runs import WORKER, Shared, assert_same, make_job, prepared, read_weights, start, train_together
from tests.own_code import Drift
from yolov7.errors import SettingError, TrainingError
from yolov7.recipes import merge
from yolov7.settings import TrainSettings
from yolov7.spec.spec_files import resolve_spec, spec_to_json
from yolov7.system.plugins import VARIABLE
from yolov7.training.checkpoint import load_checkpoint
from yolov7.training.job import TrainJob, hash_own_code
from yolov7.training.loop import WEIGHTS, fit
from yolov7.training.record import read_epochs

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
DRIFT = "tests.own_code.Drift"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("project"), train_images=16, val_images=4, image_size=64)


def own_job(data: Path, folder: Path, *, spec: dict[str, Any] = SMALL, **changes: Any) -> TrainJob:
    job, model = make_job(data, folder, **changes), resolve_spec(spec, name="small")
    own_code = hash_own_code(model, job.settings)
    return job.model_copy(update={"spec_json": spec_to_json(model), "own_code": own_code})


def test_the_examples_of_the_page_train_a_model_that_loads_with_permission(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    files = dict(re.findall(r"^`(mypkg/\w+\.py)`:\n\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(files) == 5
    (tmp_path / "mypkg").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    params = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    monkeypatch.setenv(VARIABLE, params["plugins"][0])
    row = params["variants"]["gated"]["swap"]["r5"]
    train = merge(params["train"], {"epochs": 2})
    job = own_job(data, tmp_path / "run", spec={**SMALL, "swap": {"p3": row}}, **train)
    assert fit(job, WORKER)
    lines = read_epochs(tmp_path / "run")
    assert all(np.isfinite(line["box"]) and line["box"] > 0 for line in lines)
    best = max(lines, key=lambda line: line["AP"])
    assert json.loads((tmp_path / "run" / "best.json").read_text()) == {"AP": best["AP"], "epoch": best["epoch"]}
    monkeypatch.delenv(VARIABLE)
    detector = yolov7.Detector.load(tmp_path / "run" / WEIGHTS, device="cpu", plugins=["mypkg"])
    assert "Gate" in {type(module).__name__ for module in detector.engine.model.modules()}  # type: ignore[attr-defined]
    weights = yolov7.load_weights(tmp_path / "run" / WEIGHTS)
    assert sorted(weights.training["own_code"]) == [
        "mypkg.assign.Centre",
        "mypkg.augment.Rain",
        "mypkg.blocks.Gate",
        "mypkg.callbacks.History",
        "mypkg.losses.wiou",
    ]
    assert all(name in sys.modules for name in ("mypkg.losses", "mypkg.augment"))


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert fit(own_job(data, folder, callbacks=[DRIFT]), WORKER)
    return folder


def assert_ends_like(folder: Path, undisturbed: Path) -> None:
    assert_same(read_weights(folder), read_weights(undisturbed))
    assert (folder / "drift.txt").read_text() == (undisturbed / "drift.txt").read_text()


def test_a_callback_changes_the_run_and_its_state_is_in_the_checkpoints(
    data: Path, tmp_path: Path, undisturbed: Path
) -> None:
    steps, *_ = (undisturbed / "drift.txt").read_text().split()
    last = load_checkpoint(max(undisturbed.glob("checkpoint-*.pt")))
    assert last.callbacks[f"0 {DRIFT}"]["steps"] == int(steps) == last.ema_updates
    assert fit(make_job(data, tmp_path), WORKER)
    plain, changed = (next(iter(read_weights(folder).values())) for folder in (tmp_path, undisturbed))
    assert not plain.equal(changed)


@pytest.mark.parametrize("stop_after", [4, 7])  # at the end of an epoch, and with pending gradients
def test_a_stopped_run_goes_on_with_the_state_of_its_callback(
    data: Path, tmp_path: Path, undisturbed: Path, stop_after: int
) -> None:
    """Gradients of two steps are summed, so that a step may be repeated, with the state that the callback had then."""
    job, asked = own_job(data, tmp_path, callbacks=[DRIFT], checkpoint_minutes=60), iter(range(1, 100))
    assert not fit(job, WORKER, should_stop=lambda: next(asked) == stop_after)
    assert fit(job, WORKER)
    assert_ends_like(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("point", "at"), [("in validation", 2), ("with an epoch recorded", 1)])
def test_a_killed_run_goes_on_with_the_state_of_its_callback(
    data: Path, tmp_path: Path, undisturbed: Path, point: str, at: int
) -> None:
    job = own_job(data, tmp_path, callbacks=[DRIFT])
    process = start(job, point=point, at=at)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert fit(job, WORKER)
    assert_ends_like(tmp_path, undisturbed)


def no_prelude() -> None:
    pass


@pytest.mark.slow
def test_callbacks_are_called_in_every_worker_with_the_figures_of_the_lead(data: Path, tmp_path: Path) -> None:
    """Each worker changes its weights; if they changed differently, the checks of DDP and the figures would differ."""
    job = own_job(data, tmp_path / "run", callbacks=[DRIFT], epochs=2)
    train_together(Shared(job, 2, no_prelude))
    steps, _, figures = (tmp_path / "run" / "drift.txt").read_text().split()
    assert int(steps) > 0
    assert float(figures) == sum(line["box"] for line in read_epochs(tmp_path / "run"))


def test_errors_of_callbacks_name_them(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^on_step_end of the callback tests\.own_code\.Wrong failed: KeyError: "):
        fit(own_job(data, tmp_path / "wrong", callbacks=["tests.own_code.Wrong"]), WORKER)
    with pytest.raises(SettingError, match=r"the state of the callback tests\.own_code\.Unsaved has <object object"):
        fit(own_job(data, tmp_path / "unsaved", callbacks=["tests.own_code.Unsaved"]), WORKER)


def test_train_takes_callbacks_as_objects_and_chooses_a_batch(data: Path, tmp_path: Path) -> None:
    settings = {"epochs": 1, "image_size": 64, "batch_size": "auto", "precision": "float32"}
    spec = resolve_spec(SMALL, name="small")
    drift = Drift()
    source = tmp_path / "data"
    write_yolo(source)
    counts = []
    for _ in range(2):  # the second call finds the weights and the number
        weights = yolov7.train(spec, source, tmp_path / "run", settings=settings, callbacks=[drift], device="cpu")
        counts.append(drift.steps)
    (choice,) = json.loads((tmp_path / "run.batch.json").read_text()).values()
    assert choice["batch_size"] == 2  # 16 images in 8 steps
    assert re.fullmatch(
        r"a step of 2 images needs 0\.\d of the \d+\.\d GiB that may be used; an epoch of 16 images should have at "
        r"least 8 steps",
        choice["reason"],
    )
    assert 0 < counts[0] == counts[1]
    assert yolov7.load_weights(weights).training["own_code"].keys() == {DRIFT}
    assert TrainSettings.model_validate(settings).batch_size == 0
    with pytest.raises(SettingError, match="has a training with other data or settings"):
        yolov7.train(spec, source, tmp_path / "run", settings={**settings, "batch_size": 2}, device="cpu")


def write_yolo(root: Path) -> None:
    """Sixteen images of noise, each with an object."""
    import cv2

    generator = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 2)):
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(images / f"{i}.png"), generator.integers(0, 256, (64, 64, 3), np.uint8))
            (labels / f"{i}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [thing]\n")
