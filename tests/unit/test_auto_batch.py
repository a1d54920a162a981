"""The batch size `auto`: the choice from measurements, the measurement, and the record of the number."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.artifacts import NAMES, SMALL
from yolov7.errors import SettingError
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.spec_files import resolve_spec, spec_to_json
from yolov7.system.settings_base import AUTO_BATCH
from yolov7.training import auto_batch
from yolov7.training.auto_batch import (
    BatchChoice,
    Trial,
    _Steps,
    find_batch,
    largest_that_fits,
    settle_batch,
    with_batch,
)
from yolov7.training.job import TrainJob
from yolov7.weights.weight_files import save_weights

SIZES = [1, 2, 4, 8, 16]


def make_job(root: Path, **changes: object) -> TrainJob:
    settings = {"batch_size": "auto", "image_size": 64, "epochs": 2, "precision": "float32", **changes}
    return TrainJob(
        spec_json=spec_to_json(resolve_spec(SMALL, name="small")),
        settings=TrainSettings.model_validate(settings),
        seed=0,
        data_folder=root,
        data_hash="",
        run_folder=root / "run",
    )


@pytest.mark.parametrize(
    ("memories", "budget", "expected"),
    [
        ([10, 20, 40, 80, 160], 160, 16),  # all were measured and fit
        ([10, 20, 40, 80, 160], 159, 8),
        ([10, 20, 40], 80, 8),  # measured up to 4; 8 images need 80 by extrapolation
        ([10, 20, 40], 79, 4),
        ([110, 110, 110], 110, 16),  # small batches do not raise the peak
        ([10, 99], 20, 1),
        ([10], 9, 0),
        ([10], 20, 1),
    ],
)
def test_the_largest_batch_within_the_memory_is_chosen(memories: list[int], budget: int, expected: int) -> None:
    trials = [Trial(batch, memory) for batch, memory in zip(SIZES, memories, strict=False)]
    assert largest_that_fits(trials, SIZES, budget=budget) == expected


@pytest.mark.parametrize("content", ['{"training": "', "[]", '{"a": 1}', '{"a": {"batch_size": true}}'])
def test_a_damaged_record_is_replaced(tmp_path: Path, content: str) -> None:
    job = make_job(tmp_path)
    (tmp_path / "run.batch.json").write_text(content)
    settled, note = settle_batch(job, lambda _: BatchChoice(2, "again"))
    assert settled.settings.batch_size == 2
    assert note


def test_a_device_without_room_for_one_image_is_a_fault_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_batch, "_measure", lambda *_, **__: (2**30, [Trial(1, 2**31)]))
    with pytest.raises(
        SettingError, match=r"one image of 64 pixels needs 2\.0 GiB, more than the 1\.0 GiB that may be"
    ):
        find_batch(make_job(tmp_path), images=40, class_names=NAMES)


def test_a_reason_for_one_image_is_in_the_singular(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_batch, "_measure", lambda *_, **__: (2**31, [Trial(1, 2**30)]))
    assert find_batch(make_job(tmp_path), images=1, class_names=NAMES).reason == (
        "a step of 1 image needs 1.0 of the 2.0 GiB that may be used; an epoch of 1 image should have at least 8 steps"
    )


@pytest.mark.parametrize("code", ["os.kill(os.getpid(), 9)", "raise RuntimeError('no memory')"])
def test_a_batch_that_ends_the_process_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """The interpreter that is started reports two batches, and then fails as if the system had ended it."""
    program = tmp_path / "python"
    lines = ['{"budget": 100}', '{"batch": 1, "memory": 10}', '{"batch": 2, "memory": 11}']
    prints = "".join(f"print({line!r}, flush=True)\n" for line in lines)
    program.write_text(f"#!{sys.executable}\nimport os\n{prints}{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    choice = find_batch(make_job(tmp_path), images=80, class_names=NAMES)
    assert choice.batch_size == 2
    assert "and 4 images need more" in choice.reason


@pytest.mark.parametrize(
    ("changes", "side"),
    [({}, 64), ({"low_resolution_share": 0.5}, 64), ({"low_resolution_share": 1.0, "multi_scale": 0.5}, 96)],
)
def test_the_measured_images_have_the_largest_size_of_the_run(
    tmp_path: Path, changes: dict[str, float], side: int
) -> None:
    steps, sides = _Steps(make_job(tmp_path, **changes), NAMES, torch.device("cpu")), set[int]()
    steps._model.register_forward_pre_hook(lambda _, images: sides.add(images[0].shape[-1]))
    steps.take(1)
    assert sides == {side}


@pytest.mark.parametrize("anchors", ["auto", "fit"])
def test_the_measured_steps_have_the_teacher_of_the_run(tmp_path: Path, anchors: str) -> None:
    """The teacher is wider, has other anchors, and has the classes in another order."""
    teacher = DetectionModel(resolve_spec({"base": "nano", "image_size": 64}, name="wide"), num_classes=len(NAMES))
    teacher.anchors_px = teacher.anchors_px * 1.25
    path = tmp_path / "teacher.safetensors"
    save_weights(path, teacher, class_names=NAMES[::-1], image_size=64, training={})
    job = make_job(tmp_path, distil={"teacher": path, "outputs": 1.0, "features": 1.0}, anchors=anchors)
    steps = _Steps(job, NAMES, torch.device("cpu"))
    steps.take(2)
    assert steps._distillation is not None
    assert steps._distillation.seconds > 0


def test_a_teacher_that_does_not_fit_is_a_fault_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    job = make_job(tmp_path, distil={"teacher": path, "outputs": 1.0})
    with pytest.raises(SettingError, match=r"distil\.teacher=.*none\.safetensors: "):
        find_batch(job, images=40, class_names=NAMES)


def test_a_number_is_chosen_once_for_a_training(tmp_path: Path) -> None:
    asked: list[str] = []

    def choose(job: TrainJob) -> BatchChoice:
        asked.append(job.fingerprint)
        return BatchChoice(8 * len(asked), "as a test says")

    job = make_job(tmp_path)
    first, note = settle_batch(job, choose)
    again, silence = settle_batch(job, choose)
    assert (note, silence) == ("batch_size=auto is 8: as a test says", "")
    assert first == again
    assert first.fingerprint == make_job(tmp_path, batch_size=8).fingerprint  # as if the number had been stated
    assert first.fingerprint != job.fingerprint
    other, _ = settle_batch(make_job(tmp_path, image_size=96), choose)
    assert (other.settings.batch_size, len(asked)) == (16, 2)
    assert settle_batch(job, choose) == (first, "")  # another training in the same folder changes nothing
    record = json.loads((tmp_path / "run.batch.json").read_text())
    assert [entry["batch_size"] for entry in record.values()] == [8, 16]
    assert set(record).isdisjoint({first.fingerprint, other.fingerprint})
    stated, _ = settle_batch(first, choose)
    assert stated is first


def test_more_epochs_keep_the_number(tmp_path: Path) -> None:
    first, _ = settle_batch(make_job(tmp_path), lambda _: BatchChoice(8, "as a test says"))
    longer, note = settle_batch(make_job(tmp_path, epochs=3), lambda _: BatchChoice(4, "of another moment"))
    assert (longer.settings.epochs, longer.settings.batch_size, note) == (3, first.settings.batch_size, "")
    assert longer.fingerprint == make_job(tmp_path, epochs=3, batch_size=8).fingerprint


def test_a_number_of_an_earlier_version_is_found_and_kept_for_more_epochs(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    (tmp_path / "run.batch.json").write_text(json.dumps({job.fingerprint: {"batch_size": 8, "reason": "of old"}}))
    for again in (job, make_job(tmp_path, epochs=3)):
        settled, note = settle_batch(again, lambda _: BatchChoice(4, "of another moment"))
        assert (settled.settings.batch_size, note) == (8, "")


def test_auto_is_written_as_a_word_and_read_again() -> None:
    settings = TrainSettings.model_validate({"batch_size": "auto"})
    assert settings.batch_size == AUTO_BATCH
    assert settings.model_dump(mode="json")["batch_size"] == "auto"
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings
    assert with_batch(settings, 4) == TrainSettings(batch_size=4)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        TrainSettings.model_validate({"batch_size": 0})


def test_the_memory_of_the_process_that_starts_the_measurement_does_not_count() -> None:
    np.ones(192 << 20)  # 1.5 GiB, which count as a peak of this process
    code = "import torch; from yolov7.training.auto_batch import _peak_memory; print(_peak_memory(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1 << 30
