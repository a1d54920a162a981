"""A real MLflow server in this process behind a proxy that may answer in its place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest


@dataclass(frozen=True)
class Answer:
    """What a proxy answers.

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


class OddProxy:
    """Passes requests on to a WSGI application, or answers them itself."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.answer: Answer | None = None
        self.replaces: Literal["all requests", "writes", "files"] = "all requests"
        self.url = ""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = self.answer
        is_read = environ["REQUEST_METHOD"] == "GET" or environ["PATH_INFO"].endswith("/search")
        is_replaced = {"all requests": True, "writes": not is_read, "files": environ["REQUEST_METHOD"] == "PUT"}
        if answer is None or not is_replaced[self.replaces]:
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        body = answer.body.encode()
        headers = {"Content-Type": answer.kind, "Content-Length": str(len(body))} | answer.headers
        start_response(answer.status, list(headers.items()))
        return [body]


@contextmanager
def odd_proxy(folder: Path) -> Iterator[OddProxy]:
    """Serve MLflow's own application above a SQLite file in a folder."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: object) -> None:
            pass

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder}/server.db")
        environment.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
        environment.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
        environment.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", f"{folder}/files")
        from mlflow.server import app

        proxy = OddProxy(app)
        server = make_server("127.0.0.1", 0, proxy, threaded=True, request_handler=Quiet)
        proxy.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield proxy
        server.shutdown()
        thread.join()
