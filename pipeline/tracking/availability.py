"""Remember whether a tracking store answers, so that one that does not costs one wait and one line."""

from __future__ import annotations

import logging
import time
from functools import cache
from typing import Literal, final

from pipeline.tracking.addresses import redact
from yolov7.errors import ArtifactError, one_line

_log = logging.getLogger(__name__)
Failure = Literal[
    "unreachable", "unexpected answer", "unknown user", "denied", "rejected", "other schema", "unusable database"
]

_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 900.0  # seconds without another attempt after a failure
_LAST_ATTEMPT = 10.0  # seconds after a failure, where this is the last opportunity to send
_OUTAGE_CODES = {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
_UNEXPECTED_ANSWER = "API request to endpoint"  # begins MLflow's message where an answer is not JSON of MLflow
_WAITS = "records are queued in runs/.tracking"

_MESSAGES: dict[Failure, str] = {
    "unreachable": f"%s is unreachable; {_WAITS} (%s)",
    "unexpected answer": f"%s gives answers that do not come from MLflow or cannot be used; {_WAITS} (%s)",
    "unknown user": "%s does not know this user; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; "
    f"{_WAITS} (%s)",
    "denied": f"%s does not allow this user to write; ask its administrator for permission; {_WAITS} (%s)",
    "rejected": "%s rejected the content of a record, which is not tracked (%s)",
    "other schema": f"%s has the database schema of another MLflow version; %s; {_WAITS}",
    "unusable database": f"%s cannot be used: %s; {_WAITS}",
}


class UnexpectedAnswerError(Exception):
    """An answer of a store that MLflow's own server would not give, so that it says nothing about a record."""


class OtherSchemaError(Exception):
    """A database that another version of MLflow made; the message names the remedy."""


@cache
def availability_of(name: str) -> Availability:
    """Return the one object per store and process, so that all runs share the result of one wait."""
    return Availability(name)


@final
class Availability:
    """Pause for one minute after a failure, then two, at most fifteen; warn once about each kind of failure."""

    def __init__(self, name: str) -> None:
        """Start without a pause.

        Args:
            name: What the messages call the store, such as `MLflow at http://localhost:5000`.
        """
        self._name = name
        self._pause = _FIRST_PAUSE
        self._failed_at = self._until = 0.0
        self._warned: set[str] = set()

    def is_paused(self, *, last_chance: bool = False) -> bool:
        """Return whether it is too early for another attempt.

        Args:
            last_chance: Whether there will be no other attempt for long; the pause is then at most ten seconds.
        """
        until = min(self._until, self._failed_at + _LAST_ATTEMPT) if last_chance else self._until
        return time.monotonic() < until

    def record_failure(self, error: Exception) -> Failure:
        """Warn about a failure, and pause unless it concerns only one record or one run.

        Args:
            error: What was raised while a record was sent.

        Returns:
            The kind of failure.
        """
        failure = classify(error)
        reason = _reason(error)
        self._warn_once(reason[:80] if failure == "rejected" else failure, _MESSAGES[failure], reason)
        if failure not in ("denied", "rejected"):
            self._failed_at = time.monotonic()
            self._until = self._failed_at + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return failure

    def record_success(self) -> None:
        """End the pause."""
        self._pause, self._until = _FIRST_PAUSE, 0.0

    def _warn_once(self, kind: str, message: str, reason: str) -> None:
        level = logging.DEBUG if kind in self._warned else logging.WARNING
        self._warned.add(kind)
        _log.log(level, message, self._name, reason)


def classify(error: Exception) -> Failure:
    """Return what a failure says about a store.

    Only MLflow itself can reject a record for its content, with INVALID_PARAMETER_VALUE. A proxy, an ingress or another
    program in front of it can give any other answer, which says nothing about the record.

    Args:
        error: What was raised while a record was sent.

    Returns:
        "rejected" only if the same record would be rejected again by any working store.
    """
    if isinstance(error, OtherSchemaError):
        return "other schema"
    if isinstance(error, ArtifactError):
        return "unusable database"
    code = getattr(error, "error_code", None)  # of MLflow's exceptions
    status = getattr(getattr(error, "response", None), "status_code", None)  # of uploads of files
    if code in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED") or status == 401:
        return "unknown user"
    if code == "PERMISSION_DENIED" or status == 403:
        return "denied"
    if code == "INVALID_PARAMETER_VALUE" and _UNEXPECTED_ANSWER not in str(error):
        return "rejected"
    return "unreachable" if _is_outage(error, code, status) else "unexpected answer"


def _is_outage(error: Exception, code: str | None, status: int | None) -> bool:
    if status is not None:
        return status >= 500 or status in (408, 429)
    if code is not None:
        internal = code == "INTERNAL_ERROR" and "was successful" not in str(error)
        return internal or code in _OUTAGE_CODES
    is_database = type(error).__module__.partition(".")[0] in ("sqlalchemy", "sqlite3")
    return is_database or (isinstance(error, OSError) and not isinstance(error, (FileNotFoundError, ValueError)))


def _reason(error: BaseException) -> str:
    """Return the innermost cause of a failure in one line without passwords."""
    if isinstance(error, (ArtifactError, OtherSchemaError)):
        return redact(one_line(error))
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return one_line(redact(f"{type(error).__name__}: {error}"), limit=160)
