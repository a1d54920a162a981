"""Trials on small real data: what they report, when they end, how their model is checked; and their driver."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.tune_settings import TuneSettings
from pipeline.tuning.budget.amount import Budget
from pipeline.tuning.budget.plan import BudgetAccount, TrialPlan
from pipeline.tuning.search.search import Search, Trial
from pipeline.tuning.search.space import Candidate
from pipeline.tuning.search.train_space import with_values
from pipeline.tuning.trial.check import find_mismatch
from pipeline.tuning.trial.driver import ERROR_FILE, STOP_FILE, Clock, Driver, trial_folder
from pipeline.tuning.trial.journal import Journal
from pipeline.tuning.trial.training import (
    TrialTask,
    measure_speed,
    read_steps,
    start_from_weights,
    train_trial,
)
from tests.unit.data_files import make_index
from yolov7.data.index import save_index
from yolov7.errors import TrainingError
from yolov7.nn.cost import spec_cost
from yolov7.settings import TrainSettings
from yolov7.spec.spec_files import resolve_spec, spec_to_json
from yolov7.training.checkpoint import load_checkpoint
from yolov7.training.job import TrainJob
from yolov7.training.loop import WEIGHTS
from yolov7.training.record import read_epochs
from yolov7.training.worker import Worker
from yolov7.weights.weight_files import load_weights

WORKER = Worker(device=torch.device("cpu"))
PLAN = TrialPlan(epochs=2, train_images=6, val_images=2, batch_size=4, concurrent_trials=1)
QUICK = {"epochs": 2, "batch_size": 4, "image_size": 64, "precision": "float32", "optim": {"nominal_batch": 8}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    for split, count in (("train", 6), ("val", 2)):
        save_index(folder / f"{split}.npz", make_index(folder / split, count=count))
    return folder


@pytest.fixture(scope="module")
def models() -> tuple[Candidate, ...]:
    return tuple(make_model(width) for width in (0.2, 0.25, 0.3))


def make_model(width: float) -> Candidate:
    small = {"base": "nano", "image_size": 64, "scale": {"rule": "width", "width": width}}
    spec = resolve_spec(small, name="small")
    cost = spec_cost(spec, num_classes=2, image_size=64)
    return Candidate(
        key=f"{round(1000 * width):08x}",
        label=f"width {width}",
        rules=("width",),
        spec_json=spec_to_json(spec),
        image_size=64,
        auxiliary=False,
        features=(("width", width),),
        gflops=cost.gflops_with_bias,
        training_gflops=cost.gflops_built,
        parameters=cost.parameters,
        parameters_deployed=cost.parameters_deployed,
    )


def make_job(candidate: Candidate, data: Path, folder: Path, **changes: Any) -> TrainJob:
    return TrainJob(
        spec_json=candidate.spec_json,
        settings=with_values(TrainSettings.model_validate({**QUICK, **changes}), dict(candidate.train)),
        seed=0,
        data_folder=data,
        data_hash="the same",
        run_folder=trial_folder(folder, candidate.key),
    )


def train(task: TrialTask) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    train_trial(task, WORKER, report=lines.append)
    return lines


def make_driver(models: tuple[Candidate, ...], data: Path, folder: Path, budget: Budget, **job: Any) -> Driver:
    """A driver as the command makes it: with the trials of the journal."""
    folder.mkdir(exist_ok=True)
    account, journal = BudgetAccount(budget, PLAN), Journal(folder)
    settings = TuneSettings(rules=("width",), strata=1, sampler="random")
    search = Search(models, settings, full_compute=PLAN.compute)
    if journal.exists():
        journal.replay(search, {candidate.key: candidate for candidate in models})
    else:
        journal.begin({})
    return Driver(
        search,
        account,
        journal,
        folder=folder,
        clock=Clock(time.time(), before=journal.seconds()),
        make_job=lambda candidate: make_job(candidate, data, folder, **job),
        warm_start=False,
        on_end=lambda trial: None,
    )


def run_one(driver: Driver) -> Trial | None:
    """Train one trial in this process, as a process of Ray would."""
    found = driver.next_task()
    if found is None:
        return None
    key, task = found
    train_trial(task, WORKER, report=lambda line: driver.report(key, line))
    driver.end(key)
    return driver.search.trials[key]


def test_a_trial_reports_every_validated_epoch_with_its_steps(
    models: tuple[Candidate, ...], data: Path, tmp_path: Path
) -> None:
    job = make_job(models[0], data, tmp_path)
    lines = train(TrialTask(job=job, stop_file=tmp_path / STOP_FILE, max_steps=4))
    assert [(line["epoch"], line["steps"]) for line in lines] == [(1, 2), (2, 4)]
    assert all(0 <= line["AP"] <= 1 for line in lines)
    assert read_steps(job.run_folder) == 4
    assert find_mismatch(models[0], job) == ""


def test_a_trained_model_that_differs_from_the_sampled_one_is_found(
    models: tuple[Candidate, ...], data: Path, tmp_path: Path
) -> None:
    job = make_job(models[0], data, tmp_path)
    train(TrialTask(job=job, stop_file=tmp_path / STOP_FILE, max_steps=4))
    assert "the trained spec differs from the sampled one (rows: " in find_mismatch(models[1], job)
    longer = job.model_copy(update={"settings": job.settings.model_copy(update={"epochs": 3})})
    assert "fingerprint of the sampled model is" in find_mismatch(models[0], longer)
    (job.run_folder / WEIGHTS).unlink()  # as if the trial had been stopped
    assert find_mismatch(models[0], job) == ""
    assert "is (" in find_mismatch(models[1], job)


def test_sampled_settings_take_effect_and_are_read_back(
    models: tuple[Candidate, ...], data: Path, tmp_path: Path
) -> None:
    values = [{"optim.lr0": 0.01, "loss.box": 0.05}, {"optim.lr0": 0.001, "loss.box": 0.5}]
    sampled = tuple(
        replace(models[0], key=f"{i:08x}", rules=(), train=tuple(one.items())) for i, one in enumerate(values)
    )
    driver = make_driver(sampled, data, tmp_path, Budget("trials", 2))
    while run_one(driver):
        pass
    first_lines = {}
    for trial in driver.trials:
        assert (trial.status, trial.error) == ("complete", "")
        assert trial.trained == dict(trial.candidate.train)
        first_lines[trial.candidate.key] = read_epochs(trial_folder(tmp_path, trial.candidate.key))[0]
    one, other = (first_lines[candidate.key] for candidate in sampled)
    assert one["lr"] == pytest.approx(10 * other["lr"])
    assert other["box"] > 5 * one["box"]
    again = make_driver(sampled, data, tmp_path, Budget("trials", 2))
    assert again.trials == driver.trials  # the journal has the settings that were read back


def test_a_trial_that_did_not_train_with_the_sampled_settings_fails(
    models: tuple[Candidate, ...], data: Path, tmp_path: Path
) -> None:
    sampled = replace(models[0], train=(("optim.lr0", 0.02),))
    job = make_job(models[0], data, tmp_path)  # in the same folder, with the stated settings
    train(TrialTask(job=job, stop_file=tmp_path / STOP_FILE, max_steps=4))
    wrong = "optim.lr0 of the sampled settings is 0.02, but 0.01 was trained"
    assert find_mismatch(sampled, make_job(sampled, data, tmp_path)) == wrong
    assert find_mismatch(sampled, job) == wrong  # even if the driver forgets the settings too
    record = job.run_folder / "settings.json"
    record.write_text(make_job(sampled, data, tmp_path).settings.model_dump_json())
    assert "fingerprint of the sampled model is" in find_mismatch(sampled, make_job(sampled, data, tmp_path))
    (job.run_folder / WEIGHTS).unlink()  # as if the trial had been stopped
    assert "fingerprint of the sampled model is" in find_mismatch(sampled, make_job(sampled, data, tmp_path))
    record.write_text(make_job(sampled, data, tmp_path, class_balance=0.5).settings.model_dump_json())
    assert "in a setting that is not varied" in find_mismatch(sampled, make_job(sampled, data, tmp_path))
    record.unlink()
    assert find_mismatch(sampled, make_job(sampled, data, tmp_path)) == "the trial left no settings.json"


def test_a_trial_ends_at_its_deadline_its_stop_file_and_its_steps(
    models: tuple[Candidate, ...], data: Path, tmp_path: Path
) -> None:
    ends = {"deadline": {"deadline": time.time() - 1}, "steps": {"max_steps": 1}, "file": {}}
    for name, end in ends.items():
        folder = tmp_path / name
        job = make_job(models[0], data, folder)
        if name == "file":
            folder.mkdir()
            (folder / STOP_FILE).touch()
        train(TrialTask(**{"job": job, "stop_file": folder / STOP_FILE, "max_steps": 4, **end}))
        assert not (job.run_folder / WEIGHTS).exists()
        assert read_steps(job.run_folder) == (2 if name == "steps" else 0)


def test_a_trial_may_start_from_the_weights_of_another_one(
    models: tuple[Candidate, ...], data: Path, tmp_path: Path
) -> None:
    donor = make_job(models[0], data, tmp_path / "donor")
    train(TrialTask(job=donor, stop_file=tmp_path / STOP_FILE, max_steps=4))
    job = make_job(models[2], data, tmp_path)
    start_from_weights(job, donor.run_folder / WEIGHTS, WORKER)
    given = load_weights(donor.run_folder / WEIGHTS).model.state_dict()
    begun = load_checkpoint(next(job.run_folder.glob("checkpoint-*.pt")))
    shared = [name for name in given if name in begun.model and given[name].shape == begun.model[name].shape]
    assert 0 < len(shared) < len(given)
    for state in (begun.model, begun.ema):
        assert all(torch.equal(state[name], given[name]) for name in shared)
    assert train(TrialTask(job=job, stop_file=tmp_path / STOP_FILE, max_steps=4))[-1]["epoch"] == 2
    assert find_mismatch(models[2], job) == ""


def test_the_speed_of_a_training_is_measured_without_leaving_files(
    models: tuple[Candidate, ...], data: Path, tmp_path: Path
) -> None:
    job = make_job(models[0], data, tmp_path, epochs=9)
    found = measure_speed(job, WORKER, training_gflops=2.0, began=time.time())
    assert found.training_gflops == 2.0
    assert 0 < found.per_image < 10
    assert not job.run_folder.exists()


def test_the_paths_of_a_task_are_absolute(
    models: tuple[Candidate, ...], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Tune runs the process of a trial in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    found = make_driver(models, data, Path("search"), Budget("trials", 3)).next_task()
    assert found is not None
    assert found[1].stop_file == tmp_path / "search" / STOP_FILE


def test_fitted_anchors_are_no_mismatch(models: tuple[Candidate, ...], data: Path, tmp_path: Path) -> None:
    """With `anchors: fit` training changes the spec of every trial."""
    for split in ("train", "val"):
        index = make_index(tmp_path / "data" / split, count=24)
        sides = 6 + np.arange(48).reshape(24, 2)[: len(index.labels)] % 30
        boxes = np.concatenate([np.zeros_like(sides), sides], axis=1).astype(np.float32)
        save_index(tmp_path / "data" / f"{split}.npz", replace(index, boxes_xyxy=boxes))
    job = make_job(models[0], tmp_path / "data", tmp_path, anchors="fit", epochs=1)
    train(TrialTask(job=job, stop_file=tmp_path / STOP_FILE))
    trained = load_weights(job.run_folder / WEIGHTS).model.spec
    assert trained.head.anchors != job.spec.head.anchors
    assert find_mismatch(models[0], job) == ""
    unfitted = job.model_copy(update={"settings": job.settings.model_copy(update={"anchors": "spec"})})
    assert "(rows: head)" in find_mismatch(models[0], unfitted)


def test_an_early_end_by_patience_is_no_mismatch(models: tuple[Candidate, ...], data: Path, tmp_path: Path) -> None:
    settings = {"epochs": 9, "patience": 1}
    driver = make_driver(models[:1], data, tmp_path, Budget("trials", 1), **settings)
    trial = run_one(driver)
    assert trial is not None
    assert (trial.status, trial.error) == ("complete", "")
    assert len(trial.curve) < 9
    assert max(AP for _, AP in trial.curve) == trial.AP  # the weights are those of the best epoch
    assert make_driver(models[:1], data, tmp_path, Budget("trials", 1), **settings).trials == driver.trials
    job = make_job(models[0], data, tmp_path, **settings)
    record = job.run_folder / "epochs.jsonl"
    record.write_text("".join(f"{line}\n" for line in record.read_text().splitlines()[:-1]))
    assert "epochs of the sampled model is 9" in find_mismatch(models[0], job)  # patience does not explain this end


def test_a_search_runs_each_model_once_and_ends(models: tuple[Candidate, ...], data: Path, tmp_path: Path) -> None:
    driver = make_driver(models, data, tmp_path, Budget("trials", 5))
    while run_one(driver):
        pass
    assert {trial.status for trial in driver.trials} == {"complete"}
    assert sorted(driver.search.trials) == sorted(candidate.key for candidate in models)
    spent = driver.account.spent(driver.trials, seconds=0)
    assert spent == 3
    for trial in driver.trials:
        assert trial.compute == pytest.approx(3e9 * trial.candidate.training_gflops * 12)
        assert not list(trial_folder(tmp_path, trial.candidate.key).glob("checkpoint-*"))


def test_a_killed_search_continues_where_it_was(models: tuple[Candidate, ...], data: Path, tmp_path: Path) -> None:
    budget = Budget("trials", 3)
    first = make_driver(models, data, tmp_path, budget)
    done = run_one(first)
    found = first.next_task()
    assert found is not None
    train(found[1].model_copy(update={"max_steps": 2}))  # killed in the second epoch, before anything was reported
    again = make_driver(models, data, tmp_path, budget)
    assert [trial.status for trial in again.trials] == ["complete", "running"]
    resumed = run_one(again)
    assert resumed is not None
    assert resumed.candidate.key == found[0]
    assert read_steps(trial_folder(tmp_path, found[0])) >= 4
    while run_one(again):
        pass
    assert [trial.status for trial in again.trials] == ["complete"] * 3
    assert done is not None
    assert again.trials[0].curve == done.curve


def test_compute_that_an_interruption_lost_counts_as_spent(
    models: tuple[Candidate, ...], data: Path, tmp_path: Path
) -> None:
    budget = Budget("flop", 1.2 * PLAN.compute(models[-1]))
    first = make_driver(models[-1:], data, tmp_path, budget)
    found = first.next_task()
    assert found is not None
    job = found[1].job
    train(found[1].model_copy(update={"max_steps": 3}))
    for path in job.run_folder.glob("checkpoint-*.pt"):
        path.unlink()  # all work is lost
    again = make_driver(models[-1:], data, tmp_path, budget)
    assert run_one(again) is None  # the rest of the budget does not hold a whole trial
    assert again.trials[0].status == "cut"
    assert again.account.spent(again.trials, seconds=0) == pytest.approx(PLAN.compute(models[-1]))


def test_an_interrupted_search_ends_no_trial(models: tuple[Candidate, ...], data: Path, tmp_path: Path) -> None:
    driver = make_driver(models, data, tmp_path, Budget("trials", 3))
    found = driver.next_task()
    assert found is not None
    assert not driver.is_done
    driver.interrupt()
    assert found[1].stop_file.is_file()
    driver.end(found[0])
    assert driver.next_task() is None
    assert driver.is_done  # otherwise Ray Tune would ask again for ever
    assert not driver.must_stop
    assert [trial.status for trial in make_driver(models, data, tmp_path, Budget("trials", 3)).trials] == ["running"]


def test_failures_in_a_row_end_the_search(models: tuple[Candidate, ...], data: Path, tmp_path: Path) -> None:
    driver = make_driver(models, data, tmp_path, Budget("trials", 9))
    for _ in range(3):
        found = driver.next_task()
        assert found is not None
        key, task = found
        task.job.run_folder.mkdir(parents=True)
        (task.job.run_folder / ERROR_FILE).write_text("the disk is full")
        driver.end(key)
    assert driver.next_task() is None
    with pytest.raises(TrainingError, match="3 trials in a row failed; the last one: the disk is full"):
        driver.check()
