"""The health report as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape

from pipeline.report.health import MAX_LISTED, HealthReport, SplitHealth
from yolov7.data.flaws import FlawKind

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --paper: #fff; --soft: #66707f; --line: #dfe3e9; --bar: #3d74c7;
  --warn: #a85a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --paper: #14181f; --soft: #98a2b1; --line: #2c333e;
  --bar: #6fa0ea; --warn: #f0a850; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 68rem;
  margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.4rem }
h3 { font-size: .95rem; color: var(--soft); font-weight: 600; margin: 1.2rem 0 .4rem }
p { color: var(--soft); margin-top: 0 } p.warn { color: var(--warn) }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600; white-space: nowrap } td.number { text-align: right; width: 6rem }
td.file { word-break: break-all }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 0 2.5rem }
.bar { background: var(--bar); height: .8rem; border-radius: 2px; min-width: 1px }
td.bars { width: 55% ; vertical-align: middle } img { max-width: 100%; border-radius: 4px }
"""


def report_html(report: HealthReport, *, sheet: bytes) -> str:
    """The page; `sheet` is the JPEG of the contact sheet."""
    picture = base64.b64encode(sheet).decode()
    splits = "".join(_split_section(name, health) for name, health in report.splits.items())
    images = " + ".join(f"{health.images:,} {name}" for name, health in report.splits.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Health of the data</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>Health of the data</h1><p>{escape(report.source)}: {images} images, {len(report.class_names)} classes</p>"
        f'{splits}<h2>Samples of train</h2><img alt="sample images with their boxes" '
        f'src="data:image/jpeg;base64,{picture}"></body></html>\n'
    )


def _split_section(name: str, health: SplitHealth) -> str:
    facts = (
        f"{health.images:,} images, {health.boxes:,} boxes, {health.crowd_regions:,} crowd regions; "
        f"{health.boxes_per_image_mean:g} boxes an image, {health.boxes_per_image_max:,} at most; "
        f"{health.images_without_boxes:,} images without boxes"
    )
    empty = [label for label, count in health.boxes_per_class.items() if not count]
    absent = f'<p class="warn">No boxes of: {escape(", ".join(empty))}</p>' if empty else ""
    charts = "".join(
        f"<div><h3>{title}</h3>{_bars(counts)}</div>"
        for title, counts in (
            ("Boxes of each class", health.boxes_per_class),
            ("Boxes of each size (below 32², up to 96², above)", health.boxes_per_size),
            ("Image sizes", health.image_sizes),
        )
    )
    return f'<h2>{escape(name)}</h2><p>{facts}</p>{absent}<div class="columns">{charts}</div>{_flaws(health)}'


def _bars(counts: Mapping[str, int]) -> str:
    top = max(counts.values(), default=0) or 1
    rows = "".join(
        f'<tr><th>{escape(name)}</th><td class="number">{count:,}</td>'
        f'<td class="bars"><div class="bar" style="width:{100 * count / top:.1f}%"></div></td></tr>'
        for name, count in counts.items()
    )
    return f"<table>{rows}</table>"


def _flaws(health: SplitHealth) -> str:
    if not health.flaws:
        return "<h3>Flaws</h3><p>None.</p>"
    total = sum(health.flaws.values())
    shown = f" The first {MAX_LISTED} of {total:,}:" if total > len(health.listed_flaws) else ""
    rows = "".join(
        f'<tr><td>{escape(flaw.kind)}</td><td class="file">{escape(flaw.file)}</td><td>{escape(flaw.detail)}</td></tr>'
        for flaw in health.listed_flaws
    )
    counts = {f"{kind}: {FlawKind(kind).outcome}": count for kind, count in health.flaws.items()}
    return f"<h3>Flaws</h3>{_bars(counts)}<p>{shown}</p><table>{rows}</table>"
