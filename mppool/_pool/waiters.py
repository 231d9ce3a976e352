"""Acquires that wait, and the queue in which they do."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import count

from mppool._system.processes import ProcessId
from mppool.errors import PoolError

from .entry import Lease

_STALE_DEADLINES = 100

Outcome = Lease | PoolError

OnOutcome = Callable[[Outcome], bool]
"""Brings a waiter its outcome, with the pool's lock free; False if it could not be brought."""


class Waiter:
    """One acquire that waits, since when and until when, and how to reach it. Used under the pool's lock."""

    __slots__ = ("deadline", "deliver", "has_build", "holder", "since", "where")

    def __init__(
        self, holder: ProcessId, deliver: OnOutcome, since: float, deadline: float, where: str | None
    ) -> None:
        self.holder = holder
        self.deliver = deliver
        self.since = since
        self.deadline = deadline
        self.where = where
        self.has_build = False  # a build that is under way was begun for this waiter


class Waiters:
    """The acquires that wait, first come first served. Used under the pool's lock.

    No operation costs more the longer the queue is, `expired` aside, which looks at those that it returns.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[Waiter, None] = OrderedDict()
        self._deadlines: list[tuple[float, int, Waiter]] = []  # a heap; may hold some that wait no more
        self._tickets = count()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiting)

    def __contains__(self, waiter: object) -> bool:
        return waiter in self._waiting

    def append(self, waiter: Waiter) -> None:
        """Put one at the end."""
        self._waiting[waiter] = None
        if waiter.deadline == float("inf"):
            return
        if len(self._deadlines) > 2 * len(self._waiting) + _STALE_DEADLINES:  # most were served long ago
            self._deadlines = [each for each in self._deadlines if each[2] in self]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (waiter.deadline, next(self._tickets), waiter))

    def remove(self, waiter: Waiter) -> bool:
        """Take one out; False if it has an outcome already, or one is on its way."""
        return self._waiting.pop(waiter, self) is None

    def pop_first(self) -> Waiter:
        """Take the first one out; there must be one."""
        return self._waiting.popitem(last=False)[0]

    def first_without_build(self) -> Waiter | None:
        """The first for which no build is under way."""
        return next((each for each in self._waiting if not each.has_build), None)

    def expired(self, now: float) -> list[Waiter]:
        """Those whose deadline has passed; they still wait."""
        late = []
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][2] not in self):
            waiter = heapq.heappop(self._deadlines)[2]
            if waiter in self:
                late.append(waiter)
        return late

    def next_deadline(self) -> float | None:
        """When `expired` will have something to tell."""
        return self._deadlines[0][0] if self._deadlines else None
