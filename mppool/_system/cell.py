"""A cell that holds a number, or none, for several processes: of fences and tokens.

It is an event counter of Linux, which is empty once it was read, or a message in a pipe, of which each
process has both ends.
"""

from __future__ import annotations

import os
import struct
from typing import Any

from mppool import _system

_FORM = struct.Struct("=Q")  # as an event counter wants it


class Cell:
    """Holds a number, or none. `put` and `take` are one step each, for all processes that have it."""

    __slots__ = ("descriptors",)

    def __init__(self, *descriptors: int) -> None:
        self.descriptors: list[int] = []
        self.descriptors += descriptors or _new_descriptors()

    def __reduce__(self) -> tuple[object, ...]:
        from multiprocessing.reduction import DupFd  # noqa: PLC0415  # which not all that have a cell need

        return _passed, tuple(map(DupFd, self.descriptors))

    def put(self, number: int) -> None:
        """Put a number into the empty cell."""
        os.write(self.descriptors[-1], _FORM.pack(number))

    def take(self) -> int:
        """Take it out. `BlockingIOError` if there is none."""
        number: int = _FORM.unpack(os.read(self.descriptors[0], _FORM.size))[0]
        return number

    def fileno(self) -> int:
        """For selectors: it is readable when there is a number."""
        return self.descriptors[0]

    def close(self) -> None:
        """It will not be used any more."""
        while self.descriptors:
            os.close(self.descriptors.pop())

    # At interpreter exit this module's globals may be None already.
    def __del__(self, _close: Any = os.close) -> None:
        while self.descriptors:
            _close(self.descriptors.pop())


def _passed(*descriptors: Any) -> Cell:
    """One that came from another process."""
    return Cell(*(each.detach() for each in descriptors))


def _new_descriptors() -> list[int]:
    if hasattr(os, "eventfd") and not _system.PORTABLE:
        return [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)]
    ends = [*os.pipe()]
    for each in ends:
        os.set_blocking(each, False)
    return ends
