"""Commands about published weights: `yolov7 weights ...`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipeline.cli.app import app

weights = typer.Typer(help="List and fetch published weights.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(weights, name="weights")


@weights.command("list")
def list_weights(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List published weights with their licences."""
    from pipeline.commands.published_weights import list_weights as run

    typer.echo(run(as_json=json))


@weights.command("fetch")
def fetch_weights(
    name: Annotated[str, typer.Argument(help="A name of `yolov7 weights list`.")],
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help="Accept the licence.")] = False,
) -> None:
    """Download published weights and convert them.

    The licence is shown, and has to be accepted once. The weights are stored in the folder that the environment
    variable YOLOV7_CACHE names, or in ~/.cache/yolov7-pipeline.
    """
    from pipeline.commands.published_weights import fetch_weights as run

    typer.echo(run(name, accepted=accept_licence, ask=typer.confirm if sys.stdin.isatty() else None))
