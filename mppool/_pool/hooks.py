"""Where the user's factory and hooks are called: on a thread of the cache, with the pool's lock free."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mppool.options import Hook, PoolOptions

from .entry import PoolEntry, Reason
from .runner import Do, Invoke

log = logging.getLogger("mppool")

Failure = tuple[BaseException, str]
"""What a factory raised, and that as text."""


@dataclass(slots=True, eq=False)
class Task:
    """Slow work on one object, and who is told what came of it.

    It is done once, also if an interrupt had it submitted twice.
    """

    do: Callable[[PoolEntry], Any]
    then: Callable[[PoolEntry, Any], object]
    entry: PoolEntry
    _first: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self) -> None:
        if self._first.acquire(blocking=False):
            self.then(self.entry, self.do(self.entry))


class Hooks:
    """Calls them, where the object lives. Each method returns when that has returned."""

    def __init__(self, factory: Callable[..., Any], pool: str, options: PoolOptions) -> None:
        self._factory = factory
        self._pool = pool
        self._options = options

    def build(self, entry: PoolEntry) -> Failure | None:
        """Make the object; None if that worked."""
        try:
            item = entry.item
            entry.runner.will = self._told(entry, _returns, "close")
            entry.runner.create(self._factory if item is None else partial(self._factory, item.pickled))
        except BaseException as error:
            return error, _in_words(error)
        return None

    def check(self, entry: PoolEntry) -> Reason | None:
        """Why an idle object must go; None if it is fine."""
        fine = self._run(entry, entry.runner.run, _accepts, "check")
        return None if fine else Reason.CHECK

    def reset(self, entry: PoolEntry) -> Reason | None:
        """Make ready for the next holder what came home; why it must go, if that failed."""
        fine = self._run(entry, entry.runner.run, _returns, "reset")
        return None if fine else Reason.RESET

    def revoke(self, entry: PoolEntry) -> bool:
        """End the last lease of an object where that has to be asked; False if a call of it may still run."""
        try:
            return entry.runner.fence.revoke()
        except OSError as error:
            what = "it cannot be told whether a call of the last lease runs on"
            log.warning("pool %r: %s%s: %s", self._pool, what, entry.of_item, error)
        return False

    def close(self, entry: PoolEntry) -> None:
        """End an object that leaves."""
        self._run(entry, entry.runner.destroy, _returns, "close")

    def kill(self, entry: PoolEntry) -> None:
        """End an object that leaves, by force: its hook is not called."""
        entry.runner.kill_after(0.0)
        self.close(entry)

    def _run(
        self, entry: PoolEntry, run: Callable[[Do[bool]], Any], do: Callable[..., bool], name: str
    ) -> bool:
        try:
            return bool(run(self._told(entry, do, name)))
        except ChildProcessError as error:  # the object's own process has ended
            log.warning("pool %r: %s%s: %s", self._pool, name, entry.of_item, error)
        except Exception:  # the hook is not known there
            log.exception("pool %r: %s%s could not be called", self._pool, name, entry.of_item)
        return False

    def _told(self, entry: PoolEntry, do: Callable[..., bool], name: str) -> Do[bool]:
        """What is done with the object to call this hook."""
        return partial(do, self._pool, name + entry.of_item, getattr(self._options, name))


def _in_words(error: BaseException) -> str:
    """What an error is, also where its `str` raises."""
    return "".join(traceback.format_exception_only(error)).strip()


# What is done where the object lives, which may be another process: these pickle.


def _accepts(pool: str, name: str, hook: Hook, invoke: Invoke, obj: object) -> bool:
    try:
        return invoke(hook, obj) is not False
    except BaseException as error:
        log.warning("pool %r: %s: %s; the object is closed", pool, name, _in_words(error))
        return False


def _returns(pool: str, name: str, hook: Hook | None, invoke: Invoke, obj: object) -> bool:
    try:
        if hook is not None:
            invoke(hook, obj)
    except BaseException:
        log.exception("pool %r: %s failed", pool, name)
        return False
    return True
