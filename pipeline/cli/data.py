"""Commands about data sets: `yolov7 data ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.app import app

data = typer.Typer(help="Check, convert and download data sets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data")


@data.callback()
def _group() -> None:
    pass


@data.command()
def convert(
    source: Annotated[Path, typer.Argument(help="The folder of a data set, a data.yaml or a COCO file.")],
    to: Annotated[str, typer.Option("--to", metavar="coco|voc|yolo", help="The new format.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new folder; it must be empty or missing.")],
    link: Annotated[
        bool | None,
        typer.Option("--link/--copy", help="Hard-link or copy the images. Default: link where this is possible."),
    ] = None,
) -> None:
    """Write a data set in another format, and count what that format cannot express.

    The source is not changed. Hard links share the content of the images with the source.
    """
    from pipeline.commands.data_convert import run_convert

    placement: Any = "auto" if link is None else "link" if link else "copy"
    typer.echo("\n".join(run_convert(source, to, out, placement=placement)))
