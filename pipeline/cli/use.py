"""Commands that use a trained model: predict, export, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli import predict_options as of
from pipeline.cli.app import app

_Format = Literal["onnx", "openvino", "torchscript", "tensorrt"]
_Precision = Literal["float32", "float16", "bfloat16", "int8"]
_Layout = Literal["rgb_nchw", "rgb_nhwc", "bgr_nhwc"]


@app.command(short_help="Detect objects in images, videos and streams.")
def predict(
    weights: of.WeightsName,
    sources: of.SourceNames,
    out: of.Out = "predictions",
    json: of.Json = False,
    json_file: of.JsonFile = None,
    coco: of.Coco = False,
    yolo: of.Yolo = False,
    csv: of.Csv = False,
    crops: of.Crops = False,
    count: of.Count = False,
    no_pictures: of.NoPictures = False,
    confidence: of.Confidence = None,
    iou: of.Iou = None,
    classes: of.Classes = None,
    max_detections: of.MaxDetections = None,
    batch_size: of.BatchSize = 16,
    device: of.Device = "auto",
    precision: of.PrecisionName = "auto",
    engine: of.EngineName = "auto",
    tta: of.Tta = False,
    tile: of.Tile = None,
    overlap: of.Overlap = None,
    every: of.Every = 1,
    ray: of.Ray = False,
    actors: of.Actors = 1,
    format: of.ShardFormat = "jsonl",
) -> None:
    """Detect objects in images, videos and streams.

    Annotated pictures and videos are written to the folder of the results. A source that cannot be read is reported in
    one line, the others are processed, and the exit code is 1 then.
    """
    from pipeline.commands.predict import PredictOptions
    from pipeline.commands.predict import predict as run

    options = PredictOptions(
        out=out, pictures=not no_pictures, json=json, json_file=json_file, count=count, coco=coco, yolo=yolo, csv=csv,
        crops=crops, confidence=confidence, iou=iou, classes=classes, max_detections=max_detections,
        batch_size=batch_size, tta=tta, tile=tile, overlap=overlap, every=every, engine=engine, device=device,
        precision=precision, ray=ray, actors=actors, shard_format=format,
    )  # fmt: skip
    if not run(weights, sources, options):
        raise typer.Exit(1)


@app.command(short_help="Answer HTTP requests with detections.")
def serve(
    weights: Annotated[str, typer.Argument(help="A weight file, or an exported file or folder.")],
    host: Annotated[str, typer.Option(metavar="NAME", help="Name or address; 0.0.0.0 for all networks.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="The port; 0 chooses a free one.")] = 8000,
    replicas: Annotated[int, typer.Option(metavar="N", help="Copies of the model that work in parallel.")] = 1,
    device: Annotated[str, typer.Option(metavar="D", help="`auto`, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(metavar="P", help="`auto`, float32, bfloat16 or float16.")] = "auto",
    engine: Annotated[str, typer.Option(metavar="E", help="What runs the model; auto is the fastest one.")] = "auto",
    confidence: Annotated[float, typer.Option(metavar="C", help="Lowest score of a detection.")] = 0.25,
    iou: Annotated[float, typer.Option(metavar="I", help="Largest IoU of two detections of a class.")] = 0.45,
    max_detections: Annotated[int, typer.Option(metavar="N", help="Largest number of detections per image.")] = 300,
    max_batch: Annotated[int, typer.Option(metavar="N", help="Waiting images that are processed at once.")] = 8,
    max_queue: Annotated[int, typer.Option(metavar="N", help="Requests in progress; more get status 503.")] = 64,
    max_body_megabytes: Annotated[int, typer.Option(metavar="N", help="Size of the largest request.")] = 32,
    max_megapixels: Annotated[int, typer.Option(metavar="N", help="Size of the largest image.")] = 50,
) -> None:
    """Answer HTTP requests with the detections of a model: POST an image to /predict.

    The page /docs describes all requests. Only programs on this machine reach the service, unless --host is given.
    """
    from pipeline.commands.serve import serve_model

    settings = {
        "weights": weights,
        "engine": engine,
        "device": device,
        "precision": precision,
        "replicas": replicas,
        "confidence": confidence,
        "iou": iou,
        "max_detections": max_detections,
        "max_batch": max_batch,
        "max_queue": max_queue,
        "max_body_megabytes": max_body_megabytes,
        "max_megapixels": max_megapixels,
    }
    serve_model(settings, host=host, port=port)


@app.command(short_help="Export a model, and verify the file against torch.")
def export(
    weights: Annotated[str, typer.Argument(help="A weight file, a variant, or a registered model.")],
    format: Annotated[_Format, typer.Option(help="The format.")] = "onnx",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A file or a folder. Default: a folder beside the weights.")
    ] = None,
    nms: Annotated[bool, typer.Option("--nms", help="Include non-maximum suppression.")] = False,
    confidence: Annotated[
        float | None, typer.Option(metavar="F", min=0, max=1, help="With --nms: lowest score of a detection.")
    ] = None,
    iou: Annotated[
        float | None, typer.Option(metavar="F", min=0, max=1, help="With --nms: largest IoU of two detections.")
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="With --nms: most detections per image.")
    ] = None,
    multi_label: Annotated[bool, typer.Option("--multi-label", help="With --nms: several classes per box.")] = False,
    agnostic: Annotated[bool, typer.Option("--agnostic", help="With --nms: suppress across classes.")] = False,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Accept images of any size.")] = False,
    precision: Annotated[_Precision, typer.Option(help="Type of the stored numbers.")] = "float32",
    layout: Annotated[_Layout, typer.Option(help="Channels and axes of the input (openvino).")] = "rgb_nchw",
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="What it is verified on. Default: the val split, or --calibrate."),
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="PATH", help="With int8: data for calibration. Default: the train split.")
    ] = None,
    tolerance: Annotated[float | None, typer.Option(metavar="F", help="Largest change of AP, as a fraction.")] = None,
) -> None:
    """Export a model, verified against torch.

    The file is written only if its outputs, detections and AP are those of the weights. `export.json` beside it
    contains what was measured.
    """
    from pipeline.commands.export import export as run

    thresholds = {"confidence": confidence, "iou": iou, "max_detections": max_detections}
    flags = {"multi_label": multi_label, "agnostic": agnostic}
    run(
        weights,
        format=format,
        output=output,
        nms=nms,
        nms_options={name: value for name, value in (thresholds | flags).items() if value not in (None, False)},
        dynamic=dynamic,
        precision=precision,
        layout=layout,
        data=data,
        calibrate=calibrate,
        tolerance=tolerance,
    )
