"""Commands that use a trained model: predict, export, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli.app import app

_Format = Literal["onnx", "openvino", "torchscript", "tensorrt"]
_Precision = Literal["float32", "float16", "bfloat16", "int8"]
_Layout = Literal["rgb_nchw", "rgb_nhwc", "bgr_nhwc"]


@app.command()
def export(
    weights: Annotated[Path, typer.Argument(help="A weight file (.safetensors).")],
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
        Path | None, typer.Option(help="Verify on a COCO file, a prepared split or a folder. Default: the val split.")
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
        tolerance=tolerance,
    )
