"""Which lease may call an object in a process of its own. Shared by the manager and that process.

A fencing token: the lease's id lies in a cell, and one process at a time can take it. The manager puts it
there when a lease begins, the object's process takes it for the length of each call, and the manager takes
it away when the lease ends. If it is not there then, a call is running. So no call begins after the end of
its lease, and neither process waits for the other to know that.
"""

from __future__ import annotations

import contextlib
import os
import struct
from multiprocessing.reduction import DupFd
from typing import Any

from mppool import _system
from mppool._pool.runner import Fence, Gate

_FORM = struct.Struct("=Q")  # as an event counter wants it


class _Cell:
    """Holds a number, or none. `put` and `take` are one step each, for both processes.

    It is an event counter of Linux, which is empty once it was read, or a message in a pipe, of which both
    processes have both ends.
    """

    def __init__(self, *descriptors: Any) -> None:
        self._descriptors: list[int] = []
        self._descriptors += [each.detach() for each in descriptors] or _new_descriptors()

    def __reduce__(self) -> tuple[object, ...]:
        return _Cell, tuple(map(DupFd, self._descriptors))

    def put(self, number: int) -> None:
        """Put a number into the empty cell."""
        os.write(self._descriptors[-1], _FORM.pack(number))

    def take(self) -> int:
        """Take it out. `BlockingIOError` if there is none."""
        number: int = _FORM.unpack(os.read(self._descriptors[0], _FORM.size))[0]
        return number

    def close(self) -> None:
        """It will not be used any more."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    __del__ = close


def _new_descriptors() -> list[int]:
    if hasattr(os, "eventfd") and not _system.PORTABLE:
        return [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)]
    ends = [*os.pipe()]
    for each in ends:
        os.set_blocking(each, False)
    return ends


class LeaseFence(Fence, Gate):
    """For callers of an object in a process of its own, where one call at a time comes to it."""

    def __init__(self, cell: _Cell | None = None, called: _Cell | None = None) -> None:
        self._cell = cell or _Cell()  # twice the lease's id, and 1 if its calls left anything behind
        try:
            self._called_cell = called or _Cell()  # written by the first call of a lease
        except BaseException:  # which may be kept for long, with this frame: no descriptor was left
            self._cell.close()
            raise
        self._called = False
        self._latest = 0  # the latest lease that was found here
        self._marked = 0  # the latest one of which `called_cell` tells

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
        with contextlib.suppress(OSError, IndexError):  # there was none, or the cell is closed
            self._called = bool(self._called_cell.take())

    def close(self) -> None:
        """The process is gone."""
        self._cell.close()
        self._called_cell.close()
