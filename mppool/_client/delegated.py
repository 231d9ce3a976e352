"""Leases that this process gives back, and takes again, without a word to the manager."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from mppool._wire.connection import Connection
from mppool._wire.delegation import Parking


class DelegatedLease:
    """A lease that is delegated to this process, whether a handle has its object or it lies parked.

    After an interrupt it may be in doubt whether the token was taken, or put back. Then the manager is told
    that the lease has ended: it has the object back in either case.
    """

    __slots__ = ("_lifeline", "_parking", "_tell", "known")

    def __init__(
        self, parking: Parking, lifeline: Connection | None, tell: Callable[[], object], *known: Any
    ) -> None:
        """`tell` tells the manager of its end, without I/O. `known` is what handles are made of."""
        self._parking = parking
        self._lifeline = lifeline
        self._tell = tell
        self.known = known

    def park(self) -> bool:
        """Give the object back; False if the manager wants to be told."""
        return self._parking.park()

    def resume(self) -> bool:
        """Take the object again; False if it is not to be had in this way any more.

        The manager that knows of the token may have died, and no other does.
        """
        if self._lifeline is None or self._lifeline.has_ended():
            return False
        return self._parking.resume()

    def leave(self) -> None:
        """The manager is told otherwise, or knows it."""
        self._parking.in_use = False

    def end(self) -> None:
        """Tell the manager that it has ended, if that is in doubt."""
        if self._parking.in_use:
            self._parking.in_use = False
            self._tell()

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _is_finalizing():  # else what this process held goes back with it
            self.end()


class Parked:
    """The delegated leases of this process of which the objects lie ready, by their pools."""

    def __init__(self) -> None:
        self._leases: dict[int, deque[DelegatedLease]] = {}

    def add(self, pool_id: int, lease: DelegatedLease) -> None:
        """Its object lies ready."""
        # Each in one step: other threads may do so at the same time.
        (self._leases.get(pool_id) or self._leases.setdefault(pool_id, deque())).append(lease)

    def has(self, pool_id: int) -> bool:
        """Whether there is one, which may be recalled."""
        return bool(self._leases.get(pool_id))

    def resume(self, pool_id: int) -> DelegatedLease | None:
        """The one that was parked last, with its object; None if there is none."""
        leases = self._leases.get(pool_id)
        while leases:
            try:
                lease = leases.pop()
            except IndexError:  # another thread was first
                break
            try:
                if lease.resume():
                    return lease
            except BaseException:  # an interrupt
                lease.end()
                raise
        return None
