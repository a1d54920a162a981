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
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import RUNS, resolved_path, stage_folder, whole_folder, write_json
from pipeline.artifacts.stage_code import stage_code
from pipeline.data_settings import DataSettings
from pipeline.experiment import Experiment, ResolvedVariant
from pipeline.external import ExternalVariant, external_inputs
from yolov7 import recipes
from yolov7.errors import DataError, SettingError
from yolov7.settings import COCO_ENGINE, COCO_NMS, NmsSettings
from yolov7.spec.spec_files import spec_to_json
from yolov7.system.files import is_file, sha256_of, write_whole
from yolov7.training.job import UNHASHED
from yolov7.weights.description import READERS

RECIPE_SMALL = Path(recipes.__file__).parent / "training" / "data_recipe.py"
_LAST = RUNS / ".resolved.json"  # outside DVC's outputs, which DVC deletes before a stage runs
_HASHED_BYTES = 64 << 20  # larger files in symlinked folders count by size and time of change

_HASHED_SUFFIXES = {".json", ".xml", ".txt", ".yaml"}

Inputs = Mapping[Path, dict[str, Any]]


def resolve(experiment: Experiment) -> list[str]:
    """Write artifacts/resolve, and describe what changed since the last time.

    Args:
        experiment: The resolved content of params.yaml.

    Returns:
        One line per changed value, such as `train/nano/0: settings.epochs was 9, is 12`.

    Raises:
        SettingError: If DVC could not find the data; it would report it without the name of the setting.
    """
    if Path("dvc.yaml").is_file() and not Path(experiment.data.path).exists():
        raise SettingError(
            f"data.path={experiment.data.path!r} does not exist; set it to the folder of the data, or run "
            "`yolov7 use NAME --data FOLDER`"
        )
    inputs = {**stage_inputs(experiment), **stage_code()}
    final = stage_folder("resolve")
    with whole_folder(final) as folder:
        for path, content in inputs.items():
            write_json(folder / path.relative_to(final), content)
    named = {str(path.relative_to(final).with_suffix("")): content for path, content in inputs.items()}
    before = _read_last()
    write_whole(_LAST, json.dumps(named).encode())
    return [line for name in named if name in before for line in _changes(name, before[name], named[name])]


def training_inputs(variant: ResolvedVariant, *, seed: int) -> dict[str, Any]:
    """Return what decides the result of the stage `train`, apart from the data and the code, as plain values.

    Args:
        variant: The resolved variant.
        seed: The seed of the training.

    Returns:
        The settings of a training; or, if weights are given, their content and the code that reads them. That code is
        no dependency of the stage in dvc.yaml, because an edit of it must not repeat trainings.
    """
    own_code = {"own_code": dict(variant.own_code)} if variant.own_code else {}
    if variant.given is not None:
        return own_code | {
            "spec": variant.spec.model_dump(mode="json", by_alias=True),
            "image_size": variant.train.image_size,
            "weights": variant.weights_hash,
            "reader": _hash_code(READERS),
            "seed": seed,
        }
    teacher = {"teacher": variant.teacher_hash} if variant.teacher_hash else {}
    small: dict[str, Any] = {}
    if variant.train.recipe == "small":  # the settings that it stands for follow from the data, after this stage
        stated = variant.train.model_dump(mode="json", exclude_unset=True, exclude=UNHASHED)
        small = {"recipe_small": stated, "recipe_small_code": sha256_of(RECIPE_SMALL)}
    return own_code | {
        "spec": variant.spec.model_dump(mode="json", by_alias=True),
        "settings": variant.train.model_dump(mode="json", exclude=UNHASHED),
        **small,
        "weights": variant.weights_hash,
        **teacher,
        "seed": seed,
        "validation": {"nms": COCO_NMS.model_dump(mode="json"), "engine": COCO_ENGINE},
    }


def stage_inputs(experiment: Experiment, *, only: Path | None = None) -> Inputs:
    """Return what decides each stage's result, apart from artifacts and code.

    Args:
        experiment: The resolved content of params.yaml.
        only: The file of a single stage, variant and seed; None for all. The data are read for `prepare` only.

    Returns:
        The content of each file below artifacts/resolve, as plain JSON values, by its path.
    """
    models = {name: _describe_model(variant) for name, variant in experiment.variants.items()}
    models |= {name: _describe_external(variant) for name, variant in experiment.externals.items()}
    inputs: dict[Path, dict[str, Any]] = {
        resolved_path("reparam"): experiment.reparam.model_dump(mode="json"),
        resolved_path("evaluate"): experiment.evaluate.model_dump(mode="json"),
        resolved_path("benchmark"): experiment.benchmark.model_dump(mode="json")
        | {"variants": list(experiment.variants), "seed": experiment.seeds[0]}
        | {"nms": NmsSettings().model_dump(mode="json")},
        resolved_path("tables"): {"seeds": experiment.seeds, "variants": models},
        resolved_path("tune"): _tune_inputs(experiment),
    }
    for variant in experiment.variants.values():
        for seed in experiment.seeds:
            inputs[resolved_path("train", variant.name, seed)] = training_inputs(variant, seed=seed)
    for external in experiment.externals.values():
        for seed in experiment.seeds:
            inputs[resolved_path("train", external.name, seed)] = external_inputs(external)
    if only in (None, resolved_path("prepare")):
        inputs[resolved_path("prepare")] = _data_inputs(experiment.data)
    if only is not None:
        inputs = {only: inputs[only]}
    return {path: json.loads(json.dumps(content)) for path, content in inputs.items()}


