"""Where the user's factory and hooks are called: on the crew, with the pool's lock free."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from .crew import Crew
from .options import Hook
from .policy import Policy
from .slot import Slot

__all__ = ["Hooks"]

log = logging.getLogger("mppool")

T = TypeVar("T")


class Hooks(Generic[T]):
    """The hands of a policy. Each method begins something; what came of it is reported as a decision.

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

    def build(self, slot: Slot[T]) -> None:
        """Have the factory called."""
        self._crew.submit(partial(self._build, slot))

    def check(self, slot: Slot[T]) -> None:
        """Have an idle object checked."""
        self._crew.submit(partial(self._check, slot))

    def reset(self, slot: Slot[T]) -> None:
        """Have an object that came home reset."""
        self._crew.submit(partial(self._reset, slot))

    def close(self, slot: Slot[T]) -> None:
        """Have an object that leaves closed."""
        self._crew.submit(partial(self._close, slot))

    def _build(self, slot: Slot[T]) -> None:
        try:
            made = self._factory()
        except BaseException as error:
            if not self._decide(self._policy.build_failed, slot, error):
                log.exception("pool %r: an object could not be built", self._policy.name)
            return
        self._decide(self._policy.built, slot, made)

    def _check(self, slot: Slot[T]) -> None:
        fine = self._says_yes(self._check_hook, slot.object)
        self._decide(self._policy.checked, slot, fine)

    def _reset(self, slot: Slot[T]) -> None:
        self._let_go(slot)
        fine = self._returns("reset", self._reset_hook, slot.object)
        self._decide(self._policy.was_reset, slot, fine)

    def _close(self, slot: Slot[T]) -> None:
        self._let_go(slot)
        leaving = slot.take_object()
        self._returns("close", self._close_hook, leaving)
        del leaving  # a destructor can be slow, too
        self._decide(self._policy.forget, slot)

    def _let_go(self, slot: Slot[T]) -> None:
        """What the last lease kept goes before the object is used again or closed."""
        kept, slot.kept = slot.kept, None
        if kept is not None:
            self._returns("letting go of what a lease kept", lambda _: kept.clear(), slot.object)

    def _says_yes(self, hook: Hook | None, lent: T) -> bool:
        try:
            return hook is None or hook(lent) is not False
        except BaseException as error:
            log.info("pool %r: check: %r; the object is closed", self._policy.name, error)
            return False

    def _returns(self, what: str, hook: Hook | None, lent: T) -> bool:
        try:
            if hook is not None:
                hook(lent)
        except BaseException:
            log.exception("pool %r: %s failed", self._policy.name, what)
            return False
        return True
