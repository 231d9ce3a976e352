"""Which lease may call an object in a process of its own. Shared by the manager and that process.

A fencing token: the lease's id lies in a cell, and one process at a time can take it. The manager puts it
there when a lease begins, the object's process takes it for the length of each call, and the manager takes
it away when the lease ends. If it is not there then, a call is running. So no call begins after the end of
its lease, and neither process waits for the other to know that.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from multiprocessing.reduction import DupFd
from typing import Any, Protocol

from mppool import _system
from mppool._pool.runner import Fence

_FORM = struct.Struct("<Q")


class _Cell(Protocol):
    """Holds a number, or none. `put` and `take` are one step each, for both processes."""

    def put(self, number: int) -> None:
        """Put a number into the empty cell."""

    def take(self) -> int:
        """Take it out. `BlockingIOError` if there is none."""

    def close(self) -> None:
        """It will not be used any more."""


class _Counter:
    """An event counter of Linux: to read it empties it."""

    _descriptor = -1

    def __init__(self, descriptor: Any = None) -> None:
        if descriptor is None:
            self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._descriptor = descriptor.detach()

    def __reduce__(self) -> tuple[object, ...]:
        return _Counter, (DupFd(self._descriptor),)

    def put(self, number: int) -> None:
        os.eventfd_write(self._descriptor, number)

    def take(self) -> int:
        return os.eventfd_read(self._descriptor)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close


class _Pair:
    """A message in a pair of sockets, of which both processes have both."""

    def __init__(self, *ends: socket.socket) -> None:
        self._ends = ends or socket.socketpair()
        for end in self._ends:
            end.setblocking(False)

    def __reduce__(self) -> tuple[object, ...]:
        return _Pair, self._ends

    def put(self, number: int) -> None:
        self._ends[0].send(_FORM.pack(number))

    def take(self) -> int:
        number: int = _FORM.unpack(self._ends[1].recv(_FORM.size))[0]
        return number

    def close(self) -> None:
        for end in self._ends:
            end.close()


def _new_cell() -> _Cell:
    return _Pair() if _system.PORTABLE or not hasattr(os, "eventfd") else _Counter()


class LeaseFence(Fence):
    """For callers of an object in a process of its own, where one call at a time comes to it."""

    def __init__(self, cell: _Cell | None = None, called: _Cell | None = None) -> None:
        self._cell = cell or _new_cell()  # twice the lease's id, and 1 if its calls left anything behind
        self._called_cell = called or _new_cell()  # written by the first call of a lease
        self._called = False
        self._latest = 0  # the latest lease that was found here
        self._marked = 0  # the latest one of which `called_cell` tells
        self.has_leftovers = False
        """Whether the calls of the lease that was ended left anything behind."""

    def __reduce__(self) -> tuple[object, ...]:
        return LeaseFence, (self._cell, self._called_cell)

    # -- the object's process --------------------------------------------------------------------------

    def enter(self, lease_id: int) -> bool:
        if lease_id < self._latest:  # ids grow
            return False
        try:
            found = self._cell.take()
        except BlockingIOError:
            return False
        self._latest = found >> 1
        if self._latest == lease_id:
            if self._marked != lease_id:
                self._called_cell.put(1)
                self._marked = lease_id
            return True
        # A later lease's, taken for a moment. If the manager ends that one in this moment it finds the cell
        # empty, takes this for a running call, and replaces the object: needless, but never wrong.
        self._cell.put(found)
        return False

    def leave(self, leftovers: object) -> None:
        self._cell.put(2 * self._latest + bool(leftovers))

    # -- the manager -------------------------------------------------------------------------------------

    def begin(self, lease_id: int) -> None:
        self._read_called()
        self._called = False
        self._cell.put(2 * lease_id)

    def end(self) -> bool:
        try:
            self.has_leftovers = bool(self._cell.take() & 1)
        except BlockingIOError:
            return False
        return True

    @property
    def called(self) -> bool:
        self._read_called()
        return self._called

    def _read_called(self) -> None:
        with contextlib.suppress(OSError):  # there was none, or the cell is closed
            self._called = bool(self._called_cell.take())

    def close(self) -> None:
        """The process is gone."""
        self._cell.close()
        self._called_cell.close()
