"""Send the queued records to the store in order, and remove those that the store has."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, final

from pipeline.tracking.addresses import StoreAddress, redact
from pipeline.tracking.availability import Availability, Failure, availability_of
from pipeline.tracking.outbox import Outbox, WaitingRecord, describe
from pipeline.tracking.records import RecordSubject, TrackingRecord, is_large
from pipeline.tracking.store import TrackingStore
from pipeline.tracking.writer import RecordWriter
from yolov7.errors import one_line

_log = logging.getLogger(__name__)
_PATIENCE, _LAST_PATIENCE = 2.0, 30.0  # seconds, while another process sends
_Part = Literal["all", "files", "model"]
_Outcome = Literal["sent", "rejected", "skip run", "skip part", "stop files", "stop"]


@final
class Sender:
    """Between the outbox and one store. Nothing here raises."""

    def __init__(self, address: StoreAddress, outbox: Outbox, *, say: Callable[[str], None]) -> None:
        """Connect an outbox with a store.

        Args:
            address: The store.
            outbox: What waits.
            say: Receives what the user should know, in one line.
        """
        self._server, self._outbox, self._say = address.name, outbox, say
        self._small = availability_of(f"MLflow at {self._server}")
        self._large = availability_of(f"MLflow's artifact store at {self._server}")
        self._writer = RecordWriter(TrackingStore(address.uri))

    def waiting(self) -> str:
        """Return what is queued for this store in words; an empty string if nothing is."""
        try:
            return describe(self._outbox.waiting(self._server))
        except OSError as error:
            _log.warning("runs/.tracking cannot be read (%s)", one_line(error, limit=160))
            return ""

    def send(self, *, last_chance: bool = False) -> None:
        """Send everything that is queued, including what earlier commands left.

        Records are removed one by one, each after the store has it. Nothing is lost if the process is killed here, and
        nothing is doubled, because writing a record again changes nothing.

        Args:
            last_chance: Whether there will be no other attempt for long. A store that did not answer a moment ago is
                then asked again.
        """
        if self._small.is_paused(last_chance=last_chance):
            return
        try:
            with self._outbox.sole_sender(patience=_LAST_PATIENCE if last_chance else _PATIENCE) as alone:
                if alone:
                    self._send_all(with_files=not self._large.is_paused(last_chance=last_chance))
        except Exception as error:  # of the disk; a training must not end because of it
            _log.warning("runs/.tracking cannot be used (%s)", redact(one_line(error, limit=160)))

    def _send_all(self, *, with_files: bool) -> None:
        skipped: set[tuple[RecordSubject, _Part]] = set()  # later records of these have to wait for an earlier one
        for waiting in self._outbox.waiting(self._server, with_files=with_files):
            subject, part = waiting.record.subject, _part(waiting.record)
            if (subject, "all") in skipped or (subject, part) in skipped or (part != "all" and not with_files):
                continue
            outcome = self._send_one(waiting)
            if outcome == "sent":
                self._outbox.remove(waiting)
            elif outcome == "rejected":
                _log.warning("the rejected record is kept in %s", self._outbox.put_aside(waiting))
            elif outcome == "skip run":
                skipped.add((subject, "all"))
            elif outcome == "skip part":
                skipped.add((subject, part))
            elif outcome == "stop files":
                with_files = False
            else:
                return

    def _send_one(self, waiting: WaitingRecord) -> _Outcome:
        record = waiting.record
        try:
            where = self._writer.open(record)
        except Exception as error:
            failure = self._small.record_failure(error)
            return "skip run" if _concerns_one_run(failure) or failure == "rejected" else "stop"
        availability = self._large if is_large(record.kind) else self._small
        try:
            said = self._writer.write(waiting, where)
        except Exception as error:
            self._writer.forget(record.subject)
            return self._after_failure(availability.record_failure(error), availability)
        availability.record_success()
        if said:
            self._say(said)
        return "sent"

    def _after_failure(self, failure: Failure, availability: Availability) -> _Outcome:
        if failure == "rejected":
            return "rejected"
        if availability is self._large:
            return "skip part" if _concerns_one_run(failure) else "stop files"
        return "skip run" if _concerns_one_run(failure) else "stop"


def _part(record: TrackingRecord) -> _Part:
    """Return which records of a run depend on each other: all small ones, and a model with its evaluation."""
    if not is_large(record.kind):
        return "all"
    return "files" if record.kind == "files" else "model"


def _concerns_one_run(failure: Failure) -> bool:
    """Return whether other runs may still be sent: an answer came, and at once."""
    return failure in ("denied", "unexpected answer")
