"""Where an object lives: in whatever thread needs it, or in one of its own.

Everything that touches an object, from its factory to its `close`, passes through `run` of its place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

__all__ = ["ANYWHERE", "OwnThread", "Place"]

R = TypeVar("R")


class Place(Protocol):
    """Where one object, or any number of them, can be touched."""

    def run(self, do: Callable[[], R]) -> R:
        """Do something there, and wait for it. Raises what it raises."""

    def end(self) -> None:
        """The object is gone; nothing more will run."""


class _Anywhere:
    """The thread that comes. Calls do not overlap, but may come from another thread each time."""

    def run(self, do: Callable[[], R]) -> R:
        return do()

    def end(self) -> None:
        pass


ANYWHERE: Place = _Anywhere()


class _Job:
    """Something to be done, and what came of it."""

    __slots__ = ("_do", "_done", "_error", "_result")

    def __init__(self, do: Callable[[], Any]) -> None:
        self._do: Callable[[], Any] | None = do
        self._result: Any = None
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def perform(self) -> None:
        do, self._do = self._do, None
        assert do is not None
        try:
            self._result = do()
        except BaseException as error:
            self._error = error
        del do  # what it refers to belongs to this thread, and ends in it
        self._done.release()

    def outcome(self) -> Any:
        self._done.acquire()
        if self._error is not None:
            try:
                raise self._error
            finally:
                del self._error
        return self._result


class OwnThread:
    """One daemon thread, for objects that refuse to be touched by any other than the one that made them.

    A job that hangs costs this thread only. `RuntimeError` if no thread can be had.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def run(self, do: Callable[[], R]) -> R:
        """Do something in the thread, after all that was asked for earlier."""
        job = _Job(do)
        del do
        self._jobs.put(job)
        result: R = job.outcome()
        return result

    def end(self) -> None:
        """Have the thread end when it has done all that was asked for."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.perform()
            del job
