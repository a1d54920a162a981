"""`yolov7 predict`: detect objects in images, videos and streams, and write the results."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.commands.model_file import model_file
from pipeline.commands.prediction_files import (
    CocoFile,
    CropFiles,
    CsvFile,
    NamedOutcome,
    NameList,
    OutcomeFile,
    PictureFiles,
    YoloFiles,
    json_line,
)
from pipeline.console import console as standard_console
from pipeline.console import duration, stage_line
from yolov7.detect.detections import class_labels
from yolov7.detect.detector import Detector, nms_settings
from yolov7.detect.drawing import draw_detections
from yolov7.detect.outcomes import DetectionOptions, Outcome, detect_sources
from yolov7.detect.sources import Source, find_sources
from yolov7.detect.threads import in_background, map_in_order
from yolov7.detect.tiles import Tiling
from yolov7.errors import SettingError, counted
from yolov7.system.threads import use_free_cpus

_MEMORY = 2**28  # bytes of images that wait to be written
_DRAWING_THREADS = 2
_NOT_WITH_RAY = (
    "json", "json_file", "count", "coco", "yolo", "csv", "crops", "classes", "tta", "tile", "overlap", "every",
)  # fmt: skip


@dataclass(frozen=True)
class PredictOptions:
    """What the command line asks for; None is the default of the detector.

    Attributes:
        out: Folder of the results.
        pictures: Whether annotated pictures and videos are written.
        json: Whether each result is printed as one line of JSON.
        json_file: File for the lines of JSON; None for none.
        count: Whether the number of detections of each class is printed.
        coco: Whether `predictions.json` is written, in COCO format.
        yolo: Whether YOLO labels are written.
        csv: Whether `predictions.csv` is written.
        crops: Whether the objects are written as pictures.
        confidence: Lowest score of a detection.
        iou: Largest IoU of two detections of the same class.
        classes: Names or numbers of the classes to detect, also separated by commas; None detects every class.
        max_detections: Largest number of detections per image.
        batch_size: Number of images that the model processes at once.
        tta: Whether three views of each image are looked at.
        tile: Side of the tiles in pixels; None looks at whole images.
        overlap: Share of a tile that the next tile shows too.
        every: Of a video, only frames whose number is a multiple of this are looked at.
        engine: Name of the engine.
        device: Where the model runs.
        precision: Floating-point type of the model.
        ray: Whether a pool of Ray actors works on a folder or bucket; then only detections are written, in shards.
        actors: Number of these processes.
        shard_format: `jsonl` or `parquet`.
    """

    out: str
    pictures: bool = True
    json: bool = False
    json_file: Path | None = None
    count: bool = False
    coco: bool = False
    yolo: bool = False
    csv: bool = False
    crops: bool = False
    confidence: float | None = None
    iou: float | None = None
    classes: Sequence[str] | None = None
    max_detections: int | None = None
    batch_size: int = 16
    tta: bool = False
    tile: int | None = None
    overlap: float | None = None
    every: int = 1
    engine: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    ray: bool = False
    actors: int = 1
    shard_format: str = "jsonl"


def predict(weights: str, names: Sequence[str], options: PredictOptions) -> bool:
    """Detect objects in all sources and write what the options ask for.

    Args:
        weights: A weight file, an exported file or folder, a variant with or without a seed, or a registered model.
        names: The sources, as in `find_sources`.
        options: What to do.

    Returns:
        Whether every source could be read to its end.

    Raises:
        UserError: If a name or an option is wrong; nothing was written then.
        OSError: If a result cannot be written. Results before it are complete.
    """
    if options.ray:
        _check_many(options)
        return _predict_many(weights, names, options)
    for name, value, default in (("--actors", options.actors, 1), ("--format", options.shard_format, "jsonl")):
        if value != default:
            raise SettingError(f"{name} {value} concerns --ray; add --ray, or leave it out")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # our own messages describe faults in videos
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    sources = find_sources(names, ignored=Path(options.out), say=console.print)
    _check_out(sources, options)
    detection = _detection_options(options)
    path = model_file(weights)
    use_free_cpus()
    detector = Detector.load(path, engine=options.engine, device=options.device, precision=options.precision)
    if options.classes is not None:
        detection = replace(
            detection, labels=class_labels(_split(options.classes, detector.class_names), detector.class_names)
        )
    detector.model.check_confidence(detection.nms)
    for note in detector.model.notes:
        console.print(stage_line("predict", weights, note))
    if options.tta:
        detector = detector.augmented()
    return _Run(weights, options, detector, console).write(detect_sources(detector, sources, detection), sources)


def _check_many(options: PredictOptions) -> None:
    """Raise SettingError if an option has no effect with --ray, which writes only detections, in shards."""
    stated = [name for name in _NOT_WITH_RAY if getattr(options, name) != getattr(PredictOptions, name)]
    if stated:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in stated)
        raise SettingError(f"{names} cannot be combined with --ray, which only writes shards; leave out these options")


def _predict_many(weights: str, names: Sequence[str], options: PredictOptions) -> bool:
    from pipeline.commands.predict_many import predict_many

    unread = predict_many(
        weights,
        names,
        options.out,
        format=options.shard_format,
        actors=options.actors,
        batch_size=options.batch_size,
        nms=nms_settings(confidence=options.confidence, iou=options.iou, max_detections=options.max_detections),
        engine=options.engine,
        device=options.device,
        precision=options.precision,
    )
    return not unread


class _Run:
    """One run: its output files, its totals and its progress bar."""

    def __init__(self, weights: str, options: PredictOptions, detector: Detector, console: Console) -> None:
        self._weights = weights
        self._options = options
        self._detector = detector
        self._console = console
        self._images = self._errors = 0
        self._found: Counter[str] = Counter()
        self._is_writing = self._is_interrupted = False
        self._prints_counts = options.count and not options.json  # with --json, the lines contain them

    def write(self, outcomes: Iterator[Outcome], sources: Sequence[Source]) -> bool:
        """Write all outcomes and return whether there was no error."""
        options, began = self._options, time.perf_counter()
        ahead = in_background(
            outcomes, size_of=lambda one: one.size, most_items=2 * options.batch_size, most_bytes=_MEMORY
        )
        items = _name_files(ahead)
        if options.pictures:
            items = map_in_order(self._draw, items, workers=_DRAWING_THREADS, ahead=2 * _DRAWING_THREADS)
        with self._interruptible(), ExitStack() as stack, _Bar(self._console, sources) as bar:
            stack.callback(lambda: self._summarise(time.perf_counter() - began))
            files, lines = self._files(stack), self._line_streams(stack)
            try:
                for item in items:
                    with self._uninterrupted():
                        self._take(item, files, lines)
                    bar.show(item.outcome, rate=self._images / (time.perf_counter() - began))
                if self._prints_counts:
                    print(f"total: {_counts_text(self._found)}", flush=True)
            except BrokenPipeError:  # the reader of standard output has ended, as in `yolov7 predict ... | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return False
        return not self._errors

    def _take(self, item: NamedOutcome, files: Sequence[OutcomeFile], lines: Sequence[TextIO]) -> None:
        outcome = item.outcome
        if outcome.found is None:
            self._errors += 1
            self._console.print(f"yolov7: {outcome.error}")
        else:
            self._images += 1
            self._found.update(outcome.found.counts())
            for file in files:
                file.write(item, outcome.found)
            if self._prints_counts:
                frame = "" if outcome.frame is None else f" frame {outcome.frame}"
                print(f"{outcome.source.name}{frame}: {_counts_text(outcome.found.counts())}", flush=True)
        for stream in lines:
            print(json_line(outcome, with_counts=self._options.count), file=stream, flush=True)

    def _draw(self, item: NamedOutcome) -> NamedOutcome:
        outcome = item.outcome
        if outcome.found is None or outcome.image is None:
            return item
        return replace(item, picture=draw_detections(outcome.image, outcome.found, outcome.found.class_names))

    def _files(self, stack: ExitStack) -> list[OutcomeFile]:
        options, out = self._options, Path(self._options.out)
        files: list[OutcomeFile] = []
        if options.pictures:
            files.append(PictureFiles(out))
        if options.crops:
            files.append(CropFiles(out / "crops"))
        if options.yolo:
            files.append(YoloFiles(out / "labels"))
        if options.csv:
            files.append(CsvFile(out / "predictions.csv"))
        if options.coco:
            files.append(CocoFile(out / "predictions.json", self._detector.class_names))
        for file in files:
            stack.callback(file.close)
        return files

    def _line_streams(self, stack: ExitStack) -> list[TextIO]:
        streams = [sys.stdout] if self._options.json else []
        if self._options.json_file is not None:
            self._options.json_file.parent.mkdir(parents=True, exist_ok=True)
            streams.append(stack.enter_context(self._options.json_file.open("w", encoding="utf-8")))
        return streams

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """End on Ctrl-C and on SIGTERM between two outcomes, so that all files have the same ones and are complete."""

        def interrupt(*_: object) -> None:
            self._is_interrupted = True
            if not self._is_writing:
                raise KeyboardInterrupt

        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def _uninterrupted(self) -> Iterator[None]:
        self._is_writing = True
        try:
            yield
        finally:
            self._is_writing = False
        if self._is_interrupted:
            raise KeyboardInterrupt

    def _summarise(self, seconds: float) -> None:
        options = self._options
        rate = self._images / seconds if seconds > 0 else 0.0
        text = f"{counted(self._images, 'image')} in {duration(seconds)} ({rate:.1f} images/s)"
        text += f", {counted(self._found.total(), 'detection')}"
        if self._images and (options.pictures or options.crops or options.yolo or options.csv or options.coco):
            text += f"; results are in {options.out}"
        if self._errors:
            text += f"; {counted(self._errors, 'error')}"
        if not standard_console.quiet:
            self._console.print(stage_line("predict", self._weights, text))


class _Bar:
    """A progress bar on standard error; nothing if that is not a terminal."""

    def __init__(self, console: Console, sources: Sequence[Source]) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} images/s"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._total: int | None = sum(source.kind in ("image", "stdin", "web") for source in sources)
        self._task = self._bar.add_task("predict", total=self._total, rate=0.0)
        self._video: Source | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, outcome: Outcome, *, rate: float) -> None:
        """Advance by one outcome; the frames of a video are added to the total when its first one arrives."""
        if outcome.video is not None and outcome.source is not self._video:
            self._video = outcome.source
            frames = outcome.video.frame_count
            self._total = None if frames is None or self._total is None else self._total + frames
            self._bar.update(self._task, total=self._total)
        self._bar.update(self._task, advance=1, rate=rate)


def _name_files(outcomes: Iterable[Outcome]) -> Iterator[NamedOutcome]:
    names, source, name = NameList(), None, ""
    for outcome in outcomes:
        if outcome.source is not source:
            source, name = outcome.source, names.unique(outcome.source.output)
        yield NamedOutcome(outcome, name)


def _detection_options(options: PredictOptions) -> DetectionOptions:
    for name, number in (("--batch-size", options.batch_size), ("--every", options.every)):
        if number < 1:
            raise SettingError(f"{name} {number} must be at least 1")
    if options.overlap is not None and options.tile is None:
        raise SettingError(f"--overlap {options.overlap} has no effect without --tile; add --tile SIZE")
    tiling = None
    if options.tile is not None:
        tiling = Tiling(options.tile) if options.overlap is None else Tiling(options.tile, options.overlap)
    nms = nms_settings(confidence=options.confidence, iou=options.iou, max_detections=options.max_detections)
    return DetectionOptions(
        nms=nms,
        tiling=tiling,
        batch_size=options.batch_size,
        every=options.every,
        keep_images=options.pictures or options.crops,
    )


def _check_out(sources: Sequence[Source], options: PredictOptions) -> None:
    """Raise SettingError if a picture could replace an image that it is made from."""
    files = [Path(source.location) for source in sources if source.kind in ("image", "video")]
    out = Path(options.out).resolve()
    if out.exists() and not out.is_dir():
        raise SettingError(f"--out {options.out} is a file; name a folder")
    if options.pictures and any(path.resolve().is_relative_to(out) for path in files):
        raise SettingError(
            f"--out {options.out} contains sources, which annotated pictures could replace; choose another folder"
        )


def _split(classes: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Return single classes of values that may be lists with commas; a name may contain a comma itself."""
    return [part.strip() for value in classes for part in ([value] if value in class_names else value.split(","))]


def _counts_text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "nothing"
