"""Reading and writing of specifications: packaged ones by name, others by path; bases, swaps and scales are resolved.

This module does not import torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from yolov7.errors import SettingError, SpecError, one_line, shown, suggest
from yolov7.spec.anchor_free import with_anchor_free_head, with_one_to_one_head
from yolov7.spec.auxiliary import with_auxiliary, without_auxiliary
from yolov7.spec.block_schema import Count, keys_of_block
from yolov7.spec.graph import IMAGE, ModelSpec, build_spec, describe
from yolov7.spec.plugin_rows import expand_plugin
from yolov7.spec.scaling import Rule, scale_spec
from yolov7.system.files import is_file
from yolov7.system.yaml_files import read_yaml

__all__ = ["ModelSpec", "list_specs", "load_spec", "resolve_spec", "spec_from_json", "spec_to_json", "spec_to_yaml"]

_MAX_BASES = 16  # bases of bases that are followed
_FOLDER = Path(str(resources.files("yolov7"))) / "spec" / "models"


class _Scale(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    rule: Rule
    depth: float | dict[str, float] = 1.0
    width: float = 1.0


class _SpecFile(BaseModel):
    """A specification as it is written: rows, or a base with changed rows, and a scale that applies to the result.

    `head: anchor_free` replaces the anchor-based head, and `head: one_to_one` does so by a head without suppression.
    `auxiliary` adds or removes the auxiliary head. Where a key is left out, the rows or the base decide.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    base: str | None = None
    activation: str | None = None
    norm_eps: float | None = None
    norm_momentum: float | None = None
    image_size: Count | None = None
    rows: dict[str, Any] | None = None
    swap: dict[str, dict[str, Any]] = {}
    scale: _Scale | None = None
    head: Literal["anchor_free", "one_to_one"] | None = None
    auxiliary: bool | None = None


def list_specs() -> tuple[str, ...]:
    """Return the names of the packaged specifications.

    Returns:
        The names in alphabetical order.
    """
    return tuple(sorted(path.stem for path in _FOLDER.rglob("*.yaml")))


def load_spec(name_or_path: str) -> ModelSpec:
    """Load a specification.

    Args:
        name_or_path: Name of a packaged specification, or path of a YAML file.

    Returns:
        The resolved specification.

    Raises:
        SpecError: If it does not exist or is not valid; the message is one line.
    """
    return _load(_find(name_or_path, beside=Path()), within=())


def resolve_spec(data: Mapping[str, Any], *, name: str) -> ModelSpec:
    """Resolve the values of a specification file.

    Args:
        data: The keys of a specification file.
        name: Name of the result.

    Returns:
        The resolved specification.

    Raises:
        SpecError: If the values are not valid; the message is one line.
    """
    return _resolve(data, name=name, beside=Path(), within=())


def spec_to_json(spec: ModelSpec) -> str:
    """Write a specification as JSON; `spec_from_json` is the inverse.

    Args:
        spec: The specification.

    Returns:
        The JSON text.
    """
    return spec.model_dump_json(by_alias=True)


def spec_to_yaml(spec: ModelSpec) -> str:
    """Write a specification in the form of a specification file, one line per row, without default values.

    Args:
        spec: The specification.

    Returns:
        The YAML text.
    """
    import yaml

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
    """Read a specification that `spec_to_json` wrote.

    Args:
        text: The JSON text.

    Returns:
        The specification.

    Raises:
        SpecError: If the text is not a valid specification; the message is one line.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"the spec is not valid JSON: {one_line(error)}") from None
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
        raise SpecError(one_line(f"spec file {path} does not exist or is not a regular file; check its name"))
    known = ", ".join(sorted(packaged))
    raise SpecError(f"no spec {shown(name)}{suggest(name, packaged)} (use one of {known}, or the path of a .yaml file)")


def _load(path: Path, *, within: tuple[Path, ...]) -> ModelSpec:
    if path.resolve() in within:
        raise SpecError(one_line(f"spec {path} is its own base (through {within[-1]}); name another base"))
    if len(within) == _MAX_BASES:
        raise SpecError(one_line(f"spec {path} is reached through {_MAX_BASES} bases; use fewer bases"))
    try:
        data = read_yaml(path)
    except SettingError as error:
        raise SpecError(one_line(f"spec file {error}")) from None
    return _resolve(data, name=path.stem, beside=path.parent, within=(*within, path.resolve()))


def _resolve(data: Mapping[str, Any], *, name: str, beside: Path, within: tuple[Path, ...]) -> ModelSpec:
    """Resolve the base, then the swaps, then the scale of the result, then the heads."""
    try:
        file = _SpecFile.model_validate(dict(data))
    except ValidationError as error:
        raise SpecError(f"{describe(error, keys=list(_SpecFile.model_fields))} (spec {name})") from None
    if (file.base is None) == (file.rows is None):
        raise SpecError(f"give either `rows` or `base`, and not both (spec {one_line(name, limit=80)})")
    plain: dict[str, Any] = {"name": name}
    if file.base is not None:
        plain = _load(_find(file.base, beside=beside), within=within).model_dump(by_alias=True) | plain
    else:
        plain["rows"] = file.rows
    plain |= file.model_dump(include={"activation", "norm_eps", "norm_momentum", "image_size"}, exclude_none=True)
    plain["rows"] = _swapped(plain["rows"], file.swap, name=name)
    spec = build_spec(plain)
    if file.scale is not None:
        spec = scale_spec(spec, **file.scale.model_dump())
    if file.head is not None:
        spec = with_one_to_one_head(spec) if file.head == "one_to_one" else with_anchor_free_head(spec)
    if file.auxiliary is None:
        return spec
    return with_auxiliary(spec) if file.auxiliary else without_auxiliary(spec)


def _swapped(rows: Mapping[str, Any], swap: Mapping[str, Mapping[str, Any]], *, name: str) -> dict[str, Any]:
    """Change rows key by key. If the block of a row changes, the keys that the new block also has are kept."""
    unknown = [row for row in swap if row not in rows]
    if unknown:
        raise SpecError(f"swap.{one_line(unknown[0], limit=80)}: no such row{suggest(unknown[0], rows)} (spec {name})")
    return {row: _merge(old, swap.get(row, {})) for row, old in rows.items()}


def _merge(old: Any, new: Mapping[str, Any]) -> Any:
    if not isinstance(old, Mapping) or not new:
        return old
    old, new = expand_plugin(old), expand_plugin(new)
    kept = old
    if new.get("block", old.get("block")) != old.get("block"):
        allowed = keys_of_block(str(new["block"]))
        kept = {key: value for key, value in old.items() if key in allowed}
    return {**kept, **new}
