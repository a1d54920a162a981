"""The code that stages depend on, in a project outside of the repository.

In a clone, dvc.yaml lists the code of each stage as files, so that DVC notices edits. Outside, the code is an installed
package: `resolve` writes a digest of the files of each stage, and the stage depends on this digest. An upgrade of the
package therefore reruns exactly the stages whose code changed. `project/stages.yaml` is a copy of the repository's
dvc.yaml.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts.files import resolved_path

_PROJECT = Path(__file__).with_name("project")
_INSTALLED = Path(__file__).parents[2]
_CODE = ("yolov7/", "pipeline/")
_IGNORED = {".pyc", ".so"}
_HEAD = """\
# The pipeline of yolov7-pipeline, for a project outside of its repository; written by `yolov7 init`.
#
# `resolve` always runs; it takes about a second. It turns params.yaml into one small file per stage, variant and seed,
# and computes a digest of each stage's installed code. The other stages depend on those files, so an edit or an upgrade
# reruns exactly the stages whose result it can change.
"""


def demo_text() -> str:
    """Return the parameter file of the demo as it is in the repository."""
    return (_PROJECT / "demo.yaml").read_text(encoding="utf-8")


def project_pipeline() -> str:
    """Return the dvc.yaml of a project outside of the repository: digests take the place of code."""
    stages = _stages()
    for name, stage in stages.items():
        if any(_is_code(path) for path in stage.get("deps", ())):
            kept = [path for path in stage["deps"] if not _is_code(path)]
            stage["deps"] = [kept[0], _digest_path(name).as_posix(), *kept[1:]]
    return _HEAD + yaml.safe_dump({"stages": stages}, sort_keys=False, width=120)


def stage_code(folder: Path = Path()) -> dict[Path, dict[str, Any]]:
    """Return a digest of the installed code of each stage, by the file in which `resolve` writes it.

    Args:
        folder: The folder of the project.

    Returns:
        One entry for each stage; nothing in a clone, where DVC watches the files themselves.
    """
    pipeline = folder / "dvc.yaml"
    name = next(iter(_digests()))
    if not pipeline.is_file() or _digest_path(name).as_posix() not in pipeline.read_text(encoding="utf-8"):
        return {}
    return {_digest_path(stage): {"code": digest} for stage, digest in _digests().items()}


def installed_code_digest(stage: str) -> str:
    """Return the digest of the installed code of a stage; empty if there is no such stage.

    Args:
        stage: The name of the stage.
    """
    return _digests().get(stage, "")


@cache
def _digests() -> dict[str, str]:
    digests = {}
    for name, stage in _stages().items():
        paths = [_INSTALLED / path for path in stage.get("deps", ()) if _is_code(path)]
        if paths:
            digests[name] = _digest(paths)
    return digests


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        for file in sorted(one for one in files if one.suffix not in _IGNORED and "__pycache__" not in one.parts):
            digest.update(file.relative_to(_INSTALLED).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _stages() -> dict[str, dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = yaml.safe_load((_PROJECT / "stages.yaml").read_text(encoding="utf-8"))["stages"]
    return stages


def _is_code(path: str) -> bool:
    return path.startswith(_CODE)


def _digest_path(stage: str) -> Path:
    return resolved_path(f"code/{stage}")
