"""Starts, restarts and ends a manager's process. Runs in the creating process.

The creating process makes the runtime directory and listens; each manager in turn gets both. So a client that
connects while there is no manager is not refused: it waits in the socket's queue for the next one.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from multiprocessing.process import BaseProcess
from typing import Any

from mppool._process.info import ManagerInfo
from mppool._system.fork import keep_from_children
from mppool._system.processes import ProcessId, await_end, is_gone
from mppool._wire.handshake import connect
from mppool._wire.listener import Endpoint
from mppool.errors import ManagerLost

from .server import run

log = logging.getLogger("mppool")

MAX_RESTARTS = 5
WITHIN = 60.0
"""So many deaths within so many seconds, and the manager is given up."""

_FIRST_PAUSE = 0.05
"""Seconds before the second restart in a row; it doubles with each further one."""

_END_SECONDS = 1.0
"""For a manager that was told to end, once it has closed its objects or did not answer."""

NewProcess = Callable[..., BaseProcess]
"""Makes a process from `target` and `args`."""


class Supervisor:
    """The process of a manager. With `info.restart` a thread waits for its death, and starts the next one."""

    def __init__(
        self, info: ManagerInfo, endpoint: Endpoint, registry: dict[str, Any], new_process: NewProcess
    ) -> None:
        self.info = info
        self.process: BaseProcess | None = None
        """The present manager's, or the last one's; None if it could not be started."""
        self._endpoint = endpoint
        self._registry = registry
        self._new_process = new_process
        # Held while a manager is started, and to end: in one thread if a `PoolManager` is collected while
        # this one starts a process.
        self._lock = threading.RLock()
        self._lifeline: socket.socket | None = None  # a manager ends when this process has closed it
        self._stopped = threading.Event()
        keep_from_children(endpoint)

    def start(self) -> None:
        """Start the first manager. `ManagerLost` if it ends before it serves; then nothing is left behind."""
        try:
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
            if self._lifeline is not None:
                self._lifeline.close()
            self._endpoint.remove()  # the manager has done so itself, if it ended in order
            self._endpoint.close()

    def _shut_down(self, process: BaseProcess) -> None:
        """Have the manager close its objects and end. One that stands still is killed in the end."""
        if not is_gone(self._process_id):
            with suppress(Exception), closing(connect(self.info.address, self.info.key)) as connection:
                # As clients of `multiprocessing.managers` do.
                connection.send((None, "end", (self.info.runtime_dir,), {}))
                connection.recv()
        for insist in (process.terminate, process.kill):
            if not await_end(self._process_id, _END_SECONDS):
                insist()
        process.join()

    def _start_process(self) -> None:
        self.process = None
        if self._lifeline is not None:
            self._lifeline.close()
        self._lifeline, theirs = socket.socketpair()
        keep_from_children(self._lifeline)
        with theirs:
            process = self._new_process(target=run, args=(self.info, self._endpoint, self._registry, theirs))
            for each in (self._endpoint, theirs):
                keep_from_children(each, except_of=threading.get_ident())
            try:
                process.start()
            finally:
                keep_from_children(self._endpoint)
        try:
            if not self._lifeline.recv(1):
                raise ManagerLost("the manager's process ended while it started; see what it printed")
        except BaseException:
            process.kill()
            process.join()
            raise
        assert process.pid is not None, "it was started"
        self.process, self._process_id = process, ProcessId.of(process.pid)

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
            self.process.join()  # not by its sentinel: children of the manager may hold that open
            # None: another thread waited for it, or the kernel did (SIGCHLD ignored).
            how = f"ended with exit code {self.process.exitcode}"
            if not is_gone(self._process_id):
                # Its parent, the forkserver, has died. There must not be two managers.
                with suppress(ProcessLookupError):
                    os.kill(self._process_id.pid, signal.SIGKILL)
                await_end(self._process_id)
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
