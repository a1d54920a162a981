"""Whether a store answers, remembered, so that one that does not costs one wait and one line."""

from __future__ import annotations

import logging
import time
from functools import cache
from typing import final

_log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 900.0  # seconds without another try after a failure
_OUTAGES = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "IO_ERROR"}


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
        self._until = 0.0
        self._told: set[str] = set()

    @property
    def paused(self) -> bool:
        """Whether it is too early for another try."""
        return time.monotonic() < self._until

    def failed(self, error: Exception) -> None:
        """The store did not answer."""
        self._until = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._warn_once("outage", "%s cannot be used; the work goes on without tracking (%s)", error)

    def refused(self, error: Exception) -> None:
        """The store answered that the record is wrong."""
        self._warn_once(str(error)[:80], "%s did not take a record (%s)", error)

    def answered(self) -> None:
        """All is well."""
        self._pause = _FIRST_PAUSE

    def _warn_once(self, kind: str, message: str, error: Exception) -> None:
        level = logging.DEBUG if kind in self._told else logging.WARNING
        self._told.add(kind)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        _log.log(level, message, self._name, reason if len(reason) <= 160 else reason[:159] + "…")


def is_outage(error: Exception) -> bool:
    """Whether a store did not answer, rather than answering that a record is wrong."""
    code = getattr(error, "error_code", None)  # MLflow's
    if code is not None:
        return code in _OUTAGES
    database = type(error).__module__.partition(".")[0] in ("sqlalchemy", "sqlite3")
    return database or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError))
