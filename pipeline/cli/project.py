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


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The name of the experiment.")],
    data: Annotated[Path, typer.Option(envvar="YOLOV7_DATA", help="The folder of the data set, or its data.yaml.")],
    weights: Annotated[Path | None, typer.Option(help="Weights to fine-tune. Default: train from scratch.")] = None,
    size: Annotated[
        int | None, typer.Option(metavar="N", help="Side of the training images. Default: from the sizes of boxes.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace experiments/NAME.yaml if it exists.")] = False,
) -> None:
    """Write experiments/NAME.yaml with settings for a data set.

    The command looks at the data, and states the reason of each setting in the file.
    """
    from pipeline.commands.new_experiment import new_experiment

    typer.echo("\n".join(new_experiment(name, data=data, weights=weights, size=size, force=force)))


@app.command(short_help="Write the files of a project into a folder.")
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The folder of the new project.")] = Path(),
    data: Annotated[Path | None, typer.Option(help="A data set. Default: the demo, which draws its images.")] = None,
) -> None:
    """Make a folder a project with params.yaml, dvc.yaml and experiments/.

    The project uses the installed package and needs no clone of the repository.
    """
    from pipeline.commands.init_project import init_project

    typer.echo("\n".join(init_project(folder, data=data)))
