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
from .place import OwnThread
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
        self, factory: Callable[[], T], policy: Policy[T], crew: Crew, decide: Callable[..., Any]
    ) -> None:
        self._factory = factory
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

    def _on_crew(self, what: Callable[[Slot[T]], None], slot: Slot[T]) -> Job:
        return partial(self._crew.submit, _Once(partial(what, slot)))

    def _build(self, slot: Slot[T]) -> None:
        try:
            if self._policy.options.isolation == "thread":
                slot.place = OwnThread(f"mppool object of {self._policy.name}")
            made = slot.place.run(self._factory)
        except BaseException as error:
            slot.place.end()
            what = "".join(traceback.format_exception_only(error)).strip()  # also where its `str` raises
            if not self._decide(self._policy.build_failed, slot, error, what):
                log.exception("pool %r: an object could not be built", self._policy.name)
            return
        self._decide(self._policy.built, slot, made)

    def _check(self, slot: Slot[T]) -> None:
        fine = slot.place.run(lambda: self._says_yes(self._check_hook, slot.object))
        self._decide(self._policy.checked, slot, fine)

    def _reset(self, slot: Slot[T]) -> None:
        fine = slot.place.run(partial(self._reset_there, slot))
        self._decide(self._policy.was_reset, slot, fine)

    def _reset_there(self, slot: Slot[T]) -> bool:
        self._let_go(slot)
        return self._returns("reset", self._reset_hook, slot.object)

    def _close(self, slot: Slot[T]) -> None:
        slot.place.run(partial(self._close_there, slot))
        slot.place.end()
        self._decide(self._policy.forget, slot)

    def _close_there(self, slot: Slot[T]) -> None:
        self._let_go(slot)
        leaving = slot.take_object()
        self._returns("close", self._close_hook, leaving)
        del leaving  # a destructor can be slow, too, and wants to run where the object lived

    def _let_go(self, slot: Slot[T]) -> None:
        """What the last lease kept goes before the object is used again or closed."""
        kept, slot.kept = slot.kept, None
        if kept is not None:
            self._returns("letting go of what a lease kept", lambda _: kept.clear(), slot.object)

    def _says_yes(self, hook: Hook | None, lent: T) -> bool:
        try:
            return hook is None or hook(lent) is not False
        except BaseException as error:
            what = "".join(traceback.format_exception_only(error)).strip()
            log.info("pool %r: check: %s; the object is closed", self._policy.name, what)
            return False

    def _returns(self, what: str, hook: Hook | None, lent: T) -> bool:
        try:
            if hook is not None:
                hook(lent)
        except BaseException:
            log.exception("pool %r: %s failed", self._policy.name, what)
            return False
        return True
