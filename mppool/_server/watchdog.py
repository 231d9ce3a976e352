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

_FIRST_LOOK = 0.001
_AFTER_A_FALL = 1.0
_LONGEST_PAUSE = 3600.0  # seconds: `select` takes no infinity


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
        owners: Callable[[], Iterable[ProcessId]],
        on_gone: Callable[[ProcessId], None],
        tend: Callable[[], float | None],
        is_gone: Callable[[ProcessId], bool] = is_gone,
    ) -> None:
        self._interval = interval
        self._owners = owners
        self._on_gone = on_gone
        self._tend = tend
        self._is_gone = is_gone
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()  # guards what follows
        self._pidfds: dict[ProcessId, int] = {}
        self._unseen: set[ProcessId] = set()  # those whose end no descriptor will tell
        self._hinted = False
        self._next_wake = 0.0
        self._poked, self._poke = socket.socketpair()
        self._poked.setblocking(False)
        self._poke.setblocking(False)
        self._selector.register(self._poked, selectors.EVENT_READ)

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="mppool watchdog", daemon=True).start()

    def watch(self, owner: ProcessId) -> None:
        """Learn at once when this process ends, where the platform can tell."""
        with self._lock:
            if owner in self._pidfds:
                return
            pidfd = open_pidfd(owner)
            if pidfd is None:
                self._unseen.add(owner)
                return
            self._pidfds[owner] = pidfd
            self._selector.register(pidfd, selectors.EVENT_READ, owner)
        if self._is_gone(owner):  # it may have ended, and its pid been used again, before we opened it
            self._bury(owner)

    def hint(self) -> None:
        """Somebody may have ended: look soon, if no descriptor would have told."""
        if not self._unseen:
            return
        with self._lock:
            self._hinted = True
        self._wake()

    def wake_by(self, moment: float) -> None:
        """Tend the pools at this moment (`time.monotonic`) at the latest."""
        with self._lock:
            if moment >= self._next_wake:
                return
            self._next_wake = moment
        self._wake()

    def sweep(self) -> None:
        """One pass over everyone who holds or waits: bury those proved to have ended."""
        with self._lock:
            unseen = set(self._unseen)
        for owner in unseen.union(self._owners()):
            if self._is_gone(owner):
                self._bury(owner)

    def _bury(self, owner: ProcessId) -> None:
        self._unwatch(owner)
        self._on_gone(owner)

    def _unwatch(self, owner: ProcessId) -> None:
        with self._lock:
            self._unseen.discard(owner)
            pidfd = self._pidfds.pop(owner, None)
            if pidfd is not None:
                self._selector.unregister(pidfd)
                os.close(pidfd)

    def _wake(self) -> None:
        try:
            self._poke.send(b"!")
        except BlockingIOError:
            pass  # enough pokes lie there already

    def _run(self) -> None:
        look_again = self._interval
        next_sweep = 0.0
        while True:
            try:
                next_sweep, look_again = self._pass(next_sweep, look_again)
            except Exception:
                log.exception("mppool: the watchdog stumbled")
                time.sleep(min(self._interval, _AFTER_A_FALL))  # lest it does nothing but stumble

    def _pass(self, next_sweep: float, look_again: float) -> tuple[float, float]:
        """Tend, sleep, look. Returns when to sweep next, and the pause after that."""
        with self._lock:
            self._next_wake = next_sweep  # before tending: whoever comes meanwhile moves it
        due = self._tend_or_stumble()
        with self._lock:
            if due is not None:
                self._next_wake = min(self._next_wake, due)
            pause = 0.0 if self._hinted else self._next_wake - time.monotonic()
        for key, _ in self._selector.select(min(max(0.0, pause), _LONGEST_PAUSE)):
            self._heed(key.data)
        with self._lock:
            hinted, self._hinted = self._hinted, False
        if hinted:
            look_again = _FIRST_LOOK
        elif time.monotonic() < next_sweep:
            return next_sweep, look_again
        self.sweep()
        return time.monotonic() + look_again, min(look_again * 2, self._interval)

    def _tend_or_stumble(self) -> float | None:
        try:
            return self._tend()
        except Exception:  # the sweeps must not suffer for it
            log.exception("mppool: the watchdog stumbled")
            return time.monotonic() + min(self._interval, _AFTER_A_FALL)

    def _heed(self, owner: ProcessId | None) -> None:
        if owner is None:
            self._poked.recv(4096)
            return
        gone = self._is_gone(owner)
        self._unwatch(owner)  # readable for ever now
        if gone:
            self._on_gone(owner)
        else:
            with self._lock:
                self._unseen.add(owner)
                self._hinted = True
