"""The paper's printed figures and our counts: the check, the errata, and the improvement rows."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.report.paper.check import cited_models, compare_counts, listed_errata, rows_line
from pipeline.report.paper.counting import conventions, count_as_paper, paper_models, rescaled
from pipeline.report.paper.errata import errata
from pipeline.report.paper.improvement import improvements, rounding_range
from pipeline.report.paper.printed import TITLES, printed_changes, printed_table, round_as, value_of
from pipeline.report.paper.zoo import count_zoo
from tests.paper_files import copy_paper, edit
from yolov7.errors import SpecError

FAMILIES = ("YOLOv7", "YOLOR", "YOLOv4", "YOLOv5", "YOLOX", "PPYOLOE")


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the paper's files that a test may change."""
    return copy_paper(tmp_path / "paper", monkeypatch)


def rows() -> list[tuple[str, int | None]]:
    return [(row.model, row.size) for name in TITLES for row in printed_table(name).rows]


def test_every_row_of_the_families_has_a_spec() -> None:
    counted = {key for key in rows() if key[0].startswith(FAMILIES) and "base" not in key[0]}
    assert counted <= set(paper_models())


def test_every_mapped_model_is_a_row_and_its_spec_can_be_built() -> None:
    assert set(paper_models()) <= set(rows())
    assert all(model.build_spec().rows for model in paper_models().values())
    assert {model.counting for model in paper_models().values()} == set(conventions())


def test_rows_of_two_tables_have_the_same_figures() -> None:
    """Tables 2 and 9 have most rows in common, so that a mistake in copying them would show."""
    table2, table9 = (
        {(row.model, row.size): row.figures for row in printed_table(name).rows} for name in ("table2", "table9")
    )
    assert set(table2) < set(table9)
    for key, figures in table2.items():
        shared = {name: text for name, text in figures.items() if name in table9[key]}
        assert shared.items() <= table9[key].items()


def test_rounding_keeps_the_printed_decimals() -> None:
    assert (round_as("52.30", 52.2951), round_as("36.9", 36.905), round_as("79.8G", 79.82)) == ("52.30", "36.9", "79.8")
    assert value_of("79.8G") == 79.8


def test_the_computed_figures_equal_the_printed_digits(paper: Path) -> None:
    comparisons = {(one.model, one.size): one for one in compare_counts()}
    assert {figure.verdict for one in comparisons.values() for figure in one.figures} == {"equal"}
    assert comparisons["YOLOv7", 640].tables == ("table1", "table2", "table9")
    assert [figure.printed for figure in comparisons["YOLOv7-tiny", 320].figures] == ["6.2", "3.5"]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("table2", "YOLOv7,,36.9,104.7", "YOLOv7,,36.9,104.8"),
        ("table1", "YOLOv7,,36.9,104.7", "YOLOv7,,37.0,104.7"),
        ("table1", "YOLOv7-tiny,,6.2,3.5", "YOLOv7-tiny,,6.2,3.4"),
        ("models", "yolov7,,,deployed", "yolov7,,,unfolded"),
        ("models", "yolov7,,,deployed", "yolov7,width,1.01,deployed"),
    ],
)
def test_a_figure_that_differs_fails_the_check(file: str, old: str, new: str, paper: Path) -> None:
    edit(paper / f"{file}.csv", old, new)
    done = CliRunner().invoke(app, ["tables", "--check"])
    assert done.exit_code == 1
    assert "DIFFERS" in done.stdout


