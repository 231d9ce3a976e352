"""`ObjectPool.map`: threads of this process, each with one item at an object, and results in order."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from itertools import islice
from queue import SimpleQueue
from typing import Any

from mppool.errors import PoolError, PoolTimeout

from .channel import Channel
from .connection import Cancellation

_AHEAD = 2
"""Items that are read for each object, so that none lies idle while the caller looks at a result."""


class MapThreads:
    """As many threads as objects at most, each started when there is an item for it.

    They do `call(item, timeout, cancellation)`, which waits for an object until that is requested.
    """

    def __init__(
        self,
        pool: str,
        channel: Channel,
        call: Callable[[Any, float | None, Cancellation], Any],
        size: int,
        timeout: float | None,
    ) -> None:
        self.size = size
        self._pool = pool
        self._channel = channel
        self._call = call
        self._timeout = timeout
        self._deadline: float | None = None
        if timeout is not None and timeout < threading.TIMEOUT_MAX:
            self._deadline = time.monotonic() + timeout
        self._process = os.getpid()
        self._cancellation = Cancellation()
        self._started = 0
        self._tasks: SimpleQueue[tuple[Future[Any], Any] | None] = SimpleQueue()

    def begin(self, item: object) -> Future[Any]:
        """Have the function called with an object and this item."""
        future: Future[Any] = Future()
        if self._started < self.size:
            name = f"mppool map of {self._pool}"
            # A daemon: the program may end with results that it does not want.
            threading.Thread(target=self._work, name=name, daemon=True).start()
            self._started += 1
        self._tasks.put((future, item))
        return future

    def wait(self, future: Future[Any]) -> None:
        """Wait for a result.

        Raises:
            PoolTimeout: it is not there in time.
            PoolError: this is a forked child, in which there are no such threads.
        """
        if os.getpid() != self._process:
            raise PoolError(f"pool {self._pool!r}: a map belongs to the process that called it")
        if not wait([future], self._time_left()).done:
            text = f"{self._timeout:g} s were too short for all of a map"
            raise PoolTimeout(f"pool {self._pool!r}: {text}")

    def end(self) -> None:
        """Begin nothing more. Who waits for an object waits no more; a call that runs goes on, unseen."""
        if os.getpid() == self._process:
            self._cancellation.request()
            for _ in range(self._started):
                self._tasks.put(None)

    def _work(self) -> None:
        self._channel.cancel_with(self._cancellation)
        while (task := self._tasks.get()) is not None and not self._cancellation.requested:
            future, item = task
            try:
                future.set_result(self._call(item, self._time_left(), self._cancellation))
            except BaseException as error:  # the caller's
                future.set_exception(error)
            del task, future, item  # the result is the caller's alone

    def _time_left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())


def results(threads: MapThreads, items: Iterator[Any]) -> Iterator[Any]:
    """None when the first items have begun, then the results in order. However it ends, so do the threads."""
    pending: deque[Future[Any]] = deque()

    def read_on() -> None:
        nonlocal items
        try:
            for item in islice(items, _AHEAD * threads.size - len(pending)):
                pending.append(threads.begin(item))
        except Exception as error:  # of the input: it comes in its place, and is the last
            items = iter(())
            failed: Future[Any] = Future()
            failed.set_exception(error)
            pending.append(failed)

    try:
        read_on()
        yield None
        while pending:
            threads.wait(pending[0])
            result = pending.popleft().result()
            read_on()
            yield result
            del result
    finally:
        threads.end()
