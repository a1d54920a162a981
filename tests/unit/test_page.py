"""The page about the experiment: real evaluation files of a small data set, drawn and explained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline.artifacts.files import stage_folder, write_json
from pipeline.artifacts.prepared import load_split
from pipeline.artifacts.reports import Benchmark, LayerProof, ReparamReport
from pipeline.commands.explain import explain
from pipeline.experiment import Experiment, parse_experiment
from pipeline.report.comparison import confusion_table, figures_table
from pipeline.report.plots import write_confusion, write_precision_recall
from pipeline.report.runs import RunLink
from pipeline.report.summary import SummaryRow
from pipeline.stages.tables import tables
from tests.artifacts import NAMES, benchmark_of, write_prepared, write_results
from tests.paper_files import copy_paper
from yolov7.errors import SettingError
from yolov7.evaluation.coco import coco_curves
from yolov7.evaluation.errors import analyse_errors
from yolov7.evaluation.figures import confusion_matrix, precision_recall
from yolov7.structures import Detections

PAGE = Path("artifacts/tables/index.html")


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Write the artifacts of one variant and two seeds; the first class is found, the second missed."""
    monkeypatch.chdir(tmp_path)
    copy_paper(tmp_path / "paper", monkeypatch)
    made = parse_experiment({"variants": {"nano": {"spec": "nano"}}, "seeds": [0, 1]})
    write_prepared()
    write_results(made, figures={("nano", 0): 0.5, ("nano", 1): 0.6})
    index, folder = load_split("val"), stage_folder("evaluate", "nano", 0)
    box, score = torch.tensor([[4.0, 4.0, 30.0, 40.0]]), torch.tensor([0.8])
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    elsewhere = Detections(torch.tensor([[50.0, 4.0, 70.0, 40.0]]), score, torch.tensor([2]))
    detections = [Detections(box, score, torch.tensor([0])), nothing, elsewhere]
    write_json(folder / "errors.json", analyse_errors(index, detections, split="val"))
    write_precision_recall(folder, precision_recall(coco_curves(index, detections), NAMES))
    write_confusion(folder, confusion_matrix(index, detections), class_names=NAMES)
    path = stage_folder("reparam", "nano", 0) / "reparam.json"
    proof = ReparamReport.model_validate_json(path.read_text())
    layers = (
        LayerProof(name="stem", parameters_before=100, parameters_after=90, error=1e-7),
        LayerProof(name="auxiliary head", parameters_before=50, parameters_after=0, error=None),
    )
    write_json(path, proof.model_copy(update={"layers": layers}))
    return made


def read_page(experiment: Experiment, **options: object) -> str:
    tables(experiment, **options)  # type: ignore[arg-type]
    return PAGE.read_text(encoding="utf-8")


def test_the_page_shows_the_errors_with_pictures(experiment: Experiment) -> None:
    page = read_page(experiment)
    assert page.count('src="data:image/jpeg;base64,') == 2 * 3 + 3  # labels and detections of examples; suspects
    assert "1 found, 0 missed, 0 wrong" in page
    assert "no label, found: blue 0.80" in page
    assert "There is a label, but no detection" in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)
    assert read_page(experiment) == page  # DVC compares outputs by content


def test_the_page_is_made_without_images_that_were_removed(experiment: Experiment) -> None:
    for path in Path("artifacts/prepare/images").iterdir():
        path.unlink()
    page = read_page(experiment)
    assert "data:image/jpeg" not in page
    assert "Errors by kind" in page


def test_the_page_comes_before_the_paper(experiment: Experiment) -> None:
    page = read_page(experiment)
    places = [page.index(f'<section id="{name}">') for name in ("variants", "errors", "reparam", "data", "paper")]
    assert places == sorted(places)
    assert page.index("<details><summary><h2>The paper") > places[-1]


def test_the_page_links_the_runs_of_mlflow(experiment: Experiment) -> None:
    run = RunLink("0123abcd", "http://127.0.0.1:5000/#/experiments/1/runs/0123abcd", "f00d" * 10)
    page = read_page(experiment, runs={("nano", 1): run})
    assert f'<a href="{run.address}"><code>0123abcd</code></a>' in page
    assert "<code>f00df00df00d</code>" in page


