"""Finds out that processes have ended, and lets time pass for the pools. Runs in the manager."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.connection import wait

from mppool._system.fork import keep_from_children
from mppool._system.processes import ProcessId, is_gone, open_pidfd

log = logging.getLogger("mppool")

_FIRST_LOOK_SECONDS = 0.001
"""After a hint: a process closes its files about so long before it is gone."""

_RETRY_SECONDS = 1.0
"""After a failed pass: what made it fail may last, and must not keep a processor busy."""

_SILENT_SECONDS = 0.25
"""For a process that has closed all its connections to end, or to connect anew; else exec replaced it."""

_LONGEST_SLEEP_SECONDS = 3600.0
"""`select` takes no infinity."""


class Watchdog:
    """One thread that sleeps until something may have happened.

    A process descriptor wakes it when its process ends. Where there is none, a hint does (a closed
    connection, an acquire that found nothing): a process closes its files a moment before it is
    gone, so after a hint it looks again and again, after pauses that double up to `interval`, at those
    that have no descriptor. A sweep of all each `interval` seconds is the backstop.

    A program that was replaced by exec has ended, though its process lives: exec closes all its connections.
    As long as a program holds anything it keeps one of them apart, its lifeline, whatever becomes of its
    threads and of what they use. Forked children close what they inherit of it.
    """

    def __init__(
        self,
        *,
        interval: float,
        holders: Callable[[], Iterable[ProcessId]],
        on_gone: Callable[[ProcessId], None],
        tick: Callable[[], float],
        is_gone: Callable[[ProcessId], bool] = is_gone,
    ) -> None:
        self._interval = interval
        self._holders = holders
        self._on_gone = on_gone
        self._tick = tick
        self._is_gone = is_gone
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()  # guards the next four
        self._pidfds: dict[ProcessId, int] = {}
        self._without_pidfd: set[ProcessId] = set()
        self._connections: dict[ProcessId, set[object]] = {}
        self._silent: dict[ProcessId, float] = {}  # those that have closed theirs, and when that is a proof
        self._hinted = False
        self._wake_at = self._next_sweep = self._next_look = 0.0
        self._look_again = interval
        """The pause before the look after the next one."""
        self._wakeup_r, self._wakeup_w = socket.socketpair()
        self._wakeup_w.setblocking(False)
        self._selector.register(self._wakeup_r, selectors.EVENT_READ, self._on_wakeup)

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="mppool watchdog", daemon=True).start()

    def watch(self, process: ProcessId) -> None:
        """Learn at once when this process ends, where the platform can tell."""
        if process.elsewhere:
            return
        with self._lock:
            if process in self._pidfds:
                return
            pidfd = open_pidfd(process)
            if pidfd is None:
                self._without_pidfd.add(process)
                return
            self._pidfds[process] = pidfd
            self._selector.register(pidfd, selectors.EVENT_READ, partial(self._on_pidfd, process))
        # It may have ended, and its pid been used again, before the descriptor was open.
        if self._is_gone(process):
            self.ended(process)

    def connected(self, process: ProcessId, connection: object) -> None:
        """Learn when this process, which has this connection, ends."""
        with self._lock:
            self._connections.setdefault(process, set()).add(connection)
            self._silent.pop(process, None)
        self.watch(process)

    def disconnected(self, process: ProcessId, connection: object) -> None:
        """The process has closed this connection: it may have ended."""
        with self._lock:
            connections = self._connections.get(process, set())
            connections.discard(connection)
            if not connections and self._connections.pop(process, None) is not None:  # else its end is known
                self._silent[process] = time.monotonic() + _SILENT_SECONDS
        self.wake_at(self._next_proof())
        self.look_soon()

    def attend(self, process: ProcessId, lifeline: socket.socket) -> None:
        """Take over a connection of the process, over which nothing comes but its end."""
        keep_from_children(lifeline)
        self.connected(process, lifeline)
        self._selector.register(lifeline, selectors.EVENT_READ, partial(self._on_end, process, lifeline))

    def await_readable(self, descriptor: int, then: Callable[[], object]) -> None:
        """Call this whenever there is something to read, which it takes; until `forget`."""
        self._selector.register(descriptor, selectors.EVENT_READ, then)

    def forget(self, descriptor: int) -> None:
        """What is to be read there is of no interest any more."""
        self._selector.unregister(descriptor)

    def look_soon(self) -> None:
        """A process may have ended: look, if there are some whose end no descriptor tells."""
        if self._without_pidfd:
            self._hinted = True
            self._wake_up()

    def wake_at(self, moment: float) -> None:
        """Call `tick`, which knows of this moment (`time.monotonic`) already, then at the latest."""
        if moment < self._wake_at:
            self._wake_up()

    def sweep(self) -> None:
        """Look at all processes that hold something or wait, and report those proved to have ended."""
        self._look_at(self._holders())

    def _look_at(self, processes: Iterable[ProcessId]) -> None:
        """Look at these, and at those whose end no descriptor tells."""
        with self._lock:
            watched = set(self._without_pidfd)
        for process in watched.union(processes):
            if self._is_gone(process):
                self.ended(process)

    def ended(self, process: ProcessId) -> None:
        """It is proved that this process has ended."""
        with self._lock:
            self._unwatch(process)
            self._connections.pop(process, None)
            self._silent.pop(process, None)
        self._on_gone(process)

    def _unwatch(self, process: ProcessId) -> None:
        """The lock is held."""
        self._without_pidfd.discard(process)
        pidfd = self._pidfds.pop(process, None)
        if pidfd is not None:
            self._selector.unregister(pidfd)
            os.close(pidfd)

    def _wake_up(self) -> None:
        with contextlib.suppress(BlockingIOError):  # enough of them lie there already
            self._wakeup_w.send(b"!")

    def _run(self) -> None:
        while True:
            try:
                self._pass()
            except Exception:
                log.exception("mppool: the watchdog failed")
                time.sleep(min(self._interval, _RETRY_SECONDS))

    def _pass(self) -> None:
        """Tick, sleep until something may have happened, look."""
        # Before the tick: who comes too late for it and asks for a moment before this one wakes the thread.
        next_look = self._wake_at = min(self._next_sweep, self._next_look)
        self._wake_at = min(self._tick(), next_look, self._next_proof())
        pause = 0.0 if self._hinted else self._wake_at - time.monotonic()
        for key, _ in self._selector.select(min(max(0.0, pause), _LONGEST_SLEEP_SECONDS)):
            # Another thread may just have closed what was readable, and its number be a lifeline's by now.
            if wait([key.fd], 0):
                key.data()
        self._end_silent()
        if self._hinted:
            self._hinted = False  # before the look: a hint that comes during it leads to the next one
            self._next_look, self._look_again = 0.0, _FIRST_LOOK_SECONDS
        now = time.monotonic()
        if now >= self._next_sweep:
            self.sweep()
            self._next_sweep = time.monotonic() + self._interval
        elif now >= self._next_look:
            self._look_at(())
        else:
            return
        self._next_look = time.monotonic() + self._look_again
        self._look_again = min(2 * self._look_again, self._interval)

    def _next_proof(self) -> float:
        with self._lock:
            return min(self._silent.values(), default=math.inf)

    def _end_silent(self) -> None:
        now = time.monotonic()
        with self._lock:
            over = {process for process, proof in self._silent.items() if proof <= now}
            for process in over:
                del self._silent[process]
                self._unwatch(process)
        # One that holds nothing may have closed all its connections, and come back later, if only just now.
        for process in over and over.intersection(self._holders()):
            if process not in self._connections:
                self.ended(process)

    def _on_wakeup(self) -> None:
        self._wakeup_r.recv(4096)

    def _on_end(self, process: ProcessId, lifeline: socket.socket) -> None:
        self._selector.unregister(lifeline)
        lifeline.close()
        self.disconnected(process, lifeline)

    def _on_pidfd(self, process: ProcessId) -> None:
        if self._is_gone(process):
            self.ended(process)
        else:
            with self._lock:
                self._unwatch(process)  # the descriptor stays readable
                self._without_pidfd.add(process)
            self._hinted = True