def test_the_check_needs_neither_artifacts_nor_parameters(paper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(paper)
    done = CliRunner().invoke(app, ["tables", "--check"])
    assert done.exit_code == 0, done.output
    assert "6 figures of #Param and FLOPs: 6 equal" in done.stdout
    lines = json.loads(CliRunner().invoke(app, ["tables", "--check", "--json"]).stdout)
    assert [figure["verdict"] for line in lines for figure in line["figures"]] == ["equal"] * 6


def test_an_erratum_excuses_its_own_figure_and_no_other(paper: Path) -> None:
    edit(paper / "table2.csv", "YOLOv7,,36.9,104.7", "YOLOv7,,36.9,104.9")
    errata_file = paper / "errata.csv"
    for line, excused in (
        ("table2,YOLOv7,gflops,104.9,104.7", True),
        ("table2,YOLOv7,gflops,104.9,104.6", False),  # something else is counted
        ("table2,YOLOv7,gflops,104.8,104.7", False),  # something else is printed
        ("table9,YOLOv7,gflops,104.9,104.7", False),  # another table
    ):
        errata_file.write_text(f"table,model,quantity,printed,found\n{line}\n", encoding="utf-8")
        assert any(one.differs for one in compare_counts()) != excused, line


def test_a_missing_spec_is_an_error(paper: Path) -> None:
    edit(paper / "models.csv", "YOLOv7,640,yolov7,", "YOLOv7,640,yolov7-lost,")
    with pytest.raises(SpecError, match="yolov7-lost"):
        compare_counts()


def test_only_models_of_table_9_have_no_spec() -> None:
    cited = set(cited_models())
    assert {"DETR DC5-R101 [5]", "EfficientDet-D7x [74]"} <= cited
    assert not cited & {row.model for name in ("table1", "table2") for row in printed_table(name).rows}
    assert "Table 1 16 and 0, Table 2 31 and 0, Table 3 4 and 0, Table 9 31 and 16." in rows_line()
    fillable = {row.model: row.variant for row in printed_table("table9").rows if row.is_external}
    assert set(fillable) == cited
    assert len(set(fillable.values())) == len([row for row in printed_table("table9").rows if row.is_external]) - 1


def test_1280_px_figures_are_rounded_before_they_are_multiplied() -> None:
    assert rescaled(90.039, 1280) == pytest.approx(360.0)
    assert rescaled(104.6847, 640) == 104.6847


@pytest.mark.parametrize(
    ("spec", "counting", "params", "gflops"),
    [
        ("yolov5n", "deployed", 1.867405, 4.4961),
        ("yolov5l6", "mixed x4", 76.770172, 4 * 111.4),
        ("yolox-s", "built", 8.968255, 26.8064),
        ("yolov4", "built", 64.363101, 142.8017),
        ("yolov4-tiny", "convolutions", 6.056606, 6.9079),
        ("ppyoloe-s", "merged", 7.926277, 17.3565),
    ],
)
def test_each_convention_gives_the_figures_of_the_counter_that_the_authors_used(
    spec: str, counting: str, params: float, gflops: float
) -> None:
    """The figures are those of thop 0.0.31, darknet and PaddleSlim on the original models."""
    size, model = next((size, model) for (_, size), model in paper_models().items() if model.spec == spec)
    counted = count_as_paper(model, size)
    assert model.counting == counting
    assert (counted.params_m, counted.gflops) == (pytest.approx(params, abs=5e-7), pytest.approx(gflops, abs=5e-5))


def test_a_figure_of_an_unpublished_model_is_listed_with_its_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_paper(tmp_path / "paper", monkeypatch, specs=("yolov4-tiny-3l",))
    (comparison,) = compare_counts()
    assert [(one.printed, one.verdict) for one in comparison.figures] == [("8.7", "erratum"), ("5.2", "erratum")]
    listed = [one for one in errata() if one.kind == "graph"]
    assert [(one.printed, one.found) for one in listed] == [("8.7", "6.3"), ("5.2", "4.9")]
    assert "exceed these by 2.37 M and 0.29 G" in listed[1].arithmetic[-1]
    assert "more parameters cost at least 0.47 G" in listed[1].arithmetic[-1]


def test_every_listed_misprint_is_in_its_table() -> None:
    for (table, model, quantity), (text, found) in listed_errata().items():
        row = next(row for row in printed_table(table).rows if row.model == model)
        assert row.figures[quantity] == text != found


def test_the_improvement_rows_divide_by_the_new_figure() -> None:
    first = improvements({})[0]
    params = first.changes[0]
    assert (params.quantity, params.printed) == ("params_m", "-43%")
    assert (params.of_new, params.of_old) == pytest.approx((-43.36, -30.25), abs=0.01)
    for row in improvements({}):
        for change in row.changes:
            if change.of_new is None:
                printed = 0.0 if change.printed == "=" else float(change.printed)
                assert change.difference == pytest.approx(printed), (row.title, change.quantity)


def test_every_printed_percentage_is_possible_for_the_printed_figures() -> None:
    figures = {(row.model, row.size): row.figures for row in printed_table("table1").rows}
    for row in printed_changes():
        for quantity in ("params_m", "gflops"):
            text = row.figures[quantity]
            printed = 0.0 if text == "=" else float(text.rstrip("%"))
            low, high = rounding_range(figures[row.new][quantity], figures[row.old][quantity])
            assert low - 0.5 <= printed <= high + 0.5, (row, quantity)


def test_our_own_improvement_needs_both_models() -> None:
    keys = [("YOLOv7", 640), ("YOLOv4-CSP [81]", 640)]
    both = improvements({keys[0]: {"params_m": 30.0}, keys[1]: {"params_m": 40.0}})[0].changes[0]
    assert (both.ours, both.ours_of_new, both.ours_of_old) == pytest.approx((-10.0, -100 / 3, -25.0))
    assert improvements({keys[0]: {"params_m": 30.0}})[0].changes[0].ours is None


def test_rows_under_other_names_are_found_by_their_figures(paper: Path) -> None:
    names = {one.printed: one.found for one in errata() if one.kind == "name"}
    assert names == {
        "YOLOv4-u5 (r6.1) [81]": "the size of YOLOv5-L (r6.1) [23]",
        "YOLOv4-CSP [81]": "YOLOR-CSP [81]",
        "YOLOv4-CSP-X [81]": "YOLOR-CSP-X [81]",
        "YOLOv4-E6 [81]": "YOLOR-E6 [81]",
        "YOLOv4-D6 [81]": "YOLOR-D6 [81]",
    }


def test_table_3_counts_two_rows_before_folding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_paper(tmp_path / "paper", monkeypatch, specs=("yolov7x-light",))
    counted = {one.model: (one.counting, one.figures[1].computed, one.figures[1].verdict) for one in compare_counts()}
    assert counted == {
        "base (v7-X light)": ("deployed", pytest.approx(125.454, abs=1e-3), "equal"),
        "width only (1.25 w)": ("unfolded", pytest.approx(195.507, abs=1e-3), "equal"),
        "depth only (2.0 d)": ("unfolded", pytest.approx(187.574, abs=1e-3), "equal"),
        "compound (1.5 d / 1.25 w) = v7-X": ("deployed", pytest.approx(189.904, abs=1e-3), "equal"),
    }


def test_errata_show_their_arithmetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_paper(tmp_path / "paper", monkeypatch, specs=("yolov7x-light", "yolov7-tiny"))
    found = {one.where: one for one in errata()}
    width = found["Table 3, width only (1.25 w) at 640 px, FLOPs (G)"]
    assert (width.printed, width.found) == ("195.5", "deployed: 195.3")
    assert width.arithmetic[1].endswith("= 195.507 G")
    assert "2 × (97.530 G multiply-accumulates + 0.113 G bias additions) = 195.286 G" in width.arithmetic[2]
    tiny = found["Table 1, YOLOv7-tiny at 320 px, FLOPs (G)"]
    assert (tiny.printed, tiny.found) == ("3.5", "deployed: 3.4")
    division = found["Table 1, improvement of YOLOv7-tiny (320) over YOLOv4-tiny-3l [79]"]
    assert "the value lies between −42.3 and −38.4 %" in division.arithmetic[1]


@pytest.mark.slow
def test_all_figures_of_the_paper_are_equal_or_listed() -> None:
    comparisons = compare_counts()
    verdicts = [figure.verdict for one in comparisons for figure in one.figures]
    assert "differs" not in verdicts
    assert verdicts.count("erratum") == len({(model, quantity) for _, model, quantity in listed_errata()})
    training = next(one for one in errata() if "YOLOv7-D6" in one.where)
    assert (training.printed, training.found) == ("154.7 M, 806.8 G", "deployed: 133.8 M, 702.4 G")


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_models_of_a_library_have_the_printed_parameters() -> None:
    counted = {name: count_zoo(name).params_m for name in ("detr-dc5-r101", "deformable-detr")}
    assert counted == {"detr-dc5-r101": pytest.approx(60.4, abs=0.1), "deformable-detr": pytest.approx(40.0, abs=0.1)}
    rows = [one for one in compare_counts() if one.counting == "zoo"]
    assert [figure.verdict for one in rows for figure in one.figures] == ["equal", "equal"]
    assert not {one.model for one in rows} & set(cited_models())


@pytest.mark.skipif(find_spec("transformers") is not None, reason="transformers is installed")
def test_the_counts_of_a_library_say_what_to_install() -> None:
    command = [sys.executable, "-m", "pipeline.report.paper.zoo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "transformers is not installed; run `pip install 'yolov7-pipeline[zoo]'`\n"
