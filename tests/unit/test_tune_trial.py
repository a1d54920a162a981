"""Trials on real, small data: what they report, when they end, what they prove; and the driver between them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.params import TuneSettings
from pipeline.tuning.budget.amount import Budget
from pipeline.tuning.budget.plan import Ledger, Plan
from pipeline.tuning.search.search import Search, Trial
from pipeline.tuning.search.space import Candidate
from pipeline.tuning.trial.driver import ERROR, STOP, Clock, Driver, trial_folder
from pipeline.tuning.trial.journal import Journal
from pipeline.tuning.trial.training import TrialTask, begin_with, probe, prove, read_steps, train_trial
from tests.unit.data_files import make_index
from yolov7.data.index import save_index
from yolov7.nn.cost import spec_cost
from yolov7.settings import TrainSettings
from yolov7.spec.spec_files import resolve_spec, spec_to_json
from yolov7.training.checkpoint import load_checkpoint
from yolov7.training.job import TrainJob
from yolov7.training.loop import WEIGHTS
from yolov7.training.worker import Worker
from yolov7.weights.weight_files import load_weights

WORKER = Worker(device=torch.device("cpu"))
PLAN = Plan(epochs=2, train_images=6, val_images=2, batch_size=4, at_once=1)
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
        settings=TrainSettings.model_validate({**QUICK, **changes}),
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
    """A driver as the command makes it: with all that the journal tells."""
    folder.mkdir(exist_ok=True)
    ledger, journal = Ledger(budget, PLAN), Journal(folder)
    settings = TuneSettings(rules=("width",), strata=1, sampler="random")
    search = Search(models, settings, full_compute=PLAN.compute)
    if journal.exists():
        journal.replay(search, {candidate.key: candidate for candidate in models})
    else:
        journal.begin({})
    return Driver(
        search,
        ledger,
        journal,
        folder=folder,
        clock=Clock(time.time(), before=journal.seconds()),
        make_job=lambda candidate: make_job(candidate, data, folder, **job),
        warm_start=False,
        on_end=lambda trial: None,
    )


def run_one(driver: Driver) -> Trial | None:
    """One trial in this process, as a process of Ray's would."""
    found = driver.next_task()
    if found is None:
        return None
    key, task = found
    train_trial(task, WORKER, report=lambda line: driver.report(key, line))
    driver.end(key)
    return driver.search.trials[key]


def test_a_trial_reports_every_validated_epoch_and_what_it_did_for_it(
    models: tuple[Candidate, ...], data: Path, tmp_path: Path
) -> None:
    job = make_job(models[0], data, tmp_path)
    lines = train(TrialTask(job=job, stop_file=tmp_path / STOP, most_steps=4))
    assert [(line["epoch"], line["steps"]) for line in lines] == [(1, 2), (2, 4)]
    assert all(0 <= line["AP"] <= 1 for line in lines)
    assert read_steps(job.run_folder) == 4
    assert prove(models[0], job) == ""


def test_a_model_that_is_not_the_sampled_one_is_told(models: tuple[Candidate, ...], data: Path, tmp_path: Path) -> None:
    job = make_job(models[0], data, tmp_path)
    train(TrialTask(job=job, stop_file=tmp_path / STOP, most_steps=4))
    assert "spec was sampled as" in prove(models[1], job)
    longer = job.model_copy(update={"settings": job.settings.model_copy(update={"epochs": 3})})
    assert "was sampled as" in prove(models[0], longer)
    (job.run_folder / WEIGHTS).unlink()  # as a trial leaves it that was stopped
    assert prove(models[0], job) == ""
    assert "is (" in prove(models[1], job)


def test_a_trial_ends_at_its_deadline_its_stop_file_and_its_steps(
    models: tuple[Candidate, ...], data: Path, tmp_path: Path
) -> None:
    ends = {"deadline": {"deadline": time.time() - 1}, "steps": {"most_steps": 1}, "file": {}}
    for name, end in ends.items():
        folder = tmp_path / name
        job = make_job(models[0], data, folder)
        if name == "file":
            folder.mkdir()
            (folder / STOP).touch()
        train(TrialTask(**{"job": job, "stop_file": folder / STOP, "most_steps": 4, **end}))
        assert not (job.run_folder / WEIGHTS).exists()
        assert read_steps(job.run_folder) == (2 if name == "steps" else 0)


