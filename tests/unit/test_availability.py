"""Test what a failure says about a store, and what the user is told."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from pipeline.tracking.availability import (
    Availability,
    OtherSchemaError,
    UnexpectedAnswerError,
    classify,
)
from yolov7.errors import ArtifactError


def refusal(*, code: str | None = None, status: int | None = None, text: str = "no") -> Exception:
    error = OSError(f"http://me:secret@example.test answers {text}")
    if code:
        error.error_code = code  # type: ignore[attr-defined]
    if status:
        error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionError("refused"), "unreachable"),
        (refusal(code="INTERNAL_ERROR"), "unreachable"),
        (refusal(code="TEMPORARILY_UNAVAILABLE"), "unreachable"),
        (refusal(status=503), "unreachable"),
        (refusal(status=429), "unreachable"),
        (refusal(code="UNAUTHENTICATED"), "unknown user"),
        (refusal(status=401), "unknown user"),
        (refusal(code="PERMISSION_DENIED"), "denied"),
        (refusal(status=403), "denied"),
        (refusal(code="INVALID_PARAMETER_VALUE"), "rejected"),
        (refusal(code="INVALID_PARAMETER_VALUE", text="API request to endpoint /x failed"), "unexpected answer"),
        (refusal(code="INTERNAL_ERROR", text="API request to endpoint was successful but"), "unexpected answer"),
        (refusal(code="ABORTED"), "unexpected answer"),
        (refusal(code="BAD_REQUEST"), "unexpected answer"),
        (refusal(code="ENDPOINT_NOT_FOUND"), "unexpected answer"),
        (refusal(code="RESOURCE_DOES_NOT_EXIST"), "unexpected answer"),
        (refusal(status=413), "unexpected answer"),
        (UnexpectedAnswerError("empty"), "unexpected answer"),
        (FileNotFoundError("nowhere"), "unexpected answer"),
        (ValueError("no JSON"), "unexpected answer"),
        (OtherSchemaError("run it"), "other schema"),
        (ArtifactError("mlflow.db is a folder"), "unusable database"),
    ],
)
def test_only_mlflow_itself_can_reject_a_record(error: Exception, expected: str) -> None:
    assert classify(error) == expected


def test_a_warning_names_the_cause_and_no_password(caplog: pytest.LogCaptureFixture) -> None:
    availability = Availability("MLflow at http://example.test")
    try:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError as cause:
            raise OSError("http://me:secret@example.test does not answer, and so on") from cause
    except OSError as error:
        availability.record_failure(error)
    availability.record_failure(refusal())
    availability.record_failure(refusal(status=401))
    assert "is unreachable; records are queued in runs/.tracking" in caplog.messages[0]
    assert "Connection refused" in caplog.messages[0]
    assert "MLFLOW_TRACKING_PASSWORD" in caplog.messages[1]
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 2
    assert "secret" not in caplog.text


def test_a_store_that_does_not_answer_is_not_asked_for_a_while() -> None:
    availability = Availability("a store")
    assert availability.record_failure(ConnectionError("down")) == "unreachable"
    assert availability.is_paused()
    assert availability.is_paused(last_chance=True)
    availability._failed_at -= 11.0
    assert not availability.is_paused(last_chance=True)
    assert availability.is_paused()
    availability.record_success()
    assert not availability.is_paused()
    assert availability.record_failure(refusal(code="INVALID_PARAMETER_VALUE")) == "rejected"
    assert not availability.is_paused()