def test_the_citation_is_that_of_the_citation_file(experiment: Experiment) -> None:
    page = read_page(experiment)
    cited = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text(encoding="utf-8"))
    (paper,) = cited["references"]
    for text in (cited["title"], cited["authors"][0]["name"], cited["license"], *re.split("YOLOv7", paper["title"])):
        assert text in page
    assert all(f"{one['family-names']}, {one['given-names']}" in page for one in paper["authors"])
    assert str(paper["year"]) in page
    assert paper["identifiers"][0]["value"] in page


def test_each_engine_and_precision_has_a_column() -> None:
    row = SummaryRow.model_validate(
        dict.fromkeys(SummaryRow.model_fields) | {"variant": "nano", "seeds": 1, "image_size": 64}
    )
    eager = benchmark_of(["nano"])
    other = [
        one.model_copy(update={"engine": "openvino", "precision": "int8", "fps": 400.0, "AP": 0.25})
        for one in eager.rows
    ]
    benchmark = Benchmark(**eager.model_dump(exclude={"rows"}), rows=(*eager.rows, *other))
    table = figures_table([row], benchmark)
    texts = dict(zip(table.head, table.rows[0], strict=True))
    assert (texts["FPS torch float32"], texts["FPS openvino int8"]) == ("160", "400 (AP 0.250)")


def test_a_large_confusion_matrix_becomes_a_list() -> None:
    names = [f"class {i}" for i in range(40)]
    table = confusion_table({("class 0", "class 0"): 6, ("class 0", "class 1"): 2, ("class 2", "background"): 1}, names)
    assert table.rows == [["class 0", "class 1", "2", "25%"], ["class 2", "background", "1", "100%"]]
    small = confusion_table({("class 0", "class 1"): 2}, names[:2])
    assert small.rows[0] == ["class 0", "", "2", ""]
    assert np.isclose(small.shares[0][2], 1.0)


def test_a_variant_is_explained(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    explain(experiment, "nano/1", as_json=True)
    (source,) = json.loads(capsys.readouterr().out)["sources"]
    assert (source["seed"], source["figures"]["AP"], source["run_id"]) == (1, 0.6, None)
    assert source["files"][0]["path"] == "artifacts/evaluate/nano/1/metrics.json"
    assert len(source["files"][0]["sha256"]) == 64
    assert source["files"][1]["sha256"] is None  # there are no weights
    assert source["settings"]["path"] == "artifacts/resolve/train/nano/1.json"
    assert source["stages"][-1] == "evaluate@nano-1"
    explain(experiment, "nano", as_json=False)
    assert "AP 0.550 ±0.071" in capsys.readouterr().out


def test_a_cell_of_a_table_is_explained(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    tables(experiment)
    explain(experiment, "table1:yolov7:FLOPs", as_json=False)
    text = capsys.readouterr().out
    assert "paper 104.7, ours 104.68" in text
    assert "computed: spec yolov7, counted as `deployed`" in text
    assert "artifacts/tables/tables.json  sha256 " in text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("nanno", "row 'nanno' is neither a variant .* did you mean 'nano'"),
        ("nano/7", "seed 7 of row 'nano/7' is not in params.yaml"),
    ],
)
def test_an_unknown_variant_is_an_error(experiment: Experiment, row: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        explain(experiment, row, as_json=False)


def test_an_unknown_cell_is_an_error_with_near_names(experiment: Experiment) -> None:
    tables(experiment)
    for row, message in (
        ("table11:YOLOv7:AP", "there is no table 'table11'"),
        ("table1:YOLOv77:AP", "has no row 'YOLOv77'; did you mean YOLOv7"),
        ("table1:YOLOv7-tiny:AP", "several sizes; name one of YOLOv7-tiny@320, YOLOv7-tiny@416"),
        ("table1:YOLOv7:mAP", "no column 'mAP'; it has "),
    ):
        with pytest.raises(SettingError, match=message):
            explain(experiment, row, as_json=False)
