"""Leases that this process gives back, and takes again, without a word to the manager."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mppool._wire.delegation import Parking


class Reminder:
    """Tells the manager that a lease has ended, unless it is told otherwise: a finalizer beside the lease's.

    A signal handler that raises at the very start of one keeps it from doing anything, and Python only tells.
    """

    __slots__ = ("_is_due", "_tell")

    def __init__(self, tell: Callable[[], object]) -> None:
        """`tell` does no I/O."""
        self._tell = tell
        self._is_due = True

    def leave(self) -> None:
        """The manager is told otherwise, or knows it."""
        self._is_due = False

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if self._is_due and not _is_finalizing():
            self._tell()


class DelegatedLease:
    """A lease that is delegated to this process, whether a handle has its object or it lies parked.

    After an interrupt it may be in doubt whether the token was taken, or put back. Then the manager is told
    that the lease has ended: it has the object back in either case.
    """

    __slots__ = ("_is_usable", "_parking", "_tell", "known", "park")

    def __init__(
        self, parking: Parking, is_usable: Callable[[], bool], tell: Callable[[], object], *known: Any
    ) -> None:
        """`is_usable` tells whether manager and object live, and `tell` tells of the end, without I/O.

        `known` is what handles are made of.
        """
        self._parking = parking
        self.park = parking.park
        self._is_usable = is_usable
        self._tell = tell
        self.known = known

    def resume(self) -> bool:
        """Take the object again; False if it is not to be had in this way any more.

        The manager that knows of the token may have died, and no other does; or the object's process.
        """
        return self._is_usable() and self._parking.resume()

    @property
    def is_over(self) -> bool:
        """Whether it can only be let go of."""
        return self._parking.is_recalled or not self._is_usable()

    def leave(self) -> None:
        """The manager is told otherwise, or knows it."""
        self._parking.in_use = False

    def end(self) -> None:
        """Tell the manager that it has ended, if that is in doubt. Once more does no harm."""
        if self._parking.in_use:
            self._tell()  # first: where this is interrupted, too, the finalizer does it
            self._parking.in_use = False

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _is_finalizing():  # else what this process held goes back with it
            self.end()


class Parked:
    """The delegated leases of this process of which the objects lie ready, by their pools."""

    def __init__(self) -> None:
        self._leases: dict[int, deque[DelegatedLease]] = {}

    def add(self, pool_id: int, lease: DelegatedLease) -> None:
        """Its object lies ready."""
        try:
            self._leases[pool_id].append(lease)
        except KeyError:  # in one step: other threads may do so at the same time
            self._leases.setdefault(pool_id, deque()).append(lease)

    def has(self, pool_id: int) -> bool:
        """Whether there is one, which may be recalled."""
        return bool(self._leases.get(pool_id))

    def forget_recalled(self) -> None:
        """Let go of those that are over, with what they keep open. Their pool may be closed."""
        for leases in list(self._leases.values()):
            for each in [lease for lease in list(leases) if lease.is_over]:
                with suppress(ValueError):  # another thread was first
                    leases.remove(each)

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