def test_a_trial_may_begin_with_the_tensors_of_another(
    models: tuple[Candidate, ...], data: Path, tmp_path: Path
) -> None:
    donor = make_job(models[0], data, tmp_path / "donor")
    train(TrialTask(job=donor, stop_file=tmp_path / STOP, most_steps=4))
    job = make_job(models[2], data, tmp_path)
    begin_with(job, donor.run_folder / WEIGHTS, WORKER)
    given = load_weights(donor.run_folder / WEIGHTS).model.state_dict()
    begun = load_checkpoint(next(job.run_folder.glob("checkpoint-*.pt")))
    shared = [name for name in given if name in begun.model and given[name].shape == begun.model[name].shape]
    assert 0 < len(shared) < len(given)
    for state in (begun.model, begun.ema):
        assert all(torch.equal(state[name], given[name]) for name in shared)
    assert train(TrialTask(job=job, stop_file=tmp_path / STOP, most_steps=4))[-1]["epoch"] == 2
    assert prove(models[2], job) == ""


def test_a_probe_says_what_a_step_takes_and_leaves_nothing(
    models: tuple[Candidate, ...], data: Path, tmp_path: Path
) -> None:
    job = make_job(models[0], data, tmp_path, epochs=9)
    found = probe(job, WORKER, training_gflops=2.0, began=time.time())
    assert found.training_gflops == 2.0
    assert 0 < found.per_image < 10
    assert not job.run_folder.exists()


def test_a_search_runs_each_model_once_and_ends(models: tuple[Candidate, ...], data: Path, tmp_path: Path) -> None:
    driver = make_driver(models, data, tmp_path, Budget("trials", 5))
    while run_one(driver):
        pass
    assert {trial.status for trial in driver.trials} == {"complete"}
    assert sorted(driver.search.trials) == sorted(candidate.key for candidate in models)
    spent = driver.ledger.spent(driver.trials, seconds=0)
    assert spent == 3
    for trial in driver.trials:
        assert trial.compute == pytest.approx(3e9 * trial.candidate.training_gflops * 12)
        assert not list(trial_folder(tmp_path, trial.candidate.key).glob("checkpoint-*"))


def test_a_search_that_was_killed_goes_on_where_it_was(
    models: tuple[Candidate, ...], data: Path, tmp_path: Path
) -> None:
    budget = Budget("trials", 3)
    first = make_driver(models, data, tmp_path, budget)
    done = run_one(first)
    found = first.next_task()
    assert found is not None
    train(found[1].model_copy(update={"most_steps": 2}))  # killed in the second epoch, before anything was told
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


def test_compute_that_an_interruption_lost_counts(models: tuple[Candidate, ...], data: Path, tmp_path: Path) -> None:
    budget = Budget("flop", 1.2 * PLAN.compute(models[-1]))
    first = make_driver(models[-1:], data, tmp_path, budget)
    found = first.next_task()
    assert found is not None
    job = found[1].job
    train(found[1].model_copy(update={"most_steps": 3}))
    for path in job.run_folder.glob("checkpoint-*.pt"):
        path.unlink()  # all that was done is lost
    again = make_driver(models[-1:], data, tmp_path, budget)
    assert run_one(again) is None  # the rest is not enough for all of it
    assert again.trials[0].status == "cut"
    assert again.ledger.spent(again.trials, seconds=0) == pytest.approx(PLAN.compute(models[-1]))


def test_an_interrupted_search_ends_no_trial(models: tuple[Candidate, ...], data: Path, tmp_path: Path) -> None:
    driver = make_driver(models, data, tmp_path, Budget("trials", 3))
    found = driver.next_task()
    assert found is not None
    driver.interrupted = True
    driver.end(found[0])
    assert driver.next_task() is None
    assert [trial.status for trial in make_driver(models, data, tmp_path, Budget("trials", 3)).trials] == ["running"]


def test_trials_that_fail_one_after_the_other_end_the_search(
    models: tuple[Candidate, ...], data: Path, tmp_path: Path
) -> None:
    driver = make_driver(models, data, tmp_path, Budget("trials", 9))
    for _ in range(3):
        found = driver.next_task()
        assert found is not None
        key, task = found
        task.job.run_folder.mkdir(parents=True)
        (task.job.run_folder / ERROR).write_text("the disk is full")
        driver.end(key)
    assert driver.next_task() is None
    with pytest.raises(ValueError, match="3 trials failed one after the other; the last one: the disk is full"):
        driver.check()
