"""The paper's tables with our figures beside them; pure functions of what stages left.

What the paper prints, which spec each row is and how it was counted: `pipeline.report.paper`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.report.paper.check import QUANTITIES, listed_errata
from pipeline.report.paper.counting import COCO_CLASSES, PaperModel, count_as_paper, deployed_note, paper_models
from pipeline.report.paper.improvement import Improvement, improvements
from pipeline.report.paper.printed import TITLES, PrintedRow, PrintedTable, printed_table, value_of
from pipeline.report.results import Evidence
from pipeline.report.summary import headline_row, mean_and_spread
from yolov7.settings import Settings
from yolov7.spec.graph import ModelSpec

COCO_VAL_IMAGES = 5000
_AP_FIGURES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "aps": "APs", "apm": "APm", "apl": "APl"}
_SERVER = "only COCO's evaluation server knows the labels of test-dev"

Origin = Literal["computed", "measured here", "not measured", "cited"]


class Cell(Settings):
    """One quantity of one row: the paper's figure, ours, and where ours came from.

    `printed`: as the paper prints it, empty for a dash. `spread`: the sample standard deviation over seeds.
    `comparable`: whether ours was measured as the paper's was. `erratum`: the printed figure is a listed misprint.
    """

    quantity: str
    printed: str
    ours: float | None
    origin: Origin
    note: str = ""
    spread: float | None = None
    comparable: bool = True
    erratum: bool = False

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's; None where the two do not compare."""
        if not self.printed or self.ours is None or not self.comparable:
            return None
        return self.ours - value_of(self.printed)


class Row(Settings):
    """One model of a table of the paper, or a variant of ours that belongs there.

    `spec`, `counting`: what was counted, and by which convention; `variant`: the one that is measured, or would be.
    Each is empty where there is none.
    """

    model: str
    size: int | None  # pixels
    spec: str
    counting: str
    variant: str
    cells: tuple[Cell, ...]
    note: str = ""

    @property
    def has_ours(self) -> bool:
        """Whether any figure here is ours."""
        return any(cell.ours is not None for cell in self.cells)

    @property
    def cited(self) -> bool:
        """Whether the figures are the paper's alone: there is no spec of the model, nor a place for a variant."""
        return all(cell.origin == "cited" for cell in self.cells)


class Table(Settings):
    """A table of the paper beside ours."""

    name: str
    title: str
    quantities: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Figure:
    value: float | None
    origin: Origin
    note: str = ""
    spread: float | None = None
    comparable: bool = True


def paper_tables(evidence: Evidence) -> tuple[Table, ...]:
    """Tables 1 to 10."""
    models = paper_models()
    return tuple(_fill(printed_table(name), models, evidence) for name in TITLES)


def table1_improvements(table1: Table) -> tuple[Improvement, ...]:
    """Table 1's improvement rows, with the changes between our own figures where both models have them."""
    ours = {
        (row.model, row.size): {cell.quantity: cell.ours for cell in row.cells if cell.ours is not None}
        for row in table1.rows
        if row.size
    }
    return improvements(ours)


def _fill(table: PrintedTable, models: Mapping[tuple[str, int], PaperModel], evidence: Evidence) -> Table:
    rows = [_fill_row(row, table, models.get((row.model, row.size or 0)), evidence) for row in table.rows]
    rows += [_own_row(name, table, evidence) for name in _own_variants(table, evidence)]
    return Table(
        name=table.name,
        title=table.title,
        quantities=table.quantities,
        rows=tuple(rows),
        notes=tuple(_notes(table, rows)),
    )


def _fill_row(row: PrintedRow, table: PrintedTable, model: PaperModel | None, evidence: Evidence) -> Row:
    name = _variant_of(row, model, evidence)
    counted = dict(_counted(row, model))
    measured = dict(_measured(name, row, evidence)) if name else {}
    others = _left_open(name, row, model, evidence)
    figures = counted | measured
    return Row(
        model=row.model,
        size=row.size,
        spec=model.label if model else "",
        counting=model.counting if counted and model else "",
        variant=name or row.variant,
        cells=tuple(_cell(table, row, quantity, figures.get(quantity, others)) for quantity in table.quantities),
        note="; ".join(filter(None, _row_notes(row, model))),
    )


def _row_notes(row: PrintedRow, model: PaperModel | None) -> tuple[str, ...]:
    return (row.note, model.note, deployed_note(model, row.size)) if model and row.size else (row.note,)


def _cell(table: PrintedTable, row: PrintedRow, quantity: str, figure: _Figure) -> Cell:
    server = figure.origin == "not measured" and quantity.endswith("_test")
    return Cell(
        quantity=quantity,
        printed=row.figures[quantity],
        ours=figure.value,
        origin=figure.origin,
        note=_SERVER if server else figure.note,
        spread=figure.spread,
        comparable=figure.comparable,
        erratum=(table.name, row.model, quantity) in listed_errata(),
    )


