"""Finds out that processes have ended, and lets time pass for the pools. Runs in the manager."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable

from mppool._system.processes import ProcessId, is_gone, open_pidfd

log = logging.getLogger("mppool")

_FIRST_LOOK_SECONDS = 0.001
"""After a hint: a process closes its files about so long before it is gone."""

_RETRY_SECONDS = 1.0
"""After a failed pass: what made it fail may last, and must not keep a processor busy."""

_LONGEST_SLEEP_SECONDS = 3600.0
"""`select` takes no infinity."""


class Watchdog:
    """One thread that sleeps until something may have happened.

    A process descriptor wakes it when its process ends. Where there is none, a hint does (a closed
    connection, an acquire that found nothing): a process closes its files a moment before it is
    gone, so after a hint it looks again and again, after pauses that double up to `interval`. A full
    sweep each `interval` seconds is the backstop.
    """

    def __init__(
        self,
        *,
        interval: float,
        holders: Callable[[], Iterable[ProcessId]],
        on_gone: Callable[[ProcessId], None],
        tick: Callable[[], float | None],
        is_gone: Callable[[ProcessId], bool] = is_gone,
    ) -> None:
        self._interval = interval
        self._holders = holders
        self._on_gone = on_gone
        self._tick = tick
        self._is_gone = is_gone
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()  # guards what follows
        self._pidfds: dict[ProcessId, int] = {}
        self._without_pidfd: set[ProcessId] = set()
        self._hinted = False
        self._wake_at = 0.0
        self._wakeup_r, self._wakeup_w = socket.socketpair()
        self._wakeup_r.setblocking(False)
        self._wakeup_w.setblocking(False)
        self._selector.register(self._wakeup_r, selectors.EVENT_READ)

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="mppool watchdog", daemon=True).start()

    def watch(self, process: ProcessId) -> None:
        """Learn at once when this process ends, where the platform can tell."""
        with self._lock:
            if process in self._pidfds:
                return
            pidfd = open_pidfd(process)
            if pidfd is None:
                self._without_pidfd.add(process)
                return
            self._pidfds[process] = pidfd
            self._selector.register(pidfd, selectors.EVENT_READ, process)
        if self._is_gone(
            process
        ):  # it may have ended, and its pid been used again, before the pidfd was open
            self._process_died(process)

    def look_soon(self) -> None:
        """A process may have ended: look, if there are some whose end no descriptor tells."""
        if not self._without_pidfd:
            return
        with self._lock:
            self._hinted = True
        self._wake_up()

    def wake_at(self, moment: float) -> None:
        """Call `tick` at this moment (`time.monotonic`) at the latest."""
        with self._lock:
            if moment >= self._wake_at:
                return
            self._wake_at = moment
        self._wake_up()

    def sweep(self) -> None:
        """Look at all processes that hold something or wait, and report those proved to have ended."""
        with self._lock:
            watched = set(self._without_pidfd)
        for process in watched.union(self._holders()):
            if self._is_gone(process):
                self._process_died(process)

    def _process_died(self, process: ProcessId) -> None:
        self._unwatch(process)
        self._on_gone(process)

    def _unwatch(self, process: ProcessId) -> None:
        with self._lock:
            self._without_pidfd.discard(process)
            pidfd = self._pidfds.pop(process, None)
            if pidfd is not None:
                self._selector.unregister(pidfd)
                os.close(pidfd)

    def _wake_up(self) -> None:
        try:
            self._wakeup_w.send(b"!")
        except BlockingIOError:
            pass  # enough of them lie there already

    def _run(self) -> None:
        look_again = self._interval
        next_sweep = 0.0
        while True:
            try:
                next_sweep, look_again = self._pass(next_sweep, look_again)
            except Exception:
                log.exception("mppool: the watchdog failed")
                time.sleep(min(self._interval, _RETRY_SECONDS))

    def _pass(self, next_sweep: float, look_again: float) -> tuple[float, float]:
        """Tick, sleep, look. Returns when to sweep next, and the pause after that."""
        with self._lock:
            self._wake_at = next_sweep  # before the tick: a waiter that comes meanwhile moves it
        due = self._tick()
        with self._lock:
            if due is not None:
                self._wake_at = min(self._wake_at, due)
            pause = 0.0 if self._hinted else self._wake_at - time.monotonic()
        for key, _ in self._selector.select(min(max(0.0, pause), _LONGEST_SLEEP_SECONDS)):
            self._on_event(key.data)
        with self._lock:
            hinted, self._hinted = self._hinted, False
        if hinted:
            look_again = _FIRST_LOOK_SECONDS
        elif time.monotonic() < next_sweep:
            return next_sweep, look_again
        self.sweep()
        return time.monotonic() + look_again, min(look_again * 2, self._interval)

    def _on_event(self, process: ProcessId | None) -> None:
        if process is None:
            self._wakeup_r.recv(4096)
            return
        gone = self._is_gone(process)
        self._unwatch(process)  # the descriptor stays readable
        if gone:
            self._on_gone(process)
        else:
            with self._lock:
                self._without_pidfd.add(process)
                self._hinted = True
