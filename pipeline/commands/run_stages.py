"""What the commands do: run a stage, show it, and hand its figures to tracking."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.artifacts.files import (
    WEIGHTS,
    Metrics,
    PreparedData,
    ReparamReport,
    TrainSummary,
    existing,
    read_json,
    stage_folder,
    stage_lock,
)
from pipeline.console import TrainView, console, duration, stage_line, train_view
from pipeline.params import Params
from pipeline.tracking import RunKey, TrackedRun, Tracker, serve_page, tracking_server
from yolov7.training.record import FIGURES, read_epochs, read_notes, read_progress

Selection = Iterable[tuple[str, int]]
Result = TypeVar("Result")


def run_prepare(params: Params) -> None:
    """Prepares the data."""
    from pipeline.stages.prepare import prepare

    with stage_lock("prepare"):
        console.print(prepare(params.data))


def run_train(params: Params, selection: Selection) -> None:
    """Trains each selected variant and seed, in turn."""
    from pipeline.stages.train import forget_run

    with _tracker(params) as tracker:
        for variant, seed in selection:
            name = _name(params, variant, seed)
            with stage_lock("train", variant, seed):
                summary = _train_tracked(params, tracker, variant, seed, name=name)
                console.print(stage_line("train", name, _train_text(summary)))
                forget_run(params, variant=variant, seed=seed)  # last of all: until here a kill costs no step


def run_reparam(params: Params, selection: Selection) -> None:
    """Re-parameterises each selected variant and seed."""
    from pipeline.stages.reparam import reparam

    _run_each(params, selection, reparam, track=_log_reparam, describe=_reparam_text)


def run_evaluate(params: Params, selection: Selection) -> None:
    """Evaluates each selected variant and seed."""
    from pipeline.stages.evaluate import evaluate

    _run_each(params, selection, evaluate, track=_log_evaluation, describe=_evaluation_text)


def run_benchmark(params: Params) -> None:
    """Measures all variants."""
    from pipeline.stages.benchmark import benchmark, benchmark_metrics, fps_before_and_after

    with stage_lock("benchmark"):
        result = benchmark(params)
    with _tracker(params) as tracker:
        for variant in params.variants:
            before, after = fps_before_and_after(result, variant)
            for seed in params.seeds:
                with tracker.run(_key(variant, seed)) as run:
                    run.log_metrics(benchmark_metrics(result, variant))
                    run.set_tags({"benchmark": params.benchmark.model_dump(), "benchmark_device": result.device})
            console.print(stage_line("benchmark", variant, f"{_figure(before, 0)} -> {_figure(after, 0)} FPS, batch 1"))


def print_summary() -> None:
    """Prints the variants side by side, as the last `tables` left them, and where to look next."""
    folder = stage_folder("tables")
    path = existing(folder / "summary.txt", made_by="tables")
    print(path.read_text(encoding="utf-8").rstrip())
    print(f"Pictures: {stage_folder('evaluate')}/*/*/examples.jpg   Tables: {folder}/index.html   Runs: yolov7 ui")


def run_tables(params: Params, *, as_json: bool = False) -> None:
    """Writes the tables, and marks in MLflow the runs that they show."""
    from pipeline.stages.tables import tables

    with stage_lock("tables"):
        report = tables(params)
    if as_json:
        print(report.model_dump_json(indent=1))
    else:
        _print_missing(report.missing)
        print_summary()
    pairs = [(variant, seed) for variant in params.variants for seed in params.seeds]
    keys = [_key(*pair) for pair in pairs if (stage_folder("train", *pair) / "train.json").is_file()]
    with _tracker(params) as tracker:
        tracker.mark_current(keys)


def run_sync(params: Params) -> None:
    """Sends what waits to the tracking server; ConnectionError where some of it still does."""
    before, left = _tracker(params).send_waiting()
    if left:
        raise ConnectionError(f"{left} still wait in runs/.tracking for {tracking_server()}")
    console.print(f"{before} sent to {tracking_server()}" if before else f"nothing waits for {tracking_server()}")


def check_tables(*, as_json: bool) -> bool:
    """Prints every computed #Param and FLOPs beside the printed one; whether all meet it."""
    from pipeline.report.paper.check import check_lines, compare_counts

    comparisons = compare_counts()
    if as_json:
        print(json.dumps([comparison.model_dump() for comparison in comparisons], indent=1))
    else:
        print("\n".join(check_lines(comparisons)))
    return not any(comparison.differs for comparison in comparisons)


def _print_missing(missing: Sequence[str]) -> None:
    shown = 3
    for line in missing[:shown]:
        print(f"left open: {line}")
    if len(missing) > shown:
        print(f"left open: {len(missing) - shown} more, listed in {stage_folder('tables')}/index.html")


def list_models(*, as_json: bool) -> None:
    """Prints every spec with its cost."""
    from yolov7.nn.cost import spec_cost
    from yolov7.spec.graph import infer_shapes
    from yolov7.spec.spec_files import list_specs, load_spec

    rows: list[dict[str, Any]] = []
    for name in list_specs():
        spec = load_spec(name)
        cost, shapes = spec_cost(spec), infer_shapes(spec)
        rows.append(
            {
                "name": name,
                "params": cost.parameters_deployed,
                "params_training": cost.parameters,
                "gflops": round(cost.gflops_with_bias, 4),
                "size": spec.image_size,
                "strides": [shapes[source].stride for source in spec.head.sources],
            }
        )
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'name':<16}{'parameters':>12}{'GFLOPs':>9}{'size':>6}  strides")
    for row in rows:
        strides = " ".join(str(stride) for stride in row["strides"])
        print(f"{row['name']:<16}{row['params']:>12,}{row['gflops']:>9.1f}{row['size']:>6}  {strides}")
    print("of the deployed model with 80 classes; GFLOPs as the paper counts them")