def _counted(row: PrintedRow, model: PaperModel | None) -> Iterator[tuple[str, _Figure]]:
    if model and row.size and any(row.figures.get(quantity) for quantity in QUANTITIES):
        counted = count_as_paper(model, row.size)
        note = f"spec {model.label}, counted as `{model.counting}`"
        yield "params_m", _Figure(counted.params_m, "computed", note)
        yield "gflops", _Figure(counted.gflops, "computed", note)


def _variant_of(row: PrintedRow, model: PaperModel | None, evidence: Evidence) -> str | None:
    """The variant that is named for the row; otherwise the one whose graph is the row's."""
    if row.variant in evidence.variants:
        return row.variant
    return _same_graph(model.build_spec(), row.size, evidence) if model and row.size else None


def _measured(name: str, row: PrintedRow, evidence: Evidence) -> Iterator[tuple[str, _Figure]]:
    """AP and FPS of a variant; those on other data than the paper's only where it is named for the row."""
    results, reason = evidence.variants[name], why_not_coco(evidence, name)
    if reason and name != row.variant:
        return
    seeds = f"{len(results.metrics)} {'seed' if len(results.metrics) == 1 else 'seeds'}"
    note = f"variant {name} (spec {results.spec.name}, {results.image_size} px), {seeds}"
    for quantity, figure in _AP_FIGURES.items():
        value, spread = mean_and_spread([getattr(one, figure) for one in results.metrics])
        if value is not None:
            yield (
                f"{quantity}_val",
                _Figure(
                    100 * value,
                    "measured here",
                    f"{note}; {reason}" if reason else note,
                    spread=None if spread is None else 100 * spread,
                    comparable=not reason and results.image_size == row.size,
                ),
            )
    yield from _fps_figures(name, evidence)


def _fps_figures(name: str, evidence: Evidence) -> Iterator[tuple[str, _Figure]]:
    fastest = headline_row(evidence.benchmark, variant=name, form="deployed")
    if fastest and evidence.benchmark:
        device = evidence.benchmark.device
        note = f"{device}, {fastest.precision}, batch {fastest.batch}, without NMS"
        for quantity in ("fps", "fps_v100"):
            yield quantity, _Figure(fastest.fps, "measured here", note, comparable="V100" in device)


def _left_open(name: str | None, row: PrintedRow, model: PaperModel | None, evidence: Evidence) -> _Figure:
    """What there is to say of the figures that we do not have."""
    if name:
        return _Figure(None, "not measured", why_not_coco(evidence, name) or "not measured")
    if row.variant:
        return _Figure(None, "not measured", "params.yaml has no variant of the name that fills the row")
    if model:
        return _Figure(None, "not measured", "no variant of params.yaml is this model at this size")
    return _Figure(None, "cited")


def _same_graph(spec: ModelSpec, size: int, evidence: Evidence) -> str | None:
    """The variant whose graph is this one, trained at this size; one with settings of its own only if need be.

    Variants named for an ablation fill their own table alone: there the same graph is trained in different ways.
    """
    named = {"name", "image_size"}
    wanted = spec.model_dump(exclude=named)
    found = [
        name
        for name, results in evidence.variants.items()
        if results.image_size == size and results.spec.model_dump(exclude=named) == wanted
    ]
    general = [name for name in found if not name.startswith(tuple(f"{table}-" for table in TITLES))]
    return min(general, key=lambda name: bool(evidence.experiment.variant(name).overrides), default=None)


def why_not_coco(evidence: Evidence, name: str) -> str:
    """Why a variant's figures do not compare with the paper's; empty where they do."""
    if evidence.data is None:
        return "no data are prepared"
    num_classes = len(evidence.data.class_names)
    if evidence.experiment.data.format != "coco" or num_classes != COCO_CLASSES:
        return f"the data here are not COCO ({evidence.experiment.data.format}, {num_classes} classes)"
    images = {one.images for one in evidence.variants[name].metrics}
    return "" if images <= {COCO_VAL_IMAGES} else f"evaluated on {sorted(images)} images, not on val2017's 5000"


def _own_variants(table: PrintedTable, evidence: Evidence) -> list[str]:
    """Variants named for an ablation, such as `table4-c3`, that are no row of the paper."""
    printed = {row.variant for row in table.rows}
    if not any(printed):
        return []
    return [name for name in evidence.variants if name.startswith(f"{table.name}-") and name not in printed]


def _own_row(name: str, table: PrintedTable, evidence: Evidence) -> Row:
    row = PrintedRow(name, evidence.variants[name].image_size, dict.fromkeys(table.quantities, ""), variant=name)
    return _fill_row(row, table, None, evidence)


def _notes(table: PrintedTable, rows: Sequence[Row]) -> Iterator[str]:
    if any(row.cited for row in rows):
        yield "Cited: the paper's figures alone; there is no spec of that model here."
    if any(quantity.startswith("fps") for quantity in table.quantities):
        yield "FPS of the paper: V100, FP16, batch 1, without NMS; on other devices compare ratios of rows."
    if any(row.variant for row in table.rows):
        yield (
            "A row is filled by the variant of params.yaml that is named for it; other variants whose name starts with "
            f"{table.name}- are added at the end. Figures: means over seeds ± sample standard deviation."
        )
