"""The folder of a run is removed once its result is safe, and no other run's folder is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.artifacts.files import run_folder, stage_folder, write_json
from pipeline.experiment import ResolvedVariant, parse_experiment
from pipeline.stages.train import forget_run
from tests.artifacts import train_summary


@pytest.fixture
def variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResolvedVariant:
    monkeypatch.chdir(tmp_path)
    write_json(stage_folder("train", "nano", 0) / "train.json", train_summary("nano", 0, 0.5))
    return parse_experiment({"variants": {"nano": {"spec": "nano"}}}).variant("nano")


def make_run(*, fingerprint: str, finished: bool) -> Path:
    folder = run_folder("nano", 0)
    folder.mkdir(parents=True)
    (folder / "fingerprint").write_text(fingerprint)
    (folder / ("weights.safetensors" if finished else "checkpoint-000000001.pt")).write_bytes(b"tensors")
    return folder


def test_the_finished_run_whose_result_is_written_is_removed(variant: ResolvedVariant) -> None:
    folder = make_run(fingerprint="nano0", finished=True)
    forget_run(variant, seed=0)
    assert not list(folder.parent.iterdir())


@pytest.mark.parametrize(("fingerprint", "finished"), [("nano0", False), ("other", False), ("other", True)])
def test_a_run_that_goes_on_or_has_other_settings_stays(
    variant: ResolvedVariant, fingerprint: str, finished: bool
) -> None:
    folder = make_run(fingerprint=fingerprint, finished=finished)
    forget_run(variant, seed=0)
    assert len(list(folder.iterdir())) == 2


def test_nothing_is_removed_without_a_run(variant: ResolvedVariant) -> None:
    forget_run(variant, seed=0)
    assert not run_folder("nano", 0).exists()
