"""A lease that its holder may give back, and take again, without a word to the manager.

While no other process wants its object, a lease can be *delegated* to its holder's process. Two things decide
whose the object is: a token, which the kernel gives to exactly one reader, and a record in a page that both
processes have mapped.

    manager                                     holder
    makes token and record       ------------>  holds the object, and the token with it
                                                `park`: puts the token back; the object lies ready
                                                `resume`: takes the token, and has the object again
    `recall`: marks the record, and takes
    the token. Where the holder has it, the
    object comes home when it is put back

A recall is for good. The mark of one is the manager's to write, and all else in the record is written by the
side that has the token: so no two write the same at a time.
"""

from __future__ import annotations

import os
import sys
import time
from bisect import bisect_left
from contextlib import suppress

from mppool import _system
from mppool._buckets import BUCKETS
from mppool._system.cell import Cell

from .shared_memory import map_file

AVAILABLE = hasattr(os, "eventfd") and hasattr(os, "memfd_create") and not _system.PORTABLE
"""Whether this platform has what it takes."""

SLOTS = 64
"""Records that a page has room for."""

# Where in a record each number of 8 bytes lies.
_RECALLED = 0
_USES_LEFT = 1
_UNTIL = 2
_GRANTED_AT = 3  # 0: it is parked
_PARKED_AT = 4
_SERIAL = 5  # of the lease, among those that had this slot
_SUM, _LONGEST, _COUNTS = 6, 7, 8  # of how long it was held: as `Durations`
_NUMBERS = _COUNTS + len(BUCKETS) + 1
_BYTES = 8 * _NUMBERS

TOKEN = (1).to_bytes(8, sys.byteorder)
"""What lies in the cell of a token that is there."""

Counted = tuple[list[int], float, float]
"""How many durations fell into which of `BUCKETS`, in all, and the longest, in seconds."""


class Page:
    """Memory that a manager and the other end of one connection have mapped: a record for each slot.

    It takes no descriptor.
    """

    def __init__(self, descriptor: int) -> None:
        """The descriptor is that of the memory's file. It is the caller's to close."""
        self._memory = memoryview(map_file(descriptor, SLOTS * _BYTES))

    @classmethod
    def make(cls) -> tuple[Page, int]:
        """A new one, and the descriptor of its file, which nothing can make shorter.

        `OSError` if no descriptor or memory is left.
        """
        descriptor = os.memfd_create("leases of mppool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, SLOTS * _BYTES)
            _seal(descriptor)
            return cls(descriptor), descriptor
        except BaseException:
            os.close(descriptor)
            raise

    def record(self, slot: int) -> tuple[memoryview[int], memoryview[float]]:
        """What lies in a slot, as whole numbers and as seconds."""
        part = self._memory[slot * _BYTES : (slot + 1) * _BYTES]
        return part.cast("q"), part.cast("d")


def _seal(descriptor: int) -> None:
    import fcntl  # noqa: PLC0415  # in the manager alone

    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


class Granting:
    """The manager's side of one. What pools rely on is said where they do, by names alike."""

    def __init__(self, page: Page, slot: int) -> None:
        """`OSError` if no descriptor is left."""
        self.token = Cell()
        self.slot = slot
        self.is_home = False
        self._numbers, self._times = page.record(slot)
        self._numbers[_SERIAL] += (
            1  # what is left of the lease before it has nothing to do with the record now
        )
        self._uses = 0

    def begin(self, granted_at: float, uses: int, until: float) -> None:
        serial = self._numbers[_SERIAL]
        self._numbers[:] = memoryview(bytes(_BYTES)).cast("q")
        self._numbers[_SERIAL] = serial
        self._numbers[_USES_LEFT] = self._uses = uses
        self._times[_UNTIL], self._times[_GRANTED_AT] = until, granted_at

    def recall(self) -> bool:
        self._numbers[_RECALLED] = 1  # first: a holder that is about to take the token looks for this
        if not self.is_home:
            with suppress(BlockingIOError):  # the holder has it
                self.token.take()
                self.is_home = True
        return self.is_home

    @property
    def granted_at(self) -> float | None:
        return self._times[_GRANTED_AT] or None

    @property
    def parked_at(self) -> float:
        return self._times[_PARKED_AT]

    @property
    def uses(self) -> int:
        return self._uses - self._numbers[_USES_LEFT]

    @property
    def holds(self) -> Counted:
        return list(self._numbers[_COUNTS:]), self._times[_SUM], self._times[_LONGEST]


class Parking:
    """The holder's side of one. Used by one thread at a time, again and again: so it calls little."""

    __slots__ = ("_numbers", "_serial", "_times", "_token", "_token_file", "in_use")

    def __init__(self, page: Page, slot: int, token: Cell) -> None:
        self._numbers, self._times = page.record(slot)
        self._serial = self._numbers[_SERIAL]
        self._token = token  # which is open as long as this is there
        self._token_file = token.fileno()
        self.in_use = True
        """Whether this side may have the token. In doubt, after an interrupt, it is said to have it."""

    @property
    def is_recalled(self) -> bool:
        """Whether the object is not to be had in this way any more."""
        # Another lease may have the record by now.
        return bool(self._numbers[_RECALLED]) or self._numbers[_SERIAL] != self._serial

    def park(self) -> bool:
        """Give the object back; False, and nothing is done, if the manager wants to be told."""
        numbers, times = self._numbers, self._times
        if numbers[_RECALLED] or numbers[_SERIAL] != self._serial or numbers[_USES_LEFT] <= 0:
            return False
        now = time.monotonic()
        held = now - times[_GRANTED_AT]
        numbers[_COUNTS + bisect_left(BUCKETS, held)] += 1
        times[_SUM] += held
        if held > times[_LONGEST]:  # noqa: PLR1730  # as in `Durations`
            times[_LONGEST] = held
        times[_PARKED_AT] = now
        times[_GRANTED_AT] = 0.0
        os.write(self._token_file, TOKEN)
        self.in_use = False
        return True

    def resume(self) -> bool:
        """Take the object again; False if it is not to be had in this way any more."""
        numbers, times = self._numbers, self._times
        now = time.monotonic()
        if numbers[_RECALLED] or numbers[_SERIAL] != self._serial or now >= times[_UNTIL]:
            return False
        self.in_use = True
        try:
            os.read(self._token_file, len(TOKEN))
        except BlockingIOError:  # it was recalled in this moment
            self.in_use = False
            return False
        numbers[_USES_LEFT] -= 1
        times[_GRANTED_AT] = now
        return True


class Arrivals:
    """What comes along with the grants of one connection, at the holder's end."""

    def __init__(self) -> None:
        self._pages: dict[int, Page] = {}

    def open(self, number: int, slot: int, has_page: bool, descriptors: list[int]) -> Parking | None:
        """The delegation in this slot of a page; None if this process had no room for what came along."""
        if len(descriptors) != 1 + has_page:
            for each in descriptors:
                os.close(each)
            return None
        token = Cell(descriptors[0])
        if has_page:
            try:
                self._pages[number] = Page(descriptors[1])
            except OSError:
                return None
            finally:
                os.close(descriptors[1])
        page = self._pages.get(number)
        return None if page is None else Parking(page, slot, token)
