"""The command line: thin commands around the stages. Everything heavy is imported where it is used."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from pipeline.params import Params

app = typer.Typer(
    name="yolov7",
    help="YOLOv7 experiments: say in params.yaml what to compare, then run `dvc repro`, or single stages from here.",
    epilog="YOLOV7_TRACEBACK=1 shows where an error came from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_INTERRUPTED = 130  # what typer makes of Ctrl-C
_Variant = Annotated[str | None, typer.Argument(help="A variant of params.yaml; all of them if left out.")]
_Rule = Literal["compound", "width", "depth", "both"]
_Seed = Annotated[int | None, typer.Option(help="One seed; all seeds of params.yaml if left out.")]


def main() -> None:
    """Runs a command; what a user can mend ends in one line and exit code 2."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what is wrong with an image is told in our own line
    try:
        app()
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            _fail(
                "interrupted; a training goes on from its last checkpoint when it is started again", code=_INTERRUPTED
            )
        raise
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        if os.environ.get("YOLOV7_TRACEBACK"):
            raise
        from yolov7.errors import told

        _fail(told(error))


def _fail(message: str, *, code: int = 2) -> None:
    print(f"yolov7: {message}", file=sys.stderr)
    sys.exit(code)


@app.command()
def prepare() -> None:
    """Read or draw the data, check them, and write one index a split and a health report."""
    from pipeline.commands.run_stages import run_prepare

    run_prepare(_params())


@app.command()
def train(variant: _Variant = None, seed: _Seed = None) -> None:
    """Train variants with Ray Train; an interrupted training goes on."""
    from pipeline.commands.run_stages import run_train

    params = _params()
    run_train(params, _selected(params, variant, seed))


@app.command()
def reparam(variant: _Variant = None, seed: _Seed = None) -> None:
    """Re-parameterise trained models, and prove that nothing changed."""
    from pipeline.commands.run_stages import run_reparam

    params = _params()
    run_reparam(params, _selected(params, variant, seed))


@app.command()
def evaluate(variant: _Variant = None, seed: _Seed = None) -> None:
    """Measure COCO figures of the deployed models, and draw examples."""
    from pipeline.commands.run_stages import run_evaluate

    params = _params()
    run_evaluate(params, _selected(params, variant, seed))


@app.command()
def benchmark() -> None:
    """Measure latency and FPS of all variants in interleaved rounds."""
    from pipeline.commands.run_stages import run_benchmark

    run_benchmark(_params())


