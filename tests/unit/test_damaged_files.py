"""Readers of the project's own files meet damaged files: each is refused in one line, or an older file is used."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from yolov7.errors import ArtifactError
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import resolve_spec, spec_to_json
from yolov7.training.checkpoint import Checkpoint, Checkpoints, load_checkpoint, save_checkpoint
from yolov7.training.record import RunRecord, best_line, read_epochs, read_notes, read_progress
from yolov7.weights.weight_files import load_weights, save_weights

MUTATIONS = 1000
MINIATURE = resolve_spec(
    {
        "activation": "silu",
        "image_size": 64,
        "rows": {
            "stem": {"block": "conv", "out": 4, "s": 2},
            "head": {"block": "detect", "from": ["stem"], "anchors": [[4, 4, 8, 8]]},
        },
    },
    name="miniature",
)


def mutate(content: bytes, generator: random.Random, *, within: int | None = None) -> bytes:
    """Return the content with one to three random changes in its first `within` bytes."""
    changed, end = bytearray(content), within or len(content)
    for _ in range(generator.randint(1, 3)):
        place = generator.randrange(min(end, len(changed)))
        match generator.randrange(6):
            case 0:
                changed[place] ^= 1 << generator.randrange(8)
            case 1:
                changed[place] = generator.randrange(256)
            case 2:
                del changed[place : place + generator.randint(1, 20)]
            case 3:
                changed[place:place] = generator.randbytes(generator.randint(1, 20))
            case 4:
                changed[place:place] = changed[generator.randrange(len(changed)) :][: generator.randint(1, 40)]
            case _:
                del changed[max(place, 1) :]
        if not changed:
            return b""
    return bytes(changed)


def assert_refused_in_one_line(error: ArtifactError, path: Path) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


# ---- weight files


@pytest.fixture
def weight_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = DetectionModel(MINIATURE, num_classes=2)
    path = tmp_path / "weights.safetensors"
    save_weights(path, model, class_names=("a", "b"), image_size=64, training={"epochs": 3, "ancestors": ["x"]})
    return path


def split_header(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_header(header: dict[str, Any], values: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + values


def read_or_refuse(path: Path) -> bool:
    try:
        load_weights(path)
    except ArtifactError as error:
        assert_refused_in_one_line(error, path)
        return False
    return True


def test_mutated_weight_files_are_read_or_refused(weight_file: Path) -> None:
    content, generator = weight_file.read_bytes(), random.Random(0)
    header_end = 8 + struct.unpack_from("<Q", content)[0]
    refused = 0
    for i in range(MUTATIONS):
        weight_file.write_bytes(mutate(content, generator, within=header_end if i % 4 else None))
        refused += not read_or_refuse(weight_file)
    assert refused > MUTATIONS / 2


def hostile_values() -> Iterator[tuple[str, str]]:
    """Yield pairs of a metadata key and a text that the key must not have."""
    wrong = ["", "null", "3", "-1", "1e400", "true", '"x"', "[]", "{}", "[1]", "[[]]", "NaN", "[" * 10**5, "9" * 5000]
    lists = ['[["a"], "b"]', '["a", null]', '{"0": "a", "1": "b"}', '["a", "\\ud800"]']
    for key in ("class_names", "fused", "image_size", "spec", "format"):
        yield from ((key, text) for text in wrong if (key, text) not in {("fused", "true"), ("image_size", "3")})
    yield from (("class_names", text) for text in lists)
    yield from (("image_size", text) for text in ("0", "10000000", "64.0", '"64"', str(2**70)))
    yield from (("fused", text) for text in ("1", "0", '"false"'))
    yield from (("training", text) for text in wrong if text != "{}")
    yield from (("training", text) for text in ('{"ancestors": 3}', '{"ancestors": [3]}', '{"ancestors": "abc"}'))
    plain = json.loads(spec_to_json(MINIATURE))
    deep = {"block": "elan", "from": ["stem"], "out": 8, "hidden": 8, "depth": 100, "cardinality": 4096}
    rows = plain["rows"]
    yield "spec", json.dumps(plain | {"rows": {"stem": rows["stem"], "deep": deep, "head": rows["head"]}})
    yield "spec", json.dumps(plain | {"rows": {"stem": rows["stem"] | {"out": 65_536}, "head": rows["head"]}})
    yield "spec", json.dumps(plain | {"rows": rows["stem"]})


@pytest.mark.parametrize(("key", "text"), hostile_values())
def test_hostile_metadata_is_refused(weight_file: Path, key: str, text: str) -> None:
    header, values = split_header(weight_file.read_bytes())
    header["__metadata__"][key] = text
    weight_file.write_bytes(join_header(header, values))
    assert not read_or_refuse(weight_file)


def test_tensors_of_another_type_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    model = DetectionModel(MINIATURE, num_classes=2).half()
    save_weights(path, model, class_names=("a", "b"), image_size=64, training={})
    with pytest.raises(
        ArtifactError, match=r"head\.anchors.* has values of type F16|of type F16, its spec asks for F32"
    ):
        load_weights(path)


def test_equal_saves_give_equal_bytes(weight_file: Path) -> None:
    """The library writes the keys of the metadata in a random order, so a few repetitions would differ."""
    content, loaded = weight_file.read_bytes(), load_weights(weight_file)
    for _ in range(8):
        save_weights(
            weight_file,
            loaded.model,
            class_names=loaded.class_names,
            image_size=loaded.image_size,
            training=loaded.training,
        )
        assert weight_file.read_bytes() == content


# ---- the record of a run


def record_line(epoch: int) -> dict[str, Any]:
    figures = {"box": 0.1, "objectness": float("inf"), "classification": 0.3, "lr": 0.01, "AP": 0.5, "AP50": None}
    return {"epoch": epoch, **figures, "images_per_second": 3.5, "loader_wait_share": 0.1, "precision": "float32"}


def test_a_mutated_record_of_epochs_is_read_or_refused(tmp_path: Path) -> None:
    content = "".join(json.dumps(record_line(epoch)) + "\n" for epoch in range(1, 6)).encode()
    path, generator = tmp_path / "epochs.jsonl", random.Random(0)
    refused = 0
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(content, generator))
        try:
            lines = read_epochs(tmp_path)
        except ArtifactError as error:
            assert_refused_in_one_line(error, path)
            refused += 1
        else:
            best_line(lines)
    assert refused > MUTATIONS / 2


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "epochs.jsonl").write_text(json.dumps(record_line(1)) + "\n" + '{"epoch": 2, "bo')
    assert read_epochs(tmp_path) == [record_line(1)]


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "3",
        "{}",
        '{"epoch": "1"}',
        '{"epoch": 0}',
        '{"epoch": true}',
        '{"epoch": 1, "AP": "0.5"}',
        '{"epoch": 1, "AP": 1.5}',
        '{"epoch": 1, "AP": NaN}',
        '{"epoch": 1, "box": [1]}',
        "[" * 10**5,
    ],
)
def test_a_line_of_wrong_values_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "epochs.jsonl").write_text(line + "\n")
    with pytest.raises(ArtifactError, match=r"epochs\.jsonl: is damaged \(.*delete .* to train from the beginning"):
        read_epochs(tmp_path)


def test_a_run_from_the_beginning_replaces_a_damaged_record(tmp_path: Path) -> None:
    (tmp_path / "epochs.jsonl").write_text("damaged\n")
    RunRecord(tmp_path).start_after(0)
    assert read_epochs(tmp_path) == []


def test_mutated_progress_and_notes_never_fail(tmp_path: Path) -> None:
    progress = {"epochs_done": 1, "step": 5, "total_steps": 9, "box": 0.1, "objectness": 0.2, "classification": 0.3}
    RunRecord(tmp_path).show({**progress, "images_per_second": 7.5, "loader_wait_share": 0.1}, now=True)
    RunRecord(tmp_path).add_note("Größe")
    generator = random.Random(0)
    contents = {name: (tmp_path / name).read_bytes() for name in ("progress.json", "notes.txt")}
    assert read_progress(tmp_path)["step"] == 5
    for _ in range(MUTATIONS):
        for name, content in contents.items():
            (tmp_path / name).write_bytes(mutate(content, generator))
        read = read_progress(tmp_path)
        if read:
            assert f"{read['box']:.3f} {read['step']} {read['images_per_second']:.0f}" != ""
        assert all(isinstance(note, str) for note in read_notes(tmp_path))


# ---- checkpoints


def checkpoint_of(step: int) -> Checkpoint:
    state = {"weight": torch.arange(4.0), "bias": torch.zeros(2)}
    return Checkpoint("f", {"step": step, "losses": [0.0] * 3}, state, state, 7, {"state": {0: state}}, {})


def test_a_mutated_checkpoint_is_never_loaded(tmp_path: Path) -> None:
    path, generator = tmp_path / "checkpoint-000000001.pt", random.Random(0)
    save_checkpoint(path, checkpoint_of(1))
    content = path.read_bytes()
    assert load_checkpoint(path).step == 1
    for _ in range(MUTATIONS):
        mutated = mutate(content, generator)
        if mutated == content:
            continue
        path.write_bytes(mutated)
        with pytest.raises(ArtifactError) as caught:
            load_checkpoint(path)
        assert_refused_in_one_line(caught.value, path)


def test_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-000000001.pt"
    save_checkpoint(path, checkpoint_of(1))
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        with pytest.raises(ArtifactError):
            load_checkpoint(path)


def test_a_damaged_checkpoint_makes_way_for_the_one_before_it(tmp_path: Path) -> None:
    reports: list[str] = []
    checkpoints = Checkpoints(tmp_path, kept=2, report=reports.append)
    for step in (1, 2):
        checkpoints.save(checkpoint_of(step))
    checkpoints.wait()
    newest = tmp_path / "checkpoint-000000002.pt"
    newest.write_bytes(mutate(newest.read_bytes(), random.Random(1)))
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 1
    (report,) = reports
    assert report.startswith(f"checkpoint {newest} is damaged (")


def test_a_checkpoint_is_a_file_that_torch_reads(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x.pt", checkpoint_of(4))
    assert torch.load(tmp_path / "x.pt", weights_only=True)["progress"]["step"] == 4


@pytest.mark.parametrize("content", [3, {}, {"fingerprint": "f"}, [1, 2]])
def test_an_intact_file_of_another_kind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object
) -> None:
    monkeypatch.setattr("torch.save", lambda _, file, save=torch.save: save(content, file))
    save_checkpoint(tmp_path / "x.pt", checkpoint_of(1))
    with pytest.raises(ArtifactError, match=r"x\.pt is damaged"):
        load_checkpoint(tmp_path / "x.pt")
