"""`yolov7 tune` as a user runs it, with Ray: budgets, a kill, SIGTERM, and adoption. Each test takes minutes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.integration.project import BIN, ROOT, SMALL, Project

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {
    **SMALL,
    "data": {"path": "yolov7/data/synthetic", "synthetic": {"train_images": 16, "val_images": 8, "image_size": 64}},
    "variants": {"nano": {"spec": "nano"}},
    "train": {"epochs": 3, "batch_size": 8, "image_size": 64},
    "tune": {"budget": "7trials", "strata": 2, "candidates": 4},
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "project", git=False)
    (made.folder / "tune").mkdir()
    (made.folder / "tune" / "dvc.yaml").write_text((ROOT / "tune" / "dvc.yaml").read_text())
    made.write(TINY)
    made.run("yolov7", "prepare")
    return made


def events(project: Project) -> list[dict[str, Any]]:
    folders = (project.folder / "runs/.search", project.folder / "artifacts/tune")
    path = next(folder / "journal.jsonl" for folder in folders if (folder / "journal.jsonl").is_file())
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def table(project: Project) -> list[dict[str, str]]:
    return list(csv.DictReader((project.folder / "artifacts/tune/trials.csv").open()))


def test_a_search_ends_in_a_variant_that_the_pipeline_trains(project: Project) -> None:
    output = project.run("dvc", "repro", "tune/dvc.yaml")
    assert "about 7 trials of 3 epochs" in output
    assert "yolov7 tune --adopt" in output
    rows = table(project)
    assert len({row["trial"] for row in rows}) == len(rows)
    by_rule = Counter(rule for row in rows for rule in row["rules"].split())
    assert all(by_rule[rule] >= 2 for rule in ("compound", "width", "depth"))
    assert not (project.folder / "runs/.search").exists()
    project.run("yolov7", "tune", "--adopt")
    adopted = next(
        name for name in yaml.safe_load((project.folder / "params.yaml").read_text())["variants"] if "-" in name
    )
    ran = project.repro()
    assert f"train@{adopted}-0" in ran
    assert "tune" not in " ".join(stage for stage in ran if "@" not in stage)
    assert adopted in (project.folder / "artifacts/tables/summary.txt").read_text()


def test_a_killed_search_continues_and_loses_no_trial(project: Project) -> None:
    """The search is one for settings; the one for a model uses the same driver and journal."""
    command = [str(BIN / "yolov7"), "tune", "--space", "train", "--budget", "5trials"]
    environment = os.environ | {"PYTHONPATH": str(project.folder)}
    process = subprocess.Popen(command, cwd=project.folder, env=environment, stdout=subprocess.DEVNULL)
    journal = project.folder / "runs/.search/journal.jsonl"
    until = time.monotonic() + 300
    while not (journal.is_file() and '"end"' in journal.read_text()):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = events(project)
    refused = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    resume = ["tune", "--space", "train", "--budget", "5trials", "--resume"]
    assert f"continue it with `yolov7 {' '.join(resume)}`" in refused.stderr
    project.run("yolov7", *resume)
    after = events(project)
    assert after[: len(before)] == before
    for kind in ("start", "end"):
        counts = Counter(event["trial"] for event in after if event["event"] == kind)
        assert len(counts) == 5
        assert set(counts.values()) == {1}
    sampled = {event["trial"]: event["settings"] for event in after if event["event"] == "start"}
    rows = table(project)
    for row in rows:
        assert row["status"] in ("complete", "stopped")
        assert row["read_back"] == "True"
        assert {key: float(row[key]) for key in sampled[row["trial"]]} == sampled[row["trial"]]
    assert [row["is_stated"] for row in rows] == ["True"] + ["False"] * 4
    assert len({row["optim.lr0"] for row in rows}) > 1
    assert project.json("tune/tune.json")["chosen"] in sampled


def test_sigterm_leaves_checkpoints_and_no_process_of_ray(project: Project) -> None:
    project.write({**TINY, "train": {**TINY["train"], "epochs": 60}})
    mark = uuid.uuid4().hex  # in the environment of the command and of all processes that it starts
    process = subprocess.Popen(
        [str(BIN / "yolov7"), "tune", "--budget", "5trials"],
        cwd=project.folder,
        env=os.environ | {"PYTHONPATH": str(project.folder), "TUNE_TEST_MARK": mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    search = project.folder / "runs/.search"
    until = time.monotonic() + 300
    while not any(path.stat().st_size for path in search.glob("trials/*/epochs.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.2)
    assert len(marked_processes(mark)) > 1
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1].startswith("yolov7: interrupted")
    assert "services.py" not in errors  # Ray's complaint about a second cluster that it starts and loses
    assert not marked_processes(mark)
    assert not any(event["event"] == "end" for event in events(project))
    assert all(list(record.parent.glob("checkpoint-*.pt")) for record in search.glob("trials/*/epochs.jsonl"))
    assert not list(search.glob("trials/*/weights.safetensors"))  # trials stopped at once instead of training on


def marked_processes(mark: str) -> list[str]:
    """The command lines of living processes whose environment has the mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("TUNE_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


@pytest.mark.parametrize("budget", ["75s", "1e10flop"])
def test_a_budget_is_kept(project: Project, budget: str) -> None:
    began = time.monotonic()
    project.run("yolov7", "tune", "--budget", budget)
    seconds = time.monotonic() - began
    summary = project.json("tune/tune.json")
    if budget.endswith("s"):
        assert seconds < 75 * 1.05 + 2  # Python's own start and end are not part of the search
    else:
        assert 0 < summary["spent"] <= 1e10 * 1.001
        assert summary["spent"] == pytest.approx(sum(float(row["training_flop"]) for row in table(project)))
