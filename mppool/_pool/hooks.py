"""Where the user's factory and hooks are called: on a thread of the cache, with the pool's lock free."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from mppool.options import Hook, PoolOptions

from .entry import PoolEntry

log = logging.getLogger("mppool")


class Hooks:
    """Calls them, where the object lives. Each method returns when that has returned."""

    def __init__(self, factory: Callable[[], Any], pool: str, options: PoolOptions) -> None:
        self._factory = factory
        self._pool = pool
        self._check = partial(_accepts, pool, options.check)
        self._reset = partial(_returns, pool, "reset", options.reset)
        self._close = partial(_returns, pool, "close", options.close)

    def build(self, entry: PoolEntry) -> BaseException | None:
        """Make the object; what the factory raised, or None."""
        try:
            entry.runner.create(self._factory)
        except BaseException as error:
            return error
        return None

    def check(self, entry: PoolEntry) -> bool:
        """Whether an idle object is fine."""
        return self._run(entry, "check", self._check)

    def reset(self, entry: PoolEntry) -> bool:
        """Make ready for the next holder what came home; whether that worked."""
        return self._run(entry, "reset", self._reset)

    def close(self, entry: PoolEntry) -> None:
        """End an object that leaves."""
        entry.runner.destroy(self._close)

    def _run(self, entry: PoolEntry, name: str, hook: Callable[[Any], bool]) -> bool:
        try:
            return entry.runner.run(hook)
        except ChildProcessError as error:  # the object's own process has ended
            log.warning("pool %r: %s: %s", self._pool, name, error)
        except Exception:  # the hook is not known there
            log.exception("pool %r: %s could not be called", self._pool, name)
        return False


def in_words(error: BaseException) -> str:
    """What an error is, also where its `str` raises."""
    return "".join(traceback.format_exception_only(error)).strip()


# What is done where the object lives, which may be another process: these pickle.


def _accepts(pool: str, check: Hook | None, obj: object) -> bool:
    try:
        return check is None or check(obj) is not False
    except BaseException as error:
        log.warning("pool %r: check: %s; the object is closed", pool, in_words(error))
        return False


def _returns(pool: str, name: str, hook: Hook | None, obj: object) -> bool:
    try:
        if hook is not None:
            hook(obj)
    except BaseException:
        log.exception("pool %r: %s failed", pool, name)
        return False
    return True
