"""The delegations that the manager makes for the client at the other end of a connection."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

from mppool._wire.connection import OwningFrame
from mppool._wire.delegation import AVAILABLE, SLOTS, Granting, Page

from .watchdog import Watchdog


class Delegations:
    """Those of one connection: a page, and who has which slot of it."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._page: Page | None = None
        self._page_file: int | None = None  # until it is passed along with a grant
        self._free: list[int] = []  # slots of this page

    def make(self) -> Delegation | None:
        """A new one; None if there is no room for it."""
        if not AVAILABLE:
            return None
        try:
            page = self._page if self._page is not None and self._free else self._renew()
        except OSError:  # no descriptor or memory is left
            return None
        slot = self._free.pop()
        try:
            return Delegation(page, slot, self._watchdog, self._free.append)
        except OSError:
            self._free.append(slot)
            return None

    def _renew(self) -> Page:
        """A new page, in the place of one that is full. What lies in that goes on."""
        page, file = Page.make()
        self._forget_file()
        self._page, self._page_file, self._free = page, file, list(range(SLOTS))
        return page

    def told(self, delegation: Delegation | None) -> tuple[int, bool] | None:
        """What a grant says of its delegation: the slot, and whether the page comes along."""
        return None if delegation is None else (delegation.slot, self._page_file is not None)

    def passed(self, delegation: Delegation | None, frame: bytes) -> bytes:
        """The frame of a grant that says so, with which goes what the holder needs."""
        if delegation is None:
            return frame
        passing = OwningFrame(frame)
        file, self._page_file = self._page_file, None
        passing.descriptors = () if file is None else (file,)
        with contextlib.suppress(OSError):  # no descriptor is left: the holder sees that nothing came
            passing.descriptors = (os.dup(delegation.token.fileno()), *passing.descriptors)
        return passing

    def _forget_file(self, _close: Callable[[int], None] = os.close) -> None:
        if self._page_file is not None:
            _close(self._page_file)

    __del__ = _forget_file


class Delegation(Granting):
    """One of them."""

    def __init__(self, page: Page, slot: int, watchdog: Watchdog, free: Callable[[int], object]) -> None:
        super().__init__(page, slot)
        self._watchdog = watchdog
        self._free = free
        self._lock = threading.Lock()  # guards the next two, which different threads of the manager come to
        self._is_awaited = False
        self._is_over = False

    def await_home(self, come_home: Callable[[], object]) -> None:
        """Call this whenever the token may lie there."""
        with self._lock:
            if not self._is_over:
                self._is_awaited = True
                self._watchdog.await_readable(self.token.fileno(), come_home)

    def close(self) -> None:
        """Its lease is over. A holder that may not know that could still write to its slot: none gets it."""
        with self._lock:
            self._is_over = True
            if self._is_awaited:
                self._watchdog.forget(self.token.fileno())
            self.token.close()
        if self.is_home:
            self._free(self.slot)
