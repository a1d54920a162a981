"""Add the best model or settings of a search to params.yaml as a variant, without changing another line of the file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts.files import existing, stage_folder
from pipeline.params import PARAMS_FILE, load_params, parse_params
from pipeline.tuning.report.results import CHOSEN
from yolov7.errors import ArtifactError, SettingError
from yolov7.recipes import merge
from yolov7.system.files import write_whole

FOLDER = Path("tune")  # adopted specs, which belong in version control
_LONGEST_LINE = 110  # a longer variant is written in several lines
_VARIANTS = re.compile(r"^variants:[ \t]*(#.*)?$", re.MULTILINE)


def adopt(target: Path = Path(PARAMS_FILE)) -> str:
    """Add a variant with the best model or the best settings of the last search.

    A model is also copied to `tune/`. A variant with the settings that differ from the stated ones is added beside its
    base, so that the next `dvc repro` compares both, with all seeds and at full length.

    Args:
        target: The parameter file to change.

    Returns:
        A message that says what was done.

    Raises:
        ArtifactError: If there is no finished search, or if it chose nothing.
        SettingError: If the variant exists already, or if the variants of the file are not written as a block.
    """
    summary = json.loads(existing(stage_folder("tune") / "tune.json", made_by="tune").read_text(encoding="utf-8"))
    if summary["chosen"] is None:
        raise ArtifactError("the last search measured no AP and chose nothing; run `yolov7 tune` with a larger budget")
    if summary["chosen"] == summary.get("stated"):
        return f"{summary['reason']}; {target} is not changed"
    chosen = existing(stage_folder("tune") / CHOSEN, made_by="tune").read_bytes()
    name = f"tuned-{summary['chosen']}"
    spec = FOLDER / f"{name}.yaml"
    params = load_params(target)
    if name in params.variants:
        raise SettingError(f"variant {name!r} is already in {target}; run `dvc repro`")
    train = dict(summary["train"])
    if summary.get("space") == "train":
        variant = {**summary["declared"], "train": merge(train, summary["settings"])}
        changed = insert_variant(target.read_text(encoding="utf-8"), name, variant, comment=summary["reason"])
        message = f"added variant {name} with the best settings for {summary['base']} to {target}; next: `dvc repro`"
    else:
        if summary["image_size"] != train.get("image_size", params.train.get("image_size")):
            train["image_size"] = summary["image_size"]
        variant = {"spec": spec.as_posix()} | ({"train": train} if train else {})
        changed = insert_variant(target.read_text(encoding="utf-8"), name, variant)
        write_whole(spec, chosen)
        message = f"added variant {name} ({spec}) to {target}; next: `dvc repro`"
    parse_params(yaml.safe_load(changed), source=str(target))
    write_whole(target, changed.encode())
    return message


def insert_variant(text: str, name: str, variant: dict[str, Any], *, comment: str = "") -> str:
    """Add a variant after the other ones, with the same indentation.

    Args:
        text: The content of a parameter file.
        name: The name of the variant.
        variant: Its values.
        comment: A comment for a line of its own above the variant; empty for none.

    Returns:
        The content with the variant.

    Raises:
        SettingError: If the line `variants:` does not start a block.
    """
    flow = yaml.safe_dump(variant, default_flow_style=True, sort_keys=False, width=10_000).strip()
    match = _VARIANTS.search(text)
    if match is None:
        raise SettingError(
            f"`variants:` in {PARAMS_FILE} must be a line of its own with one variant per line below it; otherwise "
            f"add this variant by hand: {name}: {flow}"
        )
    lines = text[match.end() + 1 :].split("\n")
    last, indent = 0, "  "
    for i, line in enumerate(lines):
        if line and not line[0].isspace() and not line.startswith("#"):
            break
        if line.strip() and not line.strip().startswith("#"):
            indent = indent if last else line[: len(line) - len(line.lstrip())]
            last = i + 1
    added = [f"{name}: {flow}"]
    if len(added[0]) > _LONGEST_LINE:
        block = yaml.safe_dump(variant, default_flow_style=None, sort_keys=False, width=_LONGEST_LINE)
        added = [f"{name}:", *(f"{indent}{line}" for line in block.splitlines())]
    if comment:
        added.insert(0, f"# {comment}")
    lines[last:last] = [indent + line for line in added]
    return text[: match.end() + 1] + "\n".join(lines)
