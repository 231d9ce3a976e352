"""Acquires that wait, and the queue in which they do."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from mppool._system.processes import ProcessId
from mppool.errors import PoolError

from .entry import Lease

_STALE_DEADLINES = 100

Outcome = Lease | PoolError

OnOutcome = Callable[[Outcome], bool]
"""Brings a waiter its outcome, with the pool's lock free; False if it could not be brought."""

OnBuilt = Callable[[PoolError | None], bool]
"""The same for one that waits until objects are there: None says that they are."""


@dataclass(slots=True, eq=False)
class Waiter:
    """One that waits for an object, or until enough are there. Used under the pool's lock."""

    holder: ProcessId
    deliver: OnOutcome | OnBuilt
    since: float
    deadline: float
    where: str | None = None  # file and line that asked


class Waiters(OrderedDict[Waiter, None]):
    """Those that wait, first come first served. Used under the pool's lock.

    No operation costs more the longer the queue is, `expired` aside, which looks at those that it returns.
    """

    def __init__(self) -> None:
        super().__init__()
        self._deadlines: list[tuple[float, int, Waiter]] = []  # a heap; may hold some that wait no more
        self._tickets = count()

    def append(self, waiter: Waiter) -> None:
        """Put one at the end."""
        self[waiter] = None
        if waiter.deadline == float("inf"):
            return
        if len(self._deadlines) > 2 * len(self) + _STALE_DEADLINES:  # most were served long ago
            self._deadlines = [each for each in self._deadlines if each[2] in self]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (waiter.deadline, next(self._tickets), waiter))

    def remove(self, waiter: Waiter) -> bool:
        """Take one out; False if it has an outcome already, or one is on its way."""
        return self.pop(waiter, self) is None

    def expired(self, now: float) -> list[Waiter]:
        """Those whose deadline has passed; they still wait."""
        late = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            late.append(heapq.heappop(self._deadlines)[2])
        return late

    def next_deadline(self) -> float | None:
        """When `expired` will have something to tell."""
        while self._deadlines and self._deadlines[0][2] not in self:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None
