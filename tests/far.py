"""Objects' processes as if they were on other machines: all that they and their manager know of each other
comes over TCP. Light: every such process imports it.
"""

from __future__ import annotations

import secrets
import threading
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

from mppool import PoolManager, PoolOptions
from mppool._process.far import FarFence
from mppool._process.info import ManagerInfo
from mppool._process.launched import LaunchedProcess
from mppool._process.launcher import Launcher, new_launcher
from mppool._process.main import serve_far
from mppool._process.runner import Processes
from mppool._server.server import PoolServer
from mppool._system.exit import exit_now, on_sigterm
from mppool._system.inherited import reset_inherited_state
from mppool._system.processes import ProcessId, kill_children, lead_a_group
from mppool._wire.connection import Address, Connection
from mppool._wire.handshake import Key, connect
from mppool._wire.listener import Listener, listen

LOOPBACK = ("127.0.0.1", 0)
START_SECONDS = 30.0


class MistakenServer(PoolServer):
    """Can be told that a client has ended which lives."""

    public = (*PoolServer.public, "bury")

    def _client_of(self, *args: Any, **terms: Any) -> ProcessId:
        client = super()._client_of(*args, **terms)
        self.clients = {*getattr(self, "clients", ()), client}
        return client

    def bury(self, _: object, pid: int) -> None:
        for client in self.clients:
            if client.pid == pid:
                self._service.watchdog.ended(client)


class FarServer(MistakenServer):
    def new_processes(self, info: ManagerInfo) -> Processes:
        return FarProcesses(info)


class MistakenManager(PoolManager):
    _Server = MistakenServer


class FarManager(PoolManager):
    """With `isolation="process"` its objects are far."""

    _Server = FarServer


class FarProcesses(Processes):
    """They are started by a launcher, and come to a listener of their own."""

    def __init__(self, info: ManagerInfo) -> None:
        self._info = replace(info, address=LOOPBACK, creator_pid=None)
        self._launcher = new_launcher(get_context(info.start_method), main)
        self.launcher = self._launcher.id
        self._lobby: Lobby | None = None

    def new(self, pool: str, options: PoolOptions, has_loop: bool) -> FarProcess:
        self._lobby = self._lobby or Lobby(self._info.key)
        shown = options.exposed, options.keep, has_loop
        return FarProcess(self._lobby, self._launcher, self._info, pool, *shown)


class Lobby:
    """Where they say who they are."""

    def __init__(self, key: Key) -> None:
        self._listener = Listener(listen(LOOPBACK))
        self.address = self._listener.address
        self.arrivals: dict[str, SimpleQueue[Connection]] = {}
        threading.Thread(target=self._welcome, args=(key,), daemon=True).start()

    def _welcome(self, key: Key) -> None:
        for connection in self._listener.accept(key):
            with suppress(EOFError, OSError):
                self.arrivals[connection.recv()].put(connection)


class FarProcess(LaunchedProcess):
    def __init__(self, lobby: Lobby, launcher: Launcher, info: ManagerInfo, pool: str, *shown: Any) -> None:
        super().__init__(launcher, info, pool, *shown)
        self._lobby = lobby

    def start(self) -> None:
        name = secrets.token_hex(8)
        arrivals = self._lobby.arrivals[name] = SimpleQueue()
        args = self._lobby.address, name, self._info, self._pool, *self._shown
        self._child = self._launcher.start(name, *args)
        self.id = self._child.id
        try:
            self.control = arrivals.get(timeout=START_SECONDS)
            self.fence = FarFence(arrivals.get(timeout=START_SECONDS))  # type: ignore[assignment]
        except Empty:
            self.kill()
            raise ChildProcessError("the process of its object has not come") from None
        finally:
            del self._lobby.arrivals[name]


def join(manager: Address, key: Key, name: str) -> Connection:
    connection = connect(manager, key)
    connection.send(name)
    return connection


def main(manager: Address, name: str, info: ManagerInfo, *what: Any) -> NoReturn:
    """The main function of a far process."""
    lead_a_group()
    reset_inherited_state()
    on_sigterm(lambda *_: None)
    control, side = (join(manager, info.key, name) for _ in range(2))
    serve_far(control, side, info, *what)
    kill_children()
    exit_now()
