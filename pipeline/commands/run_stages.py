"""What the commands of stages do: run a stage, show its result, and send its figures to tracking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline.artifacts.files import (
    WEIGHTS,
    existing,
    prepared_data_lock,
    read_json,
    resolved_path,
    run_folder,
    stage_folder,
    stage_lock,
)
from pipeline.artifacts.inputs import dvc_stage, unchanged_inputs
from pipeline.artifacts.reports import Metrics, PreparedData, ReparamReport, TrainSummary
from pipeline.commands.stage_texts import evaluation_text, figure, reparam_text, train_text
from pipeline.console import TrainView, console, stage_line, train_view
from pipeline.experiment import Experiment, ResolvedVariant
from pipeline.external import ExternalVariant, external_inputs
from pipeline.params import TrackingSettings
from pipeline.stages.resolve import resolve, stage_inputs
from pipeline.tracking import RunKey, TrackedRun, Tracker, find_runs, serve_page, tracking_server
from pipeline.tune_settings import TuneSettings
from yolov7.errors import SettingError
from yolov7.training.record import FIGURES, read_epochs, read_notes, read_progress

Selection = Sequence[tuple[ResolvedVariant | ExternalVariant, int]]
_MOST_LINES = 12


def run_resolve(experiment: Experiment) -> None:
    """Write what decides each stage's result, and print what changed since the last time."""
    with stage_lock("resolve"):
        changes = resolve(experiment)
    for note in experiment.notes:
        console.print(stage_line("resolve", "", note))
    for line in changes[:_MOST_LINES]:
        console.print(stage_line("resolve", "", line))
    if len(changes) > _MOST_LINES:
        console.print(stage_line("resolve", "", f"{len(changes) - _MOST_LINES} more values changed"))


def run_prepare(experiment: Experiment) -> None:
    """Prepare the data."""
    from pipeline.stages.prepare import prepare

    with stage_lock("prepare"), prepared_data_lock(exclusively=True), _checked(experiment, "prepare"):
        console.print(prepare(experiment.data))


def run_train(experiment: Experiment, selection: Selection) -> None:
    """Train each selected variant and seed, in turn.

    Finished runs stay until `reparam` has run under DVC, so that the next training of the same takes their weights.

    Args:
        experiment: The resolved experiment.
        selection: What to train.
    """
    _warm_up(selection)
    if dvc_stage() is None:  # under DVC, `resolve` prints them
        for note in experiment.notes:
            console.print(stage_line("train", "", note))
    with _tracker(experiment.tracking) as tracker:
        for variant, seed in selection:
            name = _name(experiment, variant, seed)
            with stage_lock("train", variant.name, seed), _checked(experiment, "train", variant, seed):
                if isinstance(variant, ExternalVariant):
                    summary = _use_external_tracked(experiment, tracker, variant, seed)
                else:
                    run = _train_tracked if variant.given is None else _use_given_tracked
                    summary = run(experiment, tracker, variant, seed, name=name)
                console.print(stage_line("train", name, train_text(summary)))


def run_reparam(experiment: Experiment, selection: Selection) -> None:
    """Re-parameterise each selected variant and seed."""
    from pipeline.ray.run_folders import forget_run
    from pipeline.stages.reparam import pass_external, reparam

    with _tracker(experiment.tracking) as tracker:
        for variant, seed in selection:
            if isinstance(variant, ExternalVariant):
                with stage_lock("reparam", variant.name, seed), _checked(experiment, "reparam", variant, seed):
                    pass_external(variant, seed=seed)
                console.print(stage_line("reparam", _name(experiment, variant, seed), "external, so there is no model"))
                continue
            with stage_lock("reparam", variant.name, seed), _checked(experiment, "reparam", variant, seed):
                report = reparam(experiment.reparam, variant, seed=seed)
            if dvc_stage() is not None:  # then DVC has recorded the weights
                forget_run(variant, seed=seed)
            with tracker.run(_key(variant.name, seed), adds=True) as run:
                _log_reparam(experiment, run, report)
            console.print(stage_line("reparam", _name(experiment, variant, seed), reparam_text(report)))


