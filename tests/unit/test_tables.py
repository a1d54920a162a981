"""The paper's tables with our figures beside the paper's, the summary of the variants, and the page."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.reports import Metrics, PreparedData
from pipeline.experiment import Experiment, parse_experiment
from pipeline.report.results import StageResults, VariantModel, VariantResults, read_results
from pipeline.report.summary import mean_and_spread, summarise_variants, summary_lines
from pipeline.report.tables import Cell, Row, Table, paper_tables, table1_improvements
from pipeline.report.text_tables import cell_text, empty_lines, improvement_head, improvement_texts
from pipeline.stages.tables import Report, tables
from tests.artifacts import benchmark_of, metrics_of, write_prepared, write_results
from tests.paper_files import copy_paper
from yolov7.data.coco_names import COCO_NAMES
from yolov7.errors import ArtifactError
from yolov7.spec.spec_files import load_spec


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Write artifacts of two variants and two seeds to the working folder."""
    monkeypatch.chdir(tmp_path)
    made = parse_experiment({"variants": {"nano": {"spec": "nano"}, "other": {"spec": "nano"}}, "seeds": [0, 1]})
    write_prepared()
    write_results(made, figures={("nano", 0): 0.5, ("nano", 1): 0.6, ("other", 0): 0.4, ("other", 1): 0.4})
    return made