@app.command()
def tables(
    show: Annotated[bool, typer.Option("--show", help="Print what was made before.")] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only compare #Param and FLOPs with the paper; exit code 1 on a miss."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fill the paper's tables and the comparison of the variants."""
    from pipeline.commands.run_stages import check_tables, print_summary, run_tables

    if check:
        raise typer.Exit(0 if check_tables(as_json=json) else 1)
    if show:
        print_summary()
    else:
        run_tables(_params(), as_json=json)


@app.command()
def tune(
    budget: Annotated[str | None, typer.Option(help="As in 30m, 8h, 40trials, 2e18flop.")] = None,
    base: Annotated[str | None, typer.Option(metavar="NAME", help="What is scaled: a variant or a spec.")] = None,
    max_gflops: Annotated[float | None, typer.Option(metavar="G", help="Larger models are never trained.")] = None,
    max_params: Annotated[float | None, typer.Option(metavar="M", help="Millions of parameters, likewise.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(metavar="L", help="At batch 1 on this device.")] = None,
    rule: Annotated[
        str | None, typer.Option(metavar="RULES", help="Of compound, width, depth and free, with commas between.")
    ] = None,
    trials_per_gpu: Annotated[float | None, typer.Option(metavar="F", help="Trials that share a GPU.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the search and of every training.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a search that was interrupted.")] = False,
    adopt: Annotated[bool, typer.Option("--adopt", help="Add the chosen model to params.yaml, nothing else.")] = False,
) -> None:
    """Search the best model of a family within a budget; defaults stand in params.yaml under `tune`."""
    if adopt:
        from pipeline.tuning.adopt import adopt as adopt_chosen

        typer.echo(adopt_chosen())
        return
    from pipeline.tuning.command import run_tune

    options = {
        "budget": budget,
        "base": base,
        "max_gflops": max_gflops,
        "max_params": max_params,
        "max_latency_ms": max_latency_ms,
        "rules": rule.split(",") if rule else None,
        "trials_per_gpu": trials_per_gpu,
        "seed": seed,
    }
    params = _params()
    run_tune(params, params.tune_settings(options), resume=resume)


@app.command()
def models(
    plan: Annotated[
        str | None, typer.Option(metavar="NAME", help="What re-parameterisation makes of this spec, row by row.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List every spec: name, parameters, GFLOPs, image size, strides."""
    if plan is not None:
        from pipeline.commands.specs import print_plan

        print_plan(plan, as_json=json)
        return
    from pipeline.commands.run_stages import list_models

    list_models(as_json=json)


@app.command()
def scale(
    name: Annotated[str, typer.Argument(help="A name from `yolov7 models`, or the path of a spec file.")],
    depth: Annotated[float, typer.Option(help="Factor on the depth of computational blocks.")] = 1.0,
    width: Annotated[float, typer.Option(help="Factor on every width; for the rules `width` and `both`.")] = 1.0,
    rule: Annotated[_Rule, typer.Option(help="`compound` derives the width from the depth.")] = "compound",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the spec to this file too.")] = None,
) -> None:
    """Scale a spec, and print it with its parameters and GFLOPs."""
    from pipeline.commands.specs import scale as run

    typer.echo(run(name, rule=rule, depth=depth, width=width, output=output), nl=False)


@app.command()
def import_weights(
    file: Annotated[Path, typer.Argument(help="A checkpoint (.pt) of the reference implementation.")],
    spec: Annotated[str, typer.Option(help="A name from `yolov7 models`, or the path of a spec file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The weight file to write, .safetensors.")],
    names: Annotated[
        Path | None, typer.Option(help="The classes' names, one a line or as `names` in YAML; else the checkpoint's.")
    ] = None,
) -> None:
    """Make a weight file of a reference checkpoint; nothing in it is executed."""
    from pipeline.commands.weights import import_weights as run

    typer.echo(run(file, spec=spec, names=names, output=output))


@app.command()
def export_weights(
    file: Annotated[Path, typer.Argument(help="A weight file (.safetensors), of a training or imported.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint to write, .pt.")],
) -> None:
    """Write weights under the reference implementation's names, as a state dict."""
    from pipeline.commands.weights import export_weights as run

    typer.echo(run(file, output=output))


@app.command()
def soup(
    weights: Annotated[list[Path], typer.Argument(help="Weight files trained from the same weights.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")] = Path("soup.safetensors"),
    greedy: Annotated[bool, typer.Option(help="Take in only what makes AP on val better, the best first.")] = False,
) -> None:
    """Average the weights of several trainings, and measure AP on val before and after."""
    from pipeline.commands.soup import make_soup

    make_soup(weights, output=output, greedy=greedy)


@app.command()
def inspect(
    variant: Annotated[str | None, typer.Argument(help="A variant of params.yaml; the first if left out.")] = None,
    seed: _Seed = None,
) -> None:
    """Draw augmented training samples, and the cells that a trained model's heads learn each object from."""
    from pipeline.commands.inspect_training import inspect as run

    params = _params()
    run(params, *_selected(params, variant or next(iter(params.variants)), seed)[0])


@app.command()
def use(
    name: Annotated[str | None, typer.Argument(help="A file of experiments/ without its ending.")] = None,
    data: Annotated[
        Path | None, typer.Option(envvar="YOLOV7_DATA", help="The folder of the data; written into params.yaml.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Overwrite a params.yaml with edits that are not saved.")] = False,
) -> None:
    """Put experiments/NAME.yaml in place as params.yaml; without a name, list them."""
    from pipeline.commands.experiments import list_experiments, use_experiment

    if name is None:
        typer.echo("\n".join(list_experiments()))
    else:
        typer.echo(use_experiment(name, data=data, force=force))


@app.command()
def sync() -> None:
    """Send what waits for the tracking server since it was away; every other command does so too."""
    from pipeline.commands.run_stages import run_sync

    run_sync(_params())


@app.command()
def ui(port: Annotated[int, typer.Option(help="The port of the page.")] = 5000) -> None:
    """Open MLflow's page on the pipeline's runs."""
    from pipeline.commands.run_stages import open_ui

    open_ui(_params(), port=port)


def _params() -> Params:
    from pipeline.params import load_params

    return load_params()


def _selected(params: Params, variant: str | None, seed: int | None) -> tuple[tuple[str, int], ...]:
    """The (variant, seed) pairs that a command is about."""
    if variant is not None:
        params.variant(variant)
    variants = tuple(params.variants) if variant is None else (variant,)
    if seed is not None and seed not in params.seeds:
        raise ValueError(f"seed {seed} is not in params.yaml; it has seeds: {list(params.seeds)}")
    seeds = params.seeds if seed is None else (seed,)
    return tuple((name, number) for name in variants for number in seeds)
