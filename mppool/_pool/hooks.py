"""Where the user's factory and hooks are called: on the crew, with the pool's lock free."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from mppool.options import Hook, PoolOptions

from .entry import PoolEntry
from .runner import Runner
from .threads import Job, ThreadCache

log = logging.getLogger("mppool")

T = TypeVar("T")


class _Once:
    """A job that is done once, also if an interrupt had it submitted twice."""

    __slots__ = ("_first", "do")

    def __init__(self, do: Job) -> None:
        self.do = do
        self._first = threading.Lock()

    def __call__(self) -> None:
        if self._first.acquire(blocking=False):
            self.do()


class Hooks(Generic[T]):
    """Calls them on the crew. Each method returns what begins it; what came of it is told to `done`.

    That is called with the lock free; being called twice does no harm.
    """

    def __init__(
        self,
        factory: Callable[[], T],
        new_place: Callable[[], Runner[T]],
        pool: str,
        options: PoolOptions,
        crew: ThreadCache,
    ) -> None:
        self._factory = factory
        self._new_place = new_place
        self._pool = pool
        self._hooks = {"check": options.check, "reset": options.reset, "close": options.close}
        self._crew = crew

    def build(self, entry: PoolEntry[T], done: Callable[..., None]) -> Job:
        """The factory's call."""
        return self._on_crew(self._build, entry, done)

    def check(self, entry: PoolEntry[T], done: Callable[[PoolEntry[T], bool], None]) -> Job:
        """Whether an idle object is fine."""
        return self._on_crew(self._run, entry, _says_yes, "check", done)

    def reset(self, entry: PoolEntry[T], done: Callable[[PoolEntry[T], bool], None]) -> Job:
        """What an object that came home needs before it is lent again."""
        return self._on_crew(self._run, entry, _returns, "reset", done)

    def close(self, entry: PoolEntry[T], done: Callable[[PoolEntry[T]], None]) -> Job:
        """The end of an object that leaves."""
        return self._on_crew(self._close, entry, done)

    def stop(self, entry: PoolEntry[T], patience: float, done: Callable[[PoolEntry[T]], None]) -> Job:
        """The end, after so many seconds, of a process's code that nobody waits for."""
        return self._on_crew(self._stop, entry, patience, done)

    def _on_crew(self, do: Callable[..., None], *args: object) -> Job:
        return partial(self._crew.submit, _Once(partial(do, *args)))

    def _build(self, entry: PoolEntry[T], done: Callable[..., None]) -> None:
        entry.runner = self._new_place()
        try:
            entry.runner.make(self._factory)
        except BaseException as error:
            done(entry, error, in_words(error))
        else:
            done(entry)

    def _run(
        self,
        entry: PoolEntry[T],
        do: Callable[..., bool],
        what: str,
        done: Callable[[PoolEntry[T], bool], None],
    ) -> None:
        fine = False
        try:
            fine = entry.runner.run(self._hook(do, what), entry.take_kept())
        except ChildProcessError as error:  # the object's own process has ended
            log.warning("pool %r: %s: %s", self._pool, what, error)
        except Exception:  # the hook is not known there
            log.exception("pool %r: %s could not be called", self._pool, what)
        done(entry, fine)

    def _close(self, entry: PoolEntry[T], done: Callable[[PoolEntry[T]], None]) -> None:
        entry.runner.end(self._hook(_returns, "close"), entry.take_kept())
        done(entry)

    def _stop(self, entry: PoolEntry[T], patience: float, done: Callable[[PoolEntry[T]], None]) -> None:
        entry.runner.stop(patience)
        done(entry)

    def _hook(self, do: Callable[..., bool], what: str) -> Callable[[T], bool]:
        return partial(do, self._pool, what, self._hooks[what])


def in_words(error: BaseException) -> str:
    """What an error is, also where its `str` raises."""
    return "".join(traceback.format_exception_only(error)).strip()


# What is done where the object lives, which may be another process: these pickle.


def _says_yes(pool: str, what: str, hook: Hook | None, lent: object) -> bool:
    try:
        return hook is None or hook(lent) is not False
    except BaseException as error:
        log.warning("pool %r: %s: %s; the object is closed", pool, what, in_words(error))
        return False


def _returns(pool: str, what: str, hook: Hook | None, lent: object) -> bool:
    try:
        if hook is not None:
            hook(lent)
    except BaseException:
        log.exception("pool %r: %s failed", pool, what)
        return False
    return True
