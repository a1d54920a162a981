"""Run a process that sends what waits, and kills itself before or after a request to the server.

The process is forked, because MLflow takes seconds to import.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import requests

from pipeline.tracking import Tracker

# the kinds of requests, in the order in which a run, its model and its version are written
KILLS: tuple[tuple[str, Literal["before", "after"]], ...] = (
    ("POST .*/experiments/create", "after"),
    ("POST .*/runs/create", "before"),
    ("POST .*/runs/create", "after"),
    ("POST .*/runs/update", "after"),
    ("POST .*/runs/log-batch", "before"),
    ("POST .*/runs/log-batch", "after"),  # parameters
    ("POST .*/runs/log-batch", "after"),  # the first epoch
    ("POST .*/runs/log-batch", "after"),
    ("POST .*/runs/log-inputs", "after"),
    ("PUT .*/artifacts/evaluate/", "after"),
    ("POST .*/logged-models$", "after"),
    ("PUT .*/models/", "after"),
    ("PATCH .*/logged-models/", "after"),
    ("POST .*/runs/outputs", "before"),
    ("POST .*/runs/outputs", "after"),
    ("POST .*/registered-models/create", "after"),
    ("POST .*/model-versions/create", "before"),
    ("POST .*/model-versions/create", "after"),
    ("POST .*/model-versions/set-tag", "after"),
    ("POST .*/registered-models/alias", "before"),
    ("POST .*/registered-models/alias", "after"),
)


def send(folder: Path, environment: Mapping[str, str], *, kill: tuple[str, str] | None) -> int | None:
    """Return the exit code of a process that sends what waits in the folder of a project."""
    import pipeline.tracking.served_model  # noqa: F401  # import everything here and not in each process

    process = multiprocessing.get_context("fork").Process(target=_send, args=(folder, dict(environment), kill))
    process.start()
    process.join(300)
    return process.exitcode


def _send(folder: Path, environment: dict[str, str], kill: tuple[str, str] | None) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    if kill:
        _install(*kill)
    _, left = Tracker("killed", model="killed").send_waiting()
    assert not left


def _install(request: str, moment: str) -> None:
    real = requests.Session.request

    def patched(self: requests.Session, method: str, url: str, *args: Any, **how: Any) -> requests.Response:
        meant = re.search(request, f"{method} {url}") is not None
        if meant and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = real(self, method, url, *args, **how)
        if meant:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    requests.Session.request = patched  # type: ignore[method-assign]
