"""Commands about data sets: `yolov7 data ...`."""

from __future__ import annotations

import typer

from pipeline.cli.app import app

data = typer.Typer(help="Check, convert and download data sets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data")


@data.callback()
def _group() -> None:
    pass
