"""Whether a store answers, remembered, so that one that does not costs one wait and one line."""

from __future__ import annotations

import logging
import re
import time
from functools import cache
from typing import Literal, final

from yolov7.errors import one_line

_log = logging.getLogger(__name__)
Verdict = Literal["away", "unknown user", "denied", "refused"]

_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 900.0  # seconds without another try after a failure
_LAST_CHANCE = 10.0  # seconds, where it is now or in another command
_OUTAGES = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "IO_ERROR"}

_MESSAGES: dict[Verdict, str] = {
    "away": "%s is away; what is recorded waits in runs/.tracking (%s)",
    "unknown user": "%s does not know this user: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; "
    "what is recorded waits in runs/.tracking (%s)",
    "denied": "%s does not let this user write: ask its administrator; what is recorded waits in runs/.tracking (%s)",
    "refused": "%s did not take a record (%s)",
}


@cache
def reach_of(name: str) -> Reach:
    """One for each store in a process, whoever asks: what one run waited for, the next need not."""
    return Reach(name)


@final
class Reach:
    """After a failure nothing is tried for a minute, then two, at most fifteen; warns once of each kind."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pause = _FIRST_PAUSE
        self._failed = self._until = 0.0
        self._told: set[str] = set()

    def is_paused(self, *, last_chance: bool = False) -> bool:
        """Whether it is too early for another try; less so where there will be no other for long."""
        return time.monotonic() < (min(self._until, self._failed + _LAST_CHANCE) if last_chance else self._until)

    def failed(self, error: Exception) -> bool:
        """Tells of a failure; whether nothing else should be tried now: the store is away, or lets nobody in."""
        kind = verdict(error)
        self._warn_once(str(error)[:80] if kind == "refused" else kind, _MESSAGES[kind], error)
        if kind in ("denied", "refused"):
            return False
        self._failed = time.monotonic()
        self._until = self._failed + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return True

    def answered(self) -> None:
        """All is well."""
        self._pause, self._until = _FIRST_PAUSE, 0.0

    def _warn_once(self, kind: str, message: str, error: Exception) -> None:
        level = logging.DEBUG if kind in self._told else logging.WARNING
        self._told.add(kind)
        _log.log(level, message, self._name, _reason(error))


def _reason(error: BaseException) -> str:
    """What is at the bottom of a failure, in one line and without the password of an address."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    text = re.sub(r"//[^/@\s]+@", "//", f"{type(error).__name__}: {error}")
    return one_line(text, limit=160)


def verdict(error: Exception) -> Verdict:
    """What a failure says of a store: no answer, nobody is let in, not to this run, or that the record is wrong."""
    code = getattr(error, "error_code", None)  # MLflow's
    status = getattr(getattr(error, "response", None), "status_code", None)  # of the way that files go
    if code in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED") or status == 401:
        return "unknown user"
    if code == "PERMISSION_DENIED" or status == 403:
        return "denied"
    if status is not None and 400 <= status < 500 and status not in (408, 429):
        return "refused"
    if code is not None:
        return "away" if code in _OUTAGES else "refused"
    database = type(error).__module__.partition(".")[0] in ("sqlalchemy", "sqlite3")
    outage = database or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError))
    return "away" if outage else "refused"
