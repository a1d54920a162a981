"""Commands about data sets: `yolov7 data ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

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


@data.command()
def check(
    path: Annotated[Path, typer.Argument(help="The folder of a data set, a data.yaml or a COCO file.")],
    format: Annotated[Literal["auto", "coco", "voc", "yolo"], typer.Option(help="`auto` recognises it.")] = "auto",
    split: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Splits to check, with commas between. Default: all.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="IDS", help="Checks to run, with commas between. Default: all.")
    ] = None,
    skip: Annotated[str | None, typer.Option(metavar="IDS", help="Checks to leave out, with commas between.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if anything is found, also a note.")] = False,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the report as JSON; `-` prints it instead of the text.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as a page with pictures.")] = None,
    size: Annotated[
        int | None, typer.Option(min=32, metavar="N", help="Training size in pixels. Default: 640, or the weights'.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Let this model look for suspicious labels.")
    ] = None,
    fix: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a cleaned copy of the annotations to this new folder.")
    ] = None,
) -> None:
    """Check a data set: flaws, copies, leaks, small boxes, skew between splits.

    The exit code is 0 if no error was found, 1 if an error was found or a check stopped, and 2 if an option or the data
    cannot be used.
    """
    from pipeline.commands.data_check import check_data

    code = check_data(
        path,
        format=format,
        splits=split,
        only=only,
        skip=skip,
        strict=strict,
        json=json,
        html=html,
        image_size=size,
        weights=weights,
        fix=fix,
    )
    raise typer.Exit(code)


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
