"""Test the model that MLflow serves: logged, loaded and served for real, without this repository on the path."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.tracking import RunKey, Tracker, quiet_environment, tracking_uri
from pipeline.tracking.availability import availability_of
from tests.artifacts import NAMES, write_weights
from yolov7.detect.detector import Detector
from yolov7.settings import NmsSettings

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "serving.md")  # each has a command that sends a request


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of a project with weights that detect something."""
    folder = tmp_path_factory.mktemp("served")
    before = Path.cwd()
    os.chdir(folder)
    write_weights("nano")
    availability_of.cache_clear()
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    return folder / "artifacts/reparam/nano/0/weights.safetensors"


@pytest.fixture(scope="module")
def model_path(folder: Path, weights: Path) -> Path:
    """Return the folder of the logged model."""
    import mlflow

    key = RunKey("nano", 0, "x")
    for _ in range(2):  # the second time the model exists already
        with Tracker("test").run(key) as run:
            run.log_detector(weights)
    client = mlflow.MlflowClient(tracking_uri())
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    (model,) = client.search_logged_models([experiment.experiment_id])
    (run_found,) = client.search_runs([experiment.experiment_id])
    assert model.source_run_id == run_found.info.run_id
    assert run_found.info.status == "FINISHED"
    return Path(model.artifact_location.removeprefix("file://"))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)


