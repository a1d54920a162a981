"""The paper's tables with our figures beside them, and the summary of the variants; pure functions of what stages left.

Which spec a row of the paper is, and how the paper counted it, is data: `paper/models.csv` and `paper/countings.csv`.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pipeline.artifacts import Benchmark, BenchmarkRow, Metrics, PreparedData, ReparamReport, TrainSummary
from pipeline.params import Params
from yolov7.cost import Cost, spec_cost
from yolov7.graph import ModelSpec, infer_shapes
from yolov7.settings import Settings
from yolov7.spec import list_specs, load_spec

PAPER = Path(__file__).parent / "paper"
COCO_VAL_IMAGES, COCO_CLASSES = 5000, 80
TITLES = {
    "table1": "Table 1: comparison of baseline object detectors",
    "table2": "Table 2: comparison of state-of-the-art real-time object detectors",
    "table9": "Table 9: more comparison, batch 1, without NMS",
}
LABELS = {
    "params_m": "#Param (M)",
    "gflops": "FLOPs (G)",
    "fps_v100": "FPS (V100)",
    "fps": "FPS",
    "ap_val": "AP val",
    "ap50_val": "AP50 val",
    "ap75_val": "AP75 val",
    "aps_val": "APs val",
    "apm_val": "APm val",
    "apl_val": "APl val",
    "ap_test": "AP test",
    "ap50_test": "AP50 test",
    "ap75_test": "AP75 test",
    "aps_test": "APs test",
    "apm_test": "APm test",
    "apl_test": "APl test",
}
_AP_FIGURES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "aps": "APs", "apm": "APm", "apl": "APl"}

Origin = Literal["computed", "measured here", "not measured"]
_Ours = tuple[float | None, Origin, str]  # the figure, whence it came, and what there is to say


class Cell(Settings):
    """One quantity of one row: the paper's figure, ours, and where ours came from."""

    quantity: str
    paper: float | None
    ours: float | None
    origin: Origin
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.paper is None or self.ours is None else self.ours - self.paper


class Row(Settings):
    """One model of a table of the paper."""

    model: str
    size: int | None
    cells: tuple[Cell, ...]
    note: str = ""

    @property
    def has_ours(self) -> bool:
        """Whether any figure here is ours."""
        return any(cell.ours is not None for cell in self.cells)


class Table(Settings):
    """A table of the paper beside ours. `notes`: how figures were counted."""

    name: str
    title: str
    quantities: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


class SummaryRow(Settings):
    """One variant: means over its seeds; a spread is the sample standard deviation, None for one seed."""

    variant: str
    seeds: int
    image_size: int
    AP: float | None
    AP_spread: float | None
    AP50: float | None
    AP50_spread: float | None
    parameters: int  # deployed
    parameters_before: int
    gflops: float  # deployed, at the variant's image size
    fps_before: float | None
    fps_after: float | None


@dataclass(frozen=True)
class Results:
    """What the stages left of one variant, one of each for every seed."""

    spec: ModelSpec
    image_size: int
    trained: tuple[TrainSummary, ...]
    metrics: tuple[Metrics, ...]
    reparam: tuple[ReparamReport, ...]


@dataclass(frozen=True)
class Evidence:
    """All that the tables are made of."""

    params: Params
    data: PreparedData
    benchmark: Benchmark
    variants: Mapping[str, Results]


@dataclass(frozen=True)
class PaperModel:
    """Which spec a row of the paper is, and how the paper counted it."""

    spec: str
    activation: str
    counting: str
    note: str


def paper_tables(evidence: Evidence) -> tuple[Table, ...]:
    """Tables 1, 2 and 9."""
    return tuple(_paper_table(name, evidence) for name in TITLES)


def summarise_variants(evidence: Evidence) -> tuple[SummaryRow, ...]:
    """One row a variant, in the order of params.yaml."""
    return tuple(_summarise(name, results, evidence.benchmark) for name, results in evidence.variants.items())


