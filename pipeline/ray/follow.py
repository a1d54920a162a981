"""Work that takes hours: followed from beside it, and asked to leave with a checkpoint."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path

TICK_SECONDS = 0.5
_STOP_SECONDS = 20.0  # that a worker has for the step under way and its checkpoint


def follow(work: Callable[[], None], *, stop: Path, on_tick: Callable[[], None]) -> None:
    """Does the work in a thread of its own: in this one Ray would take Ctrl-C for itself and end without a checkpoint.

    On an interrupt the file `stop` asks the workers to leave.
    """
    done: Future[None] = Future()
    threading.Thread(target=_settle, args=(done, work), name="ray-train", daemon=True).start()
    try:
        _tick_until(done, on_tick)
    except KeyboardInterrupt:
        ask_to_leave(stop, is_over=done.done)
        raise
    done.result()


def ask_to_leave(stop: Path, *, is_over: Callable[[], bool] = lambda: False) -> None:
    """Until the workers have taken the file away: they alone count, for Ray may have its own view of an interrupt."""
    stop.touch()
    until = time.monotonic() + _STOP_SECONDS
    while stop.exists() and not is_over() and time.monotonic() < until:
        time.sleep(TICK_SECONDS / 5)


def _settle(done: Future[None], work: Callable[[], None]) -> None:
    try:
        work()
        done.set_result(None)
    except BaseException as error:  # raised again by `result`
        done.set_exception(error)


def _tick_until(done: Future[None], on_tick: Callable[[], None]) -> None:
    """Ticks until it is done, and once more."""
    while True:
        wait([done], timeout=TICK_SECONDS)
        over = done.done()
        with suppress(OSError):  # storage that hiccups must not end a training
            on_tick()
        if over:
            return