@pytest.fixture(scope="module")
def picture(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


@pytest.fixture(scope="module")
def expected(weights: Path, image: np.ndarray) -> dict[str, Any]:
    found = Detector.load(weights).predict([image], nms=NmsSettings(confidence=0.0))[0]
    assert len(found)
    names = [NAMES[label] for label in found.labels.tolist()]
    return {"score": found.scores, "box_xyxy": found.boxes_xyxy, "class_name": names}


def assert_same(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    assert answer["image"] == {"width": 80, "height": 48}
    found = answer["detections"]
    assert [one["class_name"] for one in found] == expected["class_name"]
    assert [NAMES[one["label"]] for one in found] == expected["class_name"]
    for name in ("score", "box_xyxy"):
        torch.testing.assert_close(torch.tensor([one[name] for one in found]), expected[name], rtol=1e-4, atol=1e-3)
    json.dumps(answer)


FORMS: dict[str, Callable[[np.ndarray, bytes], Any]] = {
    "bytes": lambda _, picture: picture,
    "base64": lambda _, picture: base64.b64encode(picture).decode(),
    "base64 in lines": lambda _, picture: base64.encodebytes(picture).decode(),
    "base64 with Windows line ends": lambda _, picture: base64.encodebytes(picture).decode().replace("\n", "\r\n"),
    "URL-safe base64": lambda _, picture: base64.urlsafe_b64encode(picture).decode(),
    "data URL": lambda _, picture: f"data:image/png;base64,{base64.b64encode(picture).decode()}",
    "array": lambda image, _: image,
    "array of floats": lambda image, _: image.astype(np.float64),
    "lists": lambda image, _: image.tolist(),
    "mapping": lambda _, picture: {"image": base64.b64encode(picture).decode()},
}


@pytest.fixture(scope="module")
def model(model_path: Path) -> Any:
    import mlflow

    return mlflow.pyfunc.load_model(str(model_path))


@pytest.mark.parametrize("form", FORMS)
def test_an_image_may_come_in_many_forms(
    model: Any, image: np.ndarray, picture: bytes, expected: dict[str, Any], form: str
) -> None:
    value = FORMS[form](image, picture)
    answers = model.predict(pd.DataFrame({"image": [value, value]}), params={"confidence": 0.0})
    assert len(answers) == 2
    assert_same(answers[0], expected)


@pytest.mark.parametrize(
    ("nonsense", "said"),
    [
        (b"", "the picture is empty (0 bytes)"),
        (b"no picture", "is not an image of a known format"),
        ("no base64!", "this is not base64"),
        ([[1, 2], [3, 4]], "this is an array of shape"),
        ([[[1, 2, 3]], [[1, 2, 3], [4, 5, 6]]], "must have the same length"),
        (7, "this is an array of shape"),
        (None, "this is NoneType"),
        (np.full((4, 4, 3), 0.5).tolist(), "fractions up to 1; multiply them by 255"),
        (np.full((4, 4, 3), 65535).tolist(), "these are from 65535 to 65535"),
        (np.full((4, 4, 3), -1).tolist(), "these are from -1 to -1"),
        (np.full((4, 4, 3), np.nan).tolist(), "these are from nan to nan"),
    ],
)
def test_an_input_that_is_no_image_is_refused_in_one_sentence(
    model: Any, picture: bytes, nonsense: object, said: str
) -> None:
    with pytest.raises(Exception, match="row 1: ") as caught:
        model.predict(pd.DataFrame({"image": pd.Series([picture, nonsense], dtype=object)}))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_picture_of_black_and_white_pixels_is_accepted(model: Any) -> None:
    assert len(model.predict(pd.DataFrame({"image": [np.ones((8, 8, 3)).tolist()]}))) == 1


def test_the_model_is_whole_in_itself(model_path: Path) -> None:
    assert (model_path / "code" / "yolov7" / "detect" / "detector.py").is_file()
    requirements = (model_path / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch==") for line in requirements)
    assert not any("yolov7" in line for line in requirements)


def test_the_scoring_server_answers(
    model_path: Path, tmp_path: Path, image: np.ndarray, picture: bytes, expected: dict[str, Any]
) -> None:
    (tmp_path / "image.png").write_bytes(picture)
    with serve(model_path, tmp_path) as url:
        for page in PAGES:
            blocks = page.read_text(encoding="utf-8").split("```")
            (command,) = (block.removeprefix("sh\n") for block in blocks if "/invocations" in block)
            command = command.replace("http://127.0.0.1:5001", url).replace("image.jpg", "image.png")
            done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
            assert json.loads(done.stdout)["predictions"][0]["image"] == {"width": 80, "height": 48}
        body = {"dataframe_records": [{"image": base64.b64encode(picture).decode()}], "params": {"confidence": 0.0}}
        (answer,) = post(url, body)["predictions"]
        assert_same(answer, expected)
        text, params = body["dataframe_records"][0]["image"], body["params"]
        for rows in ([{"image": image.tolist()}], [{"image": text}], [text], {"image": [text]}):
            (answer,) = post(url, {"inputs": rows, "params": params})["predictions"]
            assert_same(answer, expected)
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(url, {"inputs": [{"image": (image / 255).tolist()}]})
        assert caught.value.code == 400
        assert json.load(caught.value)["message"] == (
            "row 0: pixels must be from 0 to 255, these are fractions up to 1; multiply them by 255"
        )


def test_the_alias_champion_goes_to_the_best_that_was_measured_on_the_same_data(folder: Path) -> None:
    import mlflow

    said: list[str] = []
    tracker = Tracker("champions", model="champions", say=said.append)
    client = mlflow.MlflowClient(tracking_uri())
    # AP, data, and the version that has the alias then
    measured = ((0.5, "a", 1), (0.4, "a", 1), (0.6, "a", 3), (0.9, "b", 3))
    for seed, (ap, data, champion) in enumerate(measured):
        write_weights("many", seed=seed)
        evaluate(tracker, seed, ap=ap, data=data)
        assert int(client.get_registered_model("champions").aliases["champion"]) == champion
    first, worse, better, other = said
    assert first == "champions: version 1 (many/0, AP 0.500) is the first champion"
    assert worse.endswith("version 2 (many/1, AP 0.400) is not better")
    assert "version 3 (many/2, AP 0.600) replaces version 1 (many/0, AP 0.500) as champion" in better
    assert "data b instead of a" in other
    evaluate(tracker, 3, ap=0.9, data="b")
    assert len(client.search_model_versions("name = 'champions'")) == 4
    evaluate(
        tracker, 2, ap=0.7, data="b"
    )  # now the champion was measured on the new data too, where version 4 is better
    assert int(client.get_registered_model("champions").aliases["champion"]) == 4


def evaluate(tracker: Tracker, seed: int, *, ap: float, data: str) -> None:
    weights = Path(f"artifacts/reparam/many/{seed}/weights.safetensors")
    with tracker.run(RunKey("many", seed, "x")) as run:
        run.log_detector(weights)
        run.log_evaluation(weights, AP=ap, basis={"data": data, "split": "val", "nms": "n"})


class serve:  # noqa: N801
    """Run `mlflow models serve` in a folder without this repository."""

    def __init__(self, model_path: Path, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        options = ["-m", str(model_path), "-p", str(self._port), "--env-manager", "local"]
        self._command = [sys.executable, "-m", "mlflow", "models", "serve", *options]
        self._folder = folder
        self._log = folder / "serve.log"

    def __enter__(self) -> str:
        environment = quiet_environment()
        environment.pop("PYTHONPATH", None)
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # where uvicorn is
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        url = f"http://127.0.0.1:{self._port}"
        until = time.monotonic() + 90
        while time.monotonic() < until and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{url}/ping", timeout=5)
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
            else:
                return url
        self.__exit__()
        pytest.fail(f"the server did not start:\n{self._log.read_text()[-3000:]}")

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(30)


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/invocations", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(json.load(answer))
