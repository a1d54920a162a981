"""The HTML page about the user's experiment, with the paper's tables after it. It is one file that needs no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.artifacts.files import stage_folder
from pipeline.report.chart import Chart
from pipeline.report.charts import (
    class_precision_chart,
    epoch_charts,
    error_chart,
    fps_chart,
    precision_chart,
    proof_chart,
)
from pipeline.report.comparison import (
    TextTable,
    class_table,
    confusion_table,
    error_table,
    figures_table,
    proof_table,
    source_rows,
    speed_table,
)
from pipeline.report.details import ExperimentDetails
from pipeline.report.html import render_template
from pipeline.report.paper.counting import conventions
from pipeline.report.paper.errata import Erratum
from pipeline.report.paper.improvement import Improvement
from pipeline.report.paper.printed import LABELS
from pipeline.report.pictures import MOST_EXAMPLES, ExamplePicture, draw_examples, draw_suspects, read_sheet
from pipeline.report.plots import distinct_names
from pipeline.report.results import StageResults
from pipeline.report.runs import Runs
from pipeline.report.scatter import scatter_charts
from pipeline.report.summary import SummaryRow
from pipeline.report.tables import Table
from pipeline.report.text_tables import (
    ERRATA_HEAD,
    IMPROVEMENT_NOTE,
    counting_text,
    difference_text,
    empty_lines,
    improvement_head,
    improvement_texts,
    ours_text,
)
from yolov7.evaluation.errors import CONFIDENCE, ErrorReport
from yolov7.evaluation.suspects import SUSPICIOUS


@dataclass(frozen=True)
class Page:
    """The content of the page.

    Attributes:
        subtitle: The data.
        conditions: Under which conditions the summary was measured.
        results: What the stages wrote.
        summary: The comparison of the variants.
        details: The details of each variant and of the data.
        runs: The MLflow runs that were found.
        is_coco: Whether the variants were evaluated on the data of the paper.
        tables: The paper's tables with our figures.
        improvements: The improvement rows of Table 1.
        errata: The errata of the paper's tables.
        outcome: The result of comparing #Param and FLOPs with the paper.
    """

    subtitle: str
    conditions: str
    results: StageResults
    summary: Sequence[SummaryRow]
    details: ExperimentDetails
    runs: Runs
    is_coco: bool
    tables: Sequence[Table]
    improvements: Sequence[Improvement]
    errata: Sequence[Erratum]
    outcome: str


@dataclass(frozen=True)
class _TableView:
    """A table with what its columns and notes need.

    Attributes:
        table: The table.
        filled: Quantities with figures of ours; they have three columns: the paper's figure, ours, the difference.
        row_notes: The number of each remark on rows.
        notes: Remarks on the whole table.
        has_countings: Whether the table says how rows were counted.
    """

    table: Table
    filled: frozenset[str]
    row_notes: Mapping[str, int]
    notes: Sequence[str]
    has_countings: bool


@dataclass(frozen=True)
class _VariantView:
    """The parts of the page about one variant.

    Attributes:
        name: The variant.
        seed: The seed that the parts are about; None if there is no analysis of errors.
        precision: Precision over recall of each class.
        confusion: Which class is detected as which.
        examples: The best and worst images.
        proof: The proof of re-parameterisation, layer by layer.
    """

    name: str
    seed: int | None
    precision: Sequence[Chart]
    confusion: TextTable
    examples: Sequence[ExamplePicture]
    proof: Sequence[Chart]


def render_page(page: Page) -> str:
    """Return the page as HTML.

    Args:
        page: The content.

    Returns:
        The text of the file.
    """
    variants, benchmark = page.details.variants, page.results.benchmark
    errors = {name: one.errors for name, one in variants.items() if one.errors is not None}
    best = _best_variant(page.summary, errors)
    index = page.details.split
    return render_template(
        "page.html",
        page=page,
        best=best,
        figures=figures_table(page.summary, benchmark),
        speed=speed_table(benchmark),
        speed_charts=[*scatter_charts(page.summary, benchmark, is_coco=page.is_coco), *fps_chart(page.summary)],
        epoch_charts=epoch_charts(variants),
        precision_charts=precision_chart(variants),
        classes=class_table(page.results, _objects(page)),
        error_charts=error_chart(errors),
        errors=error_table(page.details),
        confidence=CONFIDENCE,
        suspicious=SUSPICIOUS,
        suspects=draw_suspects(errors[best], index) if best and index else (),
        proofs=proof_table(page.details),
        views=[_variant_view(name, page, most=_share(len(errors))) for name in variants],
        sources=source_rows(page.results, page.runs),
        sheet=read_sheet(stage_folder("prepare") / "sheet.jpg"),
        tables=[_view(table) for table in page.tables],
        labels=LABELS,
        improvement_head=improvement_head(page.improvements),
        improvement_rows=[improvement_texts(row) for row in page.improvements],
        improvement_note=IMPROVEMENT_NOTE,
        errata_head=ERRATA_HEAD,
        conventions=conventions(),
        counting_text=counting_text,
        ours_text=ours_text,
        difference_text=difference_text,
    )


def _best_variant(summary: Sequence[SummaryRow], errors: Mapping[str, ErrorReport]) -> str:
    """Return the variant with the highest AP among those with an analysis of errors; empty if there is none."""
    known = [row for row in summary if row.variant in errors]
    return max(known, key=lambda row: row.AP or 0.0).variant if known else ""


def _share(variants: int) -> int:
    """Return how many example images each variant may show, so that the page stays small."""
    return max(2, MOST_EXAMPLES // max(variants, 1))


def _objects(page: Page) -> Mapping[str, int]:
    """Return the number of objects of each class in the split that was evaluated."""
    splits = {one.split for variant in page.results.variants.values() for one in variant.metrics}
    health = page.details.health
    return next((health.splits[one].boxes_per_class for one in splits if health and one in health.splits), {})


def _variant_view(name: str, page: Page, *, most: int) -> _VariantView:
    details, index = page.details.variants[name], page.details.split
    metrics = page.results.variants[name].metrics
    per_class = metrics[0].per_class_AP if metrics else {}
    names = page.results.data.class_names if page.results.data else ()
    examples: Sequence[ExamplePicture] = ()
    if details.errors is not None and index is not None:
        examples = draw_examples(details.errors, index, per_class_AP=per_class, most=most)
    return _VariantView(
        name=name,
        seed=details.seed,
        precision=class_precision_chart(name, details, per_class),
        confusion=confusion_table(details.confusion, distinct_names(names)) if details.confusion else TextTable((), ()),
        examples=examples,
        proof=proof_chart(details.proof) if details.proof else (),
    )


def _view(table: Table) -> _TableView:
    remarks = dict.fromkeys(row.note for row in table.rows if row.note)
    return _TableView(
        table=table,
        filled=frozenset(cell.quantity for row in table.rows for cell in row.cells if cell.ours is not None),
        row_notes={note: number for number, note in enumerate(remarks, start=1)},
        notes=(*table.notes, *empty_lines(table)),
        has_countings=any(map(counting_text, table.rows)),
    )
