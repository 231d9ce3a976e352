"""What is slow, and so is not done under the lock of a pool: a step puts it aside, and does it afterwards."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

log = logging.getLogger("mppool")


class Work:
    """Tasks of one pool, in the order in which they are to be done. Used under its lock, but for `do`."""

    def __init__(self, pool: str, lock: threading.Lock) -> None:
        self.tasks: list[Callable[[], object]] = []
        self._pool = pool
        self._lock = lock

    def later(self, do: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Something slow: to be done when the lock is free."""
        self.tasks.append(partial(do, *args, **kwargs))

    def log(self, level: int, text: str, *args: object, **kwargs: object) -> None:
        """A line of the log."""
        # In words: what is logged may be kept for long, and a lease with it would keep its object.
        words = (each if isinstance(each, float) else str(each) for each in args)
        self.later(log.log, level, f"pool %r: {text}", self._pool, *words, **kwargs)

    def do(self) -> None:
        """Do what there is, and what that brings about. The lock is free."""
        while tasks := self._take():
            try:
                while tasks:
                    tasks[0]()  # nothing in it minds being done twice
                    del tasks[0]
            except BaseException:  # a signal handler's: the next step does the rest
                with self._lock:
                    self.tasks[:0] = tasks
                raise

    def _take(self) -> list[Callable[[], object]]:
        with self._lock:
            tasks, self.tasks = self.tasks, []
            return tasks