def run_evaluate(experiment: Experiment, selection: Selection) -> None:
    """Evaluate each selected variant and seed."""
    from pipeline.stages.evaluate import evaluate, evaluate_external

    with _tracker(experiment.tracking) as tracker:
        for variant, seed in selection:
            name = _name(experiment, variant, seed)
            notes: tuple[str, ...] = ()
            with stage_lock("evaluate", variant.name, seed), _checked(experiment, "evaluate", variant, seed):
                if isinstance(variant, ExternalVariant):
                    metrics, notes = evaluate_external(experiment.evaluate, variant, seed=seed)
                else:
                    metrics = evaluate(experiment.evaluate, variant, seed=seed)
            with tracker.run(_key(variant.name, seed), adds=True) as run:
                _log_figures(experiment, run, metrics)
                if isinstance(variant, ResolvedVariant):
                    _log_deployed(experiment, run, metrics)
            for note in notes:
                console.print(stage_line("evaluate", name, note))
            console.print(stage_line("evaluate", name, evaluation_text(metrics)))


def run_benchmark(experiment: Experiment) -> None:
    """Measure the latency of all variants."""
    from pipeline.stages.benchmark import benchmark, benchmark_metrics, fps_before_and_after

    with stage_lock("benchmark"), _checked(experiment, "benchmark"):
        result = benchmark(experiment.benchmark, list(experiment.variants), seed=experiment.seeds[0])
    for note in result.notes:
        console.print(stage_line("benchmark", "", note))
    with _tracker(experiment.tracking) as tracker:
        for variant in experiment.variants:
            before, after = fps_before_and_after(result, variant)
            for seed in _trained_seeds(experiment, variant):
                with tracker.run(_key(variant, seed), adds=True) as run:
                    run.log_metrics(benchmark_metrics(result, variant))
                    run.set_tags({"benchmark": experiment.benchmark.model_dump(), "benchmark_device": result.device})
            console.print(stage_line("benchmark", variant, f"{figure(before, 0)} -> {figure(after, 0)} FPS, batch 1"))


def run_search(experiment: Experiment, settings: TuneSettings, *, resume: bool) -> None:
    """Search for the best model of a family, from prepared data that do not change meanwhile."""
    from pipeline.tuning.command import run_tune

    with _checked(experiment, "tune"):
        run_tune(experiment, settings, resume=resume)


def print_summary() -> None:
    """Print the variants side by side, as the last `tables` wrote them, and where to look next."""
    folder = stage_folder("tables")
    path = existing(folder / "summary.txt", made_by="tables")
    print(path.read_text(encoding="utf-8").rstrip())
    print(f"Page: {folder}/index.html   Pictures: {stage_folder('evaluate')}/*/*/examples.jpg   Runs: yolov7 ui")


def run_tables(experiment: Experiment, *, as_json: bool = False) -> None:
    """Write the tables, and mark the runs that they show in MLflow."""
    from pipeline.stages.tables import tables

    with _tracker(experiment.tracking) as tracker:
        keys = run_keys(experiment)
        found = find_runs(experiment.tracking.experiment, keys)
        runs = {(key.variant, key.seed): run for key, run in found.items()}
        with stage_lock("tables"), _checked(experiment, "tables"):
            report = tables(experiment, runs=runs)
        if as_json:
            print(report.model_dump_json(indent=1))
        else:
            _print_missing(report.missing)
            print_summary()
        tracker.mark_current(keys)


def run_keys(experiment: Experiment) -> list[RunKey]:
    """Return what identifies the MLflow run of each variant and seed for which the stage `train` has run."""
    names = (*experiment.variants, *experiment.externals)
    return [_key(name, seed) for name in names for seed in _trained_seeds(experiment, name)]


def run_sync(tracking: TrackingSettings) -> None:
    """Upload the records that are queued for the tracking server.

    Args:
        tracking: Which experiment they belong to.

    Raises:
        SettingError: The tracking server is unreachable, so that some records are still queued.
    """
    before, left = _tracker(tracking).send_waiting()
    if left:
        raise SettingError(
            f"{left} are still queued in runs/.tracking, as {tracking_server()} is unreachable; check "
            "MLFLOW_TRACKING_URI, and run `yolov7 sync` again later"
        )
    console.print(f"{before} sent to {tracking_server()}" if before else f"nothing is queued for {tracking_server()}")


