"""The command `yolov7 tune`: says what it will do, does it, and writes down what came out."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable

import psutil

from pipeline.artifacts.files import RUNS, stage_folder, stage_lock, whole_folder
from pipeline.console import console, stage_line
from pipeline.experiment import Experiment
from pipeline.params import RaySettings, TuneSettings
from pipeline.ray.cluster import connect
from pipeline.tuning.budget.costs import Caps, Remembered
from pipeline.tuning.budget.plan import Ledger, Plan, Probe, Speed, check_fits, choose_epochs, fit_speed
from pipeline.tuning.report.messages import plan_lines, result_lines, trial_line, used_text
from pipeline.tuning.report.results import fit_by_rule, write_results
from pipeline.tuning.report.tracked import TrackedSearch, track_search
from pipeline.tuning.search.search import Search, Trial, split_strata
from pipeline.tuning.setup import Setup, check_resume, make_setup
from pipeline.tuning.trial import ray_tune as ray_side
from pipeline.tuning.trial.driver import Clock, Driver, forget
from pipeline.tuning.trial.journal import Journal

FOLDER = RUNS / "tune"


def run_tune(experiment: Experiment, settings: TuneSettings, *, resume: bool) -> None:
    """Searches within the budget; the clock began with this process."""
    began = psutil.Process().create_time()
    with stage_lock("tune"):
        console.print(stage_line("tune", settings.base or "", "draws models and counts what they cost"))
        setup = make_setup(experiment, settings)
        journal = Journal(FOLDER)
        check_resume(setup, journal, folder=FOLDER, resume=resume)
        clock = Clock(began, before=journal.seconds())
        with connect(RaySettings()):
            share = ray_side.share_of_cluster(trials_per_gpu=settings.trials_per_gpu)
            setup = _without_slow(setup, share)
            ledger = _make_ledger(setup, journal, share, clock)
            with track_search(experiment.tracking.experiment, setup, epochs=ledger.plan.epochs) as tracked:
                driver = _make_driver(setup, ledger, journal, share=share, clock=clock, tracked=tracked)
                _say(setup, *plan_lines(setup, driver.search, ledger, seconds=clock.seconds()))

                def tick() -> None:
                    journal.note_seconds(clock.seconds())

                _train(driver, setup, share=share, max_failures=experiment.ray.max_failures, on_tick=tick)
                _finish(experiment, setup, driver, tracked)
        forget(FOLDER)  # last of all: until here a kill costs no trial


def _without_slow(setup: Setup, share: ray_side.Share) -> Setup:
    """Without the models above the cap on latency, which is measured now, while nothing else runs."""
    cap = setup.settings.max_latency_ms
    if cap is None:
        return setup
    latency = _latencies(setup, share)
    kept = Caps(None, None, cap).keep_fast(setup.candidates, latency)
    more = len(setup.candidates) - len(kept)
    return dataclasses.replace(setup, candidates=kept, left_out=setup.left_out + more)


def _latencies(setup: Setup, share: ray_side.Share) -> dict[str, float]:
    """Milliseconds by candidate; each model once on this device."""
    known = Remembered("latency.json")
    number = len(setup.data.class_names)
    device = ray_side.device_of(share)
    names = {candidate.key: f"{candidate.key}-{number} {device}" for candidate in setup.candidates}
    missing = set(known.missing(list(names.values())))
    new = [candidate for candidate in setup.candidates if names[candidate.key] in missing]
    if new:
        models = [(candidate.spec_json, candidate.image_size) for candidate in new]
        measured = ray_side.run_latency(models, share, num_classes=number)
        known.put({names[candidate.key]: value for candidate, value in zip(new, measured, strict=True)})
        known.save()
    return {key: float(known.get(name, lambda: None)) for key, name in names.items()}


def _make_ledger(setup: Setup, journal: Journal, share: ray_side.Share, clock: Clock) -> Ledger:
    """The plan of the interrupted search, or a new one, from probes where the budget is a time."""
    if journal.exists():
        header = journal.header()
        speed = fit_speed([Probe(*values) for values in header["probes"]]) if header["probes"] else None
        plan = _plan(setup, share, epochs=header["epochs"], speed=speed)
        return Ledger(setup.budget, plan)
    strata = split_strata(setup.candidates, setup.settings.strata)
    fixed = setup.settings.epochs
    plan = _plan(setup, share, epochs=fixed or setup.train.epochs, speed=None)
    probes = _probe(setup, plan, share) if setup.budget.kind == "seconds" else []
    ledger = Ledger(setup.budget, dataclasses.replace(plan, speed=fit_speed(probes) if probes else None))
    if fixed:
        check_fits(ledger, strata, seconds=clock.seconds())
    else:
        ledger = choose_epochs(ledger, strata, trials=setup.settings.trials, seconds=clock.seconds())
    journal.begin({"search": setup.describe(), "epochs": ledger.plan.epochs, "probes": [list(p) for p in probes]})
    return ledger


def _plan(setup: Setup, share: ray_side.Share, *, epochs: int, speed: Speed | None) -> Plan:
    splits = setup.data.splits
    return Plan(
        epochs=epochs,
        train_images=splits["train"],
        val_images=splits["val"],
        batch_size=setup.train.batch_size,
        at_once=share.at_once,
        speed=speed,
    )


def _probe(setup: Setup, plan: Plan, share: ray_side.Share) -> list[Probe]:
    """Of the cheapest and of the dearest model, side by side."""
    ordered = sorted(setup.candidates, key=lambda candidate: candidate.training_gflops)
    folder = FOLDER.with_name(f"{FOLDER.name}-probe")
    chosen = (ordered[0], ordered[-1])
    jobs = [setup.job(c, plan, folder=folder, loader_workers=share.loader_workers) for c in chosen]
    jobs = [job.model_copy(update={"run_folder": job.run_folder.with_name(str(i))}) for i, job in enumerate(jobs)]
    try:
        return ray_side.run_probes([(job, c.training_gflops) for job, c in zip(jobs, chosen, strict=True)], share)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_driver(
    setup: Setup, ledger: Ledger, journal: Journal, *, share: ray_side.Share, clock: Clock, tracked: TrackedSearch
) -> Driver:
    """The search as its journal has it, ready to go on."""
    search = Search(setup.candidates, setup.settings, full_compute=ledger.plan.compute)
    journal.replay(search, {candidate.key: candidate for candidate in setup.candidates})

    def on_end(trial: Trial) -> None:
        trials = tuple(search.trials.values())
        ended = sum(other.status != "running" for other in trials)
        _say(setup, trial_line(trial, ended=ended, used=used_text(ledger, trials, seconds=clock.seconds())))
        tracked.log_trial(trial)

    return Driver(
        search,
        ledger,
        journal,
        folder=FOLDER,
        clock=clock,
        make_job=lambda c: setup.job(c, ledger.plan, folder=FOLDER, loader_workers=share.loader_workers),
        warm_start=setup.settings.warm_start,
        on_end=on_end,
    )


def _train(
    driver: Driver, setup: Setup, *, share: ray_side.Share, max_failures: int, on_tick: Callable[[], None]
) -> None:
    """Runs the trials; ValueError where they fail one after the other."""
    try:
        ray_side.run_trials(driver, share, folder=FOLDER, max_failures=max_failures, on_tick=on_tick)
    except KeyboardInterrupt:
        _say(setup, f"{len(driver.trials)} trials so far; `yolov7 tune --resume` goes on with them")
        raise
    driver.check()


def _finish(experiment: Experiment, setup: Setup, driver: Driver, tracked: TrackedSearch) -> None:
    """Writes the results, and says what they are."""
    ledger, trials, seconds = driver.ledger, driver.trials, driver.clock.seconds()
    summary = {
        "base": setup.base_name,
        "budget": setup.settings.budget,
        "spent": ledger.spent(trials, seconds=seconds),
        "seconds": seconds,
        "seed": setup.settings.seed,
        "epochs": ledger.plan.epochs,
        "models": len(setup.candidates),
        "left_out": setup.left_out,
        "train": dict(setup.overrides),
    }
    folder, rules = stage_folder("tune"), setup.settings.rules
    with whole_folder(folder) as draft:
        chosen = write_results(draft, trials, rules=rules, summary=summary, journal=FOLDER / "journal.jsonl")
    tracked.log_results(folder, trials)
    used = used_text(ledger, trials, seconds=driver.clock.seconds())
    _say(setup, *result_lines(trials, fits=fit_by_rule(trials, rules), chosen=chosen, used=used))
    console.print(f"Table and plot: {folder}/trials.csv, {folder}/scaling.png   Next: yolov7 tune --adopt, dvc repro")


def _say(setup: Setup, *lines: str) -> None:
    for line in lines:
        console.print(stage_line("tune", setup.base_name, line))
