"""The model that MLflow serves, logged, loaded and served for real; without this repository on the path."""

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
from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with weights that detect something."""
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
    """The logged model's own folder."""
    import mlflow

    key = RunKey("nano", 0, "x")
    for _ in range(2):  # the second time it is there already
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
    return {"scores": found.scores, "boxes_xyxy": found.boxes_xyxy, "names": names}


def assert_same(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    assert answer["names"] == expected["names"]
    for name in ("scores", "boxes_xyxy"):
        torch.testing.assert_close(torch.tensor(answer[name]), expected[name], rtol=1e-4, atol=1e-3)
    assert len(answer["labels"]) == len(answer["scores"])
    json.dumps(answer)


@pytest.mark.parametrize("form", ["bytes", "base64", "data-url", "array", "lists"])
def test_an_image_may_come_in_many_forms(
    model_path: Path, image: np.ndarray, picture: bytes, expected: dict[str, Any], form: str
) -> None:
    import mlflow

    text = base64.b64encode(picture).decode()
    forms = {
        "bytes": picture,
        "base64": text,
        "data-url": f"data:image/png;base64,{text}",
        "array": image,
        "lists": image.tolist(),
    }
    model = mlflow.pyfunc.load_model(str(model_path))
    rows = pd.DataFrame({"image": [forms[form], forms[form]]})
    answers = model.predict(rows, params={"confidence": 0.0})
    assert len(answers) == 2
    assert_same(answers[0], expected)


@pytest.mark.parametrize("nonsense", [b"", b"no picture", "no base64!", [[1, 2], [3, 4]], 7])
def test_what_is_no_image_is_named_by_its_row(model_path: Path, picture: bytes, nonsense: object) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(str(model_path))
    with pytest.raises(Exception, match="row 1"):
        model.predict(pd.DataFrame({"image": pd.Series([picture, nonsense], dtype=object)}))


def test_the_model_is_whole_in_itself(model_path: Path) -> None:
    assert (model_path / "code" / "yolov7" / "model.py").is_file()
    requirements = (model_path / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch==") for line in requirements)
    assert not any("yolov7" in line for line in requirements)


def test_the_scoring_server_answers(
    model_path: Path, tmp_path: Path, image: np.ndarray, picture: bytes, expected: dict[str, Any]
) -> None:
    with serve(model_path, tmp_path) as url:
        body = {"dataframe_records": [{"image": base64.b64encode(picture).decode()}], "params": {"confidence": 0.0}}
        (answer,) = post(url, body)["predictions"]
        assert_same(answer, expected)
        (answer,) = post(url, {"dataframe_records": [{"image": image.tolist()}], "params": {"confidence": 0.0}})[
            "predictions"
        ]
        assert_same(answer, expected)


def test_the_alias_champion_goes_to_the_best_that_was_measured_on_the_same_data(folder: Path) -> None:
    import mlflow

    said: list[str] = []
    tracker = Tracker("champions", model="champions", say=said.append)
    client = mlflow.MlflowClient(tracking_uri())
    measured = ((0.5, "a", 1), (0.4, "a", 1), (0.6, "a", 3), (0.9, "b", 3))  # AP, data, whose alias it is then
    for seed, (ap, data, champion) in enumerate(measured):
        write_weights("many", seed=seed)
        evaluate(tracker, seed, ap=ap, data=data)
        assert int(client.get_registered_model("champions").aliases["champion"]) == champion
    first, worse, better, other = said
    assert first == "champions: version 1 (many/0, AP 0.500) is the first champion"
    assert worse.endswith("version 2 (many/1, AP 0.400) is not better")
    assert "version 3 (many/2, AP 0.600) is the champion now" in better
    assert "data b instead of a" in other
    evaluate(tracker, 3, ap=0.9, data="b")
    assert len(client.search_model_versions("name = 'champions'")) == 4
    evaluate(tracker, 2, ap=0.7, data="b")  # the champion too was measured on the new data: version 4 is better there
    assert int(client.get_registered_model("champions").aliases["champion"]) == 4


def evaluate(tracker: Tracker, seed: int, *, ap: float, data: str) -> None:
    weights = Path(f"artifacts/reparam/many/{seed}/weights.safetensors")
    with tracker.run(RunKey("many", seed, "x")) as run:
        run.log_detector(weights)
        run.log_evaluation(weights, AP=ap, basis={"data": data, "split": "val", "nms": "n"})


class serve:  # noqa: N801
    """`mlflow models serve` in a folder where this repository is not."""

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
