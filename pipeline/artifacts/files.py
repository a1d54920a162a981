"""Paths of the files that stages exchange, and functions that read, write and lock them.

Everything is below `artifacts/<stage>/`. Trainings whose weights DVC has not recorded are below `runs/`, outside of
DVC's outputs, so that an interrupted stage resumes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from yolov7.errors import ArtifactError
from yolov7.system.files import write_whole
from yolov7.system.locks import exclusive, shared
from yolov7.system.settings_base import Settings

ROOT = Path("artifacts")
RUNS = Path("runs")
WEIGHTS = "weights.safetensors"
_PATIENCE = 2.0  # seconds in which a process that was just killed may end

Model = TypeVar("Model", bound=Settings)


def stage_folder(stage: str, variant: str | None = None, seed: int | None = None) -> Path:
    """Return `artifacts/<stage>[/<variant>/<seed>]`."""
    folder = ROOT / stage
    return folder if variant is None else folder / variant / str(seed)


def run_folder(variant: str, seed: int) -> Path:
    """Return `runs/<variant>/<seed>`: the checkpoints and the live record of a training run."""
    return RUNS / variant / str(seed)


def resolved_path(stage: str, variant: str | None = None, seed: int | None = None) -> Path:
    """Return `artifacts/resolve/<stage>[/<variant>/<seed>].json`: what decides a stage's result."""
    name = stage if variant is None else f"{stage}/{variant}/{seed}"
    return ROOT / "resolve" / f"{name}.json"


def read_resolved(path: Path) -> Any:
    """Return the content of a file that `resolve` wrote.

    Args:
        path: From `resolved_path`.

    Returns:
        Plain JSON values.

    Raises:
        ArtifactError: If the file is missing or damaged.
    """
    try:
        return json.loads(existing(path, made_by="resolve").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}); run `yolov7 resolve` again") from None


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Provide a draft of a folder that replaces `final` when the body ends, or is removed if the body fails.

    Args:
        final: The folder. Its old content stays until then.

    Yields:
        The draft, an empty folder.

    Raises:
        OSError: If writing failed; an error that names no file, as on a full disk, names the folder.
    """
    draft = fresh_folder(final.with_name(f".{final.name}.new"))
    old = final.with_name(f".{final.name}.old")
    try:
        yield draft
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        draft.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(final)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def fresh_folder(folder: Path) -> Path:
    """Create an empty folder, delete what an earlier run left there, and return it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def stage_lock(stage: str, variant: str | None = None, seed: int | None = None) -> AbstractContextManager[None]:
    """Lock a stage while it runs, so that a second start, by hand or by DVC, is refused in one line.

    Args:
        stage: The stage.
        variant: The variant of a stage that has one.
        seed: Its seed.

    Returns:
        A context manager that holds the lock.

    Raises:
        ArtifactError: On entry, if another process holds it.
    """
    name = " ".join(str(part) for part in (stage, variant, seed) if part is not None)
    return exclusive(RUNS / ".locks" / name.replace(" ", "-"), what=f"the stage `{name}`", patience=_PATIENCE)


def prepared_data_lock(*, exclusively: bool) -> AbstractContextManager[None]:
    """Lock the prepared data: `prepare` exclusively, and the stages that read them together.

    Args:
        exclusively: Whether the data are written.

    Returns:
        A context manager that holds the lock.

    Raises:
        ArtifactError: On entry, if a stage that excludes this one holds it.
    """
    lock = exclusive if exclusively else shared
    return lock(RUNS / ".locks" / "prepared-data", what=f"the folder {ROOT / 'prepare'}", patience=_PATIENCE)


def write_json(path: Path, content: Settings | dict[str, Any] | list[Any]) -> None:
    """Write a JSON file in one step, so that no process reads an incomplete file.

    Args:
        path: The file.
        content: A model, or plain values.
    """
    plain = content.model_dump(mode="json") if isinstance(content, Settings) else content
    write_whole(path, (json.dumps(plain, indent=1) + "\n").encode())


def write_no_weights(path: Path, *, results: str) -> None:
    """Write a weight file without tensors in the place of the weights of a system that is not built here.

    Args:
        path: The file.
        results: The name of the file with the results of the system.
    """
    from safetensors.numpy import save

    write_whole(path, save({}, metadata={"format": "no weights", "results": results}))


def existing(path: Path, *, made_by: str) -> Path:
    """Return the path of a file that another stage makes.

    Args:
        path: The file.
        made_by: The command that makes it, without `yolov7`.

    Returns:
        The same path.

    Raises:
        ArtifactError: If the file is missing; the message names the command.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; `yolov7 {made_by}` makes it, and `dvc repro` makes all missing files")
    return path


def read_json(path: Path, kind: type[Model], *, made_by: str) -> Model:
    """Read a file that a stage wrote.

    Args:
        path: The file.
        kind: The class of its content.
        made_by: The command that makes it, without `yolov7`.

    Returns:
        The validated content.

    Raises:
        ArtifactError: If the file is missing, damaged or of another version; the message names the command.
    """
    try:
        return kind.model_validate_json(existing(path, made_by=made_by).read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        message = f"{path} is damaged or of another version ({reason}); run `yolov7 {made_by}` again"
        raise ArtifactError(message) from None