@pytest.fixture(autouse=True)
def few_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep only the models of the paper that the tests use, because counting all of them takes half a minute."""
    copy_paper(tmp_path / "paper", monkeypatch)


def coco_results(
    *,
    image_size: int = 640,
    images: int = 5000,
    class_names: tuple[str, ...] = COCO_NAMES,
    name: str = "big",
    aps: tuple[float, ...] = (0.512,),
) -> StageResults:
    """Return results like those of YOLOv7 trained on COCO."""
    data = PreparedData(class_names=class_names, splits={"val": images}, boxes={"val": 1}, source="x", content_hash="0")
    metrics: tuple[Metrics, ...] = tuple(metrics_of(ap, images=images) for ap in aps)
    results = VariantResults(VariantModel(load_spec("yolov7"), image_size), metrics)
    return StageResults((0,), data, benchmark_of([name]), {name: results})


def read_nano_results() -> StageResults:
    """Read the artifacts in the working folder."""
    return read_results({name: VariantModel(load_spec("nano"), 64) for name in ("nano", "other")}, (0, 1))


def find_table(results: StageResults, name: str) -> Table:
    return next(table for table in paper_tables(results) if table.name == name)


def find_row(table: Table, model: str) -> Row:
    return next(row for row in table.rows if row.model == model)


def find_cell(row: Row, quantity: str) -> Cell:
    return next(cell for cell in row.cells if cell.quantity == quantity)


def test_measured_figures_are_compared_with_the_paper_if_model_and_data_are_the_same() -> None:
    found = {table.name: find_row(table, "YOLOv7") for table in paper_tables(coco_results())[:2]}
    cell = find_cell(found["table1"], "ap_val")
    assert (cell.printed, cell.ours, cell.origin, cell.difference) == ("51.2", 51.2, "measured here", 0.0)
    assert found["table1"].variant == "big"
    fps = find_cell(found["table2"], "fps_v100")
    assert (fps.ours, fps.difference) == (160.0, None)  # not on a V100
    assert find_cell(found["table1"], "apl_val").ours is None  # nothing to measure it on


def test_several_seeds_give_a_mean_and_a_spread() -> None:
    cell = find_cell(find_row(find_table(coco_results(aps=(0.51, 0.52)), "table1"), "YOLOv7"), "ap_val")
    assert cell_text(cell) == "51.2 **51.50 ±0.71** (+0.30)"
    assert "2 seeds" in cell.note


def test_a_variant_with_the_name_of_a_row_fills_it() -> None:
    row = find_row(find_table(coco_results(name="table6-lead", image_size=1280), "table6"), "lead guided")
    assert (row.variant, find_cell(row, "ap_val").ours) == ("table6-lead", 51.2)
    assert find_cell(row, "ap_val").difference == pytest.approx(51.2 - 55.9)
    others = find_row(find_table(coco_results(name="table6-lead"), "table6"), "independent")
    assert (others.variant, others.has_ours, others.cited) == ("table6-independent", False, False)


@pytest.mark.parametrize("changed", [{"class_names": ("red", "green", "blue")}, {"images": 100}, {"image_size": 320}])
def test_an_ablation_on_other_data_is_shown_without_a_difference(changed: dict[str, Any]) -> None:
    results = coco_results(**{"name": "table6-lead", "image_size": 1280} | changed)
    cell = find_cell(find_row(find_table(results, "table6"), "lead guided"), "ap_val")
    assert (cell.ours, cell.difference) == (51.2, None)


def test_a_variant_of_an_ablation_fills_no_row_by_its_graph() -> None:
    row = find_row(find_table(coco_results(name="table6-lead"), "table1"), "YOLOv7")
    assert (row.variant, find_cell(row, "ap_val").ours) == ("", None)


def test_of_two_variants_with_the_graph_of_a_row_the_one_without_overrides_fills_it() -> None:
    plain = coco_results()
    big = plain.variants["big"]
    own = replace(big, model=replace(big.model, overrides_training=True))
    both = replace(plain, variants={"own": own, "big": big})
    assert find_row(find_table(both, "table1"), "YOLOv7").variant == "big"


def test_own_variants_of_an_ablation_are_added_to_its_table() -> None:
    table = find_table(coco_results(name="table4-second"), "table4")
    row = table.rows[-1]
    assert (row.model, find_cell(row, "ap_val").ours, find_cell(row, "ap_val").printed) == ("table4-second", 51.2, "")
    assert [row.model for row in table.rows if row.cited] == ["(a)", "(b)", "(c)", "(d)", "(e)"]


def test_rows_without_a_spec_are_cited() -> None:
    table = find_table(coco_results(), "table1")
    row = find_row(table, "YOLOv4 [3]")
    assert (row.cited, row.has_ours, row.counting) == (True, False, "")
    assert find_row(table, "YOLOv7").counting == "deployed"
    assert find_row(table, "YOLOv7-tiny").counting == "unfolded"


def test_the_improvement_rows_compare_our_own_figures_if_there_are_both() -> None:
    rows = table1_improvements(find_table(coco_results(), "table1"))
    texts = dict(zip(improvement_head(rows)[:4], improvement_texts(rows[0])[:4], strict=True))
    assert texts["new over old model"] == "YOLOv7 (640) over YOLOv4-CSP [81]"
    assert (texts["#Param (M)"], texts["of new"], texts["of old"]) == ("−43%", "−43.4 %", "−30.2 %")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"image_size": 320}, "no variant of params.yaml is this model at this size"),
        ({"class_names": ("red", "green", "blue")}, "the data here are not COCO"),
    ],
)
def test_figures_that_cannot_be_compared_are_left_out_with_the_reason(changed: dict[str, Any], reason: str) -> None:
    table = find_table(coco_results(**changed), "table1")
    row = find_row(table, "YOLOv7")
    assert find_cell(row, "ap_val").ours is None
    assert reason in find_cell(row, "ap_val").note
    assert any(reason in line and "YOLOv7" in line for line in empty_lines(table))
    assert find_cell(row, "params_m").origin == "computed"


@pytest.mark.parametrize("image_size", [640, 64])
def test_figures_on_a_part_of_coco_fill_the_row_but_are_compared_with_nothing(image_size: int) -> None:
    table = find_table(coco_results(images=100, image_size=image_size), "table1")
    cell = find_cell(find_row(table, "YOLOv7"), "ap_val")
    assert (cell.ours, cell.difference) == (51.2, None)
    assert "evaluated on [100] images, not on val2017's 5000" in cell.note
    assert f"{image_size} px" in cell.note


def test_figures_of_given_weights_name_their_file() -> None:
    results = coco_results()
    big = results.variants["big"]
    given = replace(big, model=replace(big.model, weights="yolov7.pt"))
    table = find_table(replace(results, variants={"big": given}), "table1")
    assert "given weights yolov7.pt" in find_cell(find_row(table, "YOLOv7"), "ap_val").note


def test_we_have_no_figures_of_the_evaluation_server() -> None:
    cell = find_cell(find_row(find_table(coco_results(), "table2"), "YOLOv7"), "ap_test")
    assert cell.ours is None
    assert "server" in cell.note


def test_a_cell_shows_the_figure_of_the_paper_ours_and_the_difference() -> None:
    cell = Cell(quantity="gflops", printed="104.7", ours=104.684, origin="computed")
    assert cell_text(cell) == "104.7 **104.68** (−0.02)"
    assert cell_text(cell.model_copy(update={"erratum": True, "ours": None})) == "104.7†"
    assert (
        cell_text(Cell(quantity="ap_val", printed="52.30", ours=52.2951, origin="computed"))
        == "52.30 **52.295** (−0.005)"
    )
    assert cell_text(Cell(quantity="fps", printed="11.6", ours=None, origin="not measured")) == "11.6"
    assert cell_text(Cell(quantity="params_m", printed="", ours=None, origin="not measured")) == "-"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (None, None)),
        ([None], (None, None)),
        ([0.5], (0.5, None)),
        ([0.4, None, 0.6], (0.5, pytest.approx(0.1414, abs=1e-4))),
    ],
)
def test_mean_and_spread(values: list[float | None], expected: tuple[float | None, float | None]) -> None:
    assert mean_and_spread(values) == expected


def test_the_summary_has_one_row_per_variant(params: Experiment) -> None:
    rows = summarise_variants(read_nano_results())
    assert [row.variant for row in rows] == ["nano", "other"]
    figures = (rows[0].AP, rows[0].AP50)
    assert figures == pytest.approx((0.55, 0.75))
    assert rows[0].AP_spread == pytest.approx(0.0707, abs=1e-4)
    assert (rows[0].parameters, rows[0].fps_before, rows[0].fps_after) == (409_709, 100.0, 160.0)


def test_the_summary_fits_a_terminal(params: Experiment) -> None:
    lines = summary_lines(summarise_variants(read_nano_results()))
    assert " ".join(lines[1].split()) == "nano 0.550 ±0.071 0.750 ±0.071 0.41 M 0.21 100 -> 160"
    assert max(map(len, lines)) <= 80


def test_the_stage_writes_every_table_in_every_format(params: Experiment) -> None:
    report = tables(params)
    names = {path.name for path in Path("artifacts/tables").iterdir()}
    parts = [f"table{i}" for i in range(1, 11)] + ["table1_improvement", "errata", "summary"]
    assert names == {f"{name}.{kind}" for name in parts for kind in ("csv", "md")} | {
        "index.html",
        "summary.txt",
        "tables.json",
    }
    lines = list(csv.DictReader(Path("artifacts/tables/table1.csv").read_text(encoding="utf-8").splitlines()))
    assert len(lines) == sum(len(row.cells) for row in report.tables[0].rows)
    figure = next(line for line in lines if (line["model"], line["quantity"]) == ("YOLOv7", "gflops"))
    assert (figure["printed"], figure["paper"], figure["origin"]) == ("104.7", "104.7", "computed")
    assert float(figure["difference"]) == pytest.approx(float(figure["ours"]) - 104.7, abs=1e-6)
    assert report == Report.model_validate_json(Path("artifacts/tables/tables.json").read_text(encoding="utf-8"))


def test_a_table_explains_the_conventions_that_it_uses(params: Experiment) -> None:
    tables(params)
    assert "- unfolded: #Param as `deployed`." in Path("artifacts/tables/table1.md").read_text(encoding="utf-8")
    assert "unfolded" not in Path("artifacts/tables/table6.md").read_text(encoding="utf-8")


def test_the_page_needs_nothing_from_the_network(params: Experiment) -> None:
    tables(params)
    page = Path("artifacts/tables/index.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)
    assert page.count("<svg") == 4  # AP over GFLOPs and over time, FPS, AP by epoch
    assert "<?xml" not in page
    assert not re.findall(r"url\((?!#)|@import|<script|<link", page)


def test_text_from_files_is_escaped_in_the_page(params: Experiment) -> None:
    source = "<script>alert(1)</script> & {{ 7 * 7 }} ${x} $title"
    path = Path("artifacts/prepare/dataset.json")
    path.write_text(path.read_text(encoding="utf-8").replace('"noise"', f'"{source}"'), encoding="utf-8")
    tables(params)
    page = Path("artifacts/tables/index.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; {{ 7 * 7 }} ${x} $title" in page


def test_the_page_is_well_formed(params: Experiment) -> None:
    """Every element that is opened is closed by its own end tag, in order."""
    tables(params)
    opened: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in {"meta", "img", "br", "input"}:
                opened.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag, self.getpos()

    Checker().feed(Path("artifacts/tables/index.html").read_text(encoding="utf-8"))
    assert not opened


def test_the_same_results_give_the_same_page(params: Experiment) -> None:
    """DVC compares outputs by content, so that charts must not depend on time or chance."""
    pages = []
    for _ in range(2):
        tables(params)
        pages.append(Path("artifacts/tables/index.html").read_bytes())
    assert pages[0] == pages[1]


def test_missing_artifacts_are_listed(params: Experiment) -> None:
    for name in ("evaluate/other/1/metrics.json", "evaluate/other/0/metrics.json", "benchmark/benchmark.json"):
        (Path("artifacts") / name).unlink()
    report = tables(params)
    assert len(report.missing) == 3
    assert "artifacts/evaluate/other/1/metrics.json (`yolov7 evaluate other --seed 1`)" in report.missing
    assert [(row.AP, row.seeds, row.fps_after) for row in report.summary] == [
        (pytest.approx(0.55), 2, None),
        (None, 0, None),
    ]
    assert "artifacts/benchmark/benchmark.json" in Path("artifacts/tables/index.html").read_text(encoding="utf-8")


def test_tables_can_be_made_before_any_other_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = parse_experiment({"variants": {"nano": {"spec": "nano"}}})
    report = tables(made)
    assert len(report.missing) == 4
    assert " ".join(summary_lines(report.summary)[1].split()) == "nano - - - - - -> -"


def test_a_damaged_artifact_is_an_error_with_the_remedy(params: Experiment) -> None:
    Path("artifacts/evaluate/other/1/metrics.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"other/1/metrics\.json is damaged .* `yolov7 evaluate other`"):
        tables(params)
