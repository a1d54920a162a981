"""The stage `tables`: the variants side by side, and the paper's tables with our figures beside them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.artifacts import (
    ROOT,
    Benchmark,
    Metrics,
    PreparedData,
    ReparamReport,
    TrainSummary,
    fresh_folder,
    read_json,
    stage_folder,
)
from pipeline.page import Curve, Page, Picture, render_page
from pipeline.params import Params
from pipeline.render import summary_csv, summary_markdown, table_csv, table_markdown
from pipeline.tables import Evidence, Results, SummaryRow, Table, paper_tables, summarise_variants, summary_lines
from yolov7.settings import Settings

SUMMARY = "summary.txt"  # as a terminal shows it
_PICTURES = {
    "examples.jpg": "detections",
    "precision_recall.png": "precision and recall",
    "confusion.png": "confusion",
}


class Report(Settings):
    """What the stage wrote."""

    summary: tuple[SummaryRow, ...]
    tables: tuple[Table, ...]


def tables(params: Params) -> Report:
    """Gathers what all stages left into artifacts/tables: CSV, Markdown and index.html."""
    evidence = gather(params)
    report = Report(summary=summarise_variants(evidence), tables=paper_tables(evidence))
    folder = fresh_folder(stage_folder("tables"))
    conditions = _conditions(evidence.benchmark)
    for table in report.tables:
        (folder / f"{table.name}.csv").write_text(table_csv(table), encoding="utf-8")
        (folder / f"{table.name}.md").write_text(table_markdown(table), encoding="utf-8")
    (folder / "summary.csv").write_text(summary_csv(report.summary), encoding="utf-8")
    (folder / "summary.md").write_text(summary_markdown(report.summary, conditions=conditions), encoding="utf-8")
    (folder / SUMMARY).write_text("\n".join(summary_lines(report.summary)) + "\n", encoding="utf-8")
    (folder / "index.html").write_text(render_page(_page(evidence, report, conditions)), encoding="utf-8")
    return report


def gather(params: Params) -> Evidence:
    """Reads the artifacts of all variants and seeds; ArtifactError names the first that is missing."""
    return Evidence(
        params=params,
        data=read_json(stage_folder("prepare") / "dataset.json", PreparedData, made_by="prepare"),
        benchmark=read_json(stage_folder("benchmark") / "benchmark.json", Benchmark, made_by="benchmark"),
        variants={name: _gather_variant(params, name) for name in params.variants},
    )


def _gather_variant(params: Params, name: str) -> Results:
    trained, metrics, reparam = [], [], []
    for seed in params.seeds:
        train, evaluate, fuse = (stage_folder(stage, name, seed) for stage in ("train", "evaluate", "reparam"))
        trained.append(read_json(train / "train.json", TrainSummary, made_by=f"train {name}"))
        metrics.append(read_json(evaluate / "metrics.json", Metrics, made_by=f"evaluate {name}"))
        reparam.append(read_json(fuse / "reparam.json", ReparamReport, made_by=f"reparam {name}"))
    return Results(
        spec=params.variant(name).build_spec(),
        image_size=params.train_settings(name).image_size,
        trained=tuple(trained),
        metrics=tuple(metrics),
        reparam=tuple(reparam),
    )


def _page(evidence: Evidence, report: Report, conditions: str) -> Page:
    data = evidence.data
    images = " + ".join(f"{count:,} {split}" for split, count in data.splits.items())
    return Page(
        title="YOLOv7 variants and the paper's tables",
        subtitle=f"Data: {data.source}; {images} images, {len(data.class_names)} classes.",
        conditions=conditions,
        summary=report.summary,
        curves={name: list(_curves(evidence.params, name)) for name in evidence.variants},
        pictures=tuple(_find_pictures(evidence.params)),
        tables=report.tables,
    )


def _conditions(benchmark: Benchmark) -> str:
    clock = f" at {benchmark.clock_mhz / 1000:.1f} GHz" if benchmark.clock_mhz else ""
    row = next((row for row in benchmark.rows if not row.nms), None)
    setting = f"batch {row.batch}, {row.precision}, {row.engine}, without NMS, " if row else ""
    versions = ", ".join(f"{name} {version}" for name, version in benchmark.versions.items())
    return (
        "AP: mean over seeds ± sample standard deviation; parameters and GFLOPs: of the deployed model. "
        f"FPS: {setting}on {benchmark.device}{clock}, {_counted(benchmark.threads, 'thread')}; {versions}."
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"


def _curves(params: Params, name: str) -> Iterator[Curve]:
    """AP by epoch; nothing where training did not measure it."""
    for seed in params.seeds:
        path = stage_folder("train", name, seed) / "curve.csv"
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                yield [(float(line["epoch"]), float(line["AP"])) for line in csv.DictReader(file) if line.get("AP")]


def _find_pictures(params: Params) -> Iterator[Picture]:
    if (stage_folder("prepare") / "sheet.jpg").is_file():
        yield Picture(_relative(stage_folder("prepare") / "sheet.jpg"), "the data, with their labels")
    seed = params.seeds[0]
    for name in params.variants:
        for file, caption in _PICTURES.items():
            path = stage_folder("evaluate", name, seed) / file
            if path.is_file():
                yield Picture(_relative(path), f"{name}: {caption}")


def _relative(path: Path) -> str:
    return Path(os.path.relpath(path, ROOT / "tables")).as_posix()
