"""The command `data check`: check a data set without the pipeline, and write a cleaned copy of its annotations."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console

from pipeline.commands.label_suspects import LabelSuspects
from pipeline.console import console
from pipeline.report.check_report import exit_code, report_checks
from pipeline.report.health import HealthReport, make_report
from pipeline.report.health_text import report_text
from yolov7.data.build_index import index_split
from yolov7.data.find_data import DataFormat, FoundData, find_data, parse_split
from yolov7.data.fix.copy import check_target, write_fixed_copy
from yolov7.data.flaws import Flaw
from yolov7.data.health.checks import ANCHORS, MODEL_CHECKS, Check, CheckResult, Finding, select_checks
from yolov7.data.health.run import Find, ReadData, all_checks, run_checks
from yolov7.data.index import ImageIndex
from yolov7.data.inspection import Progress
from yolov7.engines.opened_model import OpenedModel, open_model
from yolov7.errors import SettingError, suggest
from yolov7.inference.engine import ModelEngine
from yolov7.settings import LossSettings
from yolov7.spec.anchor_free import anchor_based_head
from yolov7.spec.graph import ModelSpec
from yolov7.spec.spec_files import load_spec
from yolov7.system.files import write_whole
from yolov7.training.anchors import WANTED_RECALL, box_sizes, measure_anchors
from yolov7.training.start_anchors import describe_missing_anchors

Format = DataFormat | Literal["auto"]
_SPEC = "yolov7"  # whose anchors are measured if there are no weights
_IMAGE_SIZE, _STRIDE = 640, 8  # pixels, if there are no weights


@dataclass(frozen=True)
class _Model:
    """What is known of the model that the data are for; `opened` is None if it is the default spec."""

    opened: OpenedModel | None
    image_size: int
    stride: int

    @cached_property
    def spec(self) -> ModelSpec:
        """The spec whose anchors are measured."""
        if self.opened is not None and isinstance(self.opened.engine, ModelEngine):
            return self.opened.engine.model.spec
        return load_spec(_SPEC)


def check_data(
    path: Path,
    *,
    format: Format = "auto",
    splits: str | None = None,
    only: str | None = None,
    skip: str | None = None,
    strict: bool = False,
    json: str | None = None,
    html: Path | None = None,
    image_size: int | None = None,
    weights: Path | None = None,
    fix: Path | None = None,
) -> int:
    """Check a data set and print or write what was found.

    Args:
        path: A folder, a data.yaml or a COCO file.
        format: The format; `auto` recognises it.
        splits: Names of splits with commas between; None checks all.
        only: Ids of checks with commas between; None runs all.
        skip: Ids of checks to leave out, with commas between.
        strict: Whether findings of every severity end with exit code 1.
        json: A file for the report as JSON; `-` prints it instead of the text.
        html: A file for the report as a page.
        image_size: The training size in pixels; None uses that of the weights, or 640.
        weights: A weight file whose model looks for suspicious labels.
        fix: A new folder for a cleaned copy of the annotations.

    Returns:
        The exit code: 0, or 1 if a check crashed or found an error.

    Raises:
        SettingError: If an option is wrong.
        DataError: If the data cannot be read.
    """
    chosen = _select(only, skip, has_model=weights is not None)
    _refuse_folders(json=json, html=html)
    found = find_data(path.absolute(), format=format)
    if fix is not None:
        check_target(fix, found)
    model = _open(weights, image_size)
    data = _read(found, _chosen_splits(found, _listed(splits)), model)
    results = _run(chosen, data, model)
    reports = report_checks(results)
    named = f"{found.format}: {path}"
    report = make_report(data.splits, source=named, checks=reports, image_size=model.image_size)
    _show(report, found, json=json)
    if html is not None:
        from pipeline.report.health_page import draw_examples, report_html

        page = report_html(report, pictures=draw_examples(results))
        write_whole(html, page.encode(errors="backslashreplace"))
    if fix is not None:
        _write_copy(fix, found, data, chosen, quiet=json == "-")
    return exit_code(reports, strict=strict)


def _show(report: HealthReport, found: FoundData, *, json: str | None) -> None:
    """Print the report, and write it as JSON if asked."""
    if json == "-":
        sys.stdout.write(_as_json(report))
        return
    console.print(f"{found.description}\n{report_text(report, root=found.root)}")
    if json is not None:
        write_whole(Path(json), _as_json(report).encode())


def _refuse_folders(**files: str | Path | None) -> None:
    """Raise an error for an option that names a folder instead of a file, before the work begins."""
    for option, file in files.items():
        if file is not None and Path(file).is_dir():
            raise SettingError(f"--{option}={file} is a folder; name a file")


def _select(only: str | None, skip: str | None, *, has_model: bool) -> tuple[Check, ...]:
    if not has_model and set(_listed(only)) & {check.id for check in MODEL_CHECKS}:
        raise SettingError("the label checks need a model; name its weight file in --weights")
    return select_checks(_listed(only), _listed(skip))


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in (text or "").split(","))))


def _chosen_splits(found: FoundData, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the splits to check; a list `trainval` that joins two others is left out unless it is wanted."""
    for name in wanted:
        if name not in found.splits:
            hint = suggest(name, found.splits) or f"; it has: {', '.join(found.splits) or 'no splits'}"
            raise SettingError(f"split {name!r} is not in {found.root}{hint}")
    if wanted:
        return tuple(name for name in found.splits if name in wanted)
    is_joined = {"train", "val"} <= found.splits.keys()
    return tuple(name for name in found.splits if not (is_joined and name == "trainval"))


