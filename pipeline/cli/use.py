"""Commands that use a trained model: predict, export, serve."""

from __future__ import annotations

from pathlib import Path

import typer

from pipeline.cli import predict_options as of
from pipeline.cli.app import app


@app.command(short_help="Detect objects in images, videos and streams.")
def predict(
    weights: of.WeightsName,
    sources: of.SourceNames,
    out: of.Out = Path("predictions"),
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
) -> None:
    """Detect objects in images, videos and streams.

    Annotated pictures and videos are written to the folder of the results. A source that cannot be read is reported in
    one line, the others are processed, and the exit code is 1 then.
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
