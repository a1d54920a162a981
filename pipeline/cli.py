"""The command line: one function per command. Each imports what it needs, so that `yolov7 --help` starts quickly."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.ray.environment import set_ray_environment
from pipeline.ray.parent_process import end_with_dvc

if TYPE_CHECKING:
    from pipeline.experiment import Experiment, ResolvedVariant

app = typer.Typer(
    name="yolov7",
    help="Compare YOLOv7 models: describe them and the data in params.yaml, then run `dvc repro` or single stages.",
    epilog="Set YOLOV7_TRACEBACK=1 to see where an error was raised.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_INTERRUPTED = 130  # the exit code after Ctrl-C
_DISTRIBUTION = "yolov7-pipeline"
_FILE_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_HOW_TO_CONTINUE = {
    "train": "; run the same command again to continue from the last checkpoint",
    "tune": "; run `yolov7 tune --resume` to continue the search",
}

_Variant = Annotated[str | None, typer.Argument(help="A variant of params.yaml. Default: all variants.")]
_Rule = Literal["compound", "width", "depth", "both"]
_Seed = Annotated[int | None, typer.Option(metavar="N", help="A seed of params.yaml. Default: all seeds.")]


def main() -> None:
    """Run the command that the arguments name.

    Errors that the user can correct end in one line and exit code 2. Any other error is a bug in this project: it shows
    its traceback and ends with exit code 1.
    """
    end_with_dvc()
    set_ray_environment()
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # our own messages describe faults in images
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names in files may have characters that a terminal lacks
    try:
        app()
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            _end_interrupted()
        raise
    except KeyboardInterrupt:
        _end_interrupted()
    except Exception as error:
        if os.environ.get("YOLOV7_TRACEBACK"):
            raise
        _end_with(error)


def _end_interrupted() -> None:
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    _fail(f"interrupted{_HOW_TO_CONTINUE.get(command, '')}", code=_INTERRUPTED)


def _end_with(error: Exception) -> None:
    from yolov7.errors import UserError, is_mendable, told

    named_file = isinstance(error, _FILE_ERRORS) and error.filename is not None
    if isinstance(error, UserError) or is_mendable(error) or named_file:
        _fail(told(error))
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        reason = told(error) if str(error) else "the memory of this machine is exhausted"
        _fail(f"out of memory: {reason}; use a smaller batch or image size, or close other programs")
    import traceback

    traceback.print_exception(error)
    name, where = _about()
    _fail(f"this is a bug in {name}; please report it {where} with the traceback above", code=1)


def _about() -> tuple[str, str]:
    """Return the name and version of this project, and where to report bugs."""
    from importlib.metadata import PackageNotFoundError, metadata

    maintainers = f"to the maintainers of {_DISTRIBUTION}"
    try:
        about = metadata(_DISTRIBUTION)
    except PackageNotFoundError:
        return _DISTRIBUTION, maintainers
    pages = dict(url.split(", ", 1) for url in about.get_all("Project-URL") or [])
    return f"{_DISTRIBUTION} {about['Version']}", f"at {pages['Issues']}" if "Issues" in pages else maintainers


def _fail(message: str, *, code: int = 2) -> None:
    print(f"yolov7: {message}", file=sys.stderr)
    sys.exit(code)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(_about()[0])
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def resolve() -> None:
    """Resolve params.yaml for the other stages.

    Write everything that decides the result of a stage, variant and seed to one file in artifacts/resolve.
    """
    from pipeline.commands.run_stages import run_resolve

    run_resolve(_experiment())


@app.command()
def prepare() -> None:
    """Read or draw the data, check them, and index them.

    Write one index per split and a health report to artifacts/prepare.
    """
    from pipeline.commands.run_stages import run_prepare

    run_prepare(_experiment())


@app.command()
def train(variant: _Variant = None, seed: _Seed = None) -> None:
    """Train variants with Ray Train.

    An interrupted training continues from its last checkpoint.
    """
    from pipeline.commands.run_stages import run_train

    experiment = _experiment()
    run_train(experiment, _selected(experiment, variant, seed))


@app.command()
def reparam(variant: _Variant = None, seed: _Seed = None) -> None:
    """Re-parameterise trained models and prove the result.

    The proof compares the outputs of the model before and after.
    """
    from pipeline.commands.run_stages import run_reparam

    experiment = _experiment()
    run_reparam(experiment, _selected(experiment, variant, seed))


@app.command()
def evaluate(variant: _Variant = None, seed: _Seed = None) -> None:
    """Measure COCO metrics of the deployed models.

    Also draw example detections, precision-recall curves and the confusion matrix.
    """
    from pipeline.commands.run_stages import run_evaluate

    experiment = _experiment()
    run_evaluate(experiment, _selected(experiment, variant, seed))


@app.command()
def benchmark() -> None:
    """Measure latency and FPS of all variants.

    The variants take turns, so that a change in the machine's speed affects all of them alike.
    """
    from pipeline.commands.run_stages import run_benchmark

    run_benchmark(_experiment())


@app.command()
def tables(
    show: Annotated[bool, typer.Option("--show", help="Only print the summary of the last run.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only compare #Param and FLOPs with the paper.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare the variants, and fill the paper's tables.

    Write an HTML page, CSV, Markdown and JSON to artifacts/tables. The exit code of --check is 1 if a figure differs.
    """
    from pipeline.commands.run_stages import check_tables, print_summary, run_tables

    if check:
        raise typer.Exit(0 if check_tables(as_json=json) else 1)
    if show:
        print_summary()
    else:
        run_tables(_experiment(), as_json=json)


