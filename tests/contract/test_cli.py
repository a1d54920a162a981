"""The command line: help, one line with exit code 2 for mistakes, a traceback with exit code 1 for bugs."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from pipeline.cli import main as cli
from yolov7.errors import DataError, SettingError, TrainingError

ROOT = Path(__file__).parents[2]
YOLOV7 = Path(sys.executable).with_name("yolov7")
GOOD = {"variants": {"nano": {"spec": "nano"}}}
COMMANDS: dict[str, Any] = get_command(cli.app).commands  # type: ignore[attr-defined]


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
        "import sys; from pipeline.cli import main as cli; "
        "print([m for m in ('torch', 'mlflow', 'ray', 'pydantic', 'cv2', 'numpy', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ctrl_c_ends_a_command_in_one_line() -> None:
    code = "import pipeline.cli.main as c; c.app.command()(c.interrupt); c.main()"
    interrupt = "import pipeline.cli.main as c\ndef interrupt(): raise KeyboardInterrupt\nc.interrupt = interrupt\n"
    command = [sys.executable, "-c", interrupt + code, "interrupt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "yolov7: interrupted\n")


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
        ({**GOOD, "seeds": [1, 1]}, "seeds=[1, 1] must be one or more different numbers"),
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


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("train@a-b-7", r"^seed 7 is not in params\.yaml"),
        ("me@work/dvc.yaml:train@a-b-7", r"^seed 7 is not in params\.yaml"),
        ("train@b-0", r"^variant 'b' is not in params\.yaml; it has: a-b$"),
        ("train@a-b-x", r"^variant 'train@a-b-x' is not in params\.yaml; it has: a-b$"),
    ],
)
def test_the_name_of_a_dvc_stage_is_a_variant_and_a_seed(
    stage: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump({"variants": {"a-b": {"spec": "nano"}}}))
    with pytest.raises(SettingError, match=expected):
        CliRunner().invoke(cli.app, ["train", stage], catch_exceptions=False)


def test_records_are_uploaded_although_a_spec_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump({"variants": {"mine": {"spec": "missing.yaml"}}}))
    assert "nothing is queued" in CliRunner().invoke(cli.app, ["sync"], catch_exceptions=False).output


def test_an_unknown_spec_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"variants": {"a": {"spec": "yolov7-tini"}}}))
    assert "did you mean 'yolov7-tiny'" in fails_in_one_line(run(tmp_path, "prepare"))


def test_missing_data_are_one_line(tmp_path: Path) -> None:
    params = {**GOOD, "data": {"format": "voc", "path": "no such folder"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert "no such folder" in fails_in_one_line(run(tmp_path, "prepare"))


@pytest.mark.parametrize("stage", ["train", "reparam", "evaluate", "benchmark"])
def test_a_stage_names_the_one_that_must_run_before(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(GOOD))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["yolov7", stage])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "`yolov7 prepare`" in capsys.readouterr().err


def test_models_are_listed_as_json() -> None:
    listed = CliRunner().invoke(cli.app, ["models", "--json"])
    models = {row["name"]: row for row in json.loads(listed.output)}
    assert models["yolov7"]["params"] == 36905341
    assert models["yolov7-tiny"]["strides"] == [8, 16, 32]


def end_of_main(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Return the exit code and the text on stderr if a command raises this error."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(str(end.value.code)), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SettingError("seed=-1 must be positive"), "seed=-1 must be positive"),
        (DataError("a.jpg has\ntwo lines"), "a.jpg has two lines"),
        (TrainingError("the loss is not finite"), "the loss is not finite"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.yaml"), "No such file"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a.yaml"), "Is a directory"),
        (PermissionError(errno.EACCES, "Permission denied", "a.yaml"), "a.yaml: Permission denied; "),
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (MemoryError(), "out of memory: "),
    ],
)
def test_an_error_that_users_can_correct_is_one_line(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = end_of_main(error, monkeypatch, capsys)
    assert code == 2
    assert text.startswith("yolov7: ")
    assert text.count("\n") == 1
    assert expected in text


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shapes (2, 3) and (4, 5) differ"),
        RuntimeError("size mismatch"),
        KeyError("fp16"),
        AssertionError(),
        FileNotFoundError("without a file name"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ],
)
def test_a_bug_shows_its_traceback_and_where_to_report_it(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = end_of_main(error, monkeypatch, capsys)
    assert code == 1
    assert text.startswith("Traceback (most recent call last):\n")
    assert "raise error\n" in text
    last = text.splitlines()[-1]
    assert last.startswith("yolov7: this is a bug in yolov7-pipeline ")
    assert "please report it " in last


def test_the_environment_asks_for_the_traceback_of_any_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise SettingError("seed=-1 must be positive")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setenv("YOLOV7_TRACEBACK", "1")
    with pytest.raises(SettingError):
        cli.main()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train", "continue from the last checkpoint"),
        ("tune", "run the same command with --resume"),
        ("models", "yolov7: interrupted\n"),
    ],
)
def test_ctrl_c_says_how_to_continue_if_that_is_possible(
    command: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["yolov7", command])
    code, text = end_of_main(KeyboardInterrupt(), monkeypatch, capsys)
    assert code == 130
    assert expected in text


def test_help_has_short_options_and_is_not_cut_off() -> None:
    shown = CliRunner().invoke(cli.app, ["-h"])
    assert shown.exit_code == 0
    assert "..." not in shown.output.replace("[ARGS]...", "")
    assert CliRunner().invoke(cli.app, ["--version"]).output.startswith("yolov7-pipeline ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text_that_is_a_sentence(name: str) -> None:
    for parameter in COMMANDS[name].params:
        text = str(getattr(parameter, "help", ""))
        assert text[:1].isupper() or text[:1] == "`", (name, parameter.name)
        assert text.endswith("."), (name, parameter.name)


def test_a_terminal_without_unicode_shows_escapes(tmp_path: Path) -> None:
    summary = tmp_path / "artifacts/tables/summary.txt"
    summary.parent.mkdir(parents=True)
    summary.write_text("nano 0.550 ±0.071", encoding="utf-8")
    shown = run(tmp_path, "tables", "--show", PYTHONIOENCODING="ascii")
    assert shown.returncode == 0, shown.stderr
    assert "nano 0.550 \\xb10.071" in shown.stdout
