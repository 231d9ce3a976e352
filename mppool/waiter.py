"""One acquire in the queue."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from .errors import PoolError
from .owner import Owner
from .slot import Lease

__all__ = ["Deliver", "Outcome", "Waiter"]

Outcome = Lease[Any] | PoolError

Deliver = Callable[[Outcome], bool]
"""Takes a waiter its outcome, outside of the pool's lock; False if nobody was there to take it."""


class _State(Enum):
    WAITING = 1
    SERVED = 2
    GONE = 3


class Waiter:
    """Who waits, since when and until when, and how to reach it. Used under the pool's lock."""

    __slots__ = ("_state", "deadline", "deliver", "has_build", "owner", "since", "where")

    def __init__(
        self, owner: Owner, deliver: Deliver, since: float, deadline: float, where: str | None
    ) -> None:
        self.owner = owner
        self.deliver = deliver
        self.since = since
        self.deadline = deadline
        self.where = where
        self.has_build = False  # a build that is under way was begun for this waiter
        self._state = _State.WAITING

    @property
    def waiting(self) -> bool:
        """Whether it has neither been served nor gone."""
        return self._state is _State.WAITING

    def offer(self) -> bool:
        """Offer it an outcome: True if it accepts, which it does once; False if it has gone."""
        if self._state is not _State.WAITING:
            return False
        self._state = _State.SERVED
        return True

    def leave(self) -> bool:
        """Give up: False if it was too late, and an outcome is on its way."""
        if self._state is not _State.WAITING:
            return False
        self._state = _State.GONE
        return True