def _print_missing(missing: Sequence[str]) -> None:
    shown = 3
    for line in missing[:shown]:
        print(f"missing: {line}")
    if len(missing) > shown:
        print(f"missing: {len(missing) - shown} more, listed in {stage_folder('tables')}/index.html")


def open_ui(tracking: TrackingSettings, *, host: str, port: int) -> None:
    """Serve MLflow's page on the runs of the experiment until it is interrupted.

    Args:
        tracking: Which experiment the page shows.
        host: The address to listen on.
        port: The port of the page.
    """
    serve_page(tracking.experiment, host=host, port=port, say=console.print)


@contextmanager
def _checked(
    experiment: Experiment,
    stage: str,
    variant: ResolvedVariant | ExternalVariant | None = None,
    seed: int | None = None,
) -> Iterator[None]:
    """Hold the prepared data, and under DVC make sure that no input of the stage changes while the body runs."""
    name = "" if variant is None else variant.name
    path = resolved_path(stage, name, seed) if stage == "train" else resolved_path(stage)
    check = unchanged_inputs(
        stage,
        data_path=experiment.data.path,
        resolved=path,
        resolve=lambda: stage_inputs(experiment, only=path)[path],
        variant=name,
        seed=seed,
    )
    if stage == "prepare":
        with check:
            yield
    else:
        with prepared_data_lock(exclusively=False), check:
            yield


def _warm_up(selection: Selection) -> None:
    """Begin to import what trainings on this machine need, which takes longer than all that comes before them."""
    from pipeline.ray.local import needs_no_cluster, preload

    unfinished = [
        variant
        for variant, seed in selection
        if isinstance(variant, ResolvedVariant)
        and variant.given is None
        and not (run_folder(variant.name, seed) / WEIGHTS).is_file()
    ]
    if any(needs_no_cluster(variant.ray) for variant in unfinished):
        preload()


def _train_tracked(
    experiment: Experiment, tracker: Tracker, variant: ResolvedVariant, seed: int, *, name: str
) -> TrainSummary:
    from pipeline.stages.train import build_job, train

    job = build_job(variant, seed=seed)
    key = RunKey(variant=variant.name, seed=seed, fingerprint=job.fingerprint)
    with tracker.run(key) as run, train_view(name, epochs=job.settings.epochs) as view:
        _log_start(experiment, run, variant=replace(variant, train=job.settings))
        follower = _Follower(view, run)
        summary = train(job, variant, on_tick=follower.tick)
        run.set_tags({"precision": summary.precision, "device": summary.device, "workers": summary.workers})
        run.log_artifact(stage_folder("train", variant.name, seed) / "curve.csv", "train")
    return summary


def _use_given_tracked(
    experiment: Experiment, tracker: Tracker, variant: ResolvedVariant, seed: int, *, name: str
) -> TrainSummary:
    from pipeline.stages.train import use_given_weights

    console.print(stage_line("train", name, f"reads {variant.given}"))
    summary = use_given_weights(variant, seed=seed)
    with tracker.run(RunKey(variant=variant.name, seed=seed, fingerprint=summary.fingerprint)) as run:
        _log_start(experiment, run, variant=variant)
        run.set_tags({"given_weights": summary.given})
    return summary


def _use_external_tracked(
    experiment: Experiment, tracker: Tracker, variant: ExternalVariant, seed: int
) -> TrainSummary:
    from pipeline.stages.train import use_external_results

    summary = use_external_results(variant, seed=seed)
    with tracker.run(RunKey(variant=variant.name, seed=seed, fingerprint=summary.fingerprint)) as run:
        file = {"predictions": str(variant.predictions), "sha256": variant.predictions_hash}
        run.log_params({"external": external_inputs(variant) | file})
        _log_data(experiment, run)
        run.set_tags({"external_results": summary.external})
        run.log_metrics({"external/params": variant.params, "external/gflops": variant.gflops})
    return summary