def open_ui(params: Params, *, port: int) -> None:
    """Serve MLflow's page on the runs of the experiment until it is interrupted.

    Args:
        params: The content of params.yaml, which names the experiment.
        port: The port of the page.
    """
    serve_page(params.tracking.experiment, port=port, say=console.print)


def _train_tracked(params: Params, tracker: Tracker, variant: str, seed: int, *, name: str) -> TrainSummary:
    from pipeline.stages.train import build_job, train

    job = build_job(params, variant=variant, seed=seed)
    key = RunKey(variant=variant, seed=seed, fingerprint=job.fingerprint)
    with tracker.run(key) as run, train_view(name) as view:
        _log_start(params, run, variant=variant)
        follower = _Follower(view, run)
        summary = train(params, variant=variant, seed=seed, on_tick=follower.tick)
        run.set_tags({"precision": summary.precision, "device": summary.device, "workers": summary.workers})
        run.log_artifact(stage_folder("train", variant, seed) / "curve.csv", "train")
    return summary


class _Follower:
    """Copies what a training run records to the view and to tracking, as it grows.

    A record may lose its last epochs, when a worker starts again from a checkpoint; they come again, but not here.
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


def _log_start(params: Params, run: TrackedRun, *, variant: str) -> None:
    prepared = _prepared()
    model = params.variant(variant).model_dump(exclude={"train"}, exclude_defaults=True)
    run.log_params(model | params.train_settings(variant).model_dump())
    run.log_dataset(
        params.data.format,
        digest=prepared.content_hash,
        source=prepared.source,
        profile={"images": prepared.splits, "boxes": prepared.boxes, "classes": len(prepared.class_names)},
    )


def _run_each(
    params: Params,
    selection: Selection,
    stage: Callable[..., Result],
    *,
    track: Callable[[Params, TrackedRun, Result], None],
    describe: Callable[[Result], str],
) -> None:
    """Runs a stage, named as its function, for each selected variant and seed; tracks and tells what came out."""
    name = stage.__name__
    with _tracker(params) as tracker:
        for variant, seed in selection:
            with stage_lock(name, variant, seed):
                result = stage(params, variant=variant, seed=seed)
            with tracker.run(_key(variant, seed)) as run:
                track(params, run, result)
            console.print(stage_line(name, _name(params, variant, seed), describe(result)))


def _log_reparam(params: Params, run: TrackedRun, report: ReparamReport) -> None:
    run.log_metrics(
        {
            "reparam/max_error_float32": report.max_error_float32,
            "reparam/parameters": report.parameters_after,
            "reparam/gflops": report.gflops_after,
        }
    )
    run.set_tags({"reparam": params.reparam.model_dump()})
    run.log_detector(stage_folder("reparam", run.key.variant, run.key.seed) / WEIGHTS)


def _log_evaluation(params: Params, run: TrackedRun, metrics: Metrics) -> None:
    variant, seed, settings = run.key.variant, run.key.seed, params.evaluate
    figures = metrics.model_dump(include={"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"})
    run.log_metrics({f"evaluate/{name}": value for name, value in figures.items()})
    run.set_tags({"evaluate": settings.model_dump()})
    run.log_artifact(stage_folder("evaluate", variant, seed), "evaluate")
    weights = stage_folder("reparam", variant, seed) / WEIGHTS
    run.log_detector(weights)  # where `reparam` came from DVC's cache it was not logged from here
    nms = " ".join(f"{name}={value}" for name, value in settings.nms.model_dump().items())
    data = _prepared().content_hash
    run.log_evaluation(weights, AP=metrics.AP, basis={"data": data, "split": metrics.split, "nms": nms})


def _prepared() -> PreparedData:
    return read_json(stage_folder("prepare") / "dataset.json", PreparedData, made_by="prepare")


def _tracker(params: Params) -> Tracker:
    return Tracker(params.tracking.experiment, model=params.tracking.model, say=console.print)


def _key(variant: str, seed: int) -> RunKey:
    path = stage_folder("train", variant, seed) / "train.json"
    summary = read_json(path, TrainSummary, made_by=f"train {variant}")
    return RunKey(variant=variant, seed=seed, fingerprint=summary.fingerprint)


def _name(params: Params, variant: str, seed: int) -> str:
    return variant if len(params.seeds) == 1 else f"{variant}/{seed}"


def _reparam_text(report: ReparamReport) -> str:
    return (
        f"{report.parameters_before:,} -> {report.parameters_after:,} parameters, "
        f"largest error {report.max_error_float32:.1e} (float64 {report.max_error_float64:.1e})"
    )


def _evaluation_text(metrics: Metrics) -> str:
    figures = ((name, getattr(metrics, name)) for name in ("AP", "AP50", "APs", "APm", "APl"))
    return f"{'  '.join(f'{name} {_figure(value)}' for name, value in figures)}  ({metrics.images} images)"


def _train_text(summary: TrainSummary) -> str:
    measured = "" if summary.AP is None else f"AP {summary.AP:.3f}  "
    return (
        f"{summary.epochs} epochs  {measured}{summary.images_per_second:.0f} img/s "
        f"(loader waits {summary.loader_wait_share:.0%})  {duration(summary.seconds)}"
    )


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
