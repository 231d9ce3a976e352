"""Where an object lives: in whatever thread needs it, or in one of its own.

Everything that touches an object, from its factory to its `close`, is done by its place. One that is a
process of its own is in `process.py`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from mppool._system.fork import Step, at_fork
from mppool._system.processes import ProcessId

log = logging.getLogger("mppool")

T = TypeVar("T")
R = TypeVar("R")


class Keepsakes(Protocol):
    """What calls left behind on a lease, such as cursors; it dies with the lease."""

    def __bool__(self) -> bool:
        """Whether there is anything."""

    def clear(self) -> None:
        """Let go of everything."""


class Busy(Protocol):
    """Held while a call runs, so that calls never overlap, and a lease does not end under one."""

    def acquire(self, blocking: bool = True) -> bool:
        """Take it; False if a call has it."""

    def release(self) -> None:
        """Have it free again."""


class Runner(Protocol[T]):
    """Where one object can be touched."""

    owner: ProcessId | None
    """The process of its own; None if it has none."""
    lent: T
    """The object, or what stands for it here."""

    @property
    def lives(self) -> bool:
        """Whether it can still be used: a process can die."""

    @property
    def called(self) -> bool:
        """Whether a call of the present lease has come: its holder knows of it."""

    def fate(self, patience: float = 0.0) -> str | None:
        """How it came to its end, for people; None if it lives, and does so for so many more seconds."""

    def make(self, factory: Callable[[], T]) -> None:
        """Have the object made. Raises what `factory` raises; then nothing is left of the place."""

    def lend(self, lease_id: int) -> tuple[Busy, Keepsakes | None]:
        """A lease of the object begins."""

    def run(self, do: Callable[[T], R], kept: Keepsakes | None = None) -> R:
        """Do something with the object, and wait for it. What the last lease kept goes first.

        Raises what `do` raises, and `ChildProcessError` if a process of its own has ended.
        """

    def end(self, do: Callable[[T], object], kept: Keepsakes | None = None) -> None:
        """Do something last with the object, and let go of it. Raises nothing."""

    def stop(self, patience: float) -> None:
        """Nobody waits for the code that runs there. Wait for its end, and bring it about after so many
        seconds. Only for what has a process of its own.
        """


class InlineRunner(Generic[T]):
    """In the thread that comes. Calls do not overlap, but may come from another thread each time."""

    lent: T
    owner: ProcessId | None = None
    lives = True
    called = False

    def fate(self, patience: float = 0.0) -> str | None:  # noqa: ARG002
        """None: nothing ends it."""
        return None

    def call(self, do: Callable[[], R]) -> R:
        """Do something for a holder. Raises what it raises."""
        forks = _forks
        try:
            return do()
        finally:
            if forks != _forks:
                _end_child()

    def make(self, factory: Callable[[], T]) -> None:
        """Have the object made."""
        self.call(partial(self._make, factory))

    def lend(self, lease_id: int) -> tuple[Busy, Keepsakes | None]:  # noqa: ARG002  # each is as good as another
        """A lease of the object begins."""
        self.called = False
        return threading.Lock(), None

    def run(self, do: Callable[[T], R], kept: Keepsakes | None = None) -> R:
        """Do something with the object."""
        return self.call(partial(self._run, do, kept))

    def end(self, do: Callable[[T], object], kept: Keepsakes | None = None) -> None:
        """Do something last with the object."""
        self.call(partial(self._end, do, kept))

    def stop(self, patience: float) -> None:
        """No thread can be stopped: whoever serves a call tells of its end."""
        raise NotImplementedError

    def _make(self, factory: Callable[[], T]) -> None:
        self.lent = factory()

    def _run(self, do: Callable[[T], R], kept: Keepsakes | None) -> R:
        if kept is not None:
            let_go(kept)
        return do(self.lent)

    def _end(self, do: Callable[[T], object], kept: Keepsakes | None) -> None:
        if kept is not None:
            let_go(kept)
        leaving = self.lent
        del self.lent
        do(leaving)
        del leaving  # a destructor can be slow, too, and wants to run where the object lived


def let_go(kept: Keepsakes) -> None:
    """Have go what the last lease kept, whatever that raises."""
    try:
        kept.clear()
    except BaseException:
        log.exception("mppool: letting go of what a lease kept failed")


_forks = 0  # that lie between the first process and this one


@at_fork(Step.COUNT_FORK)
def _count_fork() -> None:
    global _forks
    _forks += 1


def _end_child() -> NoReturn:
    """End a child that the object forked: it must not go on here, in the place of its parent."""
    log.error("mppool: an object's code forked, and the child (pid %s) returned: it ends here", os.getpid())
    os._exit(1)


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


class ThreadRunner(InlineRunner[T]):
    """One daemon thread, for objects that refuse to be touched by any other than the one that made them.

    A job that hangs costs this thread only. `make` raises `RuntimeError` if no thread can be had.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()

    def call(self, do: Callable[[], R]) -> R:
        """Do something in the thread, after all that was asked for earlier."""
        job = _Job(do)
        del do
        self._jobs.put(job)
        result: R = job.outcome()
        return result

    def make(self, factory: Callable[[], T]) -> None:
        """Have the object made by the thread, which begins with it."""
        threading.Thread(target=self._work, name=self._name, daemon=True).start()
        try:
            super().make(factory)
        except BaseException:
            self._jobs.put(None)
            raise

    def end(self, do: Callable[[T], object], kept: Keepsakes | None = None) -> None:
        """Do something last with the object. The thread ends with it."""
        super().end(do, kept)
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            super().call(job.perform)
            del job