class _Follower:
    """The view and the tracking of a training run, which receive what the run records.

    When a worker starts again from a checkpoint, the record may lose its last epochs. They are trained again, but
    neither shown nor tracked again.
    """

    def __init__(self, view: TrainView, run: TrackedRun) -> None:
        self._view, self._run = view, run
        self._last_epoch = self._notes = 0

    def tick(self, folder: Path) -> None:
        self._view.show_progress(read_progress(folder))
        for note in read_notes(folder)[self._notes :]:
            self._notes += 1
            self._view.show_note(note)
        for line in read_epochs(folder):
            if line["epoch"] > self._last_epoch:
                self._last_epoch = line["epoch"]
                self._view.show_epoch(line)
                self._run.log_metrics({f"train/{name}": line.get(name) for name in FIGURES}, step=line["epoch"])


def _log_start(experiment: Experiment, run: TrackedRun, *, variant: ResolvedVariant) -> None:
    settings = variant.train.model_dump() if variant.given is None else {"image_size": variant.train.image_size}
    run.log_params({**variant.declared, **settings})
    _log_data(experiment, run)


def _log_data(experiment: Experiment, run: TrackedRun) -> None:
    prepared = _prepared()
    run.log_dataset(
        experiment.data.format,
        digest=prepared.content_hash,
        source=prepared.source,
        profile={"images": prepared.splits, "boxes": prepared.boxes, "classes": len(prepared.class_names)},
    )


def _log_reparam(experiment: Experiment, run: TrackedRun, report: ReparamReport) -> None:
    run.log_metrics(
        {
            "reparam/max_error_float32": report.max_error_float32,
            "reparam/parameters": report.parameters_after,
            "reparam/gflops": report.gflops_after,
        }
    )
    run.set_tags({"reparam": experiment.reparam.model_dump()})
    run.log_detector(stage_folder("reparam", run.key.variant, run.key.seed) / WEIGHTS)


def _log_figures(experiment: Experiment, run: TrackedRun, metrics: Metrics) -> None:
    figures = metrics.model_dump(include={"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"})
    run.log_metrics({f"evaluate/{name}": value for name, value in figures.items()})
    run.log_metrics({f"evaluate/AP of classes/{name}": value for name, value in metrics.per_class_AP.items()})
    run.set_tags({"evaluate": experiment.evaluate.model_dump()})
    run.log_artifact(stage_folder("evaluate", run.key.variant, run.key.seed), "evaluate")


def _log_deployed(experiment: Experiment, run: TrackedRun, metrics: Metrics) -> None:
    weights = stage_folder("reparam", run.key.variant, run.key.seed) / WEIGHTS
    run.log_detector(weights)  # if `reparam` was restored from DVC's cache, it was not logged on this machine
    nms = " ".join(f"{name}={value}" for name, value in experiment.evaluate.nms.model_dump().items())
    data = _prepared().content_hash
    run.log_evaluation(weights, AP=metrics.AP, basis={"data": data, "split": metrics.split, "nms": nms})


def _prepared() -> PreparedData:
    return read_json(stage_folder("prepare") / "dataset.json", PreparedData, made_by="prepare")


def _tracker(tracking: TrackingSettings) -> Tracker:
    return Tracker(tracking.experiment, model=tracking.model, say=console.print)


def _trained_seeds(experiment: Experiment, variant: str) -> list[int]:
    return [seed for seed in experiment.seeds if (stage_folder("train", variant, seed) / "train.json").is_file()]


def _key(variant: str, seed: int) -> RunKey:
    path = stage_folder("train", variant, seed) / "train.json"
    summary = read_json(path, TrainSummary, made_by=f"train {variant}")
    return RunKey(variant=variant, seed=seed, fingerprint=summary.fingerprint)


def _name(experiment: Experiment, variant: ResolvedVariant | ExternalVariant, seed: int) -> str:
    return variant.name if len(experiment.seeds) == 1 else f"{variant.name}/{seed}"
