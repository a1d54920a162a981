"""The command `yolov7 tune`: says what it will do, does it, and writes down what came out."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from typing import Any

import psutil

from pipeline import tune as ray_side
from pipeline.artifacts import RUNS, stage_folder, stage_lock, whole_folder
from pipeline.distributed import cluster
from pipeline.params import Params, RayTrainSettings, TuneSettings
from pipeline.progress import console, stage_line
from pipeline.tracking import RunKey, TrackedRun, Tracker
from pipeline.tuning.budget import show_amount
from pipeline.tuning.costs import Caps, Remembered
from pipeline.tuning.driver import Clock, Driver, forget
from pipeline.tuning.journal import Journal
from pipeline.tuning.plan import Ledger, Plan, Probe, check_fits, choose_epochs, fit_speed
from pipeline.tuning.results import fit_by_rule, write_results
from pipeline.tuning.search import Search, Trial, split_strata
from pipeline.tuning.setup import Setup, make_setup

FOLDER = RUNS / "tune"
_PROBES = "probe"


def run_tune(params: Params, settings: TuneSettings, *, resume: bool) -> None:
    """Searches within the budget; the clock began with this process."""
    began = psutil.Process().create_time()
    with stage_lock("tune"):
        console.print(stage_line("tune", settings.base or "", "draws models and counts what they cost"))
        setup = make_setup(params, settings)
        journal = Journal(FOLDER)
        _check_resume(setup, journal, resume=resume)
        clock = Clock(began, before=journal.seconds())
        with cluster(RayTrainSettings()):
            share = ray_side.share_of_cluster(trials_per_gpu=settings.trials_per_gpu)
            setup = _without_slow(setup, share)
            ledger = _make_ledger(setup, journal, share, clock)
            search = Search(setup.candidates, settings, full_compute=ledger.plan.compute)
            _print_plan(setup, search, ledger, clock)
            _run(params, setup, search, ledger, journal, share=share, clock=clock)
        forget(FOLDER)  # last of all: until here a kill costs no trial


def _check_resume(setup: Setup, journal: Journal, *, resume: bool) -> None:
    """ValueError where a search was interrupted here that this command would not go on with."""
    if not journal.exists():
        return
    if not resume:
        raise ValueError(
            f"a search was interrupted here ({show_amount('seconds', journal.seconds())} used); "
            f"`yolov7 tune --resume` goes on with it, `rm -r {FOLDER}` forgets it"
        )
    before, now = journal.header()["search"], setup.describe()
    if before != now:
        changed = [name for name in now if before.get(name) != now[name] and name != "fingerprint"]
        what = f"{changed[0]} was {before.get(changed[0])}" if changed else "the base or its training was another"
        raise ValueError(
            f"the search that was interrupted here is another: {what}; "
            f"give the same options, or `rm -r {FOLDER}` to forget it"
        )


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


def _plan(setup: Setup, share: ray_side.Share, *, epochs: int, speed: Any) -> Plan:
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
    folder = FOLDER.with_name(f"{FOLDER.name}-{_PROBES}")
    chosen = (ordered[0], ordered[-1])
    jobs = [setup.job(c, plan, folder=folder, loader_workers=share.loader_workers) for c in chosen]
    jobs = [job.model_copy(update={"run_folder": job.run_folder.with_name(str(i))}) for i, job in enumerate(jobs)]
    try:
        return ray_side.run_probes([(job, c.training_gflops) for job, c in zip(jobs, chosen, strict=True)], share)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _print_plan(setup: Setup, search: Search, ledger: Ledger, clock: Clock) -> None:
    plan = ledger.plan
    number = ledger.expected_trials(search.strata, seconds=clock.seconds())
    low, high = (pick(c.gflops for c in setup.candidates) for pick in (min, max))
    _say(
        setup,
        f"budget {setup.budget}: about {number} trials of {plan.epochs} epochs, {plan.at_once} at a time, "
        f"out of {len(setup.candidates)} models in {len(search.strata)} strata from {low:.3g} to {high:.3g} GFLOPs",
    )
    affordable = [c for c in setup.candidates if ledger.affords(c, (), seconds=clock.seconds())]
    largest = max(affordable or setup.candidates, key=lambda candidate: candidate.gflops)
    takes = f", about {show_amount('seconds', plan.seconds(largest))}" if plan.speed else ""
    left_out = f"; {setup.left_out} models above the caps are left out" if setup.left_out else ""
    _say(
        setup,
        f"the largest is {largest.label}: {largest.gflops:.3g} GFLOPs, {largest.parameters_deployed / 1e6:.3g} M "
        f"parameters, {plan.compute(largest):.2g} flop of training{takes}{left_out}",
    )


def _run(
    params: Params,
    setup: Setup,
    search: Search,
    ledger: Ledger,
    journal: Journal,
    *,
    share: ray_side.Share,
    clock: Clock,
) -> None:
    journal.replay(search, {candidate.key: candidate for candidate in setup.candidates})
    tracker = Tracker(f"{params.tracking.experiment}-tune")
    key = RunKey(variant=f"tune {setup.base_name}", seed=setup.settings.seed, fingerprint=setup.fingerprint)
    with tracker.run(key) as parent:
        parent.log_params(setup.settings.model_dump() | {"base": setup.base_name, "epochs": ledger.plan.epochs})

        def on_end(trial: Trial) -> None:
            _say(setup, _trial_text(trial, search, ledger, clock))
            _track(tracker, parent, trial, setup=setup)

        driver = Driver(
            search,
            ledger,
            journal,
            folder=FOLDER,
            clock=clock,
            make_job=lambda c: setup.job(c, ledger.plan, folder=FOLDER, loader_workers=share.loader_workers),
            warm_start=setup.settings.warm_start,
            on_end=on_end,
        )
        try:
            ray_side.run_trials(
                driver,
                share,
                folder=FOLDER,
                max_failures=params.train.max_failures,
                on_tick=lambda: journal.note_seconds(clock.seconds()),
            )
        except KeyboardInterrupt:
            _say(setup, f"{len(driver.trials)} trials so far; `yolov7 tune --resume` goes on with them")
            raise
        driver.check()
        _finish(params, setup, driver, parent)


def _finish(params: Params, setup: Setup, driver: Driver, parent: TrackedRun) -> None:
    """Writes the results, and says what they are."""
    ledger, clock = driver.ledger, driver.clock
    summary: dict[str, Any] = {
        "base": setup.base_name,
        "budget": setup.settings.budget,
        "spent": ledger.spent(driver.trials, seconds=clock.seconds()),
        "seconds": clock.seconds(),
        "seed": setup.settings.seed,
        "epochs": ledger.plan.epochs,
        "models": len(setup.candidates),
        "left_out": setup.left_out,
        "train": params.variants[setup.base_name].train if setup.base_name in params.variants else {},
    }
    folder, rules = stage_folder("tune"), setup.settings.rules
    with whole_folder(folder) as draft:
        chosen = write_results(draft, driver.trials, rules=rules, summary=summary, journal=FOLDER / "journal.jsonl")
    parent.log_artifact(folder, "tune")
    counts = {status: sum(trial.status == status for trial in driver.trials) for status in _SHOWN}
    parent.log_metrics({f"tune/{name}": number for name, number in counts.items()})
    shown = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
    used = show_amount(ledger.budget.kind, ledger.spent(driver.trials, seconds=clock.seconds()))
    _say(setup, f"{len(driver.trials)} trials ({shown}); {used} of {ledger.budget} used")
    for name, line in fit_by_rule(driver.trials, rules).items():
        error = f" +- {line.slope_error:.3f}" if line.slope_error is not None else ""
        _say(setup, f"AP per doubling of GFLOPs, {name}: {line.slope:+.3f}{error} ({line.points} models)")
    if chosen is None:
        _say(setup, "no trial came to a first AP; give more budget")
        return
    candidate = chosen.candidate
    _say(setup, f"best: {candidate.label}, AP {chosen.AP:.3f}, {candidate.gflops:.3g} GFLOPs")
    console.print(f"Table and plot: {folder}/trials.csv, {folder}/scaling.png   Next: yolov7 tune --adopt, dvc repro")


_SHOWN = ("complete", "stopped", "cut", "failed")


def _trial_text(trial: Trial, search: Search, ledger: Ledger, clock: Clock) -> str:
    candidate = trial.candidate
    measured = "AP -    " if trial.AP is None else f"AP {trial.AP:.3f}"
    ended = sum(other.status != "running" for other in search.trials.values())
    kind = ledger.budget.kind
    used = show_amount(kind, ledger.spent(tuple(search.trials.values()), seconds=clock.seconds()))
    fault = f": {trial.error}" if trial.error else ""
    return (
        f"{ended:>3}  {candidate.label:<24} {candidate.gflops:>7.3g} GFLOPs  {measured}  {trial.status} after "
        f"{trial.epochs} epochs, {show_amount('seconds', trial.seconds)}{fault}  ({used} of {ledger.budget})"
    )


def _track(tracker: Tracker, parent: TrackedRun, trial: Trial, *, setup: Setup) -> None:
    """A run of the trial below that of the search."""
    candidate = trial.candidate
    key = RunKey(variant=candidate.label, seed=setup.settings.seed, fingerprint=f"{setup.fingerprint}-{candidate.key}")
    with tracker.run(key) as run:
        run.set_tags(_child_tags(parent, trial))
        run.log_params({"rule": candidate.rules[0], **dict(candidate.features)})
        for epoch, AP in trial.curve:
            run.log_metrics({"AP_by_epoch": AP}, step=epoch)
        run.log_metrics(_figures(trial))


def _child_tags(parent: TrackedRun, trial: Trial) -> Mapping[str, Any]:
    tags: dict[str, Any] = {"status": trial.status, "rules": " ".join(trial.candidate.rules)}
    return tags | ({"mlflow.parentRunId": parent.run_id} if parent.run_id else {})


def _figures(trial: Trial) -> dict[str, float | None]:
    candidate = trial.candidate
    return {
        "AP": trial.AP,
        "gflops": candidate.gflops,
        "parameters": candidate.parameters_deployed,
        "training_flop": trial.compute,
        "seconds": trial.seconds,
    }


def _say(setup: Setup, text: str) -> None:
    console.print(stage_line("tune", setup.base_name, text))
