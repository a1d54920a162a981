"""Iterators whose work is done by threads, in order and with bounded memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, final

_PATIENCE = 2.0  # seconds in which a thread may end what it does
Item = TypeVar("Item")
Result = TypeVar("Result")


class ClosedQueueError(Exception):
    """The other side of a queue has ended."""


@final
class BoundedQueue(Generic[Item]):
    """A queue between two threads that holds a limited number of items and of bytes.

    An item that is larger than the limit is accepted when the queue is empty.
    """

    def __init__(self, *, items: int, size: int) -> None:
        """Create an empty queue.

        Args:
            items: Largest number of items.
            size: Largest sum of their sizes in bytes.
        """
        self._most_items, self._most_bytes = items, size
        self._items: deque[tuple[Item, int]] = deque()
        self._bytes = 0
        self._ended = False
        self._changed = threading.Condition()

    def put(self, item: Item, *, size: int) -> None:
        """Add an item; wait until there is room.

        Args:
            item: The item.
            size: Its size in bytes.

        Raises:
            ClosedQueueError: If the queue was closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._has_room(size))
            if self._ended:
                raise ClosedQueueError
            self._items.append((item, size))
            self._bytes += size
            self._changed.notify_all()

    def get(self) -> Item:
        """Remove and return the first item; wait until there is one.

        Raises:
            ClosedQueueError: If the queue is closed and empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._items)
            if not self._items:
                raise ClosedQueueError
            item, size = self._items.popleft()
            self._bytes -= size
            self._changed.notify_all()
            return item

    def close(self, *, discard: bool = False) -> None:
        """Refuse new items; `get` still returns those in the queue.

        Args:
            discard: Also remove the items in the queue.
        """
        with self._changed:
            self._ended = True
            if discard:
                self._items.clear()
            self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return not self._items or (len(self._items) < self._most_items and self._bytes + size <= self._most_bytes)


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Iterator[Result]:
    """Apply a function to items in threads.

    Args:
        function: The function. What it raises is raised where its result would be yielded.
        items: The items; they are read in the thread that iterates.
        workers: Number of threads.
        ahead: Number of results that may be computed in advance; 0 computes each when it is asked for.

    Yields:
        The results in the order of the items.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                while pending and (len(pending) > ahead or pending[0].done()):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def in_background(
    items: Iterable[Item], *, size_of: Callable[[Item], int], most_items: int, most_bytes: int
) -> Iterator[Item]:
    """Iterate in another thread, which may be ahead by a limited number of items and bytes.

    Args:
        items: What is iterated. What it raises is raised after its last item was yielded.
        size_of: Returns the size of an item in bytes.
        most_items: Largest number of items in advance.
        most_bytes: Largest sum of their sizes.

    Yields:
        The items.
    """
    queue: BoundedQueue[Item] = BoundedQueue(items=most_items, size=most_bytes)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            for item in items:
                queue.put(item, size=size_of(item))
        except ClosedQueueError:
            pass
        except BaseException as error:
            errors.append(error)
        finally:
            queue.close()

    thread = threading.Thread(target=run, daemon=True)  # a daemon, because a stream may block it for seconds
    thread.start()
    try:
        while True:
            try:
                item = queue.get()
            except ClosedQueueError:
                break
            yield item
    finally:
        queue.close(discard=True)
        thread.join(_PATIENCE)
    if errors:
        raise errors[0]


def latest(items: Iterable[Item]) -> Iterator[Item]:
    """Iterate in another thread and yield only the newest item; older ones that nobody asked for are dropped.

    Args:
        items: What is iterated. What it raises is raised after its last item was yielded.

    Yields:
        The newest items.
    """
    newest: deque[Item] = deque(maxlen=1)
    errors: list[BaseException] = []
    arrived, stopped = threading.Semaphore(0), threading.Event()

    def run() -> None:
        try:
            for item in items:
                newest.append(item)
                arrived.release()
                if stopped.is_set():
                    return
        except BaseException as error:
            errors.append(error)
        finally:
            stopped.set()
            arrived.release()

    threading.Thread(target=run, daemon=True).start()
    try:
        while True:
            arrived.acquire()
            has_ended = stopped.is_set()  # looked up first, so that the last item is not missed
            if newest:
                yield newest.popleft()
            elif has_ended:
                break
    finally:
        stopped.set()
    if errors:
        raise errors[0]
