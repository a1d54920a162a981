"""Videos, and a web server on the loopback that sends images, videos and everything else."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np

FRAMES = 30


def noise(height: int = 48, width: int = 64, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def jpeg(height: int = 48, width: int = 64, *, seed: int = 0) -> bytes:
    return cv2.imencode(".jpg", noise(height, width, seed=seed))[1].tobytes()


def write_video(path: Path, *, frames: int = FRAMES, size: tuple[int, int] = (64, 48)) -> Path:
    """Write a video whose kind follows from the suffix; every frame is noise."""
    code = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "FFV1"}[path.suffix]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), 10, size)
    assert writer.isOpened()
    for i in range(frames):
        writer.write(noise(size[1], size[0], seed=i))
    writer.release()
    return path


def count_frames(path: Path) -> int:
    capture = cv2.VideoCapture(str(path))
    number = 0
    while capture.read()[0]:
        number += 1
    return number


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Serve the files of a folder, and `/html`, `/cut.jpg`, `/private.jpg` and `/stream`, which stops."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            special: dict[str, Callable[[], None]] = {
                "/html": lambda: self.answer("text/html", b"<html>an image viewer</html>"),
                "/cut.jpg": lambda: self.answer("image/jpeg", jpeg()[:900], length=len(jpeg())),
                "/private.jpg": self.private,
                "/stream": self.stream,
            }
            special.get(self.path, super().do_GET)()

        def answer(self, kind: str, content: bytes, *, length: int | None = None) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            self.wfile.write(content)

        def private(self) -> None:
            if self.headers.get("Authorization") == "Basic dXNlcjpwQHNz":  # user:p@ss
                self.answer("image/jpeg", jpeg())
            else:
                self.send_error(401)

        def stream(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with suppress(ConnectionError):
                for i in range(8):
                    content = jpeg(seed=i)
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
                    self.wfile.write(head.encode() + content + b"\r\n")
                    time.sleep(0.02)

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()
