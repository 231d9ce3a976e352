"""The right to call an object that lives in a process of its own. Shared by the manager and that process.

There is one, and whoever takes it has it alone. The manager lays it down when a lease begins, the
object's process takes it for the length of each call, and the manager takes it away when the lease ends.
If it is not there then, a call is running. So no call begins after the end of its lease, and nobody has
to wait for anybody to know that.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from multiprocessing.reduction import DupFd
from typing import Any, Protocol

from mppool import _system

_FORM = struct.Struct("<Q")


class _Cell(Protocol):
    """Where it lies, as a number. To lay it down and to take it is one step each, for both processes."""

    def lay(self, number: int) -> None:
        """Lay it down."""

    def take(self) -> int:
        """Take it. `BlockingIOError` if it is not there."""

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

    def lay(self, number: int) -> None:
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

    def lay(self, number: int) -> None:
        self._ends[0].send(_FORM.pack(number))

    def take(self) -> int:
        number: int = _FORM.unpack(self._ends[1].recv(_FORM.size))[0]
        return number

    def close(self) -> None:
        for end in self._ends:
            end.close()


def _new_cell() -> _Cell:
    return _Pair() if _system.PORTABLE or not hasattr(os, "eventfd") else _Counter()


class LeaseFence:
    """To the policy of a pool it is what a lock is elsewhere, and at the same time what a lease keeps."""

    def __init__(self, cell: _Cell | None = None, sign: _Cell | None = None) -> None:
        self._cell = cell or _new_cell()
        self._sign = sign or _new_cell()  # that a call came: laid there once a lease
        self._latest = 0
        self._left = False
        self._called = False

    def __reduce__(self) -> tuple[object, ...]:
        return LeaseFence, (self._cell, self._sign)

    # -- the object's process --------------------------------------------------------------------------

    def lay(self, lease_id: int, left: bool) -> None:
        """End a call. `left`: whether it, or one before it, left anything behind."""
        self._cell.lay(2 * lease_id + left)

    def sign(self) -> None:
        """The lease's first call has come."""
        self._sign.lay(1)

    def take(self, lease_id: int) -> bool:
        """Begin a call; False if this lease is over."""
        if lease_id < self._latest:  # ids grow
            return False
        try:
            found = self._cell.take()
        except BlockingIOError:
            return False
        self._latest = found >> 1
        if self._latest == lease_id:
            return True
        # If the manager misses it in between, it takes this for a call, and replaces the object: a pity.
        self._cell.lay(found)
        return False

    # -- the manager -------------------------------------------------------------------------------------

    def lend(self, lease_id: int) -> None:
        """Whoever has this lease may call."""
        self._look()
        self._called = False
        self._cell.lay(2 * lease_id)

    @property
    def called(self) -> bool:
        """Whether a call of the present lease has come."""
        self._look()
        return self._called

    def _look(self) -> None:
        with contextlib.suppress(OSError):  # nothing is there, or it is closed
            self._called = bool(self._sign.take())

    def acquire(self, blocking: bool = False) -> bool:  # noqa: ARG002  # who calls is not waited for
        """End a lease; False if a call is running."""
        try:
            self._left = bool(self._cell.take() & 1)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """The manager keeps it until the next lease begins."""

    def __bool__(self) -> bool:
        """Whether calls of the lease that was ended have left anything behind."""
        return self._left

    def clear(self) -> None:
        """The object's process lets go of it by itself, before it does anything else."""

    def close(self) -> None:
        """The process is gone."""
        self._cell.close()
        self._sign.close()
