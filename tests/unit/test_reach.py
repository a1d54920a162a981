"""What a failure says of a store, and what is told of it."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from pipeline.tracking.reach import Reach, verdict


def refusal(*, code: str | None = None, status: int | None = None) -> Exception:
    error = OSError("http://me:secret@example.test answers no")
    if code:
        error.error_code = code  # type: ignore[attr-defined]
    if status:
        error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionError("refused"), "away"),
        (refusal(code="INTERNAL_ERROR"), "away"),
        (refusal(status=503), "away"),
        (refusal(status=429), "away"),
        (refusal(code="UNAUTHENTICATED"), "unknown user"),
        (refusal(status=401), "unknown user"),
        (refusal(code="PERMISSION_DENIED"), "denied"),
        (refusal(status=403), "denied"),
        (refusal(code="INVALID_PARAMETER_VALUE"), "refused"),
        (refusal(status=413), "refused"),  # a file that is too large will be so tomorrow
        (FileNotFoundError("nowhere"), "refused"),
        (TypeError("ours"), "refused"),
    ],
)
def test_failures_are_told_apart(error: Exception, expected: str) -> None:
    assert verdict(error) == expected


def test_what_is_told_names_the_cause_and_no_password(caplog: pytest.LogCaptureFixture) -> None:
    reach = Reach("MLflow at http://example.test")
    try:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError as cause:
            raise OSError("http://me:secret@example.test does not answer, and so on") from cause
    except OSError as error:
        reach.failed(error)
    reach.failed(refusal())
    reach.failed(refusal(status=401))
    assert "Connection refused" in caplog.messages[0]
    assert "MLFLOW_TRACKING_PASSWORD" in caplog.messages[1]
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 2
    assert "secret" not in caplog.text


def test_a_store_that_is_away_is_left_alone_for_a_while() -> None:
    reach = Reach("a store")
    assert reach.failed(ConnectionError("down"))
    assert reach.is_paused()
    assert reach.is_paused(last_chance=True)
    reach._failed -= 11.0
    assert not reach.is_paused(last_chance=True)
    assert reach.is_paused()
    reach.answered()
    assert not reach.is_paused()
    assert not reach.failed(refusal(code="INVALID_PARAMETER_VALUE"))
    assert not reach.is_paused()
