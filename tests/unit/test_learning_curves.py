"""The picture of the learning curves shows the figures in accuracy.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.doc_scripts import FOLDER, import_script

script = import_script(FOLDER / "learning_curves.py")
PAGE = (FOLDER / "accuracy.md").read_text()


def test_the_picture_has_the_figures_of_the_page(tmp_path: Path) -> None:
    """After an edit of the table, run `python docs/design/learning_curves.py`."""
    curves = script.read_curves(PAGE)
    assert {curve.data for curve in curves} == script.ALL.keys()
    assert script.describe(curves) in script.PICTURE.read_text()
    script.draw(curves, tmp_path / "again.svg")
    assert script.describe(curves) in (tmp_path / "again.svg").read_text()


def test_a_cell_that_is_no_figure_is_an_error() -> None:
    first = f"{script.read_curves(PAGE)[0].means[0]:.3f} ± "
    for page in (PAGE.replace(first, "not measured "), PAGE.replace("| Data | Training |", "| Images |")):
        with pytest.raises(ValueError, match=r"no table of learning curves|could not convert"):
            script.read_curves(page)
