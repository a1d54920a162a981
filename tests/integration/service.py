"""Start `yolov7 serve` as users do, and send requests to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import cv2
import numpy as np
import torch

from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec
from yolov7.weights.weight_files import save_weights

YOLOV7 = Path(sys.executable).with_name("yolov7")
CLASS_NAMES = ("cat", "dog")
_READY = re.compile(r"ready at (http://\S+) ")


class Response(NamedTuple):
    """What the service answered."""

    status: int
    content: Any
    headers: Mapping[str, str]


class Server(NamedTuple):
    """A running service."""

    url: str
    process: subprocess.Popen[str]


def write_weights(path: Path, *, image_size: int = 64) -> Path:
    """Write weights that were not trained, but whose detections depend on the image."""
    torch.manual_seed(0)
    model = DetectionModel(load_spec("nano"), num_classes=len(CLASS_NAMES)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics become those of all images below
    with torch.no_grad():
        model(
            torch.stack([torch.from_numpy(picture(image_size, image_size + i)[:, :image_size]) for i in range(8)])
            .permute(0, 3, 1, 2)
            .float()
            / 255
        )
    for conv in model.head.convs:
        conv.weight.data *= 10  # scores far apart, so that rounding does not change their order
        conv.bias.data += 3
    save_weights(path, model.eval(), class_names=CLASS_NAMES, image_size=image_size, training={})
    return path


def picture(height: int = 48, width: int = 80) -> np.ndarray:
    """Return an image of colours that is different for each size."""
    colours = np.random.default_rng((height, width)).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(cv2.resize(colours, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start the command in a session of its own, so that everything it starts can be found."""
    return subprocess.Popen(
        [YOLOV7, "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"COLUMNS": "500"},
    )


@contextmanager
def serving(*arguments: str | Path) -> Iterator[Server]:
    """Run the service on a free port until the body ends."""
    process = start(*arguments, "--port", "0")
    try:
        yield Server(wait_until_ready(process), process)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    end(process, signal.SIGTERM)


def end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to the service, and check that nothing of it is left."""
    process.send_signal(number)
    try:
        output, _ = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, output
    assert output.endswith("ended\n")
    assert "Traceback" not in output
    assert processes_of_session(process.pid) == []


def wait_until_ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := _READY.search(line):
            return found[1]
    raise AssertionError(f"the service did not start:\n{''.join(lines)}")


def ask(url: str, body: bytes | None = None, *, kind: str = "application/octet-stream") -> Response:
    """Send a request: POST if there is a body, otherwise GET."""
    headers = {} if body is None else {"Content-Type": kind}
    try:
        with urlopen(Request(url, body, headers), timeout=60) as answer:
            return Response(answer.status, json.load(answer), answer.headers)
    except HTTPError as error:
        return Response(error.code, json.load(error), error.headers)


def form(*contents: bytes) -> tuple[bytes, str]:
    """Return the body and the content type of a form with files."""
    head = b'--limit\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    return b"".join(head + content + b"\r\n" for content in contents) + b"--limit--\r\n", (
        "multipart/form-data; boundary=limit"
    )


def processes_of_session(session: int) -> list[int]:
    """Return the processes that belong to a session and have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(own) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found
