"""Where the user's factory and hooks are called: on the crew, with the pool's lock free."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from .crew import Crew, Job
from .options import Hook
from .place import Place
from .policy import Policy
from .slot import Slot

__all__ = ["Hooks"]

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
    """The hands of a policy. What came of each call is reported as a decision.

    `decide` is the pool's: it makes a step of the policy under the lock.
    """

    def __init__(
        self,
        factory: Callable[[], T],
        new_place: Callable[[], Place[T]],
        policy: Policy[T],
        crew: Crew,
        decide: Callable[..., Any],
    ) -> None:
        self._factory = factory
        self._new_place = new_place
        self._policy = policy
        self._crew = crew
        self._decide = decide
        options = policy.options
        self._check_hook, self._reset_hook, self._close_hook = options.check, options.reset, options.close

    def build(self, slot: Slot[T]) -> Job:
        """The factory's call."""
        return self._on_crew(self._build, slot)

    def check(self, slot: Slot[T]) -> Job:
        """Whether an idle object is fine."""
        return self._on_crew(self._check, slot)

    def reset(self, slot: Slot[T]) -> Job:
        """What an object that came home needs before it is lent again."""
        return self._on_crew(self._reset, slot)

    def close(self, slot: Slot[T]) -> Job:
        """The end of an object that leaves."""
        return self._on_crew(self._close, slot)

    def stop(self, slot: Slot[T], patience: float) -> Job:
        """The end of a call that nobody waits for any more."""
        return self._on_crew(partial(self._stop, patience=patience), slot)

    def _on_crew(self, what: Callable[[Slot[T]], None], slot: Slot[T]) -> Job:
        return partial(self._crew.submit, _Once(partial(what, slot)))

    def _build(self, slot: Slot[T]) -> None:
        slot.place = self._new_place()
        try:
            slot.place.make(self._factory)
        except BaseException as error:
            what = "".join(traceback.format_exception_only(error)).strip()  # also where its `str` raises
            if not self._decide(self._policy.build_failed, slot, error, what):
                log.exception("pool %r: an object could not be built", self._policy.name)
            return
        self._decide(self._policy.built, slot)

    def _check(self, slot: Slot[T]) -> None:
        fine = self._run(slot, _says_yes, "check", self._check_hook)
        self._decide(self._policy.checked, slot, fine)

    def _reset(self, slot: Slot[T]) -> None:
        fine = self._run(slot, _returns, "reset", self._reset_hook)
        self._decide(self._policy.was_reset, slot, fine)

    def _close(self, slot: Slot[T]) -> None:
        slot.place.end(self._hook(_returns, "close", self._close_hook), slot.take_kept())
        self._decide(self._policy.forget, slot)

    def _stop(self, slot: Slot[T], patience: float) -> None:
        slot.place.stop(patience)
        if slot.lease is not None:  # else it was a hook, which reports itself
            self._decide(self._policy.call_ended, slot.lease)

    def _run(self, slot: Slot[T], do: Callable[..., bool], what: str, hook: Hook | None) -> bool:
        try:
            return slot.place.run(self._hook(do, what, hook), slot.take_kept())
        except ChildProcessError as error:  # the object's own process has ended
            log.warning("pool %r: %s: %s", self._policy.name, what, error)
            return False
        except Exception:  # the hook is not known there
            log.exception("pool %r: %s could not be called", self._policy.name, what)
            return False

    def _hook(self, do: Callable[..., bool], what: str, hook: Hook | None) -> Callable[[T], bool]:
        return partial(do, self._policy.name, what, hook)


# What is done where the object lives, which may be another process: these pickle.


def _says_yes(pool: str, what: str, hook: Hook | None, lent: object) -> bool:
    try:
        return hook is None or hook(lent) is not False
    except BaseException as error:
        reason = "".join(traceback.format_exception_only(error)).strip()
        log.warning("pool %r: %s: %s; the object is closed", pool, what, reason)
        return False


def _returns(pool: str, what: str, hook: Hook | None, lent: object) -> bool:
    try:
        if hook is not None:
            hook(lent)
    except BaseException:
        log.exception("pool %r: %s failed", pool, what)
        return False
    return True
