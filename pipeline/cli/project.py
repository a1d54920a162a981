"""Commands about the project as a whole: its experiments and its tracking."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app


@app.command()
def use(
    name: Annotated[str | None, typer.Argument(help="A file of experiments/ without its suffix .yaml.")] = None,
    data: Annotated[Path | None, typer.Option(envvar="YOLOV7_DATA", help="The folder of the data set.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Discard edits of params.yaml that are not saved.")] = False,
    weights: Annotated[
        str | None,
        typer.Option(metavar="published|FOLDER", help="Use weights instead of training: published ones or your own."),
    ] = None,
    miniature: Annotated[
        bool, typer.Option("--miniature", help="Run an experiment on COCO with 60 drawn images and one epoch.")
    ] = False,
) -> None:
    """Copy experiments/NAME.yaml to params.yaml.

    Without a name, the experiments are listed.
    """
    from pipeline.commands.experiments import list_experiments, use_experiment

    if name is None:
        typer.echo("\n".join(list_experiments()))
    else:
        typer.echo(use_experiment(name, data=data, force=force, weights=weights, miniature=miniature))


@app.command()
def sync() -> None:
    """Upload tracking records that are still queued.

    Records are queued while the tracking server is unreachable. Every other command uploads them, too.
    """
    from pipeline.commands.run_stages import run_sync
    from pipeline.params import load_params

    run_sync(load_params().tracking)


@app.command()
def ui(
    port: Annotated[int, typer.Option(metavar="N", help="The port of the web page.")] = 5000,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
) -> None:
    """Serve MLflow's web page with all runs."""
    from pipeline.commands.run_stages import open_ui
    from pipeline.params import load_params

    open_ui(load_params().tracking, host=host, port=port)
