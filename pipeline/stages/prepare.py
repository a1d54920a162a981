"""Stage `prepare`: read or draw the data, check every image and box, and write indices and a health report."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.artifacts.files import RUNS, stage_folder, whole_folder, write_json
from pipeline.artifacts.reports import PreparedData
from pipeline.console import console
from pipeline.data_settings import DataFormat, DataSettings, FlawSettings, source_name
from pipeline.report.check_report import report_checks
from pipeline.report.health import MAX_LISTED, describe_flaws, make_report, write_sheet
from pipeline.report.health_page import draw_examples, report_html
from yolov7.data.divide import divide_flaws, divide_images
from yolov7.data.find_data import FoundData, find_data
from yolov7.data.flaws import Flaw, FlawGroup, FlawKind
from yolov7.data.health.checks import CHECKS
from yolov7.data.health.image_checks import have_same_images
from yolov7.data.health.run import ReadData, quick_checks, run_checks
from yolov7.data.index import ImageIndex, save_index
from yolov7.data.inspection import KnownImages, Progress
from yolov7.data.read.coco import read_coco
from yolov7.data.selection import select_images
from yolov7.data.sources import JoinedSources, Source
from yolov7.data.split_store import SplitStore
from yolov7.data.synthetic.scene import shuffle_labels, write_synthetic
from yolov7.errors import DataError, counted

Splits = Mapping[str, tuple[ImageIndex, tuple[Flaw, ...]]]
_CACHE = RUNS / "prepare"  # outside DVC's outputs, which DVC deletes before a stage runs
_FORMATS = (
    "the formats that are read are coco (a JSON file per split), voc (Annotations, ImageSets, JPEGImages) and yolo "
    "(data.yaml)"
)
_PLAIN_STEPS = 4  # lines of progress if the output is no terminal


def prepare(settings: DataSettings, *, project_root: Path = Path()) -> str:
    """Write `artifacts/prepare`. What was there before stays until the new data are complete.

    Args:
        settings: Where the data are, and which flaws are fatal.
        project_root: The folder of the project.

    Returns:
        A line that says what was prepared.

    Raises:
        DataError: If the data cannot be used.
    """
    final = (project_root / stage_folder("prepare")).absolute()
    with whole_folder(final) as folder:
        if settings.format == "synthetic":
            source, splits = "synthetic", _draw_splits(settings, folder)
        else:
            sources = _find_sources(settings, project_root)
            source, splits = _describe(settings, sources), _read_splits(sources, settings, project_root)
        splits = _with_leaks(splits)
        _check(splits, settings.flaws)
        _write(
            splits, source, folder, project_root, is_stored=settings.format != "synthetic" and settings.split is None
        )
    return _summary(splits, settings, source, final / "health.html")


def _find_sources(settings: DataSettings, project_root: Path) -> list[Source]:
    """Find the files of every source."""
    sources = []
    for stated in settings.all_sources:
        path = Path(os.path.normpath(project_root / settings.path / stated.path)).absolute()
        found = _find(path, stated.format, str(Path(settings.path) / stated.path))
        if stated.format == "auto":
            console.print(f"{'prepare':<10} found {found.description}")
        names = {"train": stated.train, "val": stated.val, "test": stated.test}
        splits = {split: name for split, name in names.items() if name is not None}
        sources.append(Source(source_name(stated), found, splits, stated.classes))
    return sources


def _find(path: Path, format: DataFormat, stated: str) -> FoundData:
    """Find the data of a source; if the format is stated, its reader says best what is missing."""
    if format in ("coco", "voc") and not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise DataError(f"data.path={stated!r} {what}, is not a folder; name the folder of the data; {_FORMATS}")
    try:
        return find_data(path, format=format)
    except DataError:
        if format not in ("coco", "voc"):
            raise
        return FoundData(format, path, None, {})


def _describe(settings: DataSettings, sources: Sequence[Source]) -> str:
    """Return where the data are from, such as `voc: /data/bccd`."""
    if not settings.sources:
        return f"{sources[0].found.format}: {settings.path}"
    return ", ".join(f"{source.name} ({source.found.format})" for source in sources) + f" in {settings.path}"


def _read_splits(sources: Sequence[Source], settings: DataSettings, project_root: Path) -> Splits:
    """Read every split that is named, and divide the training split if the settings say so."""
    cache = (project_root / _CACHE).absolute()
    known = KnownImages(cache / "images.json")
    store = SplitStore(cache, root=project_root)
    joined = JoinedSources(sources)
    if "train" not in joined.splits:
        raise DataError("no source has a split train; name one in `train`")
    splits = {}
    try:
        for split in joined.splits:
            with _progress(split) as progress:
                splits[split] = joined.read(split, store=store, known=known, progress=progress)
    finally:
        known.save(cache / "images.json")
    if settings.split is None:
        return splits
    index, flaws = splits.pop("train")
    fractions = {name: getattr(settings.split, name) for name in ("val", "test") if getattr(settings.split, name)}
    places = divide_images(index, fractions, seed=settings.split.seed, group=settings.split.group)
    return divide_flaws({split: select_images(index, images) for split, images in places.items()}, flaws) | splits


def _draw_splits(settings: DataSettings, folder: Path) -> Splits:
    splits = {}
    for split in ("train", *(["val"] if settings.val is not None else [])):
        with _progress(split) as progress:
            splits[split] = _draw(settings, folder / "synthetic" / split, split, progress)
    return splits


def _draw(settings: DataSettings, folder: Path, split: str, progress: Progress) -> tuple[ImageIndex, tuple[Flaw, ...]]:
    synthetic = settings.synthetic
    count = synthetic.train_images if split == "train" else synthetic.val_images
    size, seed = synthetic.image_size, synthetic.seed
    write_synthetic(folder, num_images=count, image_size=size, seed=seed, split=split, progress=progress)
    index, flaws = read_coco(folder / "annotations.json")
    if split == "train" and synthetic.shuffle_labels:
        index = shuffle_labels(index, seed=seed)
    return index, flaws


def _with_leaks(splits: Splits) -> Splits:
    """Add to the flaws the images of val and test that are in train too."""
    train = splits["train"][0]
    known = set(train.hashes)
    checked = {"train": splits["train"]}
    for split, (index, flaws) in splits.items():
        if split == "train":
            continue
        twice = [path for path, key in zip(index.paths, index.hashes, strict=True) if key in known]
        leaks = tuple(Flaw(FlawKind.LEAK, str(path), "the same bytes") for path in twice)
        if twice and have_same_images(train, index):
            leaks = (Flaw(FlawKind.SAME_SPLIT, str(twice[0].parent), f"all {len(index):,} images"),)
        checked[split] = (index, flaws + leaks)
    return checked


def _check(splits: Splits, settings: FlawSettings) -> None:
    for split, (index, flaws) in splits.items():
        _check_images(split, len(index), _of_group(flaws, FlawGroup.IMAGES), settings)
        for group in settings.fatal:
            found = _of_group(flaws, FlawGroup(group))
            if found:
                count = f"{counted(len(found), 'flaw')} in {split}"
                remedy = f"correct them, or remove {group} from data.flaws.fatal"
                raise DataError(f"{count}, e.g. {_told(found[0])}; {remedy}")
        _check_boxes(split, index, flaws)


def _check_images(split: str, usable: int, lost: Sequence[Flaw], settings: FlawSettings) -> None:
    total = usable + len(lost)
    if usable and len(lost) / total <= settings.max_unreadable:
        return
    limit = f"allowed data.flaws.max_unreadable={settings.max_unreadable:g}"
    first = f", e.g. {_told(lost[0])}" if lost else ""
    remedy = "restore them, or raise data.flaws.max_unreadable; the health report then lists all of them"
    raise DataError(f"{len(lost)} of {total} images of {split} cannot be used ({limit}){first}; {remedy}")


def _check_boxes(split: str, index: ImageIndex, flaws: Sequence[Flaw]) -> None:
    """Raise an error that names the reasons if no object is left to learn or to find."""
    if not index.crowd.all():  # which is true for no boxes too
        return
    lost = [flaw for flaw in flaws if flaw.boxes]
    total = sum(flaw.boxes for flaw in lost)
    crowds = f"; the other {index.num_boxes:,} are crowd regions" if index.num_boxes else ""
    if lost:
        kinds = ", ".join(f"{kind}: {count:,}" for kind, count in Counter(flaw.kind for flaw in lost).most_common(3))
        remedy = f"; {lost[0].kind.outcome}" if lost[0].kind is FlawKind.SHARES else ""
        reasons = f"({kinds}), e.g. {lost[0].file}: {lost[0].detail}{remedy}{crowds}"
        raise DataError(f"all {total:,} boxes of {split} were left out {reasons}; correct the annotations")
    if index.num_boxes:
        raise DataError(f"all {index.num_boxes:,} boxes of {split} are crowd regions; annotate single objects too")
    raise DataError(
        f"no image of {split} has a box ({counted(len(index), 'image')}); annotate some or name another split"
    )


def _of_group(flaws: Sequence[Flaw], group: FlawGroup) -> list[Flaw]:
    return [flaw for flaw in flaws if flaw.kind.group is group]


def _told(flaw: Flaw) -> str:
    return f"{flaw.kind}, {flaw.file}: {flaw.detail}"


def _write(splits: Splits, source: str, folder: Path, project_root: Path, *, is_stored: bool) -> None:
    digest = hashlib.blake2b(digest_size=16)
    for split, (index, _) in splits.items():
        _save(split, index, folder, project_root, is_stored=is_stored)
        digest.update(f"{split} {index.content_hash()}\n".encode())
    indices = {split: index for split, (index, _) in splits.items()}
    prepared = PreparedData(
        class_names=indices["train"].class_names,
        splits={split: len(index) for split, index in indices.items()},
        boxes={split: index.num_boxes for split, index in indices.items()},
        source=source,
        content_hash=digest.hexdigest(),
        split_hashes={split: index.evaluation_hash() for split, index in indices.items()},
    )
    write_json(folder / "dataset.json", prepared)
    results = run_checks(CHECKS, quick_checks(ReadData(splits)))
    report = make_report(splits, source=source, checks=report_checks(results, max_listed=MAX_LISTED))
    write_json(folder / "health.json", report)
    write_sheet(folder / "sheet.jpg", indices["train"])
    html = report_html(report, pictures=draw_examples(results), sheet=(folder / "sheet.jpg").read_bytes())
    (folder / "health.html").write_text(html, encoding="utf-8", errors="backslashreplace")


def _save(split: str, index: ImageIndex, folder: Path, project_root: Path, *, is_stored: bool) -> None:
    """Write the index of a split; compressing it again takes long, so the file of the store is copied if possible."""
    stored = (project_root / _CACHE / f"{split}.npz").absolute()
    roots = {os.path.relpath(project_root.resolve(), path.resolve()) for path in (folder, stored.parent)}
    if is_stored and stored.is_file() and len(roots) == 1:  # paths of images are relative to the folder
        shutil.copyfile(stored, folder / f"{split}.npz")
    else:
        save_index(folder / f"{split}.npz", index, root=project_root)


def _summary(splits: Splits, settings: DataSettings, source: str, report: Path) -> str:
    images = " + ".join(f"{len(index):,}" for index, _ in splits.values())
    boxes = sum(index.num_boxes for index, _ in splits.values())
    classes = counted(len(splits["train"][0].class_names), "class", "classes")
    flaws = [flaw for _, found in splits.values() for flaw in found]
    shuffled = ", labels shuffled" if settings.format == "synthetic" and settings.synthetic.shuffle_labels else ""
    told = describe_flaws(flaws) + (f"; see {_shown(report)}" if flaws else "")
    counts = f"{images} images, {classes}, {counted(boxes, 'box', 'boxes')}{shuffled}"
    origin = source if settings.sources else source.partition(":")[0]
    return f"{'prepare':<10} {origin}: {counts}, {told}"


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@contextmanager
def _progress(split: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal, and a few lines elsewhere."""
    if not console.is_terminal:
        yield lambda done, total: _plain_line(split, done, total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    with Bar(TextColumn("prepare    {task.description}"), BarColumn(), MofNCompleteColumn(), transient=True) as bar:
        task = bar.add_task(split, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain_line(split: str, done: int, total: int) -> None:
    if total >= 1000 and done * _PLAIN_STEPS // total != (done - 1) * _PLAIN_STEPS // total:
        console.print(f"{'prepare':<10} {split}: {done:,} of {total:,} images")
