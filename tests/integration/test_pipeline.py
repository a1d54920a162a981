"""The real pipeline in a folder of its own: real DVC, Ray and MLflow, small data. What reruns, and what is left."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.project import BIN, ROOT, SMALL, Project
from tests.unit.data_files import write_voc

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("a projéct"), git=True)
    ran = project.repro()
    assert ran[0] == "prepare"
    assert ran[-1] == "tables"
    assert len(ran) == 9
    return project


def test_every_stage_left_what_it_promises(project: Project) -> None:
    num_boxes = project.json("prepare/health.json")["splits"]["val"]["boxes"]  # no AP resolves less than one
    for variant in ("nano", "deep"):
        report = project.json(f"reparam/{variant}/0/reparam.json")
        assert report["max_error_float32"] < 1e-4
        assert report["max_error_float64"] < 1e-9
        assert report["parameters_after"] < report["parameters_before"]
        metrics = project.json(f"evaluate/{variant}/0/metrics.json")
        assert abs(metrics["AP"] - metrics["AP_before_reparam"]) <= 1 / num_boxes
        assert (project.folder / f"artifacts/evaluate/{variant}/0/examples.jpg").stat().st_size > 1000
    rows = project.json("benchmark/benchmark.json")["rows"]
    assert {(row["variant"], row["form"]) for row in rows} >= {("nano", "trained"), ("deep", "deployed")}
    page = (project.folder / "artifacts/tables/index.html").read_text()
    assert "deep" in page
    assert not (project.folder / "runs/nano/0").exists()
    assert not list(project.folder.parent.glob("*%*"))  # folders with encoded names


def test_a_second_repro_runs_nothing(project: Project) -> None:
    assert project.repro() == []


def test_a_changed_training_parameter_reruns_its_variant_only(project: Project) -> None:
    changed = SMALL | {"variants": SMALL["variants"] | {"deep": SMALL["variants"]["deep"] | {"train": {"epochs": 2}}}}
    project.write(changed)
    assert project.repro() == ["train@deep-0", "reparam@deep-0", "evaluate@deep-0", "benchmark", "tables"]
    (entry,) = project.json("train/deep/0/train.json")["continued_from"]  # more epochs continue the finished run
    assert entry.endswith("@1")
    project.write(SMALL)
    project.repro()
    assert project.json("train/deep/0/train.json")["continued_from"] == []


def test_changed_evaluation_and_results_of_another_system_train_nothing(project: Project) -> None:
    results = project.folder / "results.json"
    shutil.copyfile(project.folder / "artifacts/evaluate/nano/0/predictions.json", results)
    before = project.json("evaluate/nano/0/metrics.json")
    external = {"other": {"external": {"predictions": str(results), "params": 1.5}}}
    changed = {"nms": {"confidence": 0.01, "iou": 0.6}, "examples": 4}
    project.write(SMALL | {"variants": SMALL["variants"] | external, "evaluate": changed})
    of_other = [f"{stage}@other-0" for stage in ("evaluate", "reparam", "train")]
    assert sorted(project.repro()) == sorted(["benchmark", "evaluate@deep-0", "evaluate@nano-0", *of_other, "tables"])
    assert project.json("evaluate/other/0/metrics.json")["AP"] == before["AP"]
    rows = {row["variant"]: row for row in project.json("tables/tables.json")["summary"]}
    assert (rows["other"]["AP"], rows["other"]["parameters"]) == (before["AP"], 1_500_000)
    assert "other" in current_runs(project)
    project.write(SMALL)
    results.unlink()
    for folder in project.folder.glob("artifacts/*/other"):  # the stage `benchmark` depends on all of artifacts/reparam
        shutil.rmtree(folder)
    project.repro()


def current_runs(project: Project) -> dict[str, Any]:
    """Return the current runs of MLflow by variant."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("yolov7")
    runs = client.search_runs([experiment.experiment_id], filter_string="tags.current = 'yes'")
    return {run.data.tags["variant"]: run for run in runs}


