"""Making the chosen model of a search a variant of params.yaml, whose comments and form stay as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts.files import existing, stage_folder
from pipeline.params import PARAMS_FILE, load_params, parse_params
from pipeline.tuning.report.results import CHOSEN
from yolov7.system.files import write_whole

FOLDER = Path("tune")  # where adopted specs lie, which git keeps
_VARIANTS = re.compile(r"^variants:[ \t]*(#.*)?$", re.MULTILINE)


def adopt(target: Path = Path(PARAMS_FILE)) -> str:
    """Adds the chosen model, and says so in a line; ValueError where it is there already, or the file's form is odd."""
    summary = json.loads(existing(stage_folder("tune") / "tune.json", made_by="tune").read_text(encoding="utf-8"))
    text = existing(stage_folder("tune") / CHOSEN, made_by="tune").read_text(encoding="utf-8")
    name, spec = f"tuned-{summary['chosen']}", FOLDER / f"tuned-{summary['chosen']}.yaml"
    params = load_params(target)
    if name in params.variants:
        raise ValueError(f"variant {name!r} is in {target} already; next: dvc repro")
    write_whole(spec, text.encode())
    changed = insert_variant(
        target.read_text(encoding="utf-8"), name, _variant(spec, summary, default_size=params.train.get("image_size"))
    )
    parse_params(yaml.safe_load(changed), source=str(target))
    write_whole(target, changed.encode())
    return f"variant {name} ({spec}) is in {target} now; next: dvc repro"


def insert_variant(text: str, name: str, variant: dict[str, Any]) -> str:
    """The text of a parameter file with one more variant, behind the others, indented as they are."""
    match = _VARIANTS.search(text)
    if match is None:
        line = f"{name}: {_flow(variant)}"
        raise ValueError(f"`variants:` does not begin a block of its own in {PARAMS_FILE}; add this to it: {line}")
    lines = text[match.end() + 1 :].split("\n")
    last, indent = 0, "  "
    for i, line in enumerate(lines):
        if line and not line[0].isspace() and not line.startswith("#"):
            break
        if line.strip() and not line.strip().startswith("#"):
            indent = indent if last else line[: len(line) - len(line.lstrip())]
            last = i + 1
    lines.insert(last, f"{indent}{name}: {_flow(variant)}")
    return text[: match.end() + 1] + "\n".join(lines)


def _variant(spec: Path, summary: dict[str, Any], *, default_size: int | None) -> dict[str, Any]:
    """With the training's overrides of the base, and the image size where it is another."""
    train = dict(summary["train"])
    if summary["image_size"] != train.get("image_size", default_size):
        train["image_size"] = summary["image_size"]
    return {"spec": spec.as_posix()} | ({"train": train} if train else {})


def _flow(variant: dict[str, Any]) -> str:
    return yaml.safe_dump(variant, default_flow_style=True, sort_keys=False, width=10_000).strip()
