"""The paper's tables with our figures beside them, and the summary of the variants."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from pipeline.artifacts import PreparedData
from pipeline.params import Params
from pipeline.render import cell_text, origin_text
from pipeline.stages.tables import gather, tables
from pipeline.tables import (
    Cell,
    Evidence,
    Results,
    Row,
    Table,
    count_as_paper,
    mean_and_spread,
    paper_models,
    paper_tables,
    summarise_variants,
    summary_lines,
)
from tests.artifacts import benchmark_of, metrics_of, write_prepared, write_results
from yolov7.errors import ArtifactError


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Two variants with two seeds, whose artifacts lie in the working folder."""
    monkeypatch.chdir(tmp_path)
    made = Params.model_validate({"variants": {"nano": {"spec": "nano"}, "other": {"spec": "nano"}}, "seeds": [0, 1]})
    write_prepared()
    write_results(made, figures={("nano", 0): 0.5, ("nano", 1): 0.6, ("other", 0): 0.4, ("other", 1): 0.4})
    return made


def coco_evidence(*, image_size: int = 640, images: int = 5000, classes: int = 80) -> Evidence:
    """YOLOv7 trained on COCO, as far as its figures tell."""
    params = Params.model_validate({"data": {"format": "coco"}, "variants": {"big": {"spec": "yolov7"}}})
    names = tuple(f"class {i}" for i in range(classes))
    data = PreparedData(class_names=names, splits={"val": images}, boxes={"val": 1}, source="x", content_hash="0")
    spec = params.variant("big").build_spec()
    results = Results(spec, image_size, (), (metrics_of(0.512, images=images),), ())
    return Evidence(params, data, benchmark_of(["big"]), {"big": results})


def find_row(table: Table, model: str) -> Row:
    return next(row for row in table.rows if row.model == model)


def find_cell(row: Row, quantity: str) -> Cell:
    return next(cell for cell in row.cells if cell.quantity == quantity)


@pytest.mark.parametrize(
    ("spec", "counting", "size", "printed"),
    [
        ("yolov7", "p5", 640, ("36.9", "104.7")),
        ("yolov7-tiny", "tiny", 640, ("6.2", "13.8")),
        ("yolov7-tiny", "tiny", 416, ("6.2", "5.8")),
    ],
)
def test_the_papers_counting_gives_its_printed_digits(
    spec: str, counting: str, size: int, printed: tuple[str, str]
) -> None:
    counted = count_as_paper(spec, counting, size)
    assert counted is not None
    assert tuple(f"{figure:.1f}" for figure in counted) == printed


def test_every_model_that_is_mapped_is_a_row_of_the_paper() -> None:
    rows = {(row.model, row.size) for table in paper_tables(coco_evidence()) for row in table.rows}
    assert set(paper_models()) <= rows


def test_measured_figures_stand_beside_the_papers_where_model_and_data_are_the_same() -> None:
    table1, table2, table9 = paper_tables(coco_evidence())
    cell = find_cell(find_row(table1, "YOLOv7"), "ap_val")
    assert (cell.paper, cell.ours, cell.origin) == (51.2, 51.2, "measured here")
    assert find_cell(find_row(table2, "YOLOv7"), "fps_v100").ours == 160.0
    assert find_cell(find_row(table9, "YOLOv7"), "fps").ours == 160.0
    assert find_cell(find_row(table1, "YOLOv7"), "apl_val").ours is None  # nothing to measure it on


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (coco_evidence(image_size=320), "no variant here is this model at 640 px"),
        (coco_evidence(images=100), "not on val2017's 5000"),
        (coco_evidence(classes=3), "the data here are not COCO"),
    ],
)
def test_figures_that_do_not_compare_are_left_open_with_the_reason(evidence: Evidence, reason: str) -> None:
    row = find_row(paper_tables(evidence)[0], "YOLOv7")
    assert find_cell(row, "ap_val").ours is None
    assert reason in find_cell(row, "ap_val").note
    assert reason in origin_text(row)
    assert find_cell(row, "params_m").origin == "computed"


def test_figures_of_the_evaluation_server_are_never_ours() -> None:
    cell = find_cell(find_row(paper_tables(coco_evidence())[1], "YOLOv7"), "ap_test")
    assert cell.ours is None
    assert "server" in cell.note


def test_a_cell_shows_the_papers_figure_ours_and_the_difference() -> None:
    cell = Cell(quantity="gflops", paper=104.7, ours=104.684, origin="computed")
    assert cell_text(cell) == "104.7 **104.68** (−0.02)"
    assert cell_text(Cell(quantity="fps", paper=11.6, ours=None, origin="not measured")) == "11.6"
    assert cell_text(Cell(quantity="params_m", paper=None, ours=None, origin="not measured")) == "-"


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


def test_the_summary_has_one_row_a_variant(params: Params) -> None:
    rows = summarise_variants(gather(params))
    assert [row.variant for row in rows] == ["nano", "other"]
    figures = (rows[0].AP, rows[0].AP50)
    assert figures == pytest.approx((0.55, 0.75))
    assert rows[0].AP_spread == pytest.approx(0.0707, abs=1e-4)
    assert (rows[0].parameters, rows[0].fps_before, rows[0].fps_after) == (409_709, 100.0, 160.0)


def test_the_summary_fits_a_terminal(params: Params) -> None:
    lines = summary_lines(summarise_variants(gather(params)))
    assert " ".join(lines[1].split()) == "nano 0.550 ±0.071 0.750 ±0.071 0.41 M 0.21 100 -> 160"
    assert max(map(len, lines)) <= 80


def test_the_stage_writes_every_table_in_every_form(params: Params) -> None:
    report = tables(params)
    names = {path.name for path in Path("artifacts/tables").iterdir()}
    expected = {f"{name}.{kind}" for name in ("table1", "table2", "table9", "summary") for kind in ("csv", "md")}
    assert names == expected | {"index.html", "summary.txt"}
    lines = list(csv.DictReader(Path("artifacts/tables/table1.csv").read_text(encoding="utf-8").splitlines()))
    assert len(lines) == sum(len(row.cells) for row in report.tables[0].rows)


def test_the_page_needs_nothing_from_the_network(params: Params) -> None:
    picture = Path("artifacts/evaluate/nano/0/examples.jpg")
    picture.write_bytes(b"")
    tables(params)
    page = Path("artifacts/tables/index.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert "../evaluate/nano/0/examples.jpg" in links
    assert all((Path("artifacts/tables") / link).exists() for link in links)
    assert "http" not in page
    assert "$" not in page


def test_names_are_escaped_in_the_page(params: Params) -> None:
    write_json_source("<script>alert(1)</script>")
    tables(params)
    assert "<script>" not in Path("artifacts/tables/index.html").read_text(encoding="utf-8")


def write_json_source(source: str) -> None:
    path = Path("artifacts/prepare/dataset.json")
    path.write_text(path.read_text(encoding="utf-8").replace('"noise"', f'"{source}"'), encoding="utf-8")


def test_a_missing_artifact_is_named_with_its_remedy(params: Params) -> None:
    Path("artifacts/evaluate/other/1/metrics.json").unlink()
    with pytest.raises(ArtifactError, match=r"other/1/metrics\.json is missing; `yolov7 evaluate other`"):
        tables(params)
