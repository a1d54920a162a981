"""`yolov7 serve`: every form of a request, every kind of mistake, the limits, load, and the end of the service."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.main import get_command

from pipeline.cli.main import app
from pipeline.serving.settings import ServingSettings, serving_settings
from tests.bench.bench_serving import run_load
from tests.integration.service import (
    CLASS_NAMES,
    Server,
    ask,
    end,
    form,
    serving,
    start,
    wait_until_ready,
    write_weights,
)
from tests.integration.service import (
    picture as picture_of,
)
from yolov7.detect.detector import Detector
from yolov7.errors import SettingError
from yolov7.settings import NmsSettings

JSON = "application/json"
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("serve") / "weights.safetensors")


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Server]:
    limits = ("--max-body-megabytes", "1", "--max-megapixels", "1", "--max-queue", "8", "--max-batch", "4")
    with serving(weights, "--confidence", "0.05", *limits) as server:
        yield server


@pytest.fixture(scope="module")
def picture() -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(picture_of(), cv2.COLOR_RGB2BGR))[1].tobytes()


@pytest.fixture(scope="module")
def expected(weights: Path) -> list[dict[str, Any]]:
    (found,) = Detector.load(weights).predict([picture_of()], nms=NmsSettings(confidence=0.05))
    assert len(found)
    columns = found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist()
    return [
        {"box_xyxy": box, "score": score, "label": label, "class_name": CLASS_NAMES[label]}
        for box, score, label in zip(*columns, strict=True)
    ]


def bodies(picture: bytes) -> dict[str, tuple[bytes, str]]:
    text = base64.b64encode(picture).decode()
    return {
        "file": (picture, "image/png"),
        "file as curl --data-binary sends it": (picture, "application/x-www-form-urlencoded"),
        "form": form(picture),
        "base64": (json.dumps({"image": text}).encode(), JSON),
        "data URL": (json.dumps({"image": f"data:image/png;base64,{text}"}).encode(), f"{JSON}; charset=utf-8"),
        "pixels": (json.dumps({"image": picture_of().tolist()}).encode(), JSON),
    }


@pytest.mark.parametrize("name", bodies(b""))
def test_an_image_may_be_sent_in_many_forms(
    server: Server, picture: bytes, expected: list[dict[str, Any]], name: str
) -> None:
    body, kind = bodies(picture)[name]
    answer = ask(f"{server.url}/predict", body, kind=kind)
    assert answer.status == 200
    assert answer.content["image"] == {"width": 80, "height": 48}
    assert len(answer.content["detections"]) == len(expected)
    for one, other in zip(answer.content["detections"], expected, strict=True):
        assert (one["label"], one["class_name"]) == (other["label"], other["class_name"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["box_xyxy"] == pytest.approx(other["box_xyxy"], abs=0.01)


def test_the_commands_of_the_documentation_work(server: Server, picture: bytes, tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(picture)
    commands = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if "curl" in line and "8000/predict" in line
    ]
    assert len(commands) == 3
    for command in commands:
        shell = ["bash", "-c", command.replace("http://127.0.0.1:8000", server.url)]
        done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["image"] == {"width": 80, "height": 48}


def test_a_request_may_state_its_own_thresholds(server: Server, picture: bytes) -> None:
    scores = [one["score"] for one in ask(f"{server.url}/predict", picture).content["detections"]]
    middle = sorted(scores)[len(scores) // 2]
    some = ask(f"{server.url}/predict?confidence={middle}", picture).content["detections"]
    assert 0 < len(some) < len(scores)
    assert len(ask(f"{server.url}/predict?iou=0.0", picture).content["detections"]) <= len(scores)


def large_header(width: int, height: int) -> bytes:
    """Return the start of a bitmap file."""
    return b"BM" + bytes(12) + (40).to_bytes(4, "little") + width.to_bytes(4, "little") + height.to_bytes(4, "little")


MISTAKES: dict[str, tuple[bytes, str, int, str]] = {
    "nothing": (b"", "image/png", 400, "the request is empty"),
    "text": (b"no picture", "image/png", 400, "is not an image of a known format"),
    "truncated picture": (b"\xff\xd8\xff\xe0" + bytes(50), "image/jpeg", 400, "is truncated"),
    "too many pixels": (
        large_header(2000, 2000),
        "image/bmp",
        400,
        "has 2000 x 2000 pixels, and 1,000,000 are allowed",
    ),
    "too large": (bytes(2 << 20), "image/png", 413, "the body has more than 1 megabytes"),
    "no JSON": (b"{", JSON, 400, "the body is not valid JSON"),
    "deep JSON": (b"[" * 100_000, JSON, 400, "the body is not valid JSON"),
    "list": (b"[1]", JSON, 400, "it has a list"),
    "wrong key": (b'{"picture": ""}', JSON, 400, "it has the keys ['picture']"),
    "no base64": (b'{"image": "?"}', JSON, 400, "this is not base64"),
    "null": (b'{"image": null}', JSON, 400, "this is NoneType"),
    "huge numbers": (b'{"image": [[[1e999, 0, ' + b"9" * 400 + b"]]]}", JSON, 400, "an image array must be"),
    "ragged rows": (b'{"image": [[[1, 2, 3]], [[1, 2, 3], [4, 5, 6]]]}', JSON, 400, "must have the same length"),
    "fractions": (b'{"image": [[[0.5, 0.5, 0.5]]]}', JSON, 400, "multiply them by 255"),
    "form without file": (*form(), 400, "has 0 complete files"),
    "two files": (*form(b"a", b"b"), 400, "has 2 complete files"),
    "form that ends early": (form(b"a")[0][:-30], form()[1], 400, "has 0 complete files"),
    "no form": (b"nonsense", "multipart/form-data; boundary=limit", 400, "is not a valid form"),
    "no boundary": (b"nonsense", "multipart/form-data", 400, "must state its boundary"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_in_one_sentence(server: Server, name: str) -> None:
    body, kind, status, said = MISTAKES[name]
    answer = ask(f"{server.url}/predict", body, kind=kind)
    assert answer.status == status
    assert list(answer.content) == ["error"]
    assert said in answer.content["error"]
    assert "\n" not in answer.content["error"]


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/predict?confidence=2", 400, "confidence=2: Input should be less than or equal to 1"),
        ("/predict?iou=nan", 400, "iou=nan: "),
        ("/nothing", 404, "Not Found"),
        ("/health", 405, "Method Not Allowed"),
    ],
)
def test_a_wrong_address_is_answered_in_one_sentence(
    server: Server, picture: bytes, path: str, status: int, said: str
) -> None:
    answer = ask(f"{server.url}{path}", picture)
    assert answer.status == status
    assert said in answer.content["error"]


def test_a_body_without_length_is_limited_too(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        line.sendall(6 * (b"%x\r\n%b\r\n" % (1 << 18, bytes(1 << 18))) + b"0\r\n\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_without_end_is_refused(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        line.sendall(5 * (b"%x\r\n%b\r\n" % (1 << 20, bytes(1 << 20))))
        assert line.recv(100).startswith(b"HTTP/1.1 413")


def test_requests_beyond_the_limit_are_asked_to_wait(server: Server, picture: bytes) -> None:
    """Eight requests whose bodies do not end occupy the queue."""
    host, port = server.url.removeprefix("http://").split(":")
    lines = [socket.create_connection((host, int(port)), timeout=30) for _ in range(8)]
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(picture)
    for line in lines:
        line.sendall(head + picture[:10])
    assert _eventually(lambda: ask(f"{server.url}/predict", picture).status == 503)
    refused = ask(f"{server.url}/predict", bytes(3 << 20))  # more than sockets hold
    assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
    assert refused.content == {"error": "8 requests are in progress; try again later"}
    assert ask(f"{server.url}/health").status == 200
    for line in lines:
        line.sendall(picture[10:])
        assert line.recv(100).startswith(b"HTTP/1.1 200")
        line.close()
    assert ask(f"{server.url}/predict", picture).status == 200


def _eventually(holds: Any) -> bool:
    return any(holds() for _ in range(200))


def test_a_client_that_leaves_frees_its_place(server: Server, picture: bytes) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(8):
        with socket.create_connection((host, int(port)), timeout=30) as line:
            line.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nstart")
    assert _eventually(lambda: ask(f"{server.url}/predict", picture).status == 200)


def test_concurrent_requests_get_their_own_answers(server: Server) -> None:
    """Images of different sizes in shared batches, and requests with other thresholds between them."""
    sizes = [(20 + i, 90 - i) for i in range(40)]

    def one(size: tuple[int, int]) -> Any:
        content = cv2.imencode(".png", picture_of(*size))[1].tobytes()
        threshold = 0.05 if size[0] % 2 else 0.5
        return ask(f"{server.url}/predict?confidence={threshold}", content).content, threshold

    alone = [one(size) for size in sizes]
    assert len({str(answer["detections"]) for answer, _ in alone}) == len(sizes)
    with ThreadPoolExecutor(4) as clients:
        together = list(clients.map(one, sizes))
    for (height, width), (answer, threshold), (other, _) in zip(sizes, together, alone, strict=True):
        assert answer["image"] == {"width": width, "height": height}
        assert all(detection["score"] >= threshold for detection in answer["detections"])
        np.testing.assert_allclose(*_scores(answer, other), atol=1e-4)


def _scores(*answers: Any) -> list[list[float]]:
    return [[detection["score"] for detection in answer["detections"]][:10] for answer in answers]


def test_the_service_describes_itself(server: Server, weights: Path) -> None:
    assert ask(f"{server.url}/health").content == {"status": "ok"}
    about = ask(f"{server.url}/metadata").content
    assert about["class_names"] == list(CLASS_NAMES)
    assert (about["image_size"], about["spec"], about["engine"]) == (64, "nano", "torch")
    sha256 = subprocess.run(["sha256sum", weights], capture_output=True, text=True, check=True).stdout.split()[0]
    assert about["weights_sha256"] == sha256
    assert about["limits"]["max_queue"] == 8
    assert about["defaults"]["confidence"] == 0.05
    paths = ask(f"{server.url}/openapi.json").content["paths"]
    assert set(paths) == {"/predict", "/health", "/metadata"}
    assert set(paths["/predict"]["post"]["responses"]) == {"200", "400", "408", "413", "500", "503", "422"}
    assert "image/*" in paths["/predict"]["post"]["requestBody"]["content"]


def test_load_with_malformed_requests(server: Server, picture: bytes) -> None:
    """The short form of the measurement in tests/bench/bench_serving.py."""
    load = run_load(f"{server.url}/predict", [picture], clients=4, seconds=2.0, malformed=0.1)
    assert load.good > 20
    assert load.bad > 0
    assert load.errors == []


def test_a_port_in_use_ends_the_command_in_one_line(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    process = start("missing.safetensors", "--port", port)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output == f"yolov7: port {port} cannot be used (Address already in use); choose another one with --port\n"


def test_ctrl_c_ends_everything(weights: Path) -> None:
    """SIGTERM ends the server of the other tests, and is checked there."""
    process = start(weights, "--port", "0", "--replicas", "2")
    host, port = wait_until_ready(process).removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30):  # a connection that stays open
        end(process, signal.SIGINT)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=30)


def test_the_command_line_has_the_defaults_of_the_settings() -> None:
    parameters = {parameter.name: parameter.default for parameter in get_command(app).commands["serve"].params}  # type: ignore[attr-defined]
    fields = ServingSettings.model_fields
    assert set(parameters) == {*fields, "host", "port"}
    for name, field in fields.items():
        assert field.is_required() or parameters[name] == field.default


def test_a_wrong_setting_is_refused_in_one_line() -> None:
    with pytest.raises(SettingError, match=r"^confidence: input should be less than or equal to 1, got 2.0$"):
        serving_settings({"weights": "w", "confidence": 2.0})
    with pytest.raises(SettingError, match=r"^replica: unknown key; did you mean 'replicas'\?$"):
        serving_settings({"weights": "w", "replica": 2})
