"""Commands about specs and weight files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli.app import app

_Rule = Literal["compound", "width", "depth", "both"]


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


@app.command(short_help="Convert weights of other implementations.")
def import_weights(
    file: Annotated[Path, typer.Argument(help="A file of weights that another implementation wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The weight file to write (.safetensors).")],
    spec: Annotated[
        str | None,
        typer.Option(help="A name from `yolov7 models`, or the path of a spec file. Default: the spec that fits."),
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="Class names: one per line, or `names` in YAML. Default: the file's own.")
    ] = None,
) -> None:
    """Convert weights of another implementation to a weight file.

    Checkpoints and state dicts of the reference implementation, darknet's weights, and files of MultimediaTechLab/YOLO
    and LibreYOLO are recognised by their content. Nothing in them is executed.
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