def _open(weights: Path | None, image_size: int | None) -> _Model:
    if weights is None:
        return _Model(None, image_size or _IMAGE_SIZE, _STRIDE)
    opened = open_model(weights)
    stride = min(opened.engine.model.strides) if isinstance(opened.engine, ModelEngine) else _STRIDE
    return _Model(opened, image_size or opened.image_size, stride)


def _read(found: FoundData, splits: tuple[str, ...], model: _Model) -> ReadData:
    read: dict[str, tuple[ImageIndex, tuple[Flaw, ...]]] = {}
    names = None
    for split in splits:
        with _progress(f"images of {split}") as progress:
            parsed = parse_split(found, split, class_names=names)  # the first split states the classes
            read[split] = index_split(parsed, progress=progress)
        names = read[split][0].class_names
    return ReadData(read, image_size=model.image_size, stride=model.stride)


def _run(chosen: tuple[Check, ...], data: ReadData, model: _Model) -> tuple[CheckResult, ...]:
    if ANCHORS in chosen and model.spec.head.anchor_free:
        Console(stderr=True, soft_wrap=True).print(f"check {ANCHORS.id}: {describe_missing_anchors(model.spec)}")
    return run_checks(chosen, _finders(data, model))


def _finders(data: ReadData, model: _Model) -> dict[str, Find]:
    finders = all_checks(data)
    if not model.spec.head.anchor_free:
        finders[ANCHORS.id] = lambda: _find_misfits(data.indices, model)
    if model.opened is None:
        return finders
    suspects = LabelSuspects(model.opened, data.indices, _progress)
    suspects.check_classes()
    return finders | {check.id: _suspects_of(suspects, check) for check in MODEL_CHECKS}


def _suspects_of(suspects: LabelSuspects, check: Check) -> Find:
    return lambda: suspects.find(check.id)


def _find_misfits(indices: Mapping[str, ImageIndex], model: _Model) -> Iterator[Finding]:
    """Report the training split if the anchors of the model fit too few of its boxes."""
    split = "train" if "train" in indices else next(iter(indices), None)
    if split is None:
        return
    index, threshold = indices[split], LossSettings().anchor_threshold
    anchors_px = np.array(anchor_based_head(model.spec).anchors, np.float64).reshape(-1, 2)
    fit = measure_anchors(box_sizes(index, image_size=model.image_size), anchors_px, threshold=threshold)
    if fit.is_sufficient or fit.recall is None:
        return
    detail = (
        f"best possible recall {fit.recall:.4f} with the anchors of {model.spec.name} at {model.image_size} pixels, "
        f"below {WANTED_RECALL:g}; {fit.anchors_per_box:.1f} anchors fit a box on average"
    )
    yield Finding(split, str(index.paths[0].parent), detail)


def _as_json(report: HealthReport) -> str:
    return report.model_dump_json(indent=1) + "\n"


def _write_copy(folder: Path, found: FoundData, data: ReadData, chosen: tuple[Check, ...], *, quiet: bool) -> None:
    wanted = {check.id for check in chosen if check.fix is not None}
    changes = write_fixed_copy(folder, found, data.indices, wanted=wanted)
    lines = [f"{split}: {id}: {count:,} ({fix})" for (split, id, fix), count in changes.items()]
    text = "\n".join([f"cleaned copy of the annotations: {folder}", *(lines or ["nothing had to be changed"])])
    if quiet:
        print(text, file=sys.stderr)
    else:
        console.print(f"\n{text}")


@contextmanager
def _progress(what: str) -> Iterator[Progress | None]:
    """Show a bar on the standard error if it is a terminal."""
    errors = Console(stderr=True)
    if not errors.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