def summary_lines(rows: Sequence[SummaryRow]) -> list[str]:
    """The short table at the end of a reproduction."""
    width = max(len("variant"), *(len(row.variant) for row in rows))
    spread = 13 if any(row.seeds > 1 for row in rows) else 5
    head = f"{'variant':<{width}}  {'AP':<{spread}}  {'AP50':<{spread}}  parameters  GFLOPs  FPS before -> after"
    return [head] + [
        f"{row.variant:<{width}}  {fraction_text(row.AP, row.AP_spread):<{spread}}  "
        f"{fraction_text(row.AP50, row.AP50_spread):<{spread}}  {f'{row.parameters / 1e6:.2f} M':<10}  "
        f"{row.gflops:<6.2f}  {number_text(row.fps_before, 0)} -> {number_text(row.fps_after, 0)}"
        for row in rows
    ]


def fraction_text(value: float | None, spread: float | None) -> str:
    """`0.583`, or `0.583 ±0.004` over several seeds."""
    return number_text(value, 3) + (f" ±{spread:.3f}" if value is not None and spread is not None else "")


def number_text(value: float | None, digits: int) -> str:
    """A dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def headline_row(benchmark: Benchmark, *, variant: str, form: str) -> BenchmarkRow | None:
    """The row that stands for a variant: eager, without NMS, the smallest batch, the first precision."""
    rows = [row for row in benchmark.rows if (row.variant, row.form, row.nms) == (variant, form, False)]
    return min(rows, key=lambda row: (row.engine != "eager", row.batch), default=None)


@cache
def paper_models() -> Mapping[tuple[str, int], PaperModel]:
    """By a row's name and image size."""
    found = {}
    for line in _read_csv("models"):
        for size in line["sizes"].split():
            model = PaperModel(line["spec"], line["activation"], line["counting"], line["note"])
            found[line["model"], int(size)] = model
    return found


def resolve_model(model: PaperModel) -> ModelSpec | None:
    """The spec of a row; None where there is none yet."""
    if model.spec not in list_specs():
        return None
    spec = load_spec(model.spec)
    return spec.model_copy(update={"activation": model.activation}) if model.activation else spec


@cache
def count_as_paper(spec_name: str, counting: str, size: int) -> tuple[float, float] | None:
    """Parameters in millions and GFLOPs as the paper counts them (`paper/countings.csv`); None: not known how."""
    spec = load_spec(spec_name)
    cost = spec_cost(spec, num_classes=COCO_CLASSES, image_size=size if counting == "p5" else 640)
    gflops = {
        "p5": cost.gflops_with_bias,
        "p6": round(cost.gflops_with_bias, 1) * (size / 640) ** 2,
        "tiny": _tiny_gflops(spec, cost, size),
    }
    return (cost.parameters_deployed / 1e6, gflops[counting]) if counting in gflops else None


