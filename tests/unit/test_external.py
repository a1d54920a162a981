"""External variants: results of systems that are not built here become rows beside the other variants."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.artifacts.files import read_json, stage_folder
from pipeline.artifacts.reports import Metrics, TrainSummary
from pipeline.cli.main import app, main
from pipeline.commands.derived_experiments import with_weights
from pipeline.experiment import Experiment, parse_experiment
from pipeline.params import EvaluateSettings
from pipeline.stages.evaluate import evaluate_external
from pipeline.stages.reparam import pass_external
from pipeline.stages.resolve import stage_inputs
from pipeline.stages.tables import tables
from pipeline.stages.train import use_external_results
from tests.artifacts import write_prepared
from tests.paper_files import copy_paper
from yolov7.errors import ArtifactError, DataError, SettingError
from yolov7.weights.weight_files import load_weights

BOX = [4.0, 4.0, 26.0, 36.0]  # of the object in each of three images, whose class is the number of the image


def detections(**changes: Any) -> list[dict[str, Any]]:
    return [{"image_id": i, "category_id": i, "bbox": BOX, "score": 0.9} | changes for i in (1, 2, 3)]


def resolve(external: dict[str, Any], *, name: str = "other", seeds: tuple[int, ...] = (0,)) -> Experiment:
    variants = {"nano": {"spec": "nano"}, name: {"external": external}}
    return parse_experiment({"variants": variants, "seeds": list(seeds)})


def run(experiment: Experiment, *, name: str = "other", seed: int = 0) -> tuple[Metrics, tuple[str, ...]]:
    """Run the stages of an external variant."""
    variant = experiment.externals[name]
    use_external_results(variant, seed=seed)
    pass_external(variant, seed=seed)
    return evaluate_external(EvaluateSettings(examples=1), variant, seed=seed)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write prepared data to the working folder, and a results file in which every object is found."""
    copy_paper(tmp_path / "paper", monkeypatch, specs=("yolov7-tiny",))  # counting all models takes long
    monkeypatch.chdir(tmp_path)
    write_prepared()
    path = tmp_path / "results.json"
    path.write_text(json.dumps(detections()))
    return path


def test_results_of_another_system_become_a_row_of_the_summary_and_of_table_9(results: Path) -> None:
    name = "detr-dc5-r101"
    stated = {"predictions": "results.json", "params": 60.0, "gflops": 253.0, "image_size": 800}
    experiment = resolve(stated, name=name, seeds=(0, 1))
    for seed in (0, 1):
        metrics, notes = run(experiment, name=name, seed=seed)
        assert (metrics.AP, metrics.AP_before_reparam, notes) == (pytest.approx(1.0), None, ())
    report = tables(experiment)
    row = next(row for row in report.summary if row.variant == name)
    figures = (row.AP, row.parameters, row.gflops, row.image_size, row.fps_after, row.seeds)
    assert figures == (pytest.approx(1.0), 60_000_000, 253.0, 800, None, 1)
    table9 = next(table for table in report.tables if table.name == "table9")
    filled = {cell.quantity: cell for row in table9.rows if row.model.startswith("DETR DC5") for cell in row.cells}
    assert (filled["params_m"].ours, filled["params_m"].origin) == (60.0, "stated")
    assert (filled["ap_val"].ours, filled["ap_val"].difference) == (pytest.approx(100.0), None)  # the data are not COCO
    assert "external results results.json" in filled["ap_val"].note
    assert not any(name in line for line in report.missing)
    assert name in Path("artifacts/tables/index.html").read_text(encoding="utf-8")


def test_the_predictions_and_errors_are_written_as_for_a_model(results: Path) -> None:
    run(resolve({"predictions": "results.json"}))
    folder = stage_folder("evaluate", "other", 0)
    assert json.loads((folder / "predictions.json").read_text()) == detections()
    assert {path.suffix for path in folder.iterdir()} == {".json", ".jpg", ".csv", ".png"}


def test_there_are_no_weights_and_no_proof(results: Path) -> None:
    run(resolve({"predictions": "results.json"}))
    for stage in ("train", "reparam"):
        with pytest.raises(ArtifactError):
            load_weights(stage_folder(stage, "other", 0) / "weights.safetensors")
    summary = read_json(stage_folder("train", "other", 0) / "train.json", TrainSummary, made_by="train")
    assert (summary.external, summary.epochs, summary.workers) == ("results.json", 0, 0)


def test_only_the_content_of_the_file_and_what_is_stated_decide_the_result(results: Path) -> None:
    def inputs(**stated: Any) -> Any:
        path = Path("artifacts/resolve/train/other/0.json")
        return stage_inputs(resolve({"predictions": "results.json"} | stated), only=path)[path]

    before = inputs()
    Path("copy.json").write_bytes(results.read_bytes())
    assert inputs(predictions="copy.json") == before
    assert inputs(gflops=2.0) != before
    results.write_text(json.dumps(detections(score=0.8)))
    assert inputs() != before


