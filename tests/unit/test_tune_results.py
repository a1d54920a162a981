"""The results of a search: the Pareto front, the choice, the files, and a new variant in params.yaml."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.experiment import load_experiment
from pipeline.tuning.adopt import adopt, insert_variant
from pipeline.tuning.report.messages import result_lines, trial_line
from pipeline.tuning.report.results import choose, fit_by_rule, pareto_front, write_results
from pipeline.tuning.search.search import Status, Trial
from pipeline.tuning.search.space import Candidate
from tests.unit.tune_models import make_candidate
from yolov7.errors import ArtifactError, SettingError
from yolov7.spec.scaling import scale_spec
from yolov7.spec.spec_files import load_spec, spec_to_json

ROOT = Path(__file__).parents[2]


def make_trial(gflops: float, AP: float | None, *, status: Status = "complete", rule: str = "width") -> Trial:
    number = round(gflops * 100)
    candidate: Candidate = make_candidate(number, gflops=gflops, rules=(rule,), depth=1.0)  # type: ignore[arg-type]
    spec = scale_spec(load_spec("nano"), rule="width", width=gflops)
    filled = {**vars(candidate), "spec_json": spec_to_json(spec), "image_size": 160}
    return Trial(Candidate(**filled), stratum=0, status=status, AP=AP, curve=[(1, AP or 0.0)])


def test_the_front_holds_the_trials_that_no_cheaper_one_reaches() -> None:
    trials = [make_trial(cost, AP) for cost, AP in ((1.0, 0.3), (2.0, 0.2), (0.5, 0.1), (3.0, 0.4), (4.0, 0.4))]
    failed, unmeasured = make_trial(5.0, 0.9, status="failed"), make_trial(0.6, None, status="cut")
    front = pareto_front([*trials, failed, unmeasured])
    assert [(trial.candidate.gflops, trial.AP) for trial in front] == [(0.5, 0.1), (1.0, 0.3), (3.0, 0.4)]
    assert choose(trials) is front[-1]
    assert choose([unmeasured]) is None


def test_a_cut_trial_can_be_on_the_front() -> None:
    assert len(pareto_front([make_trial(1.0, 0.3), make_trial(2.0, 0.4, status="cut")])) == 2


def test_lines_are_fitted_to_complete_trials() -> None:
    trials = [make_trial(cost, 0.1 * i) for i, cost in enumerate((1.0, 2.0, 4.0))]
    trials += [make_trial(8.0, 0.0, status="stopped"), make_trial(1.5, 0.7, rule="depth")]
    fits = fit_by_rule(trials, ("compound", "width", "depth"))
    assert fits.keys() == {"all", "width"}  # one model makes no line
    assert fits["width"].slope == pytest.approx(0.1)
    assert fits["all"].points == 4


def test_the_folder_holds_table_front_fit_picture_and_the_chosen_model(tmp_path: Path) -> None:
    trials = [make_trial(0.5, 0.1), make_trial(1.0, 0.2), make_trial(2.0, 0.15, status="stopped")]
    (tmp_path / "lines").write_text("{}\n")
    write_results(tmp_path, trials, rules=("width",), summary={"base": "nano", "train": {}}, journal=tmp_path / "lines")
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert [(row["model"], row["status"], row["AP"]) for row in rows] == [
        ("model 50", "complete", "0.1"),
        ("model 100", "complete", "0.2"),
        ("model 200", "stopped", "0.15"),
    ]
    assert len(list(csv.DictReader((tmp_path / "front.csv").open()))) == 2
    assert json.loads((tmp_path / "fit.json").read_text())["width"]["AP_per_doubling"] == pytest.approx(0.1)
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert load_spec(str(tmp_path / "chosen.yaml")).rows == load_spec("nano").rows


@pytest.mark.parametrize("name", ["demo", "bccd"])
def test_adopting_adds_a_variant_and_changes_no_other_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "experiments" / f"{name}.yaml", "params.yaml")
    before = Path("params.yaml").read_text().replace("path: DATA", "path: .")
    Path("params.yaml").write_text(before)
    folder = tmp_path / "artifacts" / "tune"
    journal = tmp_path / "lines"
    journal.write_text("")
    summary = {"base": "nano", "train": {"epochs": 7}}
    write_results(folder, [make_trial(0.5, 0.1)], rules=("width",), summary=summary, journal=journal)
    message = adopt()
    after = Path("params.yaml").read_text().splitlines()
    added = [line for line in after if line not in before.splitlines()]
    assert len(added) == 1
    assert [line for line in after if line != added[0]] == before.splitlines()
    adopted = load_experiment().variants["tuned-00000032"]
    assert adopted.overrides == {"epochs": 7, "image_size": 160}
    assert adopted.spec.rows == scale_spec(load_spec("nano"), rule="width", width=0.5).rows
    assert "dvc repro" in message
    with pytest.raises(SettingError, match=r"is already in params\.yaml"):
        adopt()


def test_a_search_without_a_result_is_not_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines").write_text("")
    folder, cut = tmp_path / "artifacts" / "tune", make_trial(1.0, None, status="cut")
    write_results(folder, [cut], rules=("width",), summary={"base": "nano"}, journal=tmp_path / "lines")
    with pytest.raises(ArtifactError, match="measured no AP"):
        adopt()


def test_a_variant_is_inserted_after_the_last_one_with_its_indentation() -> None:
    text = "variants:   # what to compare\n    a: {spec: nano}\n    b:\n        spec: nano\n\n# more\ntrain: {}\n"
    changed = insert_variant(text, "c", {"spec": "x.yaml"})
    assert changed == text.replace("        spec: nano\n", "        spec: nano\n    c: {spec: x.yaml}\n")
    assert list(yaml.safe_load(changed)["variants"]) == ["a", "b", "c"]
    last = "variants:\n  a: {spec: nano}"
    assert yaml.safe_load(insert_variant(last, "c", {"spec": "x"}))["variants"]["c"] == {"spec": "x"}
    with pytest.raises(SettingError, match=r"add this variant by hand: c: \{spec: x\.yaml\}"):
        insert_variant("variants: {a: {spec: nano}}\n", "c", {"spec": "x.yaml"})


def test_the_messages_state_the_results_with_their_uncertainty() -> None:
    trials = [make_trial(cost, AP) for cost, AP in ((1.0, 0.1), (2.0, 0.25), (4.0, 0.3))]
    trials.append(make_trial(0.5, None, status="cut"))
    lines = list(result_lines(trials, fits=fit_by_rule(trials, ("width",)), importance={}, used="4 of 4 trials"))
    assert lines[0] == "4 trials (3 complete, 1 cut); 4 of 4 trials used"
    assert lines[2] == "AP per doubling of GFLOPs, width: +0.100 +- 0.029 (3 models)"
    assert lines[-1] == "best: model 400, AP 0.300, 4 GFLOPs"
    assert "AP -" in trial_line(trials[-1], ended=4, used="")
