"""Keeps a manager's process running: when it dies, a successor takes over. Runs in the creating process.

The creating process makes the home and listens; each manager in turn inherits both. So nobody who
connects while there is no manager is refused: he waits for the next one to come to the door.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.process import BaseProcess

from mppool._system.fork import keep_from_children
from mppool._system.processes import ProcessId, await_end, is_gone
from mppool._system.runtime_dir import make_home, remove
from mppool._wire.connection import Address
from mppool._wire.listener import address_of, listen

log = logging.getLogger("mppool")

MAX_RESTARTS = 5
WITHIN = 60.0
"""So many deaths within so many seconds, and the manager is given up."""

_FIRST_PAUSE = 0.05

Reign = tuple[BaseProcess, Callable[[], object]]
"""The process of a manager, and what shuts it down."""

Launch = Callable[[str, socket.socket], Reign]
"""Starts a manager with this home and listener. Raises whatever hinders it."""


class Supervisor:
    """The home and the listener of a manager, and a thread that waits for the manager's death.

    `OSError` if the address cannot be had.
    """

    def __init__(self, address: Address | None, key: bytes, launch: Launch) -> None:
        self._launch = launch
        self.home = make_home()
        try:
            self._listener = listen(address, self.home)
            self.home.leave_key(key)
        except BaseException:
            remove(self.home)
            raise
        keep_from_children(self._listener)
        self.address = address_of(self._listener)
        self._deaths: deque[float] = deque()  # of the last `WITHIN` seconds
        self._reign: Reign | None = None
        # Held while a manager is launched, and to end: in one thread if nobody else used the manager then.
        self._lock = threading.RLock()
        self._ended = threading.Event()

    def start(self) -> None:
        """Launch the first manager. Raises what `launch` raises."""
        self._start_one()
        threading.Thread(target=self._keep, name="mppool keeper", daemon=True).start()

    def end(self) -> Reign | None:
        """Launch no more. Returns the last reign, which is left alone."""
        self._ended.set()
        with self._lock:
            self._listener.close()
            return self._reign

    def _start_one(self) -> None:
        with self._listener.dup() as lent:  # which no other child shall have
            keep_from_children(lent, but_of=threading.get_ident())
            self._reign = self._launch(self.home.path, lent)
            pid = self._reign[0].pid
            assert pid is not None, "it was started"
            self._owner = ProcessId.of(pid)

    def _keep(self) -> None:
        while (how := self._wait_for_the_end()) is not None:
            if self._is_hopeless():
                self._give_up(how)
                return
            log.error("mppool: the manager at %r %s; a successor takes over", self.address, how)
            self._ended.wait(_FIRST_PAUSE * (2 ** (len(self._deaths) - 1) - 1))
            self._start_next()

    def _wait_for_the_end(self) -> str | None:
        """How the manager ended; None if somebody meant it to."""
        how = "could not be started"
        if self._reign is not None:
            how = f"ended with exit code {_exit_code(self._reign[0])}"
            _end_for_sure(self._owner)
        meant = self._ended.is_set() or not os.path.exists(self.home.path)
        return None if meant else how

    def _start_next(self) -> None:
        with self._lock:
            self._reign = None
            if not self._ended.is_set():
                try:
                    self._start_one()
                except Exception:
                    log.exception("mppool: a successor could not be started")

    def _is_hopeless(self) -> bool:
        now = time.monotonic()
        self._deaths.append(now)
        while now - self._deaths[0] > WITHIN:
            self._deaths.popleft()
        return len(self._deaths) >= MAX_RESTARTS

    def _give_up(self, how: str) -> None:
        text = (
            f"the manager at {self.address!r} died {MAX_RESTARTS} times within {WITHIN:g} s and was given "
            f"up; the last one {how}: see what it printed, and start a new PoolManager"
        )
        log.error("mppool: %s", text)
        self.home.leave_last_word(text)
        self.end()  # from now on who connects is refused, and finds that word


def _exit_code(process: BaseProcess) -> int | None:
    # Not by its sentinel, which stays open as long as any of the manager's own children lives.
    process.join()
    return process.exitcode  # None if somebody else waited for it, or the kernel did (SIGCHLD ignored)


def _end_for_sure(owner: ProcessId) -> None:
    """If only the forkserver has died, that managers are children of, they live: there must not be two."""
    if not is_gone(owner):
        with contextlib.suppress(ProcessLookupError):
            os.kill(owner.pid, signal.SIGKILL)
        await_end(owner)
