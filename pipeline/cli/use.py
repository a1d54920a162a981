"""Commands that use a trained model: predict, export, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app


@app.command(short_help="Detect objects in images, videos and streams.")
def predict(
    weights: Annotated[
        str,
        typer.Argument(
            help="A weight file, an exported file or folder, a variant of params.yaml (nano, nano/0), or a registered "
            "model (models:/yolov7@champion)."
        ),
    ],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Images, folders, quoted patterns, text files with one path per line, videos, the number of a camera, "
            "addresses (http, https, rtsp, ...), or - for an image on standard input.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of all results.")] = Path("predictions"),
    json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per image, and nothing else, on standard output.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write these lines to a file.", show_default=False)
    ] = None,
    coco: Annotated[bool, typer.Option("--coco", help="Write OUT/predictions.json in COCO format.")] = False,
    yolo: Annotated[bool, typer.Option("--yolo", help="Write YOLO labels to OUT/labels.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Write OUT/predictions.csv, one row per detection.")] = False,
    crops: Annotated[bool, typer.Option("--crops", help="Write each object as a picture to OUT/crops/CLASS.")] = False,
    count: Annotated[bool, typer.Option("--count", help="Print how many objects of each class were found.")] = False,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Write no annotated pictures and videos.")] = False,
    confidence: Annotated[
        float | None, typer.Option(metavar="C", help="Lowest score of a detection. Default: 0.25.")
    ] = None,
    iou: Annotated[
        float | None, typer.Option(metavar="I", help="Largest IoU of two objects of one class. Default: 0.45.")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="Names or numbers of classes, with commas. Default: all classes."),
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option(metavar="N", help="Largest number of detections per image. Default: 300.")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images that the model processes at once.")] = 16,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(metavar="NAME", help="auto, float32, bfloat16 or float16.")] = "auto",
    engine: Annotated[str, typer.Option(metavar="NAME", help="auto, or the engine that runs the model.")] = "auto",
    tta: Annotated[
        bool, typer.Option("--tta", help="Test-time augmentation: look at three views of each image.")
    ] = False,
    tile: Annotated[
        int | None, typer.Option(metavar="SIZE", help="Divide large images into tiles of SIZE pixels.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Share that neighbouring tiles have in common. Default: 0.2.")
    ] = None,
    every: Annotated[int, typer.Option(metavar="N", help="Look at every Nth frame of a video.")] = 1,
) -> None:
    """Detect objects in images, videos and streams.

    Annotated pictures and videos are written to OUT. A source that cannot be read is reported in one line, the others
    are processed, and the exit code is 1 then.
    """
    from pipeline.commands.predict import PredictOptions
    from pipeline.commands.predict import predict as run

    options = PredictOptions(
        out=out,
        pictures=not no_pictures,
        json=json,
        json_file=json_file,
        count=count,
        coco=coco,
        yolo=yolo,
        csv=csv,
        crops=crops,
        confidence=confidence,
        iou=iou,
        classes=classes,
        max_detections=max_detections,
        batch_size=batch_size,
        tta=tta,
        tile=tile,
        overlap=overlap,
        every=every,
        engine=engine,
        device=device,
        precision=precision,
    )
    if not run(weights, sources, options):
        raise typer.Exit(1)
