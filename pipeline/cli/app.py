"""The application of the command line, and what several commands need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.experiment import Experiment, ResolvedVariant
    from pipeline.external import ExternalVariant

_ORDER = (
    *("predict", "evaluate", "export", "serve"),
    *("init", "new", "use", "data", "inspect", "models", "scale"),
    *("resolve", "prepare", "train", "reparam", "benchmark", "tables", "explain", "tune"),
    *("weights", "import-weights", "export-weights", "soup", "submission", "ui", "sync"),
)


class _Commands(TyperGroup):
    """The commands in the order in which users need them."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))


app = typer.Typer(
    name="yolov7",
    cls=_Commands,
    help="Train, compare, export and use YOLOv7 models. State variants and data in params.yaml, then run `dvc repro`.",
    epilog="Set YOLOV7_TRACEBACK=1 to see where an error was raised.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

VariantName = Annotated[str | None, typer.Argument(help="A variant of params.yaml. Default: all variants.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="A seed of params.yaml. Default: all seeds.")]

_DISTRIBUTION = "yolov7-pipeline"


def about() -> tuple[str, str]:
    """Describe the installed project.

    Returns:
        Its name with its version, and where to report bugs.
    """
    from importlib.metadata import PackageNotFoundError, metadata

    maintainers = f"to the maintainers of {_DISTRIBUTION}"
    try:
        found = metadata(_DISTRIBUTION)
    except PackageNotFoundError:
        return _DISTRIBUTION, maintainers
    pages = dict(url.split(", ", 1) for url in found.get_all("Project-URL") or [])
    return f"{_DISTRIBUTION} {found['Version']}", f"at {pages['Issues']}" if "Issues" in pages else maintainers


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(about()[0])
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Also log what happens inside.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print warnings and errors only.")] = False,
) -> None:
    if verbose:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if quiet:
        from pipeline.console import console

        console.quiet = True


def experiment() -> Experiment:
    """Load params.yaml of the current folder.

    Returns:
        The resolved experiment.

    Raises:
        SettingError: If the file is missing or wrong.
    """
    from pipeline.experiment import load_experiment

    return load_experiment()


def selected(experiment: Experiment, variant: str | None, seed: int | None) -> tuple[tuple[ResolvedVariant, int], ...]:
    """Select variants and seeds of an experiment.

    Args:
        experiment: The experiment.
        variant: A variant's name, or the name of a DVC stage, such as `train@nano-0`, which selects one variant and
            seed; None selects all variants.
        seed: A seed; None selects all seeds.

    Returns:
        Each selected variant with each selected seed.

    Raises:
        SettingError: If the experiment has no such variant or seed.
    """
    name, seed = _split_stage_name(variant, seed)
    variants = tuple(experiment.variants.values()) if name is None else (experiment.variant(name),)
    seeds = _seeds(experiment, seed)
    return tuple((one, number) for one in variants for number in seeds)


def selected_rows(
    experiment: Experiment, variant: str | None, seed: int | None
) -> tuple[tuple[ResolvedVariant | ExternalVariant, int], ...]:
    """Select variants and seeds of an experiment, also variants of which only results are known.

    Args:
        experiment: The experiment.
        variant: As for `selected`.
        seed: A seed; None selects all seeds.

    Returns:
        Each selected variant with each selected seed.

    Raises:
        SettingError: If the experiment has no such variant or seed.
    """
    name, number = _split_stage_name(variant, seed)
    externals = [one for one in experiment.externals.values() if name in (None, one.name)]
    models = () if name is not None and externals else selected(experiment, variant, seed)
    return (*models, *((one, each) for one in externals for each in _seeds(experiment, number)))


def _split_stage_name(variant: str | None, seed: int | None) -> tuple[str | None, int | None]:
    """Return the variant and the seed in the name of a DVC stage; other names stay as they are."""
    if variant is not None and "@" in variant:
        name, _, number = variant.rpartition("@")[2].rpartition("-")
        if number.isdecimal():
            return name, int(number)
    return variant, seed


def _seeds(experiment: Experiment, seed: int | None) -> Sequence[int]:
    from yolov7.errors import SettingError

    if seed is not None and seed not in experiment.seeds:
        raise SettingError(f"seed {seed} is not in params.yaml; it has the seeds {list(experiment.seeds)}")
    return experiment.seeds if seed is None else (seed,)
