"""Where objects live, and what a test must know of that to see there what holds in all places."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from actors import Gate, Worker, home_of, manager_in, process_of, stopped
from far import FarManager
from helpers import do_without_linux

from mppool import PoolManager


class Backend:
    """On this machine: a manager and workers that are forked from the test, objects with this isolation."""

    def __init__(self, isolation: str | None = None, kind: type[PoolManager] = PoolManager) -> None:
        self.isolation = isolation
        self.kills = isolation == "process"
        """Whether a call that nothing waits for is killed. Else it runs to its end."""
        self._kind = kind

    @contextlib.contextmanager
    def manager(self, **options: Any) -> Iterator[PoolManager]:
        """A manager for the length of a block, which leaves nothing behind."""
        with manager_in(kind=self._kind, **options) as manager:
            directory = home_of(manager)
            yield manager
        assert not directory.exists()

    def many(self, number: int) -> int:
        """How many workers can be there at once, of so many that a test would have."""
        return number

    def worker(self) -> Worker:
        """A process that does what it is told; it ends with the block."""
        return Worker()

    def gate(self) -> contextlib.AbstractContextManager[Gate]:
        """What the test inherits to all processes that it starts."""
        return Gate.set_up()

    def process_of(self, manager: PoolManager) -> psutil.Process:
        """In which the policy of the pool is, and the queue of its waiters."""
        return process_of(manager)

    def processes_of(self, manager: PoolManager) -> list[psutil.Process]:
        """That one, and those of objects."""
        process = self.process_of(manager)
        return [process, *process.children(recursive=True)]

    @contextlib.contextmanager
    def standstill(self, manager: PoolManager) -> Iterator[None]:
        """No answer comes from the manager, nor from its objects."""
        with contextlib.ExitStack() as stack:
            for each in self.processes_of(manager):
                stack.enter_context(stopped(each))
            yield

    def do_without_linux(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The managers that are started from now on, and their users, go the way of other platforms."""
        do_without_linux(monkeypatch)


BACKENDS = {
    "none": Backend("none"),
    "thread": Backend("thread"),
    "process": Backend("process"),
    "far": Backend("process", FarManager),
}
