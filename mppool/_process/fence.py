"""Which lease may call an object in a process of its own. Shared by the manager and that process.

A fencing token: the lease's id lies in a cell, and one process at a time can take it. The manager puts it
there when a lease begins, the object's process takes it for the length of each call, and the manager takes
it away when the lease ends. If it is not there then, a call is running. So no call begins after the end of
its lease, and neither process waits for the other to know that.
"""

from __future__ import annotations

import contextlib

from mppool._pool.runner import Fence, Gate
from mppool._system.cell import Cell


class LeaseFence(Fence, Gate):
    """For callers of an object in a process of its own, where one call at a time comes to it."""

    def __init__(self, cell: Cell | None = None, called: Cell | None = None) -> None:
        self._cell = cell or Cell()  # twice the lease's id, and 1 if its calls left anything behind
        try:
            self._called_cell = called or Cell()  # written by the first call of a lease
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
