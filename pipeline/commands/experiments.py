"""Complete parameter files under experiments/, and putting one in place as params.yaml."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline.experiment import load_experiment
from pipeline.params import PARAMS_FILE
from yolov7.errors import suggest
from yolov7.system.yaml_files import read_yaml

FOLDER = Path("experiments")


def list_experiments() -> list[str]:
    """`name  first comment line`, one a file."""
    return [f"{path.stem:<16}{_title(path)}" for path in _files()]


def use_experiment(
    name: str, *, data: Path | None = None, force: bool = False, target: Path = Path(PARAMS_FILE)
) -> str:
    """Copies experiments/NAME.yaml to params.yaml, with the folder of the data filled in.

    ValueError where params.yaml holds edits that no experiment holds, unless forced.
    """
    text = _fill_data(_read(name), data=data, name=name)
    if not force and target.is_file() and not _is_saved(target):
        raise ValueError(
            f"{target} has edits that are in no file of {FOLDER}/; save them (cp {target} {FOLDER}/NAME.yaml) "
            "or pass --force to lose them"
        )
    temporary = target.with_name(f".{target.name}")
    temporary.write_text(text, encoding="utf-8")
    try:
        load_experiment(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return f"{target} is now {FOLDER / name}.yaml; next: dvc repro"


def _files() -> list[Path]:
    return sorted(FOLDER.glob("*.yaml"))


def _read(name: str) -> str:
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        names = [file.stem for file in _files()]
        hint = suggest(name, names) or f"; there are: {', '.join(names) or 'none here'}"
        raise ValueError(f"no experiment {name!r} in {FOLDER}/{hint}")
    return path.read_text(encoding="utf-8")


def _fill_data(text: str, *, data: Path | None, name: str) -> str:
    """Puts the folder where the experiment says `path: DATA`, keeping its comments."""
    if "path: DATA" not in text:
        return text
    if data is None:
        raise ValueError(
            f"experiment {name!r} needs a folder of images: yolov7 use {name} --data FOLDER, or set YOLOV7_DATA"
        )
    if not data.is_dir():
        raise ValueError(f"the data folder {data} does not exist; check --data or YOLOV7_DATA")
    return text.replace("path: DATA", f"path: {yaml.safe_dump(str(data)).splitlines()[0]}")


def _is_saved(target: Path) -> bool:
    """Whether the parameters in place are those of some experiment; the data's folder may differ."""
    current = _content(target)
    return not current or any(_content(path) == current for path in _files())


def _content(path: Path) -> object:
    try:
        content = read_yaml(path)
    except ValueError:
        return path.read_bytes()
    if isinstance(content.get("data"), dict):
        return content | {"data": {key: value for key, value in content["data"].items() if key != "path"}}
    return content


def _title(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
