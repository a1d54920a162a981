"""The command `yolov7 tune`: plan a search, run it, and write its results."""

from __future__ import annotations

import dataclasses
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager

import psutil

from pipeline.artifacts.files import stage_folder, stage_lock, whole_folder
from pipeline.console import console, stage_line
from pipeline.experiment import Experiment
from pipeline.params import RaySettings
from pipeline.ray.cluster import connect
from pipeline.tune_settings import TuneSettings
from pipeline.tuning.budget.costs import JsonCache, within_latency
from pipeline.tuning.budget.plan import (
    BudgetAccount,
    Speed,
    SpeedSample,
    TrialPlan,
    check_fits,
    choose_epochs,
    fit_speed,
)
from pipeline.tuning.report.messages import plan_lines, result_lines, trial_line, used_text
from pipeline.tuning.report.results import fit_by_rule, write_results
from pipeline.tuning.report.tracked import TrackedSearch, track_search
from pipeline.tuning.report.train_results import PICTURE, find_importance, write_train_results
from pipeline.tuning.search.search import Search, Trial, split_strata
from pipeline.tuning.setup import FOLDER, Setup, check_resume, make_setup
from pipeline.tuning.trial import ray_tune
from pipeline.tuning.trial.driver import Clock, Driver, delete_search
from pipeline.tuning.trial.journal import Journal
from pipeline.tuning.trial.resources import TrialResources
from yolov7.errors import counted


