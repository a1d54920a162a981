"""Commands about data sets: `yolov7 data ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app

data = typer.Typer(help="Check, convert and download data sets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data")


@data.callback()
def _group() -> None:
    pass


@data.command("download")
def download_data(
    name: Annotated[str, typer.Argument(help="coco2017, voc2012, or the address of a zip or tar file.")],
    mirror: Annotated[str | None, typer.Option(metavar="URL", help="Another address with the same files.")] = None,
    parts: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Comma-separated, for example val,annotations.")
    ] = None,
    sha256: Annotated[str | None, typer.Option(metavar="SUM", help="The sum of the file at an address.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder of the data. Default: data/NAME.")] = None,
) -> None:
    """Download a data set, and unpack it.

    If it is interrupted, run the same command again: it continues where it ended. Parts of coco2017: train, val,
    annotations, test, test_info. Part of voc2012: trainval.
    """
    from pipeline.commands.download import download_data as run

    chosen = None if parts is None else [part.strip() for part in parts.split(",") if part.strip()]
    typer.echo(run(name, mirror=mirror, parts=chosen, sha256=sha256, folder=out))
