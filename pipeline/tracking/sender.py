"""Sends what waits on disk to the store, in order; what the store has is removed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, final

from pipeline.tracking.outbox import Outbox, Waiting, describe
from pipeline.tracking.reach import Reach, reach_of, verdict
from pipeline.tracking.records import Subject, is_large
from pipeline.tracking.store import Store, server_of
from pipeline.tracking.writer import Writer
from yolov7.errors import one_line

_log = logging.getLogger(__name__)
_PATIENCE, _LAST_PATIENCE = 2.0, 30.0  # seconds, while another process sends


@final
class Sender:
    """Between the outbox and one store. Nothing here raises."""

    def __init__(self, uri: str, outbox: Outbox, *, say: Callable[[str], None]) -> None:
        self._server, self._outbox, self._say = server_of(uri), outbox, say
        self._small = reach_of(f"MLflow at {self._server}")
        self._large = reach_of(f"MLflow's artifacts at {self._server}")
        self._writer = Writer(Store(uri))

    def waiting(self) -> str:
        """What waits for this store, in words; empty: nothing does."""
        return describe(self._outbox.waiting(self._server))

    def send(self, *, last_chance: bool = False) -> None:
        """Sends all that waits, also what earlier commands left; a store out of reach is not asked each time.

        Records are removed one by one, each after the store has it: to be killed here loses nothing, and as writing one
        again changes nothing, nothing comes twice.
        """
        if self._small.is_paused(last_chance=last_chance):
            return
        try:
            with self._outbox.sole_sender(patience=_LAST_PATIENCE if last_chance else _PATIENCE) as alone:
                if alone:
                    self._send_all(with_files=not self._large.is_paused(last_chance=last_chance))
        except Exception as error:  # of the disk; whatever it is, a training run must not end by it
            _log.warning("runs/.tracking cannot be used (%s)", one_line(error, limit=160))

    def _send_all(self, *, with_files: bool) -> None:
        shut: set[Subject] = set()  # runs that cannot be had or written to, while the store answers
        for waiting in self._outbox.waiting(self._server, with_files=with_files):
            large = is_large(waiting.record.kind)
            if waiting.record.subject in shut or (large and not with_files):
                continue
            outcome = self._send_one(waiting, self._large if large else self._small)
            if outcome == "done":
                self._outbox.remove(waiting)
            elif outcome == "shut":
                shut.add(waiting.record.subject)
            elif outcome == "files away":
                with_files = False
            else:
                return

    def _send_one(self, waiting: Waiting, reach: Reach) -> Literal["done", "shut", "files away", "away"]:
        try:
            where = self._writer.open(waiting.record)
        except Exception as error:
            return "away" if self._small.failed(error) else "shut"
        try:
            said = self._writer.write(waiting, where)
        except Exception as error:
            if reach.failed(error):
                return "files away" if reach is self._large else "away"
            return "shut" if verdict(error) == "denied" else "done"  # what is wrong now is wrong later too
        reach.answered()
        if said:
            self._say(said)
        return "done"