def run_tune(experiment: Experiment, settings: TuneSettings, *, resume: bool) -> None:
    """Search for the best model, or the best settings of its training, within the budget.

    The time of the budget starts with this process.

    Args:
        experiment: The resolved content of params.yaml.
        settings: The settings `tune` with the options of the command.
        resume: Whether to continue an interrupted search.

    Raises:
        UserError: If the search cannot start or cannot continue.
        KeyboardInterrupt: After SIGINT, SIGTERM, or the death of the `dvc` process that runs this command.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same as Ctrl-C
    began = psutil.Process().create_time()
    with stage_lock("tune"):
        console.print(stage_line("tune", settings.base or "", "drawing candidates and counting their cost"))
        setup = make_setup(experiment, settings)
        journal = Journal(FOLDER)
        check_resume(setup, journal, resume=resume)
        clock = Clock(began, before=journal.seconds())
        ray_tune.set_environment()
        with _started_cluster():
            resources = ray_tune.cluster_resources(trials_per_gpu=settings.trials_per_gpu)
            setup = _apply_latency_cap(setup, resources)
            account = _make_account(setup, journal, resources, clock)
            with track_search(experiment.tracking.experiment, setup, epochs=account.plan.epochs) as tracked:
                driver = _make_driver(setup, account, journal, resources=resources, clock=clock, tracked=tracked)
                _say(setup, *plan_lines(setup, driver.search, account, seconds=clock.seconds()))

                def tick() -> None:
                    journal.note_seconds(clock.seconds())

                _train(driver, setup, resources=resources, max_failures=experiment.ray.max_failures, on_tick=tick)
                _finish(setup, driver, journal=journal, tracked=tracked)
        delete_search(FOLDER)  # last, so that a kill before this line loses no trial


@contextmanager
def _started_cluster() -> Iterator[None]:
    """Connect to Ray from a thread of its own, so that a signal never interrupts its start half-way.

    In the main thread Ray would handle SIGTERM by itself during its start, and the signal could be lost or leave
    processes. The thread runs until Ray is shut down, because Ray's processes end with the thread that starts them.
    """
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        started = pool.submit(stack.enter_context, connect(RaySettings()))
        try:
            started.result()
        finally:
            wait([started])  # after a signal too, because only a cluster that has started can be shut down
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has replaced the handler
        yield


def _apply_latency_cap(setup: Setup, resources: TrialResources) -> Setup:
    """Measure the latency of each model once per device while nothing else runs, and leave out slow models."""
    cap = setup.settings.max_latency_ms
    if cap is None:
        return setup
    cache, num_classes = JsonCache("latency"), len(setup.data.class_names)
    device = ray_tune.name_device(resources)
    names = {candidate.key: f"{candidate.key}-{num_classes} {device}" for candidate in setup.candidates}
    missing = [candidate for candidate in setup.candidates if names[candidate.key] not in cache.values]
    if missing:
        models = [(candidate.spec_json, candidate.image_size) for candidate in missing]
        measured = ray_tune.sample_latency(models, resources, num_classes=num_classes)
        cache.values |= {names[c.key]: value for c, value in zip(missing, measured, strict=True)}
        cache.save()
    latency_ms = {key: float(cache.values[name]) for key, name in names.items()}
    kept = within_latency(setup.candidates, latency_ms, max_latency_ms=cap)
    return dataclasses.replace(setup, candidates=kept, excluded=setup.excluded + len(setup.candidates) - len(kept))


def _make_account(setup: Setup, journal: Journal, resources: TrialResources, clock: Clock) -> BudgetAccount:
    """Return the plan of the interrupted search, or a new one; trainings are measured if the budget is a time."""
    if journal.exists():
        header = journal.header()
        samples = [SpeedSample(*values) for values in header["speed"]]
        speed = fit_speed(samples) if samples else None
        return BudgetAccount(setup.budget, _plan(setup, resources, epochs=header["epochs"], speed=speed))
    strata = split_strata(setup.candidates, setup.settings.strata)
    fixed = setup.settings.epochs
    plan = _plan(setup, resources, epochs=fixed or setup.base_job.settings.epochs, speed=None)
    samples = _sample_speed(setup, plan, resources) if setup.budget.kind == "seconds" else []
    speed = fit_speed(samples) if samples else None
    account = BudgetAccount(setup.budget, dataclasses.replace(plan, speed=speed))
    if fixed:
        check_fits(account, strata, seconds=clock.seconds())
    else:
        account = choose_epochs(account, strata, trials=setup.settings.trials, seconds=clock.seconds())
    speed_values = [list(sample) for sample in samples]
    journal.begin({"search": setup.describe(), "epochs": account.plan.epochs, "speed": speed_values})
    return account


def _plan(setup: Setup, resources: TrialResources, *, epochs: int, speed: Speed | None) -> TrialPlan:
    return TrialPlan(
        epochs=epochs,
        train_images=setup.data.splits["train"],
        val_images=setup.data.splits["val"],
        batch_size=setup.base_job.settings.batch_size,
        concurrent_trials=resources.concurrent_trials,
        speed=speed,
    )


def _sample_speed(setup: Setup, plan: TrialPlan, resources: TrialResources) -> list[SpeedSample]:
    """Measure the cheapest and the most expensive model side by side."""
    ordered = sorted(setup.candidates, key=lambda candidate: candidate.training_gflops)
    folder, jobs = (FOLDER / "speed").resolve(), []
    for name, candidate in (("cheap", ordered[0]), ("expensive", ordered[-1])):
        job = setup.trial_job(candidate, plan, loader_workers=resources.loader_workers)
        jobs.append((job.model_copy(update={"run_folder": folder / name}), candidate.training_gflops))
    try:
        return ray_tune.sample_speed(jobs, resources)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_driver(
    setup: Setup,
    account: BudgetAccount,
    journal: Journal,
    *,
    resources: TrialResources,
    clock: Clock,
    tracked: TrackedSearch,
) -> Driver:
    """Return the driver of a search whose journal has been replayed."""
    search = Search(setup.candidates, setup.settings, full_compute=account.plan.compute)
    journal.replay(search, {candidate.key: candidate for candidate in setup.candidates})

    def on_end(trial: Trial) -> None:
        trials = tuple(search.trials.values())
        ended = sum(other.status != "running" for other in trials)
        _say(setup, trial_line(trial, ended=ended, used=used_text(account, trials, seconds=clock.seconds())))
        tracked.log_trial(trial)

    return Driver(
        search,
        account,
        journal,
        folder=FOLDER,
        clock=clock,
        make_job=lambda c: setup.trial_job(c, account.plan, loader_workers=resources.loader_workers),
        warm_start=setup.settings.warm_start and setup.settings.space == "scaling",
        on_end=on_end,
    )


def _train(
    driver: Driver, setup: Setup, *, resources: TrialResources, max_failures: int, on_tick: Callable[[], None]
) -> None:
    try:
        ray_tune.run_trials(driver, resources, folder=FOLDER, max_failures=max_failures, on_tick=on_tick)
    except KeyboardInterrupt:
        _say(setup, f"{counted(len(driver.trials), 'trial')} so far; continue with `{setup.resume_command()}`")
        raise
    driver.check()


def _finish(setup: Setup, driver: Driver, *, journal: Journal, tracked: TrackedSearch) -> None:
    """Write, track and print the results."""
    account, trials, seconds = driver.account, driver.trials, driver.clock.seconds()
    summary = {
        "space": setup.settings.space,
        "base": setup.base_name,
        "declared": dict(setup.declared),
        "budget": setup.settings.budget,
        "spent": account.spent(trials, seconds=seconds),
        "seconds": seconds,
        "seed": setup.settings.seed,
        "epochs": account.plan.epochs,
        "models": len(setup.candidates),
        "excluded": setup.excluded,
        "train": dict(setup.overrides),
    }
    folder, rules, is_train = stage_folder("tune"), setup.settings.rules, setup.settings.space == "train"
    importance, fits = (find_importance(trials), {}) if is_train else ({}, fit_by_rule(trials, rules))
    with whole_folder(folder) as draft:
        if is_train:
            write_train_results(
                draft,
                trials,
                ranges=setup.ranges,
                importance=importance,
                summary=summary,
                journal=journal.path,
            )
        else:
            write_results(draft, trials, rules=rules, summary=summary, journal=journal.path)
    tracked.log_results(folder, trials)
    used = used_text(account, trials, seconds=driver.clock.seconds())
    _say(setup, *result_lines(trials, fits=fits, importance=importance, used=used))
    picture = PICTURE if is_train else "scaling.png"
    console.print(
        f"table and plot: {folder}/trials.csv, {folder}/{picture}; next: `yolov7 tune --adopt`, then `dvc repro`"
    )


def _say(setup: Setup, *lines: str) -> None:
    for line in lines:
        console.print(stage_line("tune", setup.base_name, line))
