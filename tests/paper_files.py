"""Copies of the paper's files that a test may change, with only a few models, so that counting is quick."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.report.paper import printed


def copy_paper(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, specs: tuple[str, ...] = ("yolov7", "yolov7-tiny")
) -> Path:
    """Copy the paper's files, keep only models of these specs, and make the package read the copy."""
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
    """Replace `old`, which must occur in the file, by `new`."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
