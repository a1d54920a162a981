"""The stage `tables`: a page about the experiment, and the paper's tables with our figures beside them."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.artifacts.files import stage_folder, whole_folder, write_json
from pipeline.artifacts.reports import Benchmark, PreparedData
from pipeline.experiment import Experiment
from pipeline.external import ExternalVariant
from pipeline.report.details import read_details
from pipeline.report.page import Page, render_page
from pipeline.report.paper.check import Comparison, compare_counts, outcome_line
from pipeline.report.paper.counting import conventions
from pipeline.report.paper.errata import Erratum, errata
from pipeline.report.paper.improvement import Improvement
from pipeline.report.paper.zoo import count_zoo
from pipeline.report.results import StageResults, VariantModel, read_results
from pipeline.report.runs import Runs
from pipeline.report.summary import SummaryRow, summarise_variants, summary_lines
from pipeline.report.tables import Table, paper_tables, table1_improvements, why_not_coco
from pipeline.report.text_tables import (
    errata_csv,
    errata_markdown,
    improvements_csv,
    improvements_markdown,
    summary_csv,
    summary_markdown,
    table_csv,
    table_markdown,
)
from yolov7.errors import counted
from yolov7.system.settings_base import Settings

SUMMARY = "summary.txt"  # as a terminal shows it


class Report(Settings):
    """What the stage wrote.

    Attributes:
        missing: What is left empty because no stage has made it yet, one line each.
        summary: The comparison of the variants.
        tables: The paper's tables with our figures.
        improvements: The improvement rows of Table 1.
        errata: The errata of the paper's tables.
        check: The comparison of #Param and FLOPs with the paper.
        conventions: How the paper counts.
    """

    missing: tuple[str, ...]
    summary: tuple[SummaryRow, ...]
    tables: tuple[Table, ...]
    improvements: tuple[Improvement, ...]
    errata: tuple[Erratum, ...]
    check: tuple[Comparison, ...]
    conventions: dict[str, str]


def tables(experiment: Experiment, *, runs: Runs | None = None) -> Report:
    """Collect the results of all stages in artifacts/tables: CSV, Markdown, JSON and index.html.

    Args:
        experiment: The resolved content of params.yaml.
        runs: The MLflow runs, to which the page refers.

    Returns:
        The content of the tables.
    """
    models = {
        name: VariantModel(
            spec=variant.spec,
            image_size=variant.train.image_size,
            overrides_training=bool(variant.overrides),
            weights=variant.given.name if variant.given else "",
        )
        for name, variant in experiment.variants.items()
    } | {name: _external_model(external) for name, external in experiment.externals.items()}
    results = read_results(models, experiment.seeds)
    report = _report(results)
    conditions = _conditions(results.benchmark)
    with whole_folder(stage_folder("tables")) as folder:
        for name, text in _files(report, conditions):
            (folder / name).write_text(text, encoding="utf-8")
        write_json(folder / "tables.json", report)
        (folder / "index.html").write_text(
            render_page(_page(results, report, conditions, runs or {})), encoding="utf-8"
        )
    return report


def _external_model(external: ExternalVariant) -> VariantModel:
    counted = count_zoo(external.zoo) if external.zoo else None
    return VariantModel(
        spec=None,
        image_size=external.image_size,
        external=external.source,
        zoo=external.zoo or "",
        params_m=counted.params_m if counted else external.params,
        gflops=counted.gflops if counted else external.gflops,
    )


def _report(results: StageResults) -> Report:
    filled = paper_tables(results)
    return Report(
        missing=results.missing,
        summary=summarise_variants(results),
        tables=filled,
        improvements=table1_improvements(filled[0]),
        errata=errata(),
        check=compare_counts(),
        conventions=dict(conventions()),
    )


def _files(report: Report, conditions: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each plain file, and its text."""
    for table in report.tables:
        yield f"{table.name}.csv", table_csv(table)
        yield f"{table.name}.md", table_markdown(table)
    yield "table1_improvement.csv", improvements_csv(report.improvements)
    yield "table1_improvement.md", improvements_markdown(report.improvements)
    yield "errata.csv", errata_csv(report.errata)
    yield "errata.md", errata_markdown(report.errata)
    yield "summary.csv", summary_csv(report.summary)
    yield "summary.md", summary_markdown(report.summary, conditions=conditions)
    yield SUMMARY, "\n".join(summary_lines(report.summary)) + "\n"


def _page(results: StageResults, report: Report, conditions: str, runs: Runs) -> Page:
    return Page(
        subtitle=_subtitle(results.data),
        conditions=conditions,
        results=results,
        summary=report.summary,
        details=read_details(results),
        runs=runs,
        is_coco=not any(why_not_coco(results, name) for name in results.variants),
        tables=report.tables,
        improvements=report.improvements,
        errata=report.errata,
        outcome=outcome_line(report.check),
    )


def _subtitle(data: PreparedData | None) -> str:
    if data is None:
        return "No data are prepared yet."
    images = " + ".join(f"{count:,} {split}" for split, count in data.splits.items())
    return f"Data: {data.source}; {images} images, {len(data.class_names)} classes."


def _conditions(benchmark: Benchmark | None) -> str:
    text = "AP: mean over seeds ± sample standard deviation; parameters and GFLOPs: of the deployed model. "
    if benchmark is None:
        return text + "FPS: not measured yet."
    clock = f" at {benchmark.clock_mhz / 1000:.1f} GHz" if benchmark.clock_mhz else ""
    row = next((row for row in benchmark.rows if not row.nms), None)
    setting = f"batch {row.batch}, {row.precision}, {row.engine}, without NMS, " if row else ""
    versions = ", ".join(f"{name} {version}" for name, version in benchmark.versions.items())
    return text + (f"FPS: {setting}on {benchmark.device}{clock}, {counted(benchmark.threads, 'thread')}; {versions}.")
