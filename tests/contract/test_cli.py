"""What a user meets at the command line: quick help, and mistakes answered in one line with exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
YOLOV7 = Path(sys.executable).with_name("yolov7")
GOOD = {"variants": {"nano": {"spec": "nano"}}}


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [YOLOV7, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | environment,
    )


def fails_in_one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("yolov7: ")
    return lines[0]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline import cli; "
        "print([m for m in ('torch', 'mlflow', 'ray', 'pydantic', 'cv2', 'numpy', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_quick_beside_starting_python() -> None:
    def fastest(command: list[str]) -> float:
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    python = fastest([sys.executable, "-c", "import typer"])
    assert fastest([str(YOLOV7), "--help"]) < 4 * python


def test_ctrl_c_is_one_line_too() -> None:
    code = "import pipeline.cli as c; c.app.command()(c.interrupt); c.main()"
    interrupt = "import pipeline.cli as c\ndef interrupt(): raise KeyboardInterrupt\nc.interrupt = interrupt\n"
    command = [sys.executable, "-c", interrupt + code, "interrupt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "a training goes on from its last checkpoint" in done.stderr


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({**GOOD, "trian": {}}, "trian: unknown key; did you mean 'train'?"),
        ({**GOOD, "train": {"epocs": 3}}, "train.epocs: unknown key; did you mean 'epochs'?"),
        ({**GOOD, "train": {"epochs": "many"}}, "train.epochs: input should be a valid integer"),
        ({**GOOD, "train": {"epochs": 0}}, "train.epochs: input should be greater than or equal to 1, got 0"),
        ({**GOOD, "train": {"optim": {"lr0": float("nan")}}}, "train.optim.lr0: input should be a finite number"),
        ({"variants": {}}, "variants: "),
        ({**GOOD, "data": {"val": None}}, "data.val and data.test are both null, but evaluate needs one of them"),
        ({**GOOD, "data": {"test": "test"}}, "test='test': the synthetic data have no test split"),
        ({**GOOD, "benchmark": {"batch_sizes": [0]}}, "benchmark.batch_sizes.0: input should be greater than or equal"),
        ({**GOOD, "seeds": [1, 1]}, "seeds=[1, 1] must be different numbers"),
        ({"variants": {"../x": {"spec": "nano"}}}, "the variant name '../x' must consist of letters"),
        ({"variants": {"a": {"spec": "nano", "train": {"epoch": 1}}}}, "variants.a.train.epoch: unknown key"),
        ({"variants": {"a": {"spec": "nano", "train": {"epochs": -1}}}}, "variants.a.train.epochs: input should be"),
    ],
)
def test_a_mistake_in_params_is_one_line(params: object, expected: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert expected in fails_in_one_line(run(tmp_path, "prepare"))


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "\x00", "just text"])
def test_what_is_no_parameter_file_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text)
    assert "params.yaml" in fails_in_one_line(run(tmp_path, "prepare"))


def test_no_params_says_how_to_get_them(tmp_path: Path) -> None:
    assert "yolov7 use demo" in fails_in_one_line(run(tmp_path, "prepare"))


def test_an_unknown_variant_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(GOOD))
    assert "variant 'nnao' is not in params.yaml; it has: nano" in fails_in_one_line(run(tmp_path, "train", "nnao"))


def test_an_unknown_seed_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(GOOD))
    assert "it has the seeds [0]" in fails_in_one_line(run(tmp_path, "train", "nano", "--seed", "7"))


def test_an_unknown_spec_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"variants": {"a": {"spec": "yolov7-tini"}}}))
    assert "did you mean 'yolov7-tiny'" in fails_in_one_line(run(tmp_path, "prepare"))


def test_missing_data_are_one_line(tmp_path: Path) -> None:
    params = {**GOOD, "data": {"format": "voc", "path": "no such folder"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert "no such folder" in fails_in_one_line(run(tmp_path, "prepare"))


def test_a_stage_before_its_time_names_the_one_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(GOOD))
    for stage, missing in (
        ("train", "prepare"),
        ("reparam", "prepare"),
        ("evaluate", "prepare"),
        ("benchmark", "prepare"),
    ):
        assert f"yolov7 {missing}" in fails_in_one_line(run(tmp_path, stage)), stage


def test_models_are_listed_as_json(tmp_path: Path) -> None:
    done = run(tmp_path, "models", "--json")
    models = {row["name"]: row for row in yaml.safe_load(done.stdout)}
    assert models["yolov7"]["params"] == 36905341
    assert models["yolov7-tiny"]["strides"] == [8, 16, 32]
