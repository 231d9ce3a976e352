"""Acquires that wait, and the queue in which they do."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import count
from typing import Any

from .errors import PoolError
from .owner import Owner
from .slot import Lease

__all__ = ["Deliver", "Outcome", "Queue", "Waiter"]

_STALE_DEADLINES = 100

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


class Queue:
    """Those who wait, first come first served. Used under the pool's lock.

    No operation costs more the longer the queue is, `expired` aside, which looks at those it returns.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[Waiter, None] = OrderedDict()
        self._deadlines: list[tuple[float, int, Waiter]] = []  # a heap; may hold some that wait no more
        self._tickets = count()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiting)

    def join(self, waiter: Waiter) -> None:
        """Stand at the end."""
        self._waiting[waiter] = None
        if waiter.deadline == float("inf"):
            return
        if len(self._deadlines) > 2 * len(self._waiting) + _STALE_DEADLINES:  # those served long ago
            self._deadlines = [each for each in self._deadlines if each[2].waiting]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (waiter.deadline, next(self._tickets), waiter))

    def leave(self, waiter: Waiter) -> bool:
        """Go, unserved; False if it was too late, and an outcome is on its way."""
        self._waiting.pop(waiter, None)
        return waiter.leave()

    def take(self, waiter: Waiter) -> bool:
        """Take one out who is to be told an outcome; False if he has had one."""
        self._waiting.pop(waiter, None)
        return waiter.offer()

    def take_first(self) -> Waiter | None:
        """The first who accepts what is offered; None if nobody is left."""
        while self._waiting:
            waiter, _ = self._waiting.popitem(last=False)
            if waiter.offer():
                return waiter
        return None

    def first_without_build(self) -> Waiter | None:
        """The first for whom no build is under way."""
        return next((each for each in self._waiting if not each.has_build), None)

    def expired(self, now: float) -> list[Waiter]:
        """Those whose deadline has passed; they still wait."""
        late = []
        while self._deadlines and (self._deadlines[0][0] <= now or not self._deadlines[0][2].waiting):
            waiter = heapq.heappop(self._deadlines)[2]
            if waiter.waiting:
                late.append(waiter)
        return late

    def next_deadline(self) -> float | None:
        """When `expired` will have something to tell."""
        return self._deadlines[0][0] if self._deadlines else None
