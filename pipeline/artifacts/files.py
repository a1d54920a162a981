"""Where stages put what they hand on, and the typed reading and writing of it.

Everything lies under `artifacts/<stage>/`; training that is not finished lies under `runs/`, outside of DVC's
outputs, so that an interrupted stage resumes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from yolov7.errors import ArtifactError
from yolov7.settings import Settings
from yolov7.system.files import write_whole
from yolov7.system.locks import exclusive, shared

ROOT = Path("artifacts")
RUNS = Path("runs")
WEIGHTS = "weights.safetensors"
_PATIENCE = 2.0  # seconds; what was killed just now may still be ending

Model = TypeVar("Model", bound=Settings)


class PreparedData(Settings):
    """`artifacts/prepare/dataset.json`: what the data are; each split lies beside it as `<split>.npz`."""

    class_names: tuple[str, ...]
    splits: dict[str, int]  # "train", "val", "test" -> number of images
    boxes: dict[str, int]
    source: str
    content_hash: str  # of all pixels and boxes
    split_hashes: dict[str, str] = Field(default_factory=dict)  # of each split


class TrainSummary(Settings):
    """`artifacts/train/<variant>/<seed>/train.json`: how a training run ended."""

    variant: str
    seed: int
    fingerprint: str  # of the data and all training parameters; names the MLflow run
    epochs: int
    seconds: float
    images_per_second: float
    loader_wait_share: float  # of the training time
    skipped_steps: int  # whose loss was not finite
    AP: float | None  # the EMA's on val after the last epoch; None where there is no val split
    AP50: float | None
    precision: str
    device: str
    workers: int
    val_hash: str | None = None  # content hash of the val split that AP was measured on; None where there is none


class ReparamReport(Settings):
    """`artifacts/reparam/<variant>/<seed>/reparam.json`: the proof that the deployed model is the trained one."""

    variant: str
    seed: int
    parameters_before: int
    parameters_after: int
    gflops_before: float
    gflops_after: float
    images: int
    max_error_float32: float  # relative to the outputs' scale
    mean_error_float32: float
    max_error_float64: float
    mean_error_float64: float


class Metrics(Settings):
    """`artifacts/evaluate/<variant>/<seed>/metrics.json`: the twelve COCO figures as fractions, and AP per class.

    A figure is None where the split has no objects for it.
    """

    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    AR1: float | None
    AR10: float | None
    AR100: float | None
    ARs: float | None
    ARm: float | None
    ARl: float | None
    AP_before_reparam: float | None  # of the weights before re-parameterisation, on the same split
    per_class_AP: dict[str, float | None]
    split: str
    images: int


class BenchmarkRow(Settings):
    """Latency of one model in one setting; milliseconds a batch."""

    variant: str
    form: str  # "trained": as it was trained; "deployed": re-parameterised
    engine: str  # "eager", "compile"
    precision: str
    batch: int
    nms: bool
    image_size: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    fps: float  # images a second at the median
    samples: int


class Benchmark(Settings):
    """`artifacts/benchmark/benchmark.json`."""

    device: str
    threads: int
    clock_mhz: float | None
    versions: dict[str, str]
    rows: tuple[BenchmarkRow, ...]


def stage_folder(stage: str, variant: str | None = None, seed: int | None = None) -> Path:
    """`artifacts/<stage>[/<variant>/<seed>]`."""
    folder = ROOT / stage
    return folder if variant is None else folder / variant / str(seed)


def run_folder(variant: str, seed: int) -> Path:
    """`runs/<variant>/<seed>`: checkpoints and the live record of a training run."""
    return RUNS / variant / str(seed)


def resolved_path(stage: str, variant: str | None = None, seed: int | None = None) -> Path:
    """Return `artifacts/resolve/<stage>[/<variant>/<seed>].json`: what decides a stage's result."""
    name = stage if variant is None else f"{stage}/{variant}/{seed}"
    return ROOT / "resolve" / f"{name}.json"


def read_resolved(path: Path) -> Any:
    """Return the content of a file that `resolve` wrote.

    Raises:
        ArtifactError: If it is missing or damaged.
    """
    try:
        return json.loads(existing(path, made_by="resolve").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}); run `yolov7 resolve` again") from None


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `final` when it is done; where it fails nothing of it is left.

    What was in `final` stays until then. An OSError that names no file, as on a full disk, names the folder.
    """
    draft = fresh_folder(final.with_name(f".{final.name}.new"))
    try:
        yield draft
        _replace_folder(draft, final)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(final)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _replace_folder(draft: Path, final: Path) -> None:
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    draft.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def stage_lock(stage: str, variant: str | None = None, seed: int | None = None) -> AbstractContextManager[None]:
    """Held while a stage runs: when it is started a second time, by hand or by DVC, that is refused in one line."""
    name = " ".join(str(part) for part in (stage, variant, seed) if part is not None)
    return exclusive(RUNS / ".locks" / name.replace(" ", "-"), what=f"the stage `{name}`", patience=_PATIENCE)


def prepared_data_lock(*, exclusively: bool) -> AbstractContextManager[None]:
    """Lock the prepared data: `prepare` exclusively, and the stages that read them together.

    Args:
        exclusively: Whether the data are written.

    Returns:
        A context manager that holds the lock.

    Raises:
        ArtifactError: On entry, if the lock is held by a stage that excludes this one.
    """
    path, what = RUNS / ".locks" / "prepared-data", f"the folder {ROOT / 'prepare'}"
    lock = exclusive if exclusively else shared
    return lock(path, what=what, patience=_PATIENCE)


def fresh_folder(folder: Path) -> Path:
    """The folder, made and emptied of what an earlier run left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_json(path: Path, content: Settings | dict[str, Any] | list[Any]) -> None:
    """Writes a file that holds the content as JSON; no reader sees half of it."""
    plain = content.model_dump(mode="json") if isinstance(content, Settings) else content
    write_whole(path, (json.dumps(plain, indent=1) + "\n").encode())


def existing(path: Path, *, made_by: str) -> Path:
    """The path of a file that another stage makes; ArtifactError names the command where it is missing."""
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; `yolov7 {made_by}` makes it, and `dvc repro` all that is missing")
    return path


def read_json(path: Path, kind: type[Model], *, made_by: str) -> Model:
    """Reads what a stage left; ArtifactError names the file and the command that makes it."""
    try:
        return kind.model_validate_json(existing(path, made_by=made_by).read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        message = f"{path} is damaged or of another version ({reason}); run `yolov7 {made_by}` again"
        raise ArtifactError(message) from None
