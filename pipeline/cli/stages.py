"""Commands that run stages of params.yaml, or look at what a stage does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import Seed, VariantName, app, experiment, selected, selected_rows


@app.command()
def resolve() -> None:
    """Resolve params.yaml for the other stages.

    Write everything that decides the result of a stage, variant and seed to one file in artifacts/resolve.
    """
    from pipeline.commands.run_stages import run_resolve

    run_resolve(experiment())


@app.command()
def prepare() -> None:
    """Read or draw the data, check them, and index them.

    Write one index per split and a health report to artifacts/prepare.
    """
    from pipeline.commands.run_stages import run_prepare

    run_prepare(experiment())


@app.command()
def train(
    variant: VariantName = None,
    seed: Seed = None,
    jobs: Annotated[
        int | None,
        typer.Option("-j", "--jobs", metavar="N", min=0, help="Train N at the same time; 0: as many as there is room."),
    ] = None,
) -> None:
    """Train variants with Ray Train.

    An interrupted training continues from its last checkpoint. A finished one with the same data, settings and code is
    not repeated, and the next `dvc repro` uses its weights. With --jobs, variants and seeds are trained at the same
    time, on this machine or on the cluster of RAY_ADDRESS.
    """
    resolved = experiment()
    if jobs is not None:
        from pipeline.commands.train_many import train_many

        train_many(resolved, selected(resolved, variant, seed), jobs=jobs)
        return
    from pipeline.commands.run_stages import run_train

    run_train(resolved, selected_rows(resolved, variant, seed))


@app.command()
def reparam(variant: VariantName = None, seed: Seed = None) -> None:
    """Re-parameterise trained models and prove the result.

    The proof compares the outputs of the model before and after.
    """
    from pipeline.commands.run_stages import run_reparam

    resolved = experiment()
    run_reparam(resolved, selected_rows(resolved, variant, seed))


@app.command(short_help="Measure COCO figures of variants, of any model, or of a results file.")
def evaluate(
    variant: VariantName = None,
    seed: Seed = None,
    weights: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A weight file, an exported model, or a name as for `predict`.")
    ] = None,
    predictions: Annotated[Path | None, typer.Option(metavar="FILE", help="A results file in COCO's format.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A data set's folder, a data.yaml, or a COCO file.")
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="The split. Default: test, val or train.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write the figures and detections there.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    engine: Annotated[str, typer.Option(metavar="E", help="What runs the model; auto is the fastest one.")] = "auto",
    device: Annotated[str, typer.Option(metavar="D", help="`auto`, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(metavar="P", help="`auto`, float32, bfloat16 or float16.")] = "auto",
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images in a batch.")] = 16,
) -> None:
    """Measure COCO figures.

    Without options, the deployed models of params.yaml are measured on the prepared data; examples, precision-recall
    curves, the confusion matrix and the errors by kind are written, too. With --data, any model (--weights) or results
    file (--predictions) is measured on any data set, and nothing in artifacts/ is changed.
    """
    if data is not None or weights is not None or predictions is not None:
        from pipeline.commands.evaluate_model import EvaluateOptions, evaluate_model

        if variant is not None or seed is not None:
            raise typer.BadParameter("a variant or seed cannot be combined with --data; name the model with --weights")
        evaluate_model(
            EvaluateOptions(
                weights, predictions, data, split, out, json, engine=engine, device=device, precision=precision,
                batch_size=batch_size,
            )
        )  # fmt: skip
        return
    if split or out or json or (engine, device, precision, batch_size) != ("auto", "auto", "auto", 16):
        raise typer.BadParameter(
            "--split, --out, --json, --engine, --device, --precision and --batch-size concern --data; the settings of "
            "variants are `evaluate` in params.yaml"
        )
    from pipeline.commands.run_stages import run_evaluate

    resolved = experiment()
    run_evaluate(resolved, selected_rows(resolved, variant, seed))


@app.command()
def benchmark() -> None:
    """Measure latency and FPS of all variants.

    The variants take turns, so that a change in the machine's speed affects all of them alike.
    """
    from pipeline.commands.run_stages import run_benchmark

    run_benchmark(experiment())


@app.command()
def tables(
    show: Annotated[bool, typer.Option("--show", help="Only print the summary of the last run.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only compare #Param and FLOPs with the paper.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare the variants, and fill the paper's tables.

    Write an HTML page, CSV, Markdown and JSON to artifacts/tables. The exit code of --check is 1 if a figure differs.
    """
    if check:
        from pipeline.commands.check_tables import check_tables

        raise typer.Exit(0 if check_tables(as_json=json) else 1)
    from pipeline.commands.run_stages import print_summary, run_tables

    if show:
        print_summary()
    else:
        run_tables(experiment(), as_json=json)


