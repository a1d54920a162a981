"""A local HTTP server that delivers files with the faults of real servers, in a given order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Answers a request as the next fault of its path says, or correctly if there is none."""

    server: FaultyServer

    def do_GET(self) -> None:
        server = self.server
        server.requests.append((self.path, dict(self.headers)))
        faults = server.faults.get(self.path, [])
        if faults:
            faults.pop(0)(self)
        elif self.path in server.files:
            self.deliver()
        else:
            self.send_error(404)

    def deliver(
        self, *, ranges: bool = True, cut: int | None = None, length: bool = True, version: bool = True
    ) -> None:
        """Send the file, or the range that is asked for if the client has the current version of it."""
        content, etag = self.server.files[self.path]
        start = 0
        wanted = self.headers.get("Range")
        if ranges and wanted and self.headers.get("If-Range") in (None, etag):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                self.send_response(416)
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if version:
            self.send_header("ETag", etag)
        if length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:] if cut is None else content[start : start + cut])

    def log_message(self, format: str, *args: Any) -> None:
        pass


class FaultyServer(ThreadingHTTPServer):
    """The server.

    Attributes:
        files: Content and ETag of each path.
        faults: What is done instead, one fault per request, for each path.
        requests: Path and headers of each request so far.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, tuple[bytes, str]] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients end connections, too

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


Fault = Callable[[Handler], None]


def cut(size: int, **how: bool) -> Fault:
    """End the connection after some bytes."""
    return lambda handler: handler.deliver(cut=size, **how)


def status(code: int, **headers: str) -> Fault:
    """Answer with a status."""

    def answer(handler: Handler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def silence(seconds: float) -> Fault:
    """Send the headers and nothing else for a while."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        time.sleep(seconds)

    return answer


def page(handler: Handler) -> None:
    """Send a web page."""
    body = b"\n<!DOCTYPE html><html>Please sign in</html>"
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def chunked_and_cut(handler: Handler) -> None:
    """Send the first part of a file in chunks, without the chunk that ends it."""
    content, etag = handler.server.files[handler.path]
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.send_header("ETag", etag)
    handler.end_headers()
    handler.wfile.write(b"%x\r\n%s\r\n" % (1000, content[:1000]))
    handler.close_connection = True


@contextmanager
def faulty_server() -> Iterator[FaultyServer]:
    """Run a server while the context is open."""
    with FaultyServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
