"""Experiments that `use` derives from a file of experiments/: on the miniature of COCO, and with given weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from yolov7.errors import SettingError
from yolov7.recipes import merge
from yolov7.system.yaml_files import read_yaml

OVERRIDES = Path("experiments") / "overrides"
PUBLISHED = "published"
_SUFFIXES = (".safetensors", ".pt", ".pth", ".weights")
_OF_SIZE = ("image_size", "epochs", "batch_size", "loader_workers")
_MARK = "# content "  # in the last line of the comment, so that `use` knows that the file has no edits


def on_miniature(content: Mapping[str, Any], *, data: Path | None) -> dict[str, Any]:
    """Put an experiment on COCO onto the miniature, which is drawn if it is missing.

    Args:
        content: The parameters.
        data: The folder of the miniature; None for the one in overrides/miniature.yaml.

    Returns:
        The parameters with the settings of overrides/miniature.yaml.

    Raises:
        SettingError: If the experiment is not about COCO.
    """
    from yolov7.data.synthetic.coco_miniature import write_coco_miniature

    if content["data"].get("format") != "coco":
        raise SettingError("--miniature is for experiments on COCO; name one of table1 to table9")
    changed = merge(content, read_yaml(OVERRIDES / "miniature.yaml"))
    if data is not None:
        changed["data"]["path"] = str(data)
    folder = Path(changed["data"]["path"])
    if not (folder / "annotations").is_dir():
        write_coco_miniature(folder)
    size = changed["train"]["image_size"]
    changed["variants"] = {  # results of other systems are not about these images
        name: _small(variant, size) for name, variant in content["variants"].items() if not variant.get("external")
    }
    return changed


def with_weights(content: Mapping[str, Any], *, weights: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Replace the training of every variant of an experiment by a weight file.

    Args:
        content: The parameters.
        weights: `published`, or a folder with files named after the variants or their specs.

    Returns:
        The parameters, in which only the validation split is needed; and the names of the variants that have no
        weights and were left out.

    Raises:
        SettingError: If there are no weights for any variant.
    """
    found: dict[str, str] = {}
    published = read_yaml(OVERRIDES / "published.yaml") if weights == PUBLISHED else {}
    for name, variant in content["variants"].items():
        path = published.get(name) if weights == PUBLISHED else _find(Path(weights), name, variant)
        if path is not None:
            found[name] = str(path)
    if not found:
        known = ", ".join(f"{name}.safetensors" for name in content["variants"])
        raise SettingError(
            f"--weights {weights!r} has no weights for any variant; name the files after the variants or their specs, "
            f"such as {known}"
        )
    changed = merge(content, {"seeds": content.get("seeds", [0])[:1]})
    if content["data"].get("format") == "coco" and content["data"].get("val"):
        changed["data"] = content["data"] | {"train": content["data"]["val"]}  # nothing is trained
    changed["variants"] = {
        name: _given(variant, found[name]) if name in found else variant
        for name, variant in content["variants"].items()
        if name in found or variant.get("external")
    }
    return changed, tuple(name for name in content["variants"] if name not in changed["variants"])


def to_text(content: Mapping[str, Any], *, comment: str) -> str:
    """Return parameters as YAML with a comment.

    Args:
        content: The parameters.
        comment: One line that says where they are from.

    Returns:
        The text of a parameter file.
    """
    body = yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, width=160, allow_unicode=True)
    return f"# {comment}\n{_MARK}{_digest(content)}\n{body}"


def is_derived(text: str, content: object) -> bool:
    """Return whether a text is what `to_text` wrote, without edits.

    Args:
        text: The text of a parameter file.
        content: What YAML reads from it.
    """
    return f"\n{_MARK}{_digest(content)}\n" in text


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


def _small(variant: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return a variant without what decides its size, its length and its placement."""
    kept = {key: value for key, value in variant.items() if key != "ray"}
    if kept.get("train"):
        kept["train"] = {key: value for key, value in kept["train"].items() if key not in _OF_SIZE}
    if kept.get("weights"):
        kept["image_size"] = size
    return kept


def _given(variant: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return a variant with weights, which keeps the image size that its training states."""
    size = (variant.get("train") or {}).get("image_size", variant.get("image_size"))
    kept = {key: value for key, value in variant.items() if key not in ("train", "ray", "image_size")}
    return kept | {"weights": path} | ({} if size is None else {"image_size": size}) | {"train": None}


def _find(folder: Path, name: str, variant: Mapping[str, Any]) -> Path | None:
    """Return the weight file in a folder that has the name of the variant, or else the name of its unchanged spec."""
    names = [name]
    if variant.get("spec") and not variant.get("swap") and not variant.get("scale"):
        names.append(Path(variant["spec"]).stem)
    candidates = (folder / f"{stem}{suffix}" for stem in names for suffix in _SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)
