"""The values that this process holds. A value knows nothing of its lease: here that is found again."""

from __future__ import annotations

import threading
import weakref
from typing import Any, ClassVar, Protocol


class LeaseOfValue(Protocol):
    """What is to be known of a lease."""

    id: int
    pool_id: int
    item: int
    """The number of the item that the value is."""
    value: Any
    thread: int
    """That acquired it."""
    ended: bool
    superseded: bool
    """Whether the item was lent anew, so that this lease has been over since before."""

    def release(self, discard: bool) -> None:
        """End it."""


class HeldValues:
    """The leases of values that a process has from one manager."""

    _in_use: ClassVar[set[HeldValues]] = set()
    """Those that keep a lease. Nothing else does: a value may be all that is left of pool and channel."""

    def __init__(self) -> None:
        # Makes finding a lease and ending it one step. A signal handler may come in between.
        self.lock = threading.RLock()
        self._all: weakref.WeakValueDictionary[int, LeaseOfValue] = weakref.WeakValueDictionary()
        self._kept: dict[int, LeaseOfValue] = {}

    def add(self, lease: LeaseOfValue) -> None:
        """One was granted: any other one of the same item is over, which nothing has told.

        The last of these is remembered for each thread: its late release must not end the new lease.
        """
        for each in self._of(lease.pool_id):
            if each.item == lease.item:
                each.ended = each.superseded and each.thread == lease.thread
                each.superseded = True
                if each.ended:
                    self.drop(each)
        self._all[lease.id] = lease

    def keep(self, lease: LeaseOfValue) -> None:
        """Until it is released."""
        self._kept[lease.id] = lease
        self._in_use.add(self)

    def drop(self, lease: LeaseOfValue) -> None:
        """It was released."""
        self._kept.pop(lease.id, None)
        if not self._kept:
            self._in_use.discard(self)

    @classmethod
    def forget_all(cls) -> None:
        """In a forked child: what its parent holds."""
        cls._in_use.clear()

    def find(self, pool_id: int, value: object) -> LeaseOfValue | None:
        """By identity, else by equality; this thread's before another's, the oldest first.

        One that was acquired goes before that of a block, which ends it by itself.
        """
        leases = self._of(pool_id)
        found = [each for each in leases if each.value is value]
        found = found or [each for each in leases if _equal(each.value, value)]
        here = threading.get_ident()

        def rank(each: LeaseOfValue) -> tuple[bool, ...]:
            return each.thread != here, each.superseded, each.id not in self._kept

        return min(found, key=rank, default=None)

    def _of(self, pool_id: int) -> list[LeaseOfValue]:
        return [each for each in list(self._all.values()) if each.pool_id == pool_id and not each.ended]


def _equal(one: object, other: object) -> bool:
    try:
        return bool(one == other)
    except Exception:  # an array's, which has no one answer
        return False
