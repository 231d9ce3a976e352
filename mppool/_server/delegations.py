"""The delegations that the manager makes for the client at the other end of a connection."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

from mppool._wire.connection import OwningFrame
from mppool._wire.delegation import AVAILABLE, SLOTS, Granting, Page

from .watchdog import Watchdog

Told = tuple[int, int, bool]
"""Page and slot of a delegation, and whether the page comes along."""


class _Sheet:
    """A page, and which of its slots are free."""

    def __init__(self, number: int) -> None:
        """`OSError` if no descriptor or memory is left."""
        self.number = number
        self.free = list(range(SLOTS))
        self.file: int | None = None
        self.page, self.file = Page.make()

    def take_file(self) -> int | None:
        """The descriptor of its file, which passes along with the first grant; None after that."""
        file, self.file = self.file, None
        return file

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        if self.file is not None:
            _close(self.file)


class Delegations:
    """Those of one connection, on a page that is followed by another one when it is full."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._lock = threading.Lock()  # an event loop's are made by several threads
        self._sheet: _Sheet | None = None

    def make(self) -> Delegation | None:
        """A new one; None if there is no room for it."""
        if not AVAILABLE:
            return None
        try:
            sheet, slot = self._take_slot()
        except OSError:  # no descriptor or memory is left
            return None
        try:
            return Delegation(sheet, slot, self._watchdog)
        except OSError:
            sheet.free.append(slot)
            return None

    def _take_slot(self) -> tuple[_Sheet, int]:
        with self._lock:
            if self._sheet is None:
                self._sheet = _Sheet(0)
            elif not self._sheet.free:  # what lies in it goes on
                self._sheet = _Sheet(self._sheet.number + 1)
            return self._sheet, self._sheet.free.pop()

    def framed(self, delegation: Delegation | None, frame_of: Callable[[Told | None], bytes]) -> bytes:
        """The frame of a grant, which `frame_of` makes, and along with which goes what the holder needs.

        What is announced is there: else a holder takes what comes with the next grant for that.
        """
        descriptors = () if delegation is None else _descriptors_of(delegation)
        if delegation is None or not descriptors:
            return frame_of(None)
        try:
            frame = OwningFrame(frame_of((delegation.sheet.number, delegation.slot, len(descriptors) > 1)))
        except BaseException:
            for each in descriptors:
                os.close(each)
            raise
        frame.descriptors = descriptors
        return frame


def _descriptors_of(delegation: Delegation) -> tuple[int, ...]:
    """Token and, if the holder does not have it yet, page; none where the holder is to go by the manager."""
    try:
        token = delegation.duplicate()
    except OSError:  # no descriptor is left, or the lease is over
        return ()
    file = delegation.sheet.take_file()
    return (token,) if file is None else (token, file)


class Delegation(Granting):
    """One of them."""

    def __init__(self, sheet: _Sheet, slot: int, watchdog: Watchdog) -> None:
        super().__init__(sheet.page, slot)
        self.sheet = sheet
        self._watchdog = watchdog
        self._lock = threading.Lock()  # guards the next two, which different threads of the manager come to
        self._is_awaited = False
        self._is_over = False

    def duplicate(self) -> int:
        """A further descriptor of the token. `OSError` if none is left, or the lease is over."""
        with self._lock:  # what was closed may be another file by now
            if self._is_over:
                raise OSError(errno.EBADF, "its lease is over")
            return os.dup(self.token.fileno())

    def await_home(self, come_home: Callable[[], object]) -> None:
        """Call this whenever the token may lie there."""
        try:
            with self._lock:
                if not (self._is_over or self._is_awaited):
                    self._watchdog.await_readable(self.token.fileno(), come_home)
                    self._is_awaited = True
        except (
            OSError
        ):  # no memory is left for that: the holder tells, if it has not put the token back by now
            come_home()

    def close(self) -> None:
        """Its lease is over. A holder that may not know that could still write to its slot: none gets it."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            if self._is_awaited:
                self._watchdog.forget(self.token.fileno())
            self.token.close()
        if self.is_home:
            self.sheet.free.append(self.slot)  # in one step