def _data_inputs(data: DataSettings) -> dict[str, Any]:
    content = data.model_dump(mode="json")
    if data.format == "synthetic":
        content.pop("path")  # the code that draws the images is a dependency of its own
    else:
        content["symlinked"] = _hash_symlinked_folders(Path(data.path))
        content["outside"] = _hash_outside(data)
    return content


def _hash_outside(data: DataSettings) -> dict[str, str]:
    """Return a digest of each file and folder that is read and is not in `data.path`, so that DVC does not see it."""
    from yolov7.data.find_data import find_data, folders_of_data

    folder = Path(os.path.normpath(Path(data.path).absolute()))
    outside: dict[str, str] = {}
    for source in data.all_sources:
        path = Path(os.path.normpath(folder / source.path))
        try:
            places = [path, *folders_of_data(find_data(path, format=source.format))]
        except DataError:  # `prepare` reports it
            places = [path]
        for place in places:
            if place.exists() and not any(place.is_relative_to(seen) for seen in (folder, *map(Path, outside))):
                outside[str(place)] = _hash_folder(place) if place.is_dir() else sha256_of(place)
    return outside


def _describe_model(variant: ResolvedVariant) -> dict[str, Any]:
    spec = hashlib.sha256(spec_to_json(variant.spec).encode()).hexdigest()[:16]
    described = {"spec": spec, "image_size": variant.train.image_size, "overrides": bool(variant.overrides)}
    return described | ({} if variant.given is None else {"weights": variant.given.name})


def _describe_external(variant: ExternalVariant) -> dict[str, Any]:
    return external_inputs(variant) | {"file": variant.source}


def _tune_inputs(experiment: Experiment) -> dict[str, Any]:
    settings = experiment.tune.model_dump(mode="json")
    name = experiment.tune.base or next(iter(experiment.variants))
    try:
        return {"settings": settings, "base": training_inputs(experiment.base(name), seed=experiment.tune.seed)}
    except SettingError as error:  # `tune` itself reports it; no other stage needs a base
        return {"settings": settings, "base": str(error)}


def _hash_symlinked_folders(root: Path) -> dict[str, str]:
    """Return a digest of the files in each symlinked folder of the data, of which DVC sees nothing."""
    links = [root] if root.is_symlink() else []
    for folder, names, _ in os.walk(root):
        links += [path for path in (Path(folder) / name for name in names) if path.is_symlink()]
    return {path.relative_to(root).as_posix(): _hash_folder(path) for path in sorted(links)}


def _hash_folder(folder: Path) -> str:
    """Return a digest of names and sizes, of the content of annotation files, and of other files' times of change."""
    digest, seen = hashlib.sha256(), {folder.resolve()}
    for parent, names, files in os.walk(folder, followlinks=True):
        new = {name: Path(parent, name).resolve() for name in sorted(names)}
        names[:] = [name for name, real in new.items() if real not in seen]  # a link may lead back to a folder above
        seen.update(new.values())
        digest.update(" ".join(new).encode(errors="surrogateescape"))
        for name in sorted(files):
            path = Path(parent) / name
            try:
                state = path.stat()
            except OSError:  # a link to a file that does not exist
                digest.update(f"{path.relative_to(folder).as_posix()} missing\n".encode(errors="surrogateescape"))
                continue
            digest.update(f"{path.relative_to(folder).as_posix()} {state.st_size}\n".encode(errors="surrogateescape"))
            if path.suffix in _HASHED_SUFFIXES and is_file(path) and state.st_size <= _HASHED_BYTES:
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
    """Yield one line for each value that differs, with its key."""
    if isinstance(before, dict) and isinstance(now, dict):
        for part in sorted(before.keys() | now.keys()):
            inner = f"{key}.{part}" if key else part
            yield from _changes(name, before.get(part), now.get(part), key=inner)
    elif before != now:
        yield f"{name}: {key} was {json.dumps(before)[:60]}, is {json.dumps(now)[:60]}"


@cache
def _hash_code(folder: Path) -> str:
    """Return a digest of the Python files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
