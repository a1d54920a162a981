"""A copy of a run in an object store: another machine continues from it and ends with the same weights."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.files import stage_folder, write_json
from pipeline.artifacts.inputs import code_digest
from pipeline.experiment import parse_experiment
from pipeline.ray.mirror import CODE, RunCopy, kept_up_to_date
from pipeline.ray.run_folders import claim_run, forget_run
from tests.artifacts import train_summary
from tests.integration.runs import WORKER, assert_same, checkpoint_steps, make_job, prepared, read_weights
from tests.integration.servers import free_port, object_store
from yolov7.training.job import TrainJob
from yolov7.training.loop import fit
from yolov7.training.record import read_epochs

STORAGE = "s3://copies/of/runs"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield the bucket of a running store."""
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with object_store() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        made = boto3.resource("s3", endpoint_url=url).Bucket("copies")
        made.create()
        yield made
        made.objects.delete()
        made.delete()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("data"), train_images=12, val_images=4, image_size=64)


def claimed(data: Path, folder: Path, **changes: Any) -> TrainJob:
    """Return a run whose folder exists, as the stage creates it."""
    job = make_job(data, folder, **changes)
    folder.mkdir(parents=True)
    (folder / "fingerprint").write_text(job.fingerprint)
    return job


def copies(bucket: Any) -> list[str]:
    """Return the keys in the bucket, except those that mark folders."""
    return [entry.key for entry in bucket.objects.all() if not entry.key.endswith("/")]


def copied(name: str = "small") -> RunCopy:
    return RunCopy(STORAGE, variant=name, seed=3)


def train_for(job: TrainJob, *, steps: int) -> None:
    """Train for that many steps, and leave as after Ctrl-C."""
    left = iter(range(steps - 1))
    assert not fit(job, WORKER, should_stop=lambda: next(left, None) is None)


def test_another_machine_continues_and_ends_with_the_same_weights(bucket: Any, data: Path, tmp_path: Path) -> None:
    undisturbed = claimed(data, tmp_path / "runs" / "undisturbed")
    assert fit(undisturbed, WORKER)
    one = claimed(data, tmp_path / "one" / "run")
    with kept_up_to_date(copied(), one.run_folder):
        train_for(one, steps=5)
    expected = {path.name for path in one.run_folder.glob("*") if path.suffix in (".pt", ".jsonl", "")}
    assert set(copies(bucket)) == {f"of/runs/small/3/{name}" for name in expected}
    reached = max(checkpoint_steps(one.run_folder))
    assert reached > 3  # in the second epoch
    shutil.rmtree(one.run_folder)

    two = claimed(data, tmp_path / "two" / "run")
    assert copied().fetch(two.run_folder)
    assert max(checkpoint_steps(two.run_folder)) == reached
    assert not copied().fetch(two.run_folder)  # the folder is as far as the copy now
    with kept_up_to_date(copied(), two.run_folder):
        assert fit(two, WORKER)
    assert [line["epoch"] for line in read_epochs(two.run_folder)] == [1, 2, 3]
    assert_same(read_weights(two.run_folder), read_weights(undisturbed.run_folder))


def test_the_copy_of_another_run_is_left_alone_and_then_replaced(bucket: Any, data: Path, tmp_path: Path) -> None:
    old = claimed(data, tmp_path / "old" / "run")
    train_for(old, steps=3)
    copied().send(old.run_folder)
    new = claimed(data, tmp_path / "new" / "run", epochs=2)
    assert not copied().fetch(new.run_folder)
    train_for(new, steps=1)
    copied().send(new.run_folder)
    third = claimed(data, tmp_path / "third" / "run", epochs=2)
    assert copied().fetch(third.run_folder)
    assert checkpoint_steps(third.run_folder) == checkpoint_steps(new.run_folder)


def test_files_are_copied_block_by_block_and_stay_exact(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ray.mirror._BLOCK", 1000)
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "fingerprint").write_text("of one run")
    content = bytes(range(256)) * 50
    (here / "checkpoint-000000001.pt").write_bytes(content)
    (here / "epochs.jsonl").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", _refuse_checkpoints)
        copied().send(here)
        assert copied().fetch(there)
    assert (there / "checkpoint-000000001.pt").read_bytes() == content
    assert (there / "epochs.jsonl").read_bytes() == b""
    assert sorted(path.name for path in there.iterdir()) == ["checkpoint-000000001.pt", "epochs.jsonl", "fingerprint"]


def _refuse_checkpoints(path: Path) -> bytes:
    """Read small files only: a checkpoint of gigabytes must not be in memory as a whole."""
    assert path.suffix != ".pt"
    with path.open("rb") as file:
        return file.read()


def test_an_outage_costs_one_warning(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.ray.mirror._SECONDS", 0.05)
    caplog.set_level(logging.WARNING)
    folder, copy = tmp_path / "run", copied()
    folder.mkdir()
    bucket.delete()
    with kept_up_to_date(copy, folder):
        (folder / "checkpoint-000000001.pt").write_bytes(b"one")
        while not caplog.messages:
            time.sleep(0.05)
        time.sleep(0.5)
        bucket.create()
    (message,) = caplog.messages
    assert "s3://copies/of/runs/small/3 cannot be written" in message
    assert "\n" not in message
    assert copies(bucket) == ["of/runs/small/3/checkpoint-000000001.pt"]


def test_an_unreachable_store_is_an_error_at_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(OSError, match=r"^ray.storage: s3://copies/of/runs/small/3 cannot be read \(.*connect"):
        copied().fetch(tmp_path)


def test_a_finished_run_leaves_no_copy(
    bucket: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job, other = claimed(data, Path("runs/small/3")), claimed(data, Path("runs/wide/3"))
    copied().send(job.run_folder)
    copied("wide").send(other.run_folder)
    variant = parse_experiment({"variants": {"small": {"spec": "nano"}}, "ray": {"storage": STORAGE}}).variant("small")
    forget_run(variant, seed=3)
    assert len(copies(bucket)) == 2  # the run is not finished
    (job.run_folder / "weights.safetensors").write_bytes(b"tensors")
    summary = train_summary("small", 3, 0.5).model_copy(update={"fingerprint": job.fingerprint})
    write_json(stage_folder("train", "small", 3) / "train.json", summary)
    forget_run(variant, seed=3)
    assert copies(bucket) == ["of/runs/wide/3/fingerprint"]
    assert not Path("runs/small/3").exists()


@pytest.mark.usefixtures("bucket")
def test_the_note_on_a_finished_run_names_its_copy_without_the_secret(data: Path, tmp_path: Path) -> None:
    job = claimed(data, tmp_path / "run")
    (job.run_folder / "weights.safetensors").write_bytes(b"tensors")
    (job.run_folder / CODE).write_text(code_digest("train"), encoding="utf-8")
    copy = RunCopy("s3://KEY:secret@copies/of/runs", variant="small", seed=3)
    copy.send(job.run_folder)
    note = claim_run(job, copy)
    assert note.endswith(f"(delete {job.run_folder} and s3://copies/of/runs/small/3 to train again)")
