"""Test where the tracking store is, and how its address is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.tracking.addresses import project_folder, redact, sqlite_file, store_address, without_secrets


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:secret@example.test:5000/mlflow", "http://example.test:5000/mlflow"),
        ("https://secret@example.test", "https://example.test"),
        ("postgresql://me:se/cr?et@example.test/db", "postgresql://example.test/db"),
        ("postgresql://me:se@cr@et@example.test/db", "postgresql://example.test/db"),
        ("postgresql://me:sec#ret@example.test/db", "postgresql://example.test/db"),
        ("postgresql://example.test/db?user=me&password=secret", "postgresql://example.test/db?user=me"),
        ("postgresql:///db?host=/run&sslpassword=secret", "postgresql:///db?host=/run"),
        ("mssql+pyodbc:///?odbc_connect=Driver%3Dx%3BPWD%3Dsecret", "mssql+pyodbc:///"),
        ("s3://KEY:sec/ret@bucket/folder", "s3://bucket/folder"),
        ("sqlite:////a/b@c.db", "sqlite:////a/b@c.db"),
        ("sqlite:///mlflow.db?timeout=30", "sqlite:///mlflow.db?timeout=30"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("databricks", "databricks"),
    ],
)
def test_an_address_is_shown_without_secrets(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown


def test_messages_of_libraries_are_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hun@ter22@example.test/db?sslpassword=abcdef")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    for text in (
        "could not translate host name ter22@example.test",
        "cannot connect to postgresql://me:hun@ter22@example.test/db?sslpassword=abcdef at all",
        "wrong key abcdef",
        "denied for 'correct horse'",
        "s3://KEY:ABCDEFGH@bucket is missing",
    ):
        shown = redact(text)
        assert not any(secret in shown for secret in ("ter22", "abcdef", "correct horse", "ABCDEFGH"))


def test_the_default_store_has_the_same_name_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    address = store_address()
    assert sqlite_file(address.uri) == tmp_path / "mlflow.db"
    assert address.name == "sqlite:///mlflow.db"


@pytest.mark.parametrize(
    "below", [".dvc/tmp/exps/standalone/tmpab12", ".dvc/tmp/exps/tmpxyz/sub", ".dvc/tmp/exps/tmpq"]
)
def test_a_temporary_copy_of_dvc_uses_the_store_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    project = tmp_path / "sub" if below.endswith("/sub") else tmp_path
    (tmp_path / "sub").mkdir()
    (tmp_path / below).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / below)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert project_folder() == project
    assert sqlite_file(store_address().uri) == project / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db?timeout=30")
    file = sqlite_file(store_address().uri)
    assert file is not None
    assert file.resolve() == project / "other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.test")
    assert store_address().uri == "http://example.test"