@app.command()
def tune(
    budget: Annotated[str | None, typer.Option(metavar="B", help="For example 30m, 8h, 40trials or 2e18flop.")] = None,
    base: Annotated[str | None, typer.Option(metavar="NAME", help="The variant or spec that is scaled.")] = None,
    max_gflops: Annotated[float | None, typer.Option(metavar="G", help="Largest GFLOPs of a deployed model.")] = None,
    max_params: Annotated[float | None, typer.Option(metavar="M", help="Largest parameter count in millions.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(metavar="MS", help="Largest latency at batch size 1.")] = None,
    rule: Annotated[
        str | None, typer.Option(metavar="RULES", help="Comma-separated rules: compound, width, depth, free.")
    ] = None,
    trials_per_gpu: Annotated[int | None, typer.Option(metavar="N", help="Trials that share one GPU.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of the search and of all trainings.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted search.")] = False,
    adopt: Annotated[bool, typer.Option("--adopt", help="Only add the chosen model to params.yaml.")] = False,
) -> None:
    """Search for the best model of a family within a budget.

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
        "base": base,
        "max_gflops": max_gflops,
        "max_params": max_params,
        "max_latency_ms": max_latency_ms,
        "rules": rule.split(",") if rule else None,
        "trials_per_gpu": trials_per_gpu,
        "seed": seed,
    }
    experiment = _experiment()
    run_search(experiment, tune_settings(experiment, options), resume=resume)


@app.command()
def models(
    plan: Annotated[str | None, typer.Option(metavar="NAME", help="Show how this spec is re-parameterised.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List all specs with their parameters and GFLOPs."""
    from pipeline.commands.specs import list_models, print_plan

    if plan is None:
        list_models(as_json=json)
    else:
        print_plan(plan, as_json=json)


@app.command()
def scale(
    name: Annotated[str, typer.Argument(help="A name from `yolov7 models`, or the path of a spec file.")],
    depth: Annotated[float, typer.Option(metavar="F", help="Factor on the depth of computational blocks.")] = 1.0,
    width: Annotated[float, typer.Option(metavar="F", help="Factor on every width (rules: width, both).")] = 1.0,
    rule: Annotated[_Rule, typer.Option(help="`compound` derives the width from the depth.")] = "compound",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Also write the spec to this file.")] = None,
) -> None:
    """Scale a spec, and print it with its cost."""
    from pipeline.commands.specs import scale as run

    typer.echo(run(name, rule=rule, depth=depth, width=width, output=output), nl=False)


@app.command()
def import_weights(
    file: Annotated[Path, typer.Argument(help="A checkpoint (.pt) of the reference implementation.")],
    spec: Annotated[str, typer.Option(help="A name from `yolov7 models`, or the path of a spec file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The weight file to write (.safetensors).")],
    names: Annotated[
        Path | None, typer.Option(help="Class names: one per line, or `names` in YAML. Default: the checkpoint's.")
    ] = None,
) -> None:
    """Convert a reference checkpoint to a weight file.

    Nothing in the checkpoint is executed.
    """
    from pipeline.commands.weights import import_weights as run

    typer.echo(run(file, spec=spec, names=names, output=output))


@app.command()
def export_weights(
    file: Annotated[Path, typer.Argument(help="A weight file (.safetensors), trained or imported.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint to write (.pt).")],
) -> None:
    """Write weights with the reference implementation's names.

    The checkpoint contains a state dict.
    """
    from pipeline.commands.weights import export_weights as run

    typer.echo(run(file, output=output))


@app.command()
def soup(
    weights: Annotated[list[Path], typer.Argument(help="Weight files that were trained from the same weights.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")] = Path("soup.safetensors"),
    greedy: Annotated[bool, typer.Option("--greedy", help="Leave out files that lower AP on val.")] = False,
) -> None:
    """Average the weights of several trainings.

    Print AP on the validation split before and after averaging.
    """
    from pipeline.commands.soup import make_soup

    make_soup(weights, output=output, greedy=greedy)


@app.command()
def inspect(
    variant: Annotated[str | None, typer.Argument(help="A variant of params.yaml. Default: the first one.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="A seed of params.yaml. Default: the first.")] = None,
) -> None:
    """Draw training samples and the assignment of labels.

    The assignment shows the cells from which a trained model's heads learn each object.
    """
    from pipeline.commands.inspect_training import inspect as run

    experiment = _experiment()
    run(*_selected(experiment, variant or next(iter(experiment.variants)), seed)[0])


@app.command()
def use(
    name: Annotated[str | None, typer.Argument(help="A file of experiments/ without its suffix .yaml.")] = None,
    data: Annotated[Path | None, typer.Option(envvar="YOLOV7_DATA", help="The folder of the data set.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Discard edits of params.yaml that are not saved.")] = False,
) -> None:
    """Copy experiments/NAME.yaml to params.yaml.

    Without a name, the experiments are listed.
    """
    from pipeline.commands.experiments import list_experiments, use_experiment

    if name is None:
        typer.echo("\n".join(list_experiments()))
    else:
        typer.echo(use_experiment(name, data=data, force=force))


@app.command()
def sync() -> None:
    """Upload tracking records that are still queued.

    Records are queued while the tracking server is unreachable. Every other command uploads them, too.
    """
    from pipeline.commands.run_stages import run_sync
    from pipeline.params import load_params

    run_sync(load_params().tracking)


@app.command()
def ui(port: Annotated[int, typer.Option(metavar="N", help="The port of the web page.")] = 5000) -> None:
    """Serve MLflow's web page with all runs."""
    from pipeline.commands.run_stages import open_ui
    from pipeline.params import load_params

    open_ui(load_params().tracking, port=port)


def _experiment() -> Experiment:
    from pipeline.experiment import load_experiment

    return load_experiment()


def _selected(experiment: Experiment, variant: str | None, seed: int | None) -> tuple[tuple[ResolvedVariant, int], ...]:
    """Return the selected variants and seeds; the name of a DVC stage, such as `train@nano-0`, selects one of each."""
    from yolov7.errors import SettingError

    if variant is not None and "@" in variant:
        name, _, number = variant.rpartition("@")[2].rpartition("-")
        if number.isdecimal():
            variant, seed = name, int(number)
    variants = tuple(experiment.variants.values()) if variant is None else (experiment.variant(variant),)
    if seed is not None and seed not in experiment.seeds:
        raise SettingError(f"seed {seed} is not in params.yaml; it has the seeds {list(experiment.seeds)}")
    seeds = experiment.seeds if seed is None else (seed,)
    return tuple((one, number) for one in variants for number in seeds)