def test_mlflow_holds_one_run_a_variant_with_the_figures_of_all_stages(project: Project) -> None:
    runs = current_runs(project)
    assert set(runs) == {"deep", "nano", "other"}  # `other` is no longer stated, but nothing has replaced its run
    for run in (runs["deep"], runs["nano"]):
        assert {"train/box", "evaluate/AP", "benchmark/fps", "reparam/max_error_float32"} <= set(run.data.metrics)
        assert run.data.params["epochs"] == "1"


README = (ROOT / "README.md").read_text(encoding="utf-8")
NOT_RUN = {  # tests/unit/test_documents.py compares their options with the command line
    "serve": "a server; tests/integration/test_serve.py",
    "ui": "a server; tests/integration/test_web_page.py",
    "tune": "takes long; tests/integration/test_tune.py",
    "weights fetch": "needs the internet; tests/unit/test_published_weights.py",
    "data check FOLDER": "needs a data set; tests/unit/test_data_health.py",
    "new": "needs a data set; tests/unit/test_new_experiment.py",
    "use": "replaces params.yaml; tests/contract/test_experiments.py",
    "import-weights": "needs a file of another implementation; tests/unit/test_interchange.py",
    "export-weights": "needs a file of another implementation; tests/unit/test_interchange.py",
}


def readme_lines(heading: str) -> list[str]:
    """The commands of the shell blocks below a heading of the README, in order, without their comments."""
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def run_readme(project: Project, heading: str) -> dict[str, str]:
    """Run the commands of a section as they are written, with this project's variant `deep` for `nano-deep`."""
    skipped = tuple(f"yolov7 {name}" for name in NOT_RUN)
    lines = [line for line in readme_lines(heading) if not line.startswith(skipped)]
    assert lines
    return {line: project.run(*shlex.split(line.replace("nano-deep", "deep"))) for line in lines}


def test_the_readmes_commands_of_dvc_run_as_they_are_written(project: Project, tmp_path: Path) -> None:
    project.commit("the small run")
    shown = {}
    for line in readme_lines("Work with DVC and MLflow"):
        if line.startswith(
            ("yolov7 ui", "MLFLOW_TRACKING_URI=", "echo", "curl")
        ):  # servers, which have tests of their own
            continue
        shown[line] = project.run(*shlex.split(line.replace("/path/to/storage", str(tmp_path / "store"))))
    assert "AP50" in shown["dvc metrics show"]
    assert list((project.folder / "dvc_plots").rglob("*.png"))
    assert project.run("dvc", "exp", "list", "--name-only").strip()
    assert (tmp_path / "store" / "files").is_dir()
    project.run("git", "checkout", "--", ".")
    project.run("dvc", "checkout")


@pytest.fixture
def image(project: Project) -> Path:
    image = next((project.folder / "artifacts/prepare/synthetic/val").rglob("*.jpg"))
    return Path(shutil.copy(image, project.folder / "image.jpg"))


@pytest.mark.parametrize("heading", ["Variants and settings", "Weights and licences", "Reproduce the paper's tables"])
def test_the_readmes_commands_run_as_they_are_written(project: Project, heading: str) -> None:
    assert all(run_readme(project, heading).values())


def test_the_readmes_commands_use_a_model_as_they_are_written(project: Project, image: Path) -> None:
    first = README.partition("```sh\n")[2].partition("```")[0].partition(" #")[0].strip()
    project.run(*shlex.split(first.replace("nano-deep", "deep")))
    assert (project.folder / "predictions" / image.name).is_file()
    for heading in ("Use a model", "Evaluate anything", "Export and serve"):
        assert all(run_readme(project, heading).values())
    assert (project.folder / "figures/metrics.json").is_file()
    assert (project.folder / "deploy/export.json").is_file()
    project.run("git", "clean", "-dqf")