def test_detections_of_other_images_are_left_out_with_a_note(results: Path) -> None:
    results.write_text(json.dumps([*detections(), {"image_id": 77, "category_id": 1, "bbox": BOX, "score": 0.5}]))
    _, notes = run(resolve({"predictions": "results.json"}))
    assert notes == ("1 detection was left out, because its image is not in the split, such as image_id 77",)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, ArtifactError, r"results\.json of variant 'other' does not exist; name a COCO results file"),
        ("folder", ArtifactError, r"results\.json of variant 'other' is a folder; name a COCO results file"),
        (detections(image_id=77), DataError, "none of its 3 detections belongs to an image and class of the data"),
        (detections(category_id=9), DataError, "none of its 3 detections belongs"),
        ({"annotations": []}, DataError, "must contain a list of detections"),
        ([{"image_id": 1, "bbox": BOX, "score": 1}], DataError, "lacks category_id"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error(
    content: Any, error: type[Exception], message: str, results: Path
) -> None:
    results.unlink()
    if content == "folder":
        results.mkdir()
    elif content is not None:
        results.write_text(json.dumps(content))
    with pytest.raises(error, match=message):
        run(resolve({"predictions": "results.json"}))


@pytest.mark.skipif(find_spec("transformers") is not None, reason="transformers is installed")
def test_a_model_of_a_library_that_is_not_installed_is_one_line(
    results: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("params.yaml").write_text("variants: {nano: {spec: nano}, other: {external: {zoo: deformable-detr}}}\n")
    monkeypatch.setattr("sys.argv", ["yolov7", "train", "other"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    expected = "this needs the package transformers; install it with: pip install 'yolov7-pipeline[zoo]'"
    assert expected in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_a_model_of_a_library_has_a_cost_and_no_ap(results: Path) -> None:
    name = "deformable-detr"
    experiment = resolve({"zoo": name}, name=name)
    metrics, notes = run(experiment, name=name)
    assert (metrics.AP, metrics.per_class_AP) == (None, {})
    assert notes == ("zoo: deformable-detr has no results file, so AP is not measured",)
    report = tables(experiment)
    row = next(row for row in report.summary if row.variant == name)
    assert (row.AP, row.parameters) == (None, pytest.approx(40.0e6, abs=1e5))
    table9 = next(table for table in report.tables if table.name == "table9")
    filled = {cell.quantity: cell for row in table9.rows if row.model.startswith("Deformable") for cell in row.cells}
    assert (filled["params_m"].origin, filled["ap_val"].ours) == ("computed", None)
    assert "one FLOP per multiply-accumulate operation at 800 x 1066" in filled["gflops"].note


@pytest.mark.parametrize(
    ("external", "message"),
    [
        ({}, "external has neither predictions nor zoo"),
        ({"zoo": "detr"}, "'detr-dc5-r101' or 'deformable-detr'"),
        ({"zoo": "deformable-detr", "params": 40}, "params and gflops of a model in zoo are counted; leave them out"),
    ],
)
def test_what_an_external_variant_must_state(external: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        resolve(external)


def test_a_file_that_changed_after_train_is_an_error(results: Path) -> None:
    run(resolve({"predictions": "results.json"}))
    results.write_text(json.dumps(detections(score=0.8)))
    experiment = resolve({"predictions": "results.json"})
    with pytest.raises(ArtifactError, match="changed after `yolov7 train other` ran"):
        evaluate_external(EvaluateSettings(), experiment.externals["other"], seed=0)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"a": {"external": {"predictions": "x.json"}, "spec": "nano"}}, "leave out spec"),
        ({"a": {"external": {"predictions": "x.json"}, "train": {"epochs": 3}}}, "leave out train"),
        ({"a": {"external": {"predictions": "x.json"}}}, "all variants are external"),
        ({"a": {"external": {"prediction": "x.json"}}}, "variants.a.external.prediction: unknown key"),
        ({"a": {"external": {"predictions": "x.json", "gflop": 3}}}, "variants.a.external.gflop: unknown key"),
    ],
)
def test_a_mistake_in_an_external_variant_is_told(variants: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        parse_experiment({"variants": variants})


def test_commands_select_external_variants_where_they_have_something_to_do(results: Path) -> None:
    text = json.dumps({"variants": {"nano": {"spec": "nano"}, "other": {"external": {"predictions": "results.json"}}}})
    Path("params.yaml").write_text(text)
    done = CliRunner().invoke(app, ["submission", "other"])
    assert "variant 'other' is external: only its results are known; name one of nano" in str(done.exception)


def test_external_variants_stay_when_trainings_are_replaced_by_weights(results: Path) -> None:
    Path("nano.safetensors").touch()
    variants = {"nano": {"spec": "nano"}, "wide": {"spec": "yolov7"}, "other": {"external": {"predictions": "r.json"}}}
    changed, left_out = with_weights({"data": {}, "variants": variants}, weights=".")
    assert list(changed["variants"]) == ["nano", "other"]
    assert changed["variants"]["other"] == variants["other"]
    assert left_out == ("wide",)
