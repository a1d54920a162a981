"""Print where a figure comes from: file, hash, MLflow run, commit, data, settings, seed and stage."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.artifacts.files import WEIGHTS, read_json, resolved_path, stage_folder
from pipeline.artifacts.reports import Metrics, PreparedData
from pipeline.commands.run_stages import run_keys
from pipeline.experiment import Experiment
from pipeline.report.paper.printed import LABELS
from pipeline.report.runs import Runs
from pipeline.report.summary import FIGURES, fraction_text, mean_and_spread, number_text
from pipeline.report.tables import Cell, Row, Table
from pipeline.stages.tables import Report
from pipeline.tracking import find_runs
from yolov7.errors import SettingError, suggest
from yolov7.system.files import sha256_of
from yolov7.system.settings_base import Settings

_EXAMPLE = "table2:YOLOv7:AP"
_SUFFIXES = ("_val", "_v100", "_m")  # of quantities, which may be left out


class HashedFile(Settings):
    """A file of the project.

    Attributes:
        path: Its path relative to the project.
        sha256: The hash of its content; None if the file is missing.
    """

    path: str
    sha256: str | None


class Source(Settings):
    """Where the figures of one variant and seed come from.

    Attributes:
        variant: The variant.
        seed: The seed of its training.
        stages: The stages of DVC that made the figures, first to last.
        figures: COCO's figures as fractions; None for those without objects. Empty if nothing was evaluated.
        files: The files that contain the figures, and the weights that they were measured on.
        settings: The file with everything that decides the training: resolved settings, spec and seed.
        run_id: The id of the MLflow run; None if the tracking store does not have it, or cannot be read.
        run_address: The address of the page of the run.
        commit: The git commit that the training ran with; None if it is unknown.
        data_hash: The hash of all pixels and boxes; None if no data are prepared.
    """

    variant: str
    seed: int
    stages: tuple[str, ...]
    figures: dict[str, float | None]
    files: tuple[HashedFile, ...]
    settings: HashedFile
    run_id: str | None
    run_address: str | None
    commit: str | None
    data_hash: str | None


class Explanation(Settings):
    """Where a row or a cell comes from.

    Attributes:
        row: The row as it was asked for.
        figures: Each figure as text: the mean and the spread over seeds.
        file: The file that contains the cell; None for a variant.
        cell: The cell of a table; None for a variant.
        spec: The specification that the cell was counted on; empty if it was not counted.
        sources: The trainings behind the figures.
    """

    row: str
    figures: dict[str, str]
    file: HashedFile | None
    cell: Cell | None
    spec: str
    sources: tuple[Source, ...]


def explain(experiment: Experiment, row: str, *, as_json: bool) -> None:
    """Print where a figure comes from.

    Args:
        experiment: The resolved content of params.yaml.
        row: A variant, a variant and seed as `nano/0`, or a cell as `table2:YOLOv7:AP`.
        as_json: Whether to print JSON.

    Raises:
        SettingError: If there is no such row.
        ArtifactError: If a file is damaged, or a cell is asked for before `yolov7 tables` ran.
    """
    explanation = explain_cell(experiment, row) if ":" in row else _explain_variant(experiment, row)
    print(explanation.model_dump_json(indent=1) if as_json else "\n".join(_lines(explanation)))


def explain_cell(experiment: Experiment, name: str) -> Explanation:
    """Return where a cell of one of the paper's tables comes from.

    Args:
        experiment: The resolved content of params.yaml.
        name: Table, model and quantity, such as `table2:YOLOv7:AP` or `table1:YOLOv7-tiny@416:FLOPs`.

    Returns:
        The explanation.

    Raises:
        SettingError: If there is no such cell.
        ArtifactError: If the tables are missing or damaged.
    """
    path = stage_folder("tables") / "tables.json"
    report = read_json(path, Report, made_by="tables")
    table_name, _, rest = name.partition(":")
    model, _, quantity = rest.rpartition(":")
    table = _find_table(report, table_name, name)
    row = _find_row(table, model, name)
    cell = _find_cell(row, quantity, name)
    sources: tuple[Source, ...] = ()
    if cell.origin == "measured here":
        is_speed = cell.quantity.startswith("fps")
        seeds = experiment.seeds[:1] if is_speed else experiment.seeds
        sources = _sources(experiment, row.variant, seeds, benchmark=is_speed)
    spread = "" if cell.spread is None else f" ±{cell.spread:.3g}"
    figures = {"paper": cell.printed or "-", "ours": "-" if cell.ours is None else f"{cell.ours:.5g}{spread}"}
    return Explanation(row=name, figures=figures, file=_hashed(path), cell=cell, spec=row.spec, sources=sources)


def _explain_variant(experiment: Experiment, name: str) -> Explanation:
    variant, _, seed = name.partition("/")
    known = [*experiment.variants, *experiment.externals]
    if variant not in known:
        raise SettingError(
            f"row {name!r} is neither a variant of params.yaml ({', '.join(known)}) nor a cell such as "
            f"{_EXAMPLE}{suggest(variant, known)}"
        )
    if seed and seed not in map(str, experiment.seeds):
        raise SettingError(f"seed {seed} of row {name!r} is not in params.yaml; it has {list(experiment.seeds)}")
    sources = _sources(experiment, variant, [int(seed)] if seed else experiment.seeds)
    measured = [source.figures for source in sources if source.figures]
    figures = {
        figure: fraction_text(*mean_and_spread([one[figure] for one in measured])) for figure in FIGURES if measured
    }
    return Explanation(row=name, figures=figures, file=None, cell=None, spec="", sources=sources)


def _find_table(report: Report, name: str, asked: str) -> Table:
    tables = {table.name: table for table in report.tables}
    if name.lower() not in tables:
        raise SettingError(f"{asked!r}: there is no table {name!r}; there are {', '.join(tables)}")
    return tables[name.lower()]


def _find_row(table: Table, model: str, asked: str) -> Row:
    """Find a row by its model, with `@size` where the table has the model at several sizes."""
    rows = {f"{row.model}@{row.size}": row for row in table.rows}
    found = {name for name, row in rows.items() if model.lower() in (name.lower(), row.model.lower())}
    if len(found) > 1:
        names = ", ".join(sorted(found))
        raise SettingError(f"{asked!r}: {table.name} has {model} at several sizes; name one of {names}")
    if not found:
        models = {row.model.lower(): row.model for row in table.rows}
        near = [models[name] for name in difflib.get_close_matches(model.lower(), models)]
        hint = f"; did you mean {' or '.join(near)}?" if near else _some(list(models.values()))
        raise SettingError(f"{asked!r}: {table.name} has no row {model!r}{hint}")
    return rows[found.pop()]


def _find_cell(row: Row, quantity: str, asked: str) -> Cell:
    for cell in row.cells:
        if _plain(quantity) in _names_of(cell.quantity):
            return cell
    known = [LABELS[cell.quantity] for cell in row.cells]
    raise SettingError(f"{asked!r}: the table has no column {quantity!r}; it has {', '.join(known)}")


def _names_of(quantity: str) -> set[str]:
    """Return the names by which a user may ask for a quantity: its key and its label, with and without their suffix."""
    label = LABELS[quantity]
    short = next((quantity.removesuffix(end) for end in _SUFFIXES if quantity.endswith(end)), quantity)
    return {_plain(text) for text in (quantity, label, short, label.partition("(")[0])}


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _some(known: Sequence[str]) -> str:
    return f"; it has {', '.join(known[:6])}" + (f" and {len(known) - 6} more" if len(known) > 6 else "")


def _sources(
    experiment: Experiment, variant: str, seeds: Sequence[int], *, benchmark: bool = False
) -> tuple[Source, ...]:
    keys = [key for key in run_keys(experiment) if key.variant == variant and key.seed in seeds]
    found = find_runs(experiment.tracking.experiment, keys)
    runs: Runs = {(key.variant, key.seed): run for key, run in found.items()}
    prepared = stage_folder("prepare") / "dataset.json"
    data = read_json(prepared, PreparedData, made_by="prepare").content_hash if prepared.is_file() else None
    return tuple(_source(variant, seed, runs, data_hash=data, benchmark=benchmark) for seed in seeds)


def _source(variant: str, seed: int, runs: Runs, *, data_hash: str | None, benchmark: bool) -> Source:
    metrics = stage_folder("evaluate", variant, seed) / "metrics.json"
    figures = read_json(metrics, Metrics, made_by=f"evaluate {variant}").model_dump() if metrics.is_file() else {}
    measured = stage_folder("benchmark") / "benchmark.json" if benchmark else metrics
    last = "benchmark" if benchmark else f"evaluate@{variant}-{seed}"
    run = runs.get((variant, seed))
    return Source(
        variant=variant,
        seed=seed,
        stages=("prepare", f"train@{variant}-{seed}", f"reparam@{variant}-{seed}", last),
        figures={figure: figures[figure] for figure in FIGURES if figures},
        files=(_hashed(measured), _hashed(stage_folder("reparam", variant, seed) / WEIGHTS)),
        settings=_hashed(resolved_path("train", variant, seed)),
        run_id=run.run_id if run else None,
        run_address=run.address if run else None,
        commit=(run.commit or None) if run else None,
        data_hash=data_hash,
    )


def _hashed(path: Path) -> HashedFile:
    return HashedFile(path=path.as_posix(), sha256=sha256_of(path) if path.is_file() else None)


def _lines(explanation: Explanation) -> Iterator[str]:
    yield explanation.row
    yield _line("figures", ", ".join(f"{name} {text}" for name, text in explanation.figures.items()) or "not measured")
    if explanation.file is not None:
        yield _line("file", _file_text(explanation.file))
    if explanation.cell is not None:
        yield _line("origin", f"{explanation.cell.origin}: {explanation.cell.note}".rstrip(": "))
        if explanation.spec:
            yield _line("spec", explanation.spec)
    for source in explanation.sources:
        yield f"\n{source.variant}, seed {source.seed}"
        if source.figures:
            texts = (f"{name} {number_text(value, 3)}" for name, value in source.figures.items())
            yield _line("figures", ", ".join(texts))
        for title, file in zip(("file", "weights", "settings"), (*source.files, source.settings), strict=True):
            yield _line(title, _file_text(file))
        yield _line("MLflow run", f"{source.run_id}  {source.run_address}" if source.run_id else "not found")
        yield _line("commit", source.commit or "unknown")
        yield _line("data", source.data_hash or "not prepared")
        yield _line("DVC stages", ", ".join(source.stages))


def _file_text(file: HashedFile) -> str:
    return f"{file.path}  sha256 {file.sha256[:16]}" if file.sha256 else f"{file.path} is missing"


def _line(title: str, text: str) -> str:
    return f"  {title:<12}{text}"
