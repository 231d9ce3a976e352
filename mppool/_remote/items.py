"""The next items of an iterator, taken in batches where it lives.

It may fall silent within a batch. Then what it has given is sent, and the call goes on until the next item is
there, which is the first of the next batch.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

from .interface import CURSOR
from .opcodes import End

BATCH_SECONDS = 0.005
"""A batch takes no new item after this time: the first ones have waited long enough."""


def iterator_over(obj: Any, kind: str) -> Iterator[Any]:
    """What gives the next items of an object of a kind of `Interface.iterator`."""
    if hasattr(type(obj), "__next__"):
        return obj  # type: ignore[no-any-return]
    return iter(obj.fetchone, None) if kind == CURSOR else iter(obj)


class Batch:
    """The next items of an iterator, and what is behind them."""

    def __init__(self, send: Callable[[list[Any]], object] | None = None) -> None:
        """`send` is for the first items, if the next one is not there in time."""
        self.items: list[Any] = []
        self.end: End = None
        self.error: BaseException | None = None
        self.sent = 0
        """How many of the items were sent."""
        self.over = False
        self.due = time.monotonic() + BATCH_SECONDS
        self._send = send
        self._lock = threading.Lock()  # guards `over` and `sent`: an item is sent once

    def take(self, iterator: Iterator[Any], size: int) -> None:
        """Take at most so many. Raises what stands in place of the first."""
        items, due = self.items, self.due
        if size > 1 and self._send is not None:
            try:
                # No more than a reference: the thread looks later, and would keep the items until then.
                _watched(os.getpid()).put(weakref.ref(self))
            except RuntimeError:  # no thread is free: a batch may come late
                pass
        try:
            while len(items) < size:
                items.append(next(iterator))
                if time.monotonic() > due:
                    break
        except StopIteration as stop:
            self.end = stop.args
        except BaseException as error:
            if not items:
                raise
            self.error = error
        finally:
            with self._lock:
                self.over = True

    def send_what_is_there(self) -> None:
        """Send the first items, in a thread of its own, while `take` waits."""
        with self._lock:
            if self.over or not self.items or self._send is None:
                return  # the first item ends the batch, as it is late
            self.sent = len(self.items)
        self._send(self.items[: self.sent])


@functools.lru_cache(maxsize=1)
def _watched(pid: int) -> SimpleQueue[weakref.ref[Batch]]:  # noqa: ARG001  # a forked child has its own thread
    batches: SimpleQueue[weakref.ref[Batch]] = SimpleQueue()
    threading.Thread(target=_watch, args=(batches,), name="mppool batches", daemon=True).start()
    return batches


def _watch(batches: SimpleQueue[weakref.ref[Batch]]) -> NoReturn:
    """Have batches sent that are not over when they are due."""
    while True:
        known = batches.get()
        time.sleep(BATCH_SECONDS)  # then look at all that came: to be woken for each would cost more
        with suppress(Empty):
            while True:
                _send_if_due(known())
                known = batches.get_nowait()


def _send_if_due(batch: Batch | None) -> None:
    if batch is None or batch.over:
        return
    time.sleep(max(0.0, batch.due - time.monotonic()))
    with suppress(RuntimeError):  # no thread is free: the batch comes late
        threading.Thread(target=batch.send_what_is_there, name="mppool batch", daemon=True).start()
