"""The paper's tables with our figures beside the paper's. Pure functions of what the stages wrote.

`pipeline.report.paper` knows what the paper prints, which spec each row is, and how its figures are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.report.paper.check import QUANTITIES, listed_errata
from pipeline.report.paper.counting import PaperModel, count_as_paper, deployed_note, paper_models
from pipeline.report.paper.improvement import Improvement, improvements
from pipeline.report.paper.printed import TITLES, PrintedRow, PrintedTable, printed_table, value_of
from pipeline.report.paper.zoo import zoo_note
from pipeline.report.results import StageResults, VariantModel, VariantResults
from pipeline.report.summary import headline_row, mean_and_spread
from yolov7.data.coco_names import COCO_NAMES
from yolov7.errors import counted
from yolov7.system.settings_base import Settings

COCO_VAL_IMAGES = 5000
_AP_FIGURES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "aps": "APs", "apm": "APm", "apl": "APl"}
_SERVER = "only COCO's evaluation server has the labels of test-dev"

Origin = Literal["computed", "measured here", "stated", "not measured", "cited"]


class Cell(Settings):
    """One quantity of one row: the paper's figure, and ours.

    Attributes:
        quantity: A key of `pipeline.report.paper.printed.LABELS`.
        printed: The figure as the paper prints it; empty for a dash.
        ours: Our figure; None if there is none.
        origin: Where our figure comes from.
        note: How our figure was made, or why there is none.
        spread: The sample standard deviation of our figure over seeds.
        comparable: Whether our figure was measured in the way of the paper's.
        erratum: Whether the printed figure is a listed erratum.
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
        """Our figure minus the paper's; None if they cannot be compared."""
        if not self.printed or self.ours is None or not self.comparable:
            return None
        return self.ours - value_of(self.printed)


class Row(Settings):
    """One model of a table of the paper, or one of our variants that belongs there.

    Attributes:
        model: The model as the paper names it.
        size: The image size in pixels.
        spec: The spec that was counted; empty if there is none.
        counting: The convention by which it was counted; empty if it was not.
        variant: The variant that fills the row, or would fill it; empty if there is none.
        cells: The quantities, in the order of the table.
        note: A remark on the row.
    """

    model: str
    size: int | None
    spec: str
    counting: str
    variant: str
    cells: tuple[Cell, ...]
    note: str = ""

    @property
    def has_ours(self) -> bool:
        """Whether any figure of the row is ours."""
        return any(cell.ours is not None for cell in self.cells)

    @property
    def cited(self) -> bool:
        """Whether all figures are the paper's: there is neither a spec of the model nor a variant for the row."""
        return all(cell.origin == "cited" for cell in self.cells)


class Table(Settings):
    """A table of the paper with our figures.

    Attributes:
        name: Its name, such as `table1`.
        title: Its number and what it compares.
        quantities: Its columns.
        rows: The paper's rows in order, then our own variants.
        notes: Remarks on the table.
    """

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


def paper_tables(results: StageResults) -> tuple[Table, ...]:
    """Fill Tables 1 to 10 of the paper.

    Args:
        results: What the stages wrote.

    Returns:
        The tables in order.
    """
    models = paper_models()
    return tuple(_fill(printed_table(name), models, results) for name in TITLES)


def table1_improvements(table1: Table) -> tuple[Improvement, ...]:
    """Fill the improvement rows of Table 1.

    Args:
        table1: The filled Table 1.

    Returns:
        The rows, with the changes between our own figures if there are figures of both models.
    """
    ours = {
        (row.model, row.size): {cell.quantity: cell.ours for cell in row.cells if cell.ours is not None}
        for row in table1.rows
        if row.size
    }
    return improvements(ours)