def test_the_readmes_commands_for_own_images_run_as_they_are_written(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "my images"
    for split in ("train", "val"):
        boxes = {f"{split}{n}": [("cat", 1, 1, 30, 30), ("dog", 5, 5, 40, 38)] for n in range(3)}
        write_voc(folder, boxes, split=split)
    project.commit("before own images")
    shutil.copyfile(project.folder / "params.yaml", project.folder / "experiments" / "small.yaml")  # `use` keeps edits
    for line in readme_lines("Use your own images"):
        end = ["prepare"] if line == "dvc repro" else []  # without the training
        project.run(*shlex.split(line.replace("FOLDER", shlex.quote(str(folder)))), *end)
    assert project.json("prepare/dataset.json")["class_names"] == ["cat", "dog"]
    project.run("git", "reset", "--hard", "--quiet")
    project.run("git", "clean", "-dqf")
    project.run("dvc", "checkout", "--force")


@pytest.mark.usefixtures("image")
def test_the_readmes_python_runs_as_it_is_written(project: Project) -> None:
    code = README.partition("```python\n")[2].partition("```")[0].replace("nano-deep", "deep")
    assert "tensor" in project.run(sys.executable, "-c", code)
    assert (project.folder / "drawn.jpg").is_file()
    project.run("git", "clean", "-dqf")


def test_a_clone_gets_everything_from_a_remote(project: Project, tmp_path: Path) -> None:
    project.run("dvc", "remote", "add", "--local", "--force", "--default", "store", str(tmp_path / "store"))
    project.run("dvc", "push")
    project.commit("pushed")
    clone = tmp_path / "clone"
    project.run("git", "clone", "--quiet", str(project.folder), str(clone))
    project.run("dvc", "--cd", str(clone), "remote", "add", "--default", "store", str(tmp_path / "store"))
    project.run("dvc", "--cd", str(clone), "pull")
    assert (clone / "artifacts/tables/index.html").is_file()
    assert re.findall(r"^(\S+):$", project.run("dvc", "--cd", str(clone), "status"), re.MULTILINE) == ["resolve"]


def test_an_unpacked_archive_works_without_git(tmp_path: Path) -> None:
    archive = Project(tmp_path, git=False)
    assert re.findall(r"Running stage '([^']+)'", archive.run("dvc", "repro", "prepare")) == ["resolve", "prepare"]


def test_a_training_that_finished_before_dvc_recorded_it_is_not_done_again(project: Project) -> None:
    project.write(SMALL | {"train": SMALL["train"] | {"epochs": 2}})
    project.run("yolov7", "resolve")
    project.run("yolov7", "train", "train@nano-0", DVC_STAGE="train@nano-0")  # DVC is killed here
    weights = (project.folder / "artifacts/train/nano/0/weights.safetensors").read_bytes()
    shutil.rmtree(project.folder / "artifacts/train/nano")
    assert "finished before with the same data, settings and code" in project.run("dvc", "repro", "train@nano-0")
    assert (project.folder / "artifacts/train/nano/0/weights.safetensors").read_bytes() == weights
    project.write(SMALL)


def test_two_workers_train_the_same_pipeline(project: Project) -> None:
    project.write(SMALL | {"train": SMALL["train"] | {"epochs": 3}, "ray": {"workers": 2, "cpus_per_worker": 1}})
    project.run("yolov7", "train", "nano")
    summary = project.json("train/nano/0/train.json")
    assert summary["workers"] == 2
    assert summary["epochs"] == 3
    assert "finished before with the same data, settings and code" in project.run("dvc", "repro", "train@nano-0")
    project.write(SMALL)


def test_a_batch_that_workers_cannot_share_is_one_line(project: Project) -> None:
    project.write(SMALL | {"ray": {"workers": 9}})
    done = subprocess.run(
        [BIN / "yolov7", "train", "nano"], cwd=project.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "train.batch_size=8 must be at least ray.workers=9, one image for each worker" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    project.write(SMALL)
