"""The stage `resolve`: one small JSON file per stage, variant and seed with everything that decides its result.

Later stages depend on these files instead of on params.yaml. DVC therefore reruns exactly what an edit affects: also
when a default in the code, a spec file, or the weights that a training starts from changes, and not when the edit
affects another stage or another variant only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import RUNS, resolved_path, stage_folder, whole_folder, write_json
from pipeline.experiment import Experiment, ResolvedVariant, training_inputs
from yolov7.errors import SettingError
from yolov7.spec.spec_files import spec_to_json
from yolov7.system.files import write_whole

_LAST = RUNS / ".resolved.json"  # outside DVC's outputs, which DVC deletes before a stage runs
_HASHED_BYTES = 64 << 20  # larger files in symlinked folders count by size and time of change

Inputs = Mapping[Path, dict[str, Any]]


def resolve(experiment: Experiment) -> list[str]:
    """Write artifacts/resolve, and describe what changed since the last time.

    Args:
        experiment: The resolved content of params.yaml.

    Returns:
        One line per changed value, such as `train/nano/0: settings.epochs was 9, is 12`.
    """
    inputs = stage_inputs(experiment)
    final = stage_folder("resolve")
    with whole_folder(final) as folder:
        for path, content in inputs.items():
            write_json(folder / path.relative_to(final), content)
    named = {str(path.relative_to(final).with_suffix("")): content for path, content in inputs.items()}
    before = _read_last()
    write_whole(_LAST, json.dumps(named).encode())
    return [line for name in named if name in before for line in _changes(name, before[name], named[name])]


def stage_inputs(experiment: Experiment) -> Inputs:
    """Return what decides each stage's result, apart from artifacts and code.

    Args:
        experiment: The resolved content of params.yaml.

    Returns:
        The content of each file below artifacts/resolve, as plain JSON values, by its path.
    """
    data = experiment.data.model_dump(mode="json")
    if experiment.data.format == "synthetic":
        data.pop("path")  # the code that draws the images is a dependency of its own
    else:
        data["symlinked"] = _hash_symlinked_folders(Path(experiment.data.path))
    models = {name: _describe_model(variant) for name, variant in experiment.variants.items()}
    inputs: dict[Path, dict[str, Any]] = {
        resolved_path("prepare"): data,
        resolved_path("reparam"): experiment.reparam.model_dump(mode="json"),
        resolved_path("evaluate"): experiment.evaluate.model_dump(mode="json"),
        resolved_path("benchmark"): experiment.benchmark.model_dump(mode="json")
        | {"variants": list(experiment.variants), "seed": experiment.seeds[0]},
        resolved_path("tables"): {"data": experiment.data.format, "seeds": experiment.seeds, "variants": models},
        resolved_path("tune"): _tune_inputs(experiment),
    }
    for variant in experiment.variants.values():
        for seed in experiment.seeds:
            inputs[resolved_path("train", variant.name, seed)] = training_inputs(variant, seed=seed)
    return {path: json.loads(json.dumps(content)) for path, content in inputs.items()}


def _describe_model(variant: ResolvedVariant) -> dict[str, Any]:
    spec = hashlib.sha256(spec_to_json(variant.spec).encode()).hexdigest()[:16]
    return {"spec": spec, "image_size": variant.train.image_size, "overrides": bool(variant.overrides)}


def _tune_inputs(experiment: Experiment) -> dict[str, Any]:
    settings = experiment.tune.model_dump(mode="json")
    name = experiment.tune.base or next(iter(experiment.variants))
    try:
        return {"settings": settings, "base": training_inputs(experiment.base(name), seed=experiment.tune.seed)}
    except SettingError as error:  # `tune` itself reports it; no other stage needs a base
        return {"settings": settings, "base": str(error)}


def _hash_symlinked_folders(root: Path) -> dict[str, str]:
    """Return a digest of the files in each symlinked folder of the data, whose edits DVC does not notice."""
    links = [root] if root.is_symlink() else []
    for folder, names, _ in os.walk(root):
        links += [path for path in (Path(folder) / name for name in names) if path.is_symlink()]
    return {path.relative_to(root).as_posix(): _hash_folder(path) for path in sorted(links)}


def _hash_folder(folder: Path) -> str:
    """Return a digest of names, sizes, the content of annotation files, and the times of change of other files."""
    digest = hashlib.sha256()
    for parent, names, files in os.walk(folder):
        names.sort()
        for name in sorted(files):
            path = Path(parent) / name
            state = path.stat()
            digest.update(f"{path.relative_to(folder).as_posix()} {state.st_size}\n".encode())
            if path.suffix in {".json", ".xml", ".txt", ".yaml"} and state.st_size <= _HASHED_BYTES:
                digest.update(path.read_bytes())
            else:
                digest.update(f"{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _read_last() -> dict[str, Any]:
    try:
        content = json.loads(_LAST.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _changes(name: str, before: Any, now: Any, *, key: str = "") -> Iterator[str]:
    """Yield one line per value that differs, with its key."""
    if isinstance(before, dict) and isinstance(now, dict):
        for part in before.keys() | now.keys():
            inner = f"{key}.{part}" if key else part
            yield from _changes(name, before.get(part), now.get(part), key=inner)
    elif before != now:
        yield f"{name}: {key} was {json.dumps(before)[:60]}, is {json.dumps(now)[:60]}"
