"""The command `use`: list the parameter files of experiments/, and copy one to params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.commands.derived_experiments import is_derived, on_miniature, to_text, with_weights
from pipeline.experiment import parse_experiment
from pipeline.params import PARAMS_FILE
from yolov7.errors import ArtifactError, DataError, SettingError, suggest
from yolov7.system.yaml_files import read_yaml

FOLDER = Path("experiments")
_PLACEHOLDER = "path: DATA"


def list_experiments() -> list[str]:
    """Return one line per experiment: its name and the first comment of its file.

    Returns:
        The lines in alphabetical order.

    Raises:
        SettingError: The working directory has no experiments.
    """
    return [f"{name:<16}{_title(path)}" for name, path in _experiments().items()]


def use_experiment(
    name: str,
    *,
    data: Path | None = None,
    force: bool = False,
    miniature: bool = False,
    weights: str | None = None,
    target: Path = Path(PARAMS_FILE),
) -> str:
    """Copy experiments/NAME.yaml to params.yaml, and fill in the folder of the data set.

    Args:
        name: The file's name without its suffix.
        data: The folder of the data set, for experiments that need one.
        force: Overwrite params.yaml even if no experiment has the same content.
        miniature: Put an experiment on COCO onto the miniature, with settings that run within minutes.
        weights: Give the variants weights instead of trainings: `published`, or a folder.
        target: The file to write.

    Returns:
        A message with the next step.

    Raises:
        SettingError: There is no such experiment, the folder of the data set is missing, there are no weights, the
            experiment is invalid, or params.yaml has edits that are not saved in an experiment.
    """
    source = _find(name)
    text, notes = _read(source), [""]
    if not miniature:
        text = _fill_data(text, data=data, name=name)
    if miniature or weights is not None:
        text, notes = _derive(text, source, data=data, miniature=miniature, weights=weights)
    if not force and target.is_file() and not _is_saved(target):
        raise SettingError(
            f"{target} has edits that are not saved in {FOLDER}/; save them with `cp {target} {FOLDER}/NAME.yaml`, or "
            "pass --force to discard them"
        )
    temporary = target.with_name(f".{target.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        parse_experiment(read_yaml(temporary), source=str(source))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return f"{target} is now a copy of {source}{''.join(notes)}; next: dvc repro"


def _derive(
    text: str, source: Path, *, data: Path | None, miniature: bool, weights: str | None
) -> tuple[str, list[str]]:
    """Return the text of an experiment on the miniature or with weights, and what was changed."""
    content: dict[str, Any] = yaml.safe_load(text)
    options, notes = [], []
    if weights is not None:
        content, left_out = with_weights(content, weights=weights)
        options.append(f" --weights {weights}")
        notes.append(f" with weights for {', '.join(content['variants'])}")
        if left_out:
            notes.append(f" and without {', '.join(left_out)}, which have none")
    if miniature:
        content = on_miniature(content, data=data)
        options.append(" --miniature")
        notes.append(f" on the miniature of COCO in {content['data']['path']}")
    comment = f"{_title(source)} Made by `yolov7 use {source.stem}{''.join(options)}`."
    return to_text(content, comment=comment), notes


def _experiments() -> dict[str, Path]:
    """Return the files of experiments/ by name."""
    found = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    if not found:
        raise SettingError(
            f"there is no {FOLDER}/*.yaml in {Path.cwd()}; run this in the top folder of a clone of the project, "
            "or in a folder that `yolov7 init` made"
        )
    return found


def _find(name: str) -> Path:
    found = _experiments()
    if name not in found:
        hint = suggest(name.removesuffix(".yaml"), found) or f"; choose one of: {', '.join(found)}"
        raise SettingError(f"there is no experiment {name!r} in {FOLDER}/{hint}")
    return found[name]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None


def _fill_data(text: str, *, data: Path | None, name: str) -> str:
    """Replace the placeholder of the data set's folder, and keep all comments."""
    if _PLACEHOLDER not in text:
        return text
    if data is None:
        raise SettingError(
            f"experiment {name!r} needs a data set: run `yolov7 use {name} --data FOLDER`, or set YOLOV7_DATA"
        )
    folder = data.expanduser()
    if not folder.is_dir():
        raise SettingError(f"the data folder {str(data)!r} is not a folder; check --data or YOLOV7_DATA")
    return text.replace(_PLACEHOLDER, f"path: {_quoted(folder)}", 1)


def _quoted(folder: Path) -> str:
    """Return a path as a YAML string on one line; quotes keep `2017`, `no` and `a: #b` text."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise DataError(f"the name of the data folder {str(folder)!r} is not UTF-8; rename the folder") from None
    return yaml.safe_dump(str(folder), default_style='"', allow_unicode=True, width=float("inf")).strip()


def _is_saved(target: Path) -> bool:
    """Return whether an experiment has the same parameters, apart from the folder of the data set."""
    current = _content(target)
    if is_derived(target.read_bytes().decode(errors="replace"), current):
        return True
    same = _without_folder(current)
    return not current or any(_without_folder(_content(path)) == same for path in FOLDER.glob("*.yaml"))


def _without_folder(content: object) -> object:
    if isinstance(content, dict) and isinstance(content.get("data"), dict):
        return content | {"data": {key: value for key, value in content["data"].items() if key != "path"}}
    return content


def _content(path: Path) -> object:
    try:
        content = read_yaml(path)
    except ValueError:
        return path.read_bytes()
    return content


def _title(path: Path) -> str:
    first = path.read_bytes().partition(b"\n")[0].decode(errors="replace")
    return first.removeprefix("#").strip() if first.startswith("#") else ""