@app.command()
def tune(
    budget: Annotated[str | None, typer.Option(metavar="B", help="For example 30m, 8h, 40trials or 2e18flop.")] = None,
    space: Annotated[
        str | None, typer.Option(metavar="S", help="What is varied: scaling of the model, or train: its settings.")
    ] = None,
    base: Annotated[str | None, typer.Option(metavar="NAME", help="The variant or spec to start from.")] = None,
    vary: Annotated[
        str | None, typer.Option(metavar="KEYS", help="With space train: settings or groups, as optim,augment.")
    ] = None,
    max_gflops: Annotated[float | None, typer.Option(metavar="G", help="Largest GFLOPs of a deployed model.")] = None,
    max_params: Annotated[float | None, typer.Option(metavar="M", help="Largest parameter count in millions.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(metavar="MS", help="Largest latency at batch size 1.")] = None,
    rule: Annotated[
        str | None, typer.Option(metavar="RULES", help="Comma-separated rules: compound, width, depth, free.")
    ] = None,
    trials_per_gpu: Annotated[int | None, typer.Option(metavar="N", help="Trials that share one GPU.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of the search and of all trainings.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted search.")] = False,
    adopt: Annotated[bool, typer.Option("--adopt", help="Only add the best result to params.yaml.")] = False,
) -> None:
    """Search for the best model or settings within a budget.

    The search scales a model (--space scaling), or it varies the settings of the model's training (--space train).
    Options that are left out take their values from `tune` in params.yaml.
    """
    if adopt:
        from pipeline.tuning.adopt import adopt as adopt_chosen

        typer.echo(adopt_chosen())
        return
    from pipeline.commands.run_stages import run_search
    from pipeline.experiment import tune_settings

    options = {
        "budget": budget,
        "space": space,
        "base": base,
        "vary": vary.split(",") if vary else None,
        "max_gflops": max_gflops,
        "max_params": max_params,
        "max_latency_ms": max_latency_ms,
        "rules": rule.split(",") if rule else None,
        "trials_per_gpu": trials_per_gpu,
        "seed": seed,
    }
    resolved = experiment()
    run_search(resolved, tune_settings(resolved, options), resume=resume)


@app.command()
def inspect(
    variant: Annotated[str | None, typer.Argument(help="A variant of params.yaml. Default: the first one.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="A seed of params.yaml. Default: the first.")] = None,
) -> None:
    """Draw training samples and the assignment of labels.

    The assignment shows the cells from which a trained model's heads learn each object.
    """
    from pipeline.commands.inspect_training import inspect as run

    resolved = experiment()
    run(*selected(resolved, variant or next(iter(resolved.variants)), seed)[0])


@app.command()
def submission(
    variant: Annotated[str | None, typer.Argument(help="A variant of params.yaml. Default: the first one.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="A seed of params.yaml. Default: the first.")] = None,
    images: Annotated[
        str, typer.Option(metavar="NAME", help="The list of images in the folder of the data.")
    ] = "image_info_test-dev2017",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The zip archive to write.")] = None,
) -> None:
    """Write detections for COCO's evaluation server.

    The server measures AP on test-dev, whose annotations are not public. The archive is in its format.
    """
    from pipeline.commands.submission import make_submission

    resolved = experiment()
    chosen, number = selected(resolved, variant or next(iter(resolved.variants)), seed)[0]
    typer.echo(make_submission(resolved, chosen, seed=number, images=images, output=output))


@app.command()
def explain(
    row: Annotated[str, typer.Argument(help="A variant as nano or nano/0, or a cell as table2:YOLOv7:AP.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print where a figure comes from.

    Name the file with its hash, the MLflow run, the commit, the data, the settings, the seeds and the stages.
    """
    from pipeline.commands.explain import explain as run

    run(experiment(), row, as_json=json)
