"""Reading and writing of specs: the packaged ones by name, others by path; bases, swaps and scales resolved.

Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from yolov7.errors import SpecError, one_line, shown, suggest
from yolov7.spec.auxiliary import with_auxiliary, without_auxiliary
from yolov7.spec.block_schema import keys_of_block
from yolov7.spec.graph import IMAGE, ModelSpec, build_spec, describe
from yolov7.spec.scaling import Rule, scale_spec
from yolov7.system.files import is_file
from yolov7.system.yaml_files import read_yaml

__all__ = ["ModelSpec", "list_specs", "load_spec", "resolve_spec", "spec_from_json", "spec_to_json", "spec_to_yaml"]

_FOLDER = Path(str(resources.files("yolov7"))) / "spec" / "models"


class _Scale(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    rule: Rule
    depth: float | dict[str, float] = 1.0
    width: float = 1.0


class _SpecFile(BaseModel):
    """A spec as it is written: rows, or a base with the rows that differ, and a scale over the result.

    `auxiliary`: with an auxiliary head or without; left out, as the rows or the base have it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    base: str | None = None
    activation: str | None = None
    image_size: int | None = None
    rows: dict[str, Any] | None = None
    swap: dict[str, dict[str, Any]] = {}
    scale: _Scale | None = None
    auxiliary: bool | None = None


def list_specs() -> tuple[str, ...]:
    """The names of the packaged specs."""
    return tuple(sorted(path.stem for path in _FOLDER.rglob("*.yaml")))


def load_spec(name_or_path: str) -> ModelSpec:
    """The packaged spec of this name, or that of a YAML file; SpecError for every fault, in one line."""
    return _load(_find(name_or_path, beside=Path()), within=())


def resolve_spec(data: Mapping[str, Any], *, name: str) -> ModelSpec:
    """The spec that these values, of a spec file's form, describe."""
    return _resolve(data, name=name, beside=Path(), within=())


def spec_to_json(spec: ModelSpec) -> str:
    """The resolved spec as JSON; `spec_from_json` is its inverse."""
    return spec.model_dump_json(by_alias=True)


def spec_to_yaml(spec: ModelSpec) -> str:
    """The resolved spec in the form of a spec file, a line a row, without what goes without saying."""
    plain = spec.model_dump(by_alias=True, exclude_defaults=True, mode="json")
    lines = [f"{key}: {value}" for key, value in plain.items() if key not in ("name", "rows")]
    above = IMAGE
    for name, row in plain["rows"].items():
        keys = {key: value for key, value in row.items() if key != "from" or value != [above] or above == IMAGE}
        text = yaml.safe_dump({"block": row["block"]} | keys, default_flow_style=True, sort_keys=False, width=math.inf)
        lines += ["rows:"] * (above == IMAGE) + [f"  {name}: {text.strip()}"]
        above = name
    return "\n".join(lines) + "\n"


def spec_from_json(text: str) -> ModelSpec:
    """The spec that `spec_to_json` wrote; SpecError where it is not one."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"the spec is not JSON: {one_line(error)}") from None
    if not isinstance(data, dict):
        raise SpecError("the spec is not a JSON object")
    return build_spec(data)


def _find(name: str, *, beside: Path) -> Path:
    packaged = {path.stem: path for path in _FOLDER.rglob("*.yaml")}
    if name in packaged:
        return packaged[name]
    path = beside / name
    if path.suffix in {".yaml", ".yml"}:
        if is_file(path):
            return path
        raise SpecError(one_line(f"spec file {path} does not exist"))
    known = ", ".join(sorted(packaged))
    raise SpecError(f"no spec {shown(name)}{suggest(name, packaged)} (there are {known}; or give a .yaml file)")


def _load(path: Path, *, within: tuple[Path, ...]) -> ModelSpec:
    if path.resolve() in within:
        raise SpecError(f"spec {path} is its own base, by way of {within[-1]}")
    try:
        data = read_yaml(path)
    except ValueError as error:
        raise SpecError(one_line(f"spec file {error}")) from None
    return _resolve(data, name=path.stem, beside=path.parent, within=(*within, path.resolve()))


def _resolve(data: Mapping[str, Any], *, name: str, beside: Path, within: tuple[Path, ...]) -> ModelSpec:
    """Base first, then the swaps, then the scale over all of it, then the auxiliary head."""
    try:
        file = _SpecFile.model_validate(dict(data))
    except ValidationError as error:
        raise SpecError(f"{describe(error, keys=list(_SpecFile.model_fields))} (spec {name})") from None
    if (file.base is None) == (file.rows is None):
        raise SpecError(f"give either `rows` or a `base` (spec {name})")
    plain: dict[str, Any] = {"name": name}
    if file.base is not None:
        plain = _load(_find(file.base, beside=beside), within=within).model_dump(by_alias=True) | plain
    else:
        plain["rows"] = file.rows
    given = {"activation": file.activation, "image_size": file.image_size}
    plain |= {key: value for key, value in given.items() if value is not None}
    plain["rows"] = _swapped(plain["rows"], file.swap, name=name)
    spec = build_spec(plain)
    if file.scale is not None:
        spec = scale_spec(spec, **file.scale.model_dump())
    if file.auxiliary is None:
        return spec
    return with_auxiliary(spec) if file.auxiliary else without_auxiliary(spec)


def _swapped(rows: Mapping[str, Any], swap: Mapping[str, Mapping[str, Any]], *, name: str) -> dict[str, Any]:
    """Rows with the named ones changed key by key; where a block changes, keys that the new one shares are kept."""
    unknown = [row for row in swap if row not in rows]
    if unknown:
        raise SpecError(f"swap.{one_line(unknown[0], limit=80)}: no such row{suggest(unknown[0], rows)} (spec {name})")
    return {row: _merge(old, swap.get(row, {})) for row, old in rows.items()}


def _merge(old: Any, new: Mapping[str, Any]) -> Any:
    if not isinstance(old, Mapping) or not new:
        return old
    kept = old
    if new.get("block", old.get("block")) != old.get("block"):
        allowed = keys_of_block(str(new["block"]))
        kept = {key: value for key, value in old.items() if key in allowed}
    return {**kept, **new}
