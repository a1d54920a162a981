"""Arguments and options of `yolov7 predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WeightsName = Annotated[
    str,
    typer.Argument(
        metavar="WEIGHTS",
        help="A weight file, an exported file or folder, a variant of params.yaml (nano, nano/0), or a registered "
        "model (models:/yolov7@champion).",
    ),
]
SourceNames = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="Images, folders, quoted patterns, text files with one path per line, videos, the number of a camera, "
        "addresses (http, https, rtsp, ...), or - for an image on standard input.",
    ),
]
Out = Annotated[str, typer.Option(metavar="DIR", help="Folder of all results; with --ray also a URI.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one line of JSON per image, and nothing else, on standard output.")
]
JsonFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Write these lines to a file.")]
Coco = Annotated[bool, typer.Option("--coco", help="Write predictions.json in COCO format.")]
Yolo = Annotated[bool, typer.Option("--yolo", help="Write YOLO labels to the folder labels.")]
Csv = Annotated[bool, typer.Option("--csv", help="Write predictions.csv with one row per detection.")]
Crops = Annotated[bool, typer.Option("--crops", help="Write each object as a picture to the folder crops/CLASS.")]
Count = Annotated[bool, typer.Option("--count", help="Print how many objects of each class were found.")]
NoPictures = Annotated[bool, typer.Option("--no-pictures", help="Write no annotated pictures and videos.")]
Confidence = Annotated[float | None, typer.Option(metavar="C", help="Lowest score of a detection. Default: 0.25.")]
Iou = Annotated[float | None, typer.Option(metavar="I", help="Largest IoU of two objects of a class. Default: 0.45.")]
Classes = Annotated[
    list[str] | None,
    typer.Option(metavar="NAMES", help="Names or numbers of classes, separated by commas. Default: all classes."),
]
MaxDetections = Annotated[
    int | None, typer.Option(metavar="N", help="Largest number of detections per image. Default: 300.")
]
BatchSize = Annotated[int, typer.Option(metavar="N", help="Number of images that the model processes at once.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="Where the model runs: auto, cpu, cuda or cuda:N.")]
PrecisionName = Annotated[
    str, typer.Option(metavar="NAME", help="Type of the numbers: auto, float32, bfloat16 or float16.")
]
EngineName = Annotated[str, typer.Option(metavar="NAME", help="Engine that runs the model; auto is the fastest.")]
Tta = Annotated[bool, typer.Option("--tta", help="Test-time augmentation: look at three views of each image.")]
Tile = Annotated[int | None, typer.Option(metavar="SIZE", help="Divide large images into tiles of SIZE pixels.")]
Overlap = Annotated[
    float | None, typer.Option(metavar="SHARE", help="Share that neighbouring tiles have in common. Default: 0.2.")
]
Every = Annotated[int, typer.Option(metavar="N", help="Look at every Nth frame of a video.")]
Ray = Annotated[
    bool,
    typer.Option(
        "--ray", help="Detect with a pool of Ray actors; SOURCE is a folder or a URI such as s3://bucket/folder."
    ),
]
Actors = Annotated[int, typer.Option(metavar="N", help="With --ray: processes that detect objects.")]
ShardFormat = Annotated[str, typer.Option(metavar="F", help="With --ray: jsonl or parquet.")]
