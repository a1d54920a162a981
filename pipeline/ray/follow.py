"""Run work that takes hours in a thread of its own, and ask its workers to write a checkpoint and exit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

TICK_SECONDS = 0.5
_LEAVE_SECONDS = 20.0  # time for a worker to finish its step and to write its checkpoint


def follow(work: Callable[[], Result], *, stop: Path, on_tick: Callable[[], None]) -> Result:
    """Run `work` in a thread and call `on_tick` about twice a second until it has ended, and once more after that.

    In the main thread, Ray would handle Ctrl-C itself and end without a checkpoint.

    Args:
        work: What to run.
        stop: The file that asks the workers to leave; it is created on an interrupt.
        on_tick: Called in the thread of the caller. An OSError of it is ignored.

    Returns:
        What `work` returns.

    Raises:
        KeyboardInterrupt: After an interrupt, when the workers have left or had their time to do so.
    """
    done: Future[Result] = Future()
    threading.Thread(target=_settle, args=(done, work), name="ray-train", daemon=True).start()
    try:
        _tick_until(done, on_tick)
    except KeyboardInterrupt:
        _ask_to_leave(stop, is_over=done.done)
        raise
    return done.result()


def _ask_to_leave(stop: Path, *, is_over: Callable[[], bool]) -> None:
    """Wait until the workers have removed the file, because Ray may end before they have exited."""
    stop.touch()
    deadline = time.monotonic() + _LEAVE_SECONDS
    while stop.exists() and not is_over() and time.monotonic() < deadline:
        time.sleep(TICK_SECONDS / 5)


def _settle(done: Future[Result], work: Callable[[], Result]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:  # raised again by `result`
        done.set_exception(error)


def _tick_until(done: Future[Result], on_tick: Callable[[], None]) -> None:
    while True:
        wait([done], timeout=TICK_SECONDS)
        is_over = done.done()
        with suppress(OSError):  # a short failure of the storage must not end a training
            on_tick()
        if is_over:
            return
