"""A copy of the paper's files that a test may change, with few models, so that little has to be counted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.report.paper import printed


def copy_paper(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, specs: tuple[str, ...] = ("yolov7", "yolov7-tiny")
) -> Path:
    """The folder of the copy, which the package reads from now on; rows of other specs have none there."""
    shutil.copytree(printed.FOLDER, folder, ignore=lambda _, names: [name for name in names if ".csv" not in name])
    monkeypatch.setattr(printed, "FOLDER", folder)
    models = (folder / "models.csv").read_text(encoding="utf-8").splitlines()
    kept = [line for line in models[1:] if any(f",{spec}," in line for spec in specs)]
    (folder / "models.csv").write_text("\n".join([models[0], *kept]), encoding="utf-8")
    names = [line.split(",")[0] for line in kept]
    errata = (folder / "errata.csv").read_text(encoding="utf-8").splitlines()
    listed = [line for line in errata[1:] if line.split(",")[1] in names]
    (folder / "errata.csv").write_text("\n".join([errata[0], *listed]), encoding="utf-8")
    return folder


def edit(path: Path, old: str, new: str) -> None:
    """Puts `new` in place of `old`, which must be there."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
