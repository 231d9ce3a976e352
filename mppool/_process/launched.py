"""Processes for objects on the manager's machine: the launcher starts them, and they run `main`."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
from dataclasses import replace
from typing import Any

from mppool._system.fork import keep_from_children
from mppool._system.processes import await_end, kill, kill_group
from mppool._wire.connection import Address, Connection
from mppool.options import PoolOptions

from .fence import LeaseFence
from .info import ManagerInfo
from .launcher import Child, Launcher
from .runner import END_SECONDS, ObjectProcess, Processes


class LaunchedProcesses(Processes):
    """All those of a manager. Without the launcher's process there can be no further ones."""

    def __init__(self, manager: ManagerInfo, launcher: Launcher) -> None:
        self._manager = manager
        self._launcher = launcher
        self.launcher = launcher.id

    def new(self, pool: str, options: PoolOptions, has_loop: bool) -> ObjectProcess:
        args = _info_of_object(self._manager), pool, options.exposed, options.keep, has_loop
        return LaunchedProcess(self._launcher, *args)


class LaunchedProcess(ObjectProcess):
    """One that a launcher starts."""

    fence: LeaseFence
    _child: Child | None = None

    def __init__(self, launcher: Launcher, info: ManagerInfo, pool: str, *shown: Any) -> None:
        self._launcher = launcher
        self._info = info
        self._pool = pool
        self._shown = shown

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        keep_from_children(ours)
        keep_from_children(theirs)
        self.control = Connection(ours, "")
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(self.control.close)
            self.fence = LeaseFence()
            undo.callback(self.fence.close)
            name = f"mppool object of {self._pool}"
            args = theirs, self.fence, self._info, self._pool, *self._shown
            self._child = self._launcher.start(name, *args)
            undo.pop_all()
        self.id = self._child.id

    def exit_reason(self, timeout: float) -> str | None:
        assert self._child is not None, "it was started"
        hung_up = self.control.has_ended
        if not hung_up() and not await_end(self.id, timeout) and not hung_up():
            return None
        self._child.join(END_SECONDS)
        return _in_words(self._child.exitcode)

    def kill(self) -> None:
        if self._child is not None:
            kill(self._child.id)
            self._child.send_signal(signal.SIGKILL)  # psutil could tell nothing of it: no descriptor was free

    def clean_up(self) -> None:
        assert self._child is not None, "it was started"
        self._child.join(END_SECONDS)
        kill_group(self.id)
        if isinstance(self._info.address, str):
            with contextlib.suppress(OSError):  # the process has done so itself, or the directory is gone
                os.unlink(self._info.address)
        self.control.close()
        self.fence.close()


def _info_of_object(manager: ManagerInfo) -> ManagerInfo:
    """What the next object's process is told. It listens in the way the manager does."""
    address: Address = (manager.address[0], 0)
    if isinstance(manager.address, str):
        address = os.path.join(manager.runtime_dir, secrets.token_hex(4))
    return replace(manager, address=address, creator_pid=os.getpid())


def _in_words(code: int | None) -> str:
    if code is None:
        return "has ended"
    if code >= 0:
        return f"ended with exit code {code}"
    names = {each.value: each.name for each in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}"
