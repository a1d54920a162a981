"""Start a real MLflow server behind a proxy that may answer in its place."""

from __future__ import annotations

import http.client
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

Replaced = Literal["all requests", "writes", "files"]


@dataclass(frozen=True)
class Answer:
    """What the proxy answers.

    Attributes:
        status: The HTTP status with its text.
        body: The body.
        kind: The content type.
        headers: Further headers.
    """

    status: str
    body: str = ""
    kind: str = "text/html"
    headers: dict[str, str] = field(default_factory=dict)


class OddProxy(ThreadingHTTPServer):
    """Passes requests on to a server, or answers them itself."""

    daemon_threads = True

    def __init__(self, server_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = server_port
        self.answer: Answer | None = None
        self.replaces: Replaced = "all requests"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OddProxy

    def _respond(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_read = self.command == "GET" or self.path.partition("?")[0].endswith("/search")
        is_replaced = {"all requests": True, "writes": not is_read, "files": self.command == "PUT"}
        if self.server.answer is not None and is_replaced[self.server.replaces]:
            answer = self.server.answer
            status, body, headers = int(answer.status[:3]), answer.body.encode(), answer.headers
            kind = answer.kind
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
            connection.request(self.command, self.path, content, dict(self.headers))
            reply = connection.getresponse()
            status, body, headers = reply.status, reply.read(), {}
            kind = reply.getheader("Content-Type", "text/plain")
            connection.close()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _respond  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def odd_proxy(folder: Path) -> Iterator[OddProxy]:
    """Start both. The server keeps its data in a folder, and has its own process, because it changes global state."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(folder, theirs), daemon=True)
    process.start()
    assert ours.poll(180), "the server did not start"
    proxy = OddProxy(ours.recv())
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    yield proxy
    proxy.shutdown()
    proxy.server_close()
    process.kill()
    process.join()


def _serve(folder: Path, pipe: Connection) -> None:
    os.environ |= {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/server.db",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"{folder}/files",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    from mlflow.server import app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            pass

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    pipe.send(server.server_port)
    server.serve_forever()
