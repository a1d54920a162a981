"""Test the records on disk: their order, their files, damage to them, and how they are counted in messages."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking.outbox import Outbox, WaitingRecord, describe
from pipeline.tracking.records import RecordKind, RecordSubject, RunKey, TrackingRecord

SERVER = "http://example.test"


def make_record(number: int, kind: RecordKind = "metrics", *, server: str = SERVER, **content: Any) -> TrackingRecord:
    subject = RecordSubject(server=server, experiment="e", key=RunKey("nano", 0, "f"))
    return TrackingRecord(
        subject=subject, kind=kind, content=content or {"values": {"AP": 0.5}, "step": number}, time=number
    )


def waiting(outbox: Outbox) -> list[WaitingRecord]:
    return list(outbox.waiting(SERVER))


def test_records_are_returned_in_the_order_in_which_they_were_added(tmp_path: Path) -> None:
    for number in range(12):
        Outbox(tmp_path).add(make_record(number))
    outbox = Outbox(tmp_path)
    assert [one.record for one in waiting(outbox)] == [make_record(number) for number in range(12)]
    for one in waiting(outbox)[:11]:
        outbox.remove(one)
    outbox.add(make_record(12))
    assert [one.record.time for one in waiting(outbox)] == [11, 12]


def test_nan_and_infinity_are_kept(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.add(make_record(0, values={"loss": float("nan"), "speed": float("inf")}, step=None))
    (one,) = waiting(outbox)
    assert str(one.record.content["values"]) == "{'loss': nan, 'speed': inf}"


def test_each_server_gets_only_its_own_records(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.add(make_record(0, server="http://other.test"))
    assert waiting(outbox) == []
    assert len(list(outbox.waiting("http://other.test"))) == 1


def test_files_keep_the_content_that_they_had_when_they_were_recorded(tmp_path: Path) -> None:
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


def test_a_missing_file_leaves_no_record(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    with pytest.raises(FileNotFoundError):
        outbox.add(make_record(0, "files", folder=None), files=tmp_path / "nowhere.jpg")
    assert waiting(outbox) == []
    assert list((tmp_path / "outbox").iterdir()) == []


def test_a_damaged_record_is_reported_once_and_does_not_block_the_next_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(tmp_path)
    for number in range(2):
        outbox.add(make_record(number))
    (waiting(outbox)[0].folder / "record.json").write_text('{"half')
    assert [one.record.time for one in waiting(outbox)] == [1]
    assert [one.record.time for one in waiting(outbox)] == [1]
    assert len(caplog.records) == 1


def test_what_a_killed_process_left_half_done_is_removed(tmp_path: Path) -> None:
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


def test_processes_that_add_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
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


def test_only_one_process_may_send(tmp_path: Path) -> None:
    with Outbox(tmp_path).sole_sender(patience=0.0) as first, Outbox(tmp_path).sole_sender(patience=0.0) as second:
        assert (first, second) == (True, False)
    with Outbox(tmp_path).sole_sender(patience=0.0) as again:
        assert again


def test_what_waits_is_described_in_words(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    assert describe(waiting(outbox)) == ""
    (tmp_path / "a.jpg").write_text("a")
    for step in (1, 2, 2):  # a resumed training records its epochs again
        outbox.add(make_record(0, values={"AP": 0.5, "box": 1.0}, step=step))
    assert describe(waiting(outbox)) == "4 points"
    outbox.add(make_record(0, "files", folder=None), files=tmp_path / "a.jpg")
    assert describe(waiting(outbox)) == "4 points and 1 file"
    outbox.add(make_record(0, "end", status="FINISHED"))
    assert describe(waiting(outbox)) == "4 points, 1 file and 1 other record"


def test_stray_files_and_folders_are_ignored_and_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(tmp_path)
    outbox.add(make_record(0))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "x").mkdir()
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / "00000009-metrics-1").write_text("a file where a record would be a folder")
    outbox.add(make_record(1))
    assert [one.record.time for one in waiting(outbox)] == [0, 1]
    assert len(caplog.messages) == 4
    assert f"{tmp_path / 'notes.txt'} is not a tracking record and is ignored; remove it" in caplog.messages


def test_a_record_that_a_store_rejected_is_kept_but_not_sent_again(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.add(make_record(0))
    aside = outbox.put_aside(waiting(outbox)[0])
    assert (aside / "record.json").is_file()
    assert waiting(outbox) == []


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("metrics", {"values": {"AP": "high"}, "step": 1}),
        ("metrics", {"values": {"AP": 0.5}}),
        ("metrics", {"values": {"AP": 0.5}, "step": 10**30}),
        ("params", {"epochs": 3}),
        ("end", {"status": "DONE"}),
        ("current", {"keys": []}),
        ("files", {"folder": 3}),
    ],
)
def test_content_that_does_not_fit_its_kind_is_damage(
    tmp_path: Path, kind: RecordKind, content: dict[str, Any]
) -> None:
    outbox = Outbox(tmp_path)
    outbox.add(make_record(0, "params", a="b"))
    (one,) = waiting(outbox)
    record = json.loads((one.folder / "record.json").read_text()) | {"kind": kind, "content": content}
    folder = one.folder.rename(tmp_path / f"00000001-{kind}-1")
    (folder / "record.json").write_text(json.dumps(record))
    assert waiting(outbox) == []


def test_a_thousand_mutated_records_raise_nothing(tmp_path: Path) -> None:
    """Change, remove, insert or cut bytes of one record of each kind; the record behind them is always returned."""
    outbox, draw = Outbox(tmp_path), random.Random(0)
    (tmp_path / "w.bin").write_text("w")
    kinds: list[tuple[RecordKind, dict[str, Any]]] = [
        ("metrics", {"values": {"AP": 0.5, "box": 1.0}, "step": 3}),
        ("params", {"epochs": "3"}),
        ("end", {"status": "FINISHED"}),
        ("detector", {"model": "yolov7"}),
        ("files", {"folder": "evaluate"}),
    ]
    for kind, content in kinds:
        outbox.add(make_record(0, kind, **content), files=tmp_path / "w.bin" if kind in ("files", "detector") else None)
    originals = [(one.folder, (one.folder / "record.json").read_bytes()) for one in waiting(outbox)]
    outbox.add(make_record(7))
    for number in range(1000):
        folder, content_bytes = originals[number % len(originals)]
        (folder / "record.json").write_bytes(mutate(content_bytes, draw))
        left = waiting(outbox)
        describe(left)
        assert left[-1].record.time == 7
        aside = folder.with_name(f".{folder.name}.damaged")
        if aside.exists():
            aside.rename(folder)
        (folder / "record.json").write_bytes(content_bytes)
    assert len(waiting(outbox)) == len(kinds) + 1


def mutate(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(changed)) if changed else 0
        how = draw.randrange(5)
        if how == 0:
            changed[at : at + 1] = bytes([draw.randrange(256)])
        elif how == 1:
            del changed[at : at + draw.choice((1, 5, 40))]
        elif how == 2:
            changed[at:at] = draw.choice((b"[" * 2000, b"null", b"1e999", b"-", b'"', b"\xff", b"{}", b"9" * 400))
        elif how == 3:
            changed = changed[:at]
        else:
            changed = bytearray(
                content.replace(*draw.choice(((b"3", b"null"), (b'"', b""), (b":", b","), (b"0", b"-1"))))
            )
    return bytes(changed)