def why_not_coco(results: StageResults, name: str) -> str:
    """Return why a variant's figures cannot be compared with the paper's.

    Args:
        results: What the stages wrote.
        name: The variant.

    Returns:
        The reason; empty if the variant was evaluated on COCO's val2017.
    """
    if results.data is None:
        return "no data are prepared"
    if not _has_coco_classes(results):
        return f"the data here are not COCO (number of classes: {len(results.data.class_names)})"
    images = {one.images for one in results.variants[name].metrics}
    return "" if images <= {COCO_VAL_IMAGES} else f"evaluated on {sorted(images)} images, not on val2017's 5000"


def _fill(table: PrintedTable, models: Mapping[tuple[str, int], PaperModel], results: StageResults) -> Table:
    rows = [_fill_row(row, table, models.get((row.model, row.size or 0)), results) for row in table.rows]
    rows += [_own_row(name, table, results) for name in _own_variants(table, results)]
    return Table(
        name=table.name,
        title=table.title,
        quantities=table.quantities,
        rows=tuple(rows),
        notes=tuple(_notes(table, rows)),
    )


def _fill_row(row: PrintedRow, table: PrintedTable, model: PaperModel | None, results: StageResults) -> Row:
    name = _variant_of(row, model, results)
    computed = dict(_computed(row, model))
    stated = dict(_stated(results.variants[name].model)) if name else {}
    measured = dict(_measured(name, row, results)) if name else {}
    others = _empty_figure(name, row, model, results)
    figures = computed | stated | measured
    return Row(
        model=row.model,
        size=row.size,
        spec=model.label if model else "",
        counting=model.counting if computed and model else "",
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


def _computed(row: PrintedRow, model: PaperModel | None) -> Iterator[tuple[str, _Figure]]:
    """Yield #Param and FLOPs if the paper has one of them."""
    if model and row.size and any(row.figures.get(quantity) for quantity in QUANTITIES):
        cost = count_as_paper(model, row.size)
        note = f"spec {model.label}, counted as `{model.counting}`"
        yield "params_m", _Figure(cost.params_m, "computed", note)
        yield "gflops", _Figure(cost.gflops, "computed", note)


def _stated(model: VariantModel) -> Iterator[tuple[str, _Figure]]:
    """Yield #Param and FLOPs of an external variant, which params.yaml states or a library has."""
    origin: Origin = "computed" if model.zoo else "stated"
    note = zoo_note(model.zoo) if model.zoo else "external.{} of params.yaml"
    if model.params_m is not None:
        yield "params_m", _Figure(model.params_m, origin, note.format("params"))
    if model.gflops is not None:
        yield "gflops", _Figure(model.gflops, origin, note.format("gflops"))


def _variant_of(row: PrintedRow, model: PaperModel | None, results: StageResults) -> str | None:
    """Return the variant that is named for the row, else the one with the row's graph."""
    if row.variant in results.variants:
        return row.variant
    return _same_graph(model, row.size, results) if model and row.size else None


def _measured(name: str, row: PrintedRow, results: StageResults) -> Iterator[tuple[str, _Figure]]:
    """Yield AP and FPS of a variant. Figures on other classes than COCO's appear only if it is named for the row."""
    variant, reason = results.variants[name], why_not_coco(results, name)
    if reason and name != row.variant and not _has_coco_classes(results):
        return
    note = f"variant {name} {_source(variant)}"
    for quantity, figure in _AP_FIGURES.items():
        value, spread = mean_and_spread([getattr(one, figure) for one in variant.metrics])
        if value is not None:
            yield (
                f"{quantity}_val",
                _Figure(
                    100 * value,
                    "measured here",
                    f"{note}; {reason}" if reason else note,
                    spread=None if spread is None else 100 * spread,
                    comparable=not reason and (variant.model.spec is None or variant.model.image_size == row.size),
                ),
            )
    yield from _fps_figures(name, results)


def _source(variant: VariantResults) -> str:
    model = variant.model
    if model.spec is None:
        return f"(external results {model.external})"
    made = f"given weights {model.weights}" if model.weights else counted(len(variant.metrics), "seed")
    return f"(spec {model.spec.name}, {model.image_size} px), {made}"


def _fps_figures(name: str, results: StageResults) -> Iterator[tuple[str, _Figure]]:
    measured = headline_row(results.benchmark, variant=name, form="deployed")
    if measured and results.benchmark:
        device = results.benchmark.device
        note = f"{device}, {measured.precision}, batch {measured.batch}, without NMS"
        for quantity in ("fps", "fps_v100"):
            yield quantity, _Figure(measured.fps, "measured here", note, comparable="V100" in device)


def _empty_figure(name: str | None, row: PrintedRow, model: PaperModel | None, results: StageResults) -> _Figure:
    """Return the content of cells for which there is no figure of ours, with the reason."""
    if name:
        return _Figure(None, "not measured", why_not_coco(results, name) or "not measured")
    if row.is_external:
        return _Figure(None, "cited")
    if row.variant:
        return _Figure(None, "not measured", "params.yaml has no variant with the name of this row")
    if model:
        return _Figure(None, "not measured", "no variant of params.yaml is this model at this size")
    return _Figure(None, "cited")


def _same_graph(paper: PaperModel, size: int, results: StageResults) -> str | None:
    """Return the variant with the graph and size of a row, preferably one that does not change `train`.

    Variants of an ablation, such as `table6-lead`, are left out: they fill only the table in their name, because there
    the same graph is trained in different ways. On a part of COCO, whose figures are compared with none of the
    paper's, the size may differ; of several variants, the one with the row's size in its name is returned.
    """
    named = {"name", "image_size"}
    wanted = paper.build_spec().model_dump(exclude=named)
    ablations = tuple(f"{table}-" for table in TITLES)
    models = {name: variant.model for name, variant in results.variants.items() if not name.startswith(ablations)}
    any_size = _has_coco_classes(results)
    found = [
        name
        for name, model in models.items()
        if model.spec is not None
        and (model.image_size == size or (any_size and why_not_coco(results, name)))
        and model.spec.model_dump(exclude=named) == wanted
    ]
    return min(
        found,
        key=lambda name: (models[name].image_size != size, str(size) not in name, models[name].overrides_training),
        default=None,
    )


def _has_coco_classes(results: StageResults) -> bool:
    return results.data is not None and set(results.data.class_names) == set(COCO_NAMES)


def _own_variants(table: PrintedTable, results: StageResults) -> list[str]:
    """Return variants that are named for an ablation, such as `table4-c3`, but are no row of the paper."""
    printed = {row.variant for row in table.rows}
    if not any(printed):
        return []  # no row is filled by name
    return [name for name in results.variants if name.startswith(f"{table.name}-") and name not in printed]


def _own_row(name: str, table: PrintedTable, results: StageResults) -> Row:
    size = results.variants[name].model.image_size
    return _fill_row(PrintedRow(name, size, dict.fromkeys(table.quantities, ""), variant=name), table, None, results)


def _notes(table: PrintedTable, rows: Sequence[Row]) -> Iterator[str]:
    if any(row.cited for row in rows):
        yield "Cited: only the paper's figures, because there is no spec of that model here."
    external = ", ".join(row.variant for row, of in zip(rows, table.rows, strict=False) if of.is_external and row.cited)
    if external:
        yield (
            "A variant with `external: {predictions: FILE}` fills a cited row if it has the name of the row: "
            f"{external}."
        )
    if any(quantity.startswith("fps") for quantity in table.quantities):
        yield "FPS of the paper: V100, FP16, batch 1, without NMS. On another device, compare ratios between rows."
    if any(row.variant and not row.is_external for row in table.rows):
        yield (
            "The variant of params.yaml with the name of a row fills that row. Other variants whose names start with "
            f"{table.name}- are added at the end. Figures are means over seeds ± the sample standard deviation."
        )
