"""The work on shards of a large prediction job, without Ray: an object store, Parquet, bad files, other settings."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from pyarrow import parquet

from pipeline.ray.placement import Node
from pipeline.ray.predict_at_scale import share_of_actor
from pipeline.ray.shard_detector import ShardDetector, ShardWork
from pipeline.ray.shards import Folder, ShardFormat, ShardStore
from tests.integration.servers import object_store
from tests.integration.service import picture, write_weights
from yolov7.errors import DataError, SettingError
from yolov7.settings import NmsSettings

PLAN = {"weights_sha256": "a"}
PATHS = ["bad.jpg", "deep/b.png", "deep/missing.png", "ä 1.png"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("shards") / "weights.safetensors")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import boto3

    for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with object_store() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        made = boto3.resource("s3", endpoint_url=url).Bucket("pictures")
        made.create()
        yield made
        made.objects.delete()
        made.delete()


def detector(weights: Path, source: str, out: str, *, format: ShardFormat = "jsonl") -> ShardDetector:
    nms = NmsSettings(confidence=0.05)
    place = {"weights": str(weights), "source": source, "out": out}
    how = {"batch_size": 2, "engine": "auto", "device": "cpu", "precision": "float32", "cpus": 1}
    return ShardDetector(ShardWork(**place, format=format, nms=nms, **how))


def png() -> bytes:
    return cv2.imencode(".png", picture())[1].tobytes()


def write_images(folder: Path) -> None:
    (folder / "deep").mkdir(parents=True)
    (folder / "bad.jpg").write_bytes(b"no picture")
    for name in ("deep/b.png", "ä 1.png"):
        (folder / name).write_bytes(png())
    (folder / "notes.txt").write_text("no image")


def test_a_shard_has_one_line_per_image_in_the_order_of_the_plan(weights: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_images(source)
    assert Folder(str(source)).list_images() == ["bad.jpg", "deep/b.png", "ä 1.png"]
    assert detector(weights, str(source), str(out))({"shard": 3, "paths": PATHS}) == {"images": 4, "problem": ""}
    bad, good, missing, other = map(json.loads, (out / "part-000003.jsonl").read_text(encoding="utf-8").splitlines())
    assert [bad["path"], good["path"], missing["path"], other["path"]] == PATHS
    assert "is not an image of a known format" in bad["error"]
    assert missing["error"] == "the file is missing or may not be read"
    assert good["image"] == {"width": 80, "height": 48}
    assert good["detections"] == other["detections"] != []
    store = ShardStore(str(out))
    assert store.finished() == {3}
    summary = store.summarise()
    assert (summary["images"], summary["detections"]) == (4, 2 * len(good["detections"]))
    assert list(summary["bad"]) == ["bad.jpg", "deep/missing.png"]
    assert json.loads((out / "_summary.json").read_text()) == summary


def test_an_object_store_and_parquet(weights: Path, bucket: Any) -> None:
    for key, content in (("in/bad.jpg", b"no picture"), ("in/deep/b.png", png()), ("in/ä 1.png", png())):
        bucket.put_object(Key=key, Body=content)
    source, store = Folder("s3://pictures/in"), ShardStore("s3://pictures/out")
    images = store.start_or_continue(PLAN, source)
    assert images == ["bad.jpg", "deep/b.png", "ä 1.png"]
    bucket.put_object(Key="in/new.png", Body=png())
    assert store.start_or_continue(PLAN, source) == images
    assert store.finished() == set()
    detector(weights, "s3://pictures/in", "s3://pictures/out", format="parquet")({"shard": 0, "paths": PATHS})
    assert store.finished() == {0}
    content = bucket.Object("out/part-000000.parquet").get()["Body"].read()
    bad, good, missing, other = parquet.read_table(io.BytesIO(content)).to_pylist()
    assert bad["path"] == "bad.jpg"
    assert bad["scores"] is None
    assert missing["error"] == "the file is missing or may not be read"
    assert (good["width"], good["height"], good["error"]) == (80, 48, None)
    assert len(good["scores"]) == len(good["boxes_xyxy"]) == len(good["labels"]) == len(good["class_names"]) > 0
    assert {**good, "path": ""} == {**other, "path": ""}


def test_a_folder_belongs_to_one_job(tmp_path: Path) -> None:
    write_images(tmp_path / "in")
    source, store = Folder(str(tmp_path / "in")), ShardStore(str(tmp_path / "out"))
    store.start_or_continue({"weights_sha256": "c"}, source)
    store.start_or_continue(PLAN, source)  # nothing is finished, so that nothing is lost
    store.finish(0, [], format="jsonl")
    store.start_or_continue(PLAN, source)
    with pytest.raises(SettingError, match=r"holds a job with weights_sha256='a', and this one has 'b'; choose"):
        store.start_or_continue({"weights_sha256": "b"}, source)


def test_files_that_are_no_images_are_counted(tmp_path: Path) -> None:
    write_images(tmp_path / "in")
    (tmp_path / "in" / "deep" / "c.HEIC").write_bytes(b"")
    said: list[str] = []
    ShardStore(str(tmp_path / "out")).start_or_continue(PLAN, Folder(str(tmp_path / "in")), say=said.append)
    assert said == ["files of other types were left out (.heic: 1, .txt: 1)"]


def test_what_cannot_be_used_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing cannot be read \("):
        Folder(str(tmp_path / "nothing")).list_images()
    with pytest.raises(DataError, match=r"^gopher://a/b cannot be opened \("):
        Folder("gopher://a/b")
    with pytest.raises(DataError, match=r"has no image files \(\.avif, "):
        ShardStore(str(tmp_path / "out")).start_or_continue(PLAN, Folder(str(tmp_path)))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nonsense")
    answer = detector(broken, str(tmp_path), str(tmp_path / "out"))({"shard": 0, "paths": ["a.png"]})
    assert "is damaged or not a weight file" in answer["problem"]
    assert not list((tmp_path / "out").glob("**/*.json*"))


@pytest.mark.parametrize(
    ("nodes", "actors", "device", "expected"),
    [
        ([(8, 0)], 2, "auto", (4, 0.0)),
        ([(0, 0), (16, 0), (8, 0)], 3, "auto", (4, 0.0)),
        ([(0, 0)], 4, "auto", (1, 0.0)),
        ([(2, 0)], 5, "auto", (1, 0.0)),
        ([(0, 0), (96, 8)], 8, "auto", (12, 1.0)),
        ([(16, 2)], 3, "cuda", (5, 0.5)),
        ([(16, 2)], 3, "cpu", (5, 0.0)),
    ],
)
def test_all_actors_have_room(
    nodes: list[tuple[int, int]], actors: int, device: str, expected: tuple[int, float]
) -> None:
    offered = [Node(str(i), cpus=cpus, gpus=gpus) for i, (cpus, gpus) in enumerate(nodes)]
    assert share_of_actor(offered, actors=actors, device=device) == expected
