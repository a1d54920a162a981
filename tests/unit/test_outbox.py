"""Records on disk: in order, whole, with their files as they were; and what of them is told."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking.outbox import Outbox, Waiting, describe
from pipeline.tracking.records import Kind, Record, RunKey, Subject
from pipeline.tracking.store import server_of

SERVER = "http://example.test"


def make_record(number: int, kind: Kind = "metrics", *, server: str = SERVER, **content: Any) -> Record:
    subject = Subject(server=server, experiment="e", key=RunKey("nano", 0, "f"))
    return Record(subject=subject, kind=kind, content=content or {"values": {"AP": 0.5}, "step": number}, time=number)


def waiting(outbox: Outbox) -> list[Waiting]:
    return list(outbox.waiting(SERVER))


def test_records_come_in_the_order_in_which_they_went(tmp_path: Path) -> None:
    for number in range(12):
        Outbox(tmp_path).add(make_record(number))
    outbox = Outbox(tmp_path)
    assert [one.record for one in waiting(outbox)] == [make_record(number) for number in range(12)]
    for one in waiting(outbox)[:11]:
        outbox.remove(one)
    outbox.add(make_record(12))
    assert [one.record.time for one in waiting(outbox)] == [11, 12]


def test_what_is_not_a_number_stays_so(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.add(make_record(0, values={"loss": float("nan"), "speed": float("inf")}, step=None))
    (one,) = waiting(outbox)
    assert str(one.record.content["values"]) == "{'loss': nan, 'speed': inf}"


def test_each_server_gets_its_own(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.add(make_record(0, server="http://other.test"))
    assert waiting(outbox) == []
    assert len(list(outbox.waiting("http://other.test"))) == 1


def test_no_password_lies_on_disk() -> None:
    assert server_of("http://me:secret@example.test:5000/mlflow") == "http://example.test:5000/mlflow"
    assert server_of("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"


def test_files_are_as_they_were_when_they_were_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "evaluate"
    (folder / "plots").mkdir(parents=True)
    (folder / "plots" / "curve.csv").write_text("old")
    outbox = Outbox(tmp_path / "outbox")
    outbox.add(make_record(0, "files", folder="evaluate"), files=folder)
    outbox.add(make_record(1, "files", folder=None), files=folder / "plots" / "curve.csv")
    (folder / "plots" / "new").write_text("new")
    (folder / "plots" / "new").replace(folder / "plots" / "curve.csv")
    whole, single = waiting(outbox)
    assert (whole.files / "plots" / "curve.csv").read_text() == "old"
    assert (single.files / "curve.csv").read_text() == "old"
    assert not (whole.files / "plots" / "new").exists()
    assert [one.record.time for one in outbox.waiting(SERVER, with_files=False)] == []


def test_a_file_that_is_not_there_leaves_no_record(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    with pytest.raises(FileNotFoundError):
        outbox.add(make_record(0, "files", folder=None), files=tmp_path / "nowhere.jpg")
    assert waiting(outbox) == []
    assert list((tmp_path / "outbox").iterdir()) == []


def test_a_damaged_record_is_told_and_holds_nothing_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outbox = Outbox(tmp_path)
    for number in range(2):
        outbox.add(make_record(number))
    (waiting(outbox)[0].folder / "record.json").write_text('{"half')
    assert [one.record.time for one in waiting(outbox)] == [1]
    assert [one.record.time for one in waiting(outbox)] == [1]
    assert len(caplog.records) == 1


def test_what_a_kill_left_half_done_is_removed(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.add(make_record(0))
    for name, age in ((".7.0.draft", 2), (".8.0.draft", 0), (".00000001-metrics-7.sent", 0)):
        (tmp_path / name / "files").mkdir(parents=True)
        os.utime(tmp_path / name, (time.time() - age * 3600,) * 2)
    with outbox.sole_sender(patience=0.0):
        left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {".8.0.draft", waiting(outbox)[0].folder.name}


def add_many(folder: Path, first: int) -> None:
    for number in range(first, first + 25):
        Outbox(folder).add(make_record(number))


def test_processes_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_many, args=(tmp_path, first)) for first in (0, 100)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    times = [one.record.time for one in waiting(Outbox(tmp_path))]
    assert sorted(times) == [*range(25), *range(100, 125)]
    for first in (0, 100):
        own = [time for time in times if first <= time < first + 25]
        assert own == sorted(own)


def test_one_process_sends(tmp_path: Path) -> None:
    with Outbox(tmp_path).sole_sender(patience=0.0) as first, Outbox(tmp_path).sole_sender(patience=0.0) as second:
        assert (first, second) == (True, False)
    with Outbox(tmp_path).sole_sender(patience=0.0) as again:
        assert again


def test_what_waits_is_told_in_words(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    assert describe(waiting(outbox)) == ""
    (tmp_path / "a.jpg").write_text("a")
    for step in (1, 2, 2):  # a resumed training tells its epochs again
        outbox.add(make_record(0, values={"AP": 0.5, "box": 1.0}, step=step))
    assert describe(waiting(outbox)) == "4 points"
    outbox.add(make_record(0, "files", folder=None), files=tmp_path / "a.jpg")
    assert describe(waiting(outbox)) == "4 points and 1 file"
    outbox.add(make_record(0, "end", status="FINISHED"))
    assert describe(waiting(outbox)) == "4 points, 1 file and 1 other record"
