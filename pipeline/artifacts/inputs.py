"""Checks that a stage's inputs do not change while it runs under DVC.

DVC records the state of a stage's dependencies when the stage has ended. If one of them was edited meanwhile, DVC would
record results with inputs that they were not made from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import read_resolved
from pipeline.artifacts.stage_code import installed_code_digest
from yolov7.errors import ArtifactError
from yolov7.system.yaml_files import read_yaml

_HASHED_BYTES = 1 << 20  # larger files, and images, are compared by size and time of change
_HASHED_SUFFIXES = {".py", ".yaml", ".json", ".csv", ".html", ".xml", ".txt"}
_IGNORED_SUFFIXES = {".pyc", ".so"}  # as .dvcignore says
_State = tuple[int, int, str]


def dvc_stage() -> str | None:
    """Return the name of the DVC stage that this process runs for, such as `train@nano-0`; None outside of DVC."""
    address = os.environ.get("DVC_STAGE")
    return address.rpartition(":")[2] if address else None


@contextmanager
def unchanged_inputs(
    stage: str,
    *,
    data_path: str,
    resolved: Path,
    resolve: Callable[[], Any],
    variant: str = "",
    seed: int | None = None,
) -> Iterator[None]:
    """Raise an error if an input of a stage changes while the body runs.

    It does nothing if DVC does not run this stage, also if another stage of DVC or another tool runs its command.

    Args:
        stage: The stage's name in dvc.yaml, without variant and seed.
        data_path: The folder of the data set, which dvc.yaml names `${data.path}`.
        resolved: The file that `resolve` wrote for the stage.
        resolve: Returns what this process resolves for the stage.
        variant: The variant of a stage that has one.
        seed: Its seed.

    Raises:
        ArtifactError: If params.yaml no longer says what `resolve` recorded, or an input changed.
    """
    dependencies = _dependencies(stage)
    if (dvc_stage() or "").partition("@")[0] != stage or not dependencies:
        yield
        return
    if read_resolved(resolved) != resolve():
        raise ArtifactError(
            f"params.yaml, a spec file or starting weights changed after this `dvc repro` began ({resolved} differs); "
            "run `dvc repro` again"
        )
    substitutions = {"${data.path}": data_path, "${item.variant}": variant, "${item.seed}": str(seed)}
    paths = [_substitute(dependency, substitutions) for dependency in dependencies]
    before = _states(paths)
    yield
    after = _states(paths)
    changed = sorted(path for path in before.keys() | after.keys() if not _is_same(before.get(path), after.get(path)))
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ArtifactError(
            f"{changed[0]}{more} changed while `{stage}` ran, so DVC would record a result with inputs that it was not "
            "made from; undo the change or accept that the stage runs again, then run `dvc repro`"
        )


def code_digest(stage: str) -> str:
    """Return a digest of the code that a stage of dvc.yaml depends on; empty where dvc.yaml does not have the stage."""
    dependencies = _dependencies(stage)
    code = [path for path in dependencies if path.startswith(("yolov7", "pipeline"))]
    if not code:
        return installed_code_digest(stage) if dependencies else ""
    digest = hashlib.sha256()
    for path, (_, _, content) in sorted(_states(code).items()):
        digest.update(f"{path} {content}\n".encode())
    return digest.hexdigest()[:16]


def _dependencies(stage: str) -> list[str]:
    """Return the dependencies of a stage; an empty list if this folder's DVC pipelines do not have the stage."""
    for file in (Path("dvc.yaml"), Path(stage, "dvc.yaml")):
        content = read_yaml(file) if file.is_file() else {}
        stages = content.get("stages")
        declared = stages.get(stage) if isinstance(stages, dict) else None
        if isinstance(declared, dict) and isinstance(declared.get("deps"), list):
            return [path for path in declared["deps"] if isinstance(path, str)]
    return []


def _substitute(text: str, substitutions: dict[str, str]) -> str:
    for key, value in substitutions.items():
        text = text.replace(key, value)
    return text


def _states(paths: list[str]) -> dict[str, _State]:
    """Return size, time of change, and, if the file is small, digest of every file below the paths."""
    found: dict[str, _State] = {}
    for path in paths:
        for file in [Path(path)] if Path(path).is_file() else _files_below(path):
            try:
                state, content = file.stat(), ""
                if state.st_size <= _HASHED_BYTES and file.suffix in _HASHED_SUFFIXES:
                    content = hashlib.sha256(file.read_bytes()).hexdigest()
            except FileNotFoundError:  # deleted between the listing and now
                continue
            found[str(file)] = (state.st_size, state.st_mtime_ns, content)
    return found


def _files_below(folder: str) -> Iterator[Path]:
    seen: set[str] = set()
    for parent, names, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link leads back
            names.clear()
            continue
        seen.add(real)
        names[:] = [name for name in names if name != "__pycache__"]
        yield from (Path(parent) / name for name in files if Path(name).suffix not in _IGNORED_SUFFIXES)


def _is_same(before: _State | None, after: _State | None) -> bool:
    if before is None or after is None:
        return before == after
    return before == after or bool(before[2] and before[2] == after[2])
