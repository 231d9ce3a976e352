"""Who uses a manager with a name, which ends some time after the last of them."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable

from mppool._system.processes import ProcessId

_FIRST_SECONDS = 10.0
"""For the process that had it started, or another one, to come, however short it is to linger."""


class Users:
    """The processes that use the manager, by their lifelines. Of a manager without a name there are none.

    `linger`: seconds until the end if none comes; infinite: there is no such end. From the last user on it is
    the longest that those asked for who were there then.
    """

    def __init__(self, linger: float, on_end: Callable[[], object]) -> None:
        self._lock = threading.Lock()  # guards the rest: a user comes in time, or is refused
        self._lifelines: dict[socket.socket, tuple[ProcessId, float]] = {}
        self._end = time.monotonic() + max(linger, _FIRST_SECONDS)
        self._on_end = on_end
        self._over = False

    def add(self, process: ProcessId, linger: float, lifeline: socket.socket | None = None) -> bool:
        """A process uses the manager, as long as this lifeline is open. False if it comes too late.

        Without one it may ask for a longer time to linger: it has another that is open.
        """
        with self._lock:
            if lifeline is not None and not self._over:
                self._lifelines[lifeline] = process, linger
            for each, (user, before) in self._lifelines.items():
                if user == process:
                    self._lifelines[each] = user, max(before, linger)
            return not self._over

    def died(self, process: ProcessId) -> None:
        """This process has ended, though a child of its own may have its lifeline open."""
        with self._lock:
            for lifeline, (user, _) in self._lifelines.items():
                if user == process:
                    with contextlib.suppress(OSError):  # it is closed already
                        lifeline.shutdown(socket.SHUT_RDWR)

    def pids(self) -> list[int]:
        """The processes that use it now."""
        with self._lock:
            return sorted(
                {user.pid for lifeline, (user, _) in self._lifelines.items() if lifeline.fileno() >= 0}
            )

    def refuse(self) -> None:
        """From now on all come too late."""
        with self._lock:
            self._over = True

    def tend(self) -> float:
        """See whether the last one has left, and how long ago. Returns when this is next needed."""
        now = time.monotonic()
        with self._lock:
            left = [each for each in self._lifelines if each.fileno() < 0]
            if left and self._end < math.inf:  # once asked to stay until it is told to end, it stays
                self._end = now + max(linger for _, linger in self._lifelines.values())
            for each in left:
                del self._lifelines[each]
            if self._lifelines or self._over:
                return math.inf
            if now < self._end:
                return self._end
            self._over = True
        self._on_end()
        return math.inf
