"""Starts, restarts and ends a manager's process. Runs in the creating process.

The creating process makes the runtime directory and listens; each manager in turn gets both. So a client that
connects while there is no manager is not refused: it waits in the socket's queue for the next one.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from contextlib import closing, suppress
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any

from mppool._process.info import ManagerInfo
from mppool._process.launcher import Child, ContextLauncher, Launcher, new_launcher
from mppool._system.fork import keep_from_children
from mppool._system.processes import is_gone
from mppool._wire.handshake import connect
from mppool._wire.listener import Endpoint
from mppool.errors import ManagerLost

from .server import PoolServer, run

log = logging.getLogger("mppool")

MAX_RESTARTS = 5
WITHIN = 60.0
"""So many deaths within so many seconds, and the manager is given up."""

_FIRST_PAUSE = 0.05
"""Seconds before the second restart in a row; it doubles with each further one."""

_END_SECONDS = 1.0
"""For a manager that was told to end, once it has closed its objects or did not answer."""


class Supervisor:
    """The process of a manager. With `info.restart` a thread waits for its death, and starts the next one."""

    def __init__(
        self,
        kind: type[PoolServer],
        info: ManagerInfo,
        endpoint: Endpoint,
        registry: dict[str, Any],
        context: BaseContext,
    ) -> None:
        self.info = info
        self.process: Child | None = None
        """The present manager's, or the last one's; None if it could not be started."""
        self._endpoint = endpoint
        self._main = partial(run, kind, info, registry)
        self._context = context
        self._launcher: Launcher = ContextLauncher(context, self._main)
        # Held while a manager is started, and to end: in one thread if a `PoolManager` is collected while
        # this one starts a process.
        self._lock = threading.RLock()
        self._lifeline: socket.socket | None = None  # a manager ends when this process has closed it
        self._stopped = threading.Event()
        keep_from_children(endpoint)

    def start(self) -> None:
        """Start the first manager. `ManagerLost` if it ends before it serves; then nothing is left behind."""
        try:
            if self.info.restart:
                self._launcher = new_launcher(self._context, self._main)
            self._start_process()
            if self.info.restart:
                threading.Thread(target=self._run, name="mppool supervisor", daemon=True).start()
            else:
                self._endpoint.socket.close()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Shut the manager down, start none any more, and leave nothing behind."""
        self._stopped.set()
        with self._lock:
            self._endpoint.socket.close()
            if self.process is not None:
                self._shut_down(self.process)
            self._launcher.close()
            if self._lifeline is not None:
                self._lifeline.close()
            self._endpoint.remove()  # the manager has done so itself, if it ended in order
            self._endpoint.close()

    def _shut_down(self, process: Child) -> None:
        """Have the manager close its objects and end. One that stands still is killed in the end."""
        if not is_gone(process.id):
            with suppress(Exception), closing(connect(self.info.address, self.info.key)) as connection:
                # As clients of `multiprocessing.managers` do.
                connection.send((None, "end", (self.info.runtime_dir,), {}))
                connection.recv()
        for insistence in (signal.SIGTERM, signal.SIGKILL):
            process.join(_END_SECONDS)
            process.send_signal(insistence)
        process.join()

    def _start_process(self) -> None:
        self.process = None
        if self._lifeline is not None:
            self._lifeline.close()
        self._lifeline, theirs = socket.socketpair()
        keep_from_children(self._lifeline)
        with theirs:
            for each in (self._endpoint, theirs):
                keep_from_children(each, except_of=threading.get_ident())
            try:
                process = self._launcher.start("PoolManager", self._endpoint, theirs)
            finally:
                keep_from_children(self._endpoint)
        try:
            if not self._lifeline.recv(1):
                raise ManagerLost("the manager's process ended while it started; see what it printed")
        except BaseException:
            process.send_signal(signal.SIGKILL)
            process.join()
            raise
        self.process = process

    # -- restarts -------------------------------------------------------------------------------------

    def _run(self) -> None:
        deaths: list[float] = []  # of the last `WITHIN` seconds
        while (how := self._await_death()) is not None:
            now = time.monotonic()
            deaths = [*(each for each in deaths if now - each <= WITHIN), now]
            if len(deaths) >= MAX_RESTARTS:
                self._give_up(how)
                return
            log.error("mppool: the manager at %r %s; the next one takes over", self.info.address, how)
            self._stopped.wait(_FIRST_PAUSE * (2 ** (len(deaths) - 1) - 1))
            self._start_next()

    def _await_death(self) -> str | None:
        """How the manager ended; None if it was shut down."""
        how = "could not be started"
        if self.process is not None:
            self.process.join()
            code = self.process.exitcode
            how = "ended, and how is not known" if code is None else f"ended with exit code {code}"
        shut_down = self._stopped.is_set() or not self._endpoint.directory.exists()
        return None if shut_down else how

    def _start_next(self) -> None:
        with self._lock:
            if self._stopped.is_set():
                return
            try:
                self._start_process()
            except Exception:
                log.exception("mppool: the next manager could not be started")
            if self._stopped.is_set():  # a `PoolManager` was collected in this thread meanwhile
                self.stop()

    def _give_up(self, how: str) -> None:
        text = (
            f"the manager at {self.info.address!r} died {MAX_RESTARTS} times within {WITHIN:g} s and was "
            f"given up; the last one {how}: see what it printed, and start a new PoolManager"
        )
        log.error("mppool: %s", text)
        self._endpoint.directory.save_give_up_reason(text)
        with self._lock:
            self._endpoint.socket.close()  # from now on clients that connect are refused, and find the reason
