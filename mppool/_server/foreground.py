"""A manager with a name that is a program of its own, in the foreground: of systemd, a container, a terminal.

Other processes find it as one that the first of them would have started. It stays until it is told to end.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from multiprocessing import get_start_method
from typing import NoReturn, TextIO

from mppool._process.info import ManagerInfo
from mppool._system.exit import on_sigterm
from mppool._system.output import print_to_descriptors
from mppool._system.processes import kill_descendants
from mppool._system.runtime_dir import HeldDir, RuntimeDir
from mppool._system.service_manager import notify
from mppool._wire.handshake import Key, listens
from mppool._wire.listener import Endpoint

from .server import PoolServer

_PATIENCE_SECONDS = 1.0

_LOOK_SECONDS = 0.02
"""Between two tries: a lock that another process holds for a moment tells of no end."""


def serve(path: str, set_up: Callable[[], str]) -> NoReturn:
    """Be the manager with this directory.

    `set_up` is called beside it, and returns what is to be printed when all is ready. If it raises, its error
    is printed, and this process ends with 1. `BlockingIOError` if there is a manager of the name; other
    `OSError`s.
    """
    print_to_descriptors()
    on_sigterm(lambda *_: sys.exit())
    directory = _take(path)
    # What a program that comes has in its `__main__` is found here as in one that it would have started.
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        server = ForegroundServer(directory, set_up)
    except BaseException:
        directory.remove()
        raise
    server.serve_forever()


def _take(path: str) -> HeldDir:
    """Hold the directory. Another process may have a look at it, or be about to end."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            if listens(RuntimeDir(path).socket):
                raise BlockingIOError("a manager listens there")
            return HeldDir.take(path)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(_LOOK_SECONDS)


class ForegroundServer(PoolServer):
    """Its server."""

    def __init__(self, directory: HeldDir, set_up: Callable[[], str]) -> None:
        info = ManagerInfo(
            address=directory.socket,
            runtime_dir=directory.path,
            key=Key(directory.key()),
            start_method=get_start_method(),
            watch_interval=1.0,
            linger=math.inf,
        )
        super().__init__({}, info, Endpoint(info.address, directory))
        self._set_up = set_up
        self._ends = False

    def begin(self) -> None:
        """As `PoolServer.begin`. SIGINT and the end of the terminal are an end like SIGTERM."""
        super().begin()
        for number in (signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as where a script starts it in the background
                signal.signal(number, lambda *_: signal.raise_signal(signal.SIGTERM))
        threading.Thread(target=self._prepare, name="mppool set-up", daemon=True).start()

    def _prepare(self) -> None:
        try:
            text = self._set_up()
        except BaseException as error:  # a SystemExit, too, is that of the user's code
            if not self._is_ending():  # else it fails because this is the end
                self._exit_code = 1
                _say(sys.stderr, f"mppool: {error}")
                self.stop_event.set()
            return
        if not self._is_ending():
            _say(sys.stdout, text)
            _notify("READY=1")

    def _is_ending(self) -> bool:
        return self._ends or self.stop_event.is_set()

    def _finish(self) -> NoReturn:
        # Not by `stop_event`: a `SystemExit` that ended the wait for it may have left its lock taken.
        self._ends = True
        _notify("STOPPING=1")
        super()._finish()

    def _kill_children(self) -> None:
        # Others of the group are a shell's: of a pipeline, say, which this process leads.
        kill_descendants()


def _notify(state: str) -> None:
    try:
        notify(state)
    except OSError as error:
        _say(sys.stderr, f"mppool: {state} cannot be sent to NOTIFY_SOCKET: {error}")


def _say(stream: TextIO, text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # it is closed, or read no more
        stream.write(f"{text}\n")
        stream.flush()