def _tiny_gflops(spec: ModelSpec, cost: Cost, size: int) -> float:
    """Every convolution's outputs are batch-norm elements but the head's, which have a bias."""
    shapes = infer_shapes(spec)
    levels = zip(spec.head.sources, spec.head.anchors, strict=True)
    cells = sum((640 // shapes[source].stride) ** 2 * len(anchors) // 2 for source, anchors in levels)
    outputs = cost.gflops_with_bias - cost.gflops
    at_640 = cost.gflops + 2 * outputs - 2 * cells * (5 + COCO_CLASSES) / 1e9
    return at_640 if size == 640 else round(at_640, 1) * (size / 640) ** 2


def _paper_table(name: str, evidence: Evidence) -> Table:
    lines = _read_csv(name)
    quantities = tuple(column for column in lines[0] if column in LABELS)
    rows = tuple(_paper_row(line, quantities, evidence) for line in lines)
    return Table(name=name, title=TITLES[name], quantities=quantities, rows=rows, notes=tuple(_notes(rows)))


def _paper_row(line: Mapping[str, str], quantities: Sequence[str], evidence: Evidence) -> Row:
    size = int(line["size"]) if line["size"] else None
    model = paper_models().get((line["model"], size or 0))
    spec = resolve_model(model) if model else None
    ours = dict(_ours(model, spec, size, evidence)) if model and spec and size else {}
    missing = ours.get("", (None, "not measured", "no spec of this model here"))
    cells = tuple(_cell(quantity, line[quantity], ours.get(quantity, missing)) for quantity in quantities)
    return Row(model=line["model"], size=size, cells=cells, note=model.note if model and spec else "")


def _cell(quantity: str, paper: str, ours: _Ours) -> Cell:
    value, origin, note = ours
    if value is None and quantity.endswith("_test"):
        note = "only COCO's evaluation server knows the labels of test-dev"
    return Cell(quantity=quantity, paper=float(paper) if paper else None, ours=value, origin=origin, note=note)


def _ours(model: PaperModel, spec: ModelSpec, size: int, evidence: Evidence) -> Iterator[tuple[str, _Ours]]:
    """Our figures by quantity; under the empty name why all others are left open."""
    counted = count_as_paper(model.spec, model.counting, size)
    if counted:
        yield "params_m", (counted[0], "computed", "")
        yield "gflops", (counted[1], "computed", "")
    name = _find_variant(spec, size, evidence)
    if name is None:
        yield "", (None, "not measured", f"no variant here is this model at {size} px")
        return
    reason = _why_not_coco(evidence, name)
    yield "", (None, "not measured", reason or "not measured by this pipeline")
    if not reason:
        yield from _measured(name, evidence)


def _measured(name: str, evidence: Evidence) -> Iterator[tuple[str, _Ours]]:
    metrics = evidence.variants[name].metrics
    for quantity, figure in _AP_FIGURES.items():
        value, _ = mean_and_spread([getattr(one, figure) for one in metrics])
        if value is not None:
            yield f"{quantity}_val", (100 * value, "measured here", f"variant {name}, {len(metrics)} seeds")
    row = headline_row(evidence.benchmark, variant=name, form="deployed")
    if row:
        where = f"{evidence.benchmark.device}, {row.precision}, batch {row.batch}, without NMS"
        for quantity in ("fps", "fps_v100"):
            yield quantity, (row.fps, "measured here", where)


def _find_variant(spec: ModelSpec, size: int, evidence: Evidence) -> str | None:
    """The variant whose graph is this one, whatever it is called, trained at this size."""
    named = {"name", "image_size"}
    wanted = spec.model_dump(exclude=named)
    for name, results in evidence.variants.items():
        if results.image_size == size and results.spec.model_dump(exclude=named) == wanted:
            return name
    return None


def _why_not_coco(evidence: Evidence, name: str) -> str:
    """Why a variant's figures do not compare with the paper's; empty where they do."""
    num_classes = len(evidence.data.class_names)
    if evidence.params.data.format != "coco" or num_classes != COCO_CLASSES:
        return f"the data here are not COCO ({evidence.params.data.format}, {num_classes} classes)"
    images = {one.images for one in evidence.variants[name].metrics}
    return "" if images == {COCO_VAL_IMAGES} else f"evaluated on {sorted(images)} images, not on val2017's 5000"


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    models = [paper_models().get((row.model, row.size or 0)) for row in rows if row.has_ours]
    used = {model.counting for model in models if model}
    for line in _read_csv("countings"):
        if line["counting"] in used:
            yield line["text"]
    yield from dict.fromkeys(f"{row.model}: {row.note}." for row in rows if row.note)
    if any(cell.quantity.startswith("fps") for cell in rows[0].cells):
        yield "FPS of the paper: V100, FP16, batch 1, without NMS; on other devices compare ratios of rows."


def mean_and_spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """The mean and the sample standard deviation of what was measured; None where there is too little."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def _summarise(name: str, results: Results, benchmark: Benchmark) -> SummaryRow:
    ap, ap_spread = mean_and_spread([one.AP for one in results.metrics])
    ap50, ap50_spread = mean_and_spread([one.AP50 for one in results.metrics])
    before = headline_row(benchmark, variant=name, form="trained")
    after = headline_row(benchmark, variant=name, form="deployed")
    first = results.reparam[0]
    return SummaryRow(
        variant=name,
        seeds=len(results.metrics),
        image_size=results.image_size,
        AP=ap,
        AP_spread=ap_spread,
        AP50=ap50,
        AP50_spread=ap50_spread,
        parameters=first.parameters_after,
        parameters_before=first.parameters_before,
        gflops=first.gflops_after,
        fps_before=before.fps if before else None,
        fps_after=after.fps if after else None,
    )


def _read_csv(name: str) -> list[dict[str, str]]:
    with (PAPER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
