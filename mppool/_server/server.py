"""The server in the manager's process: `multiprocessing.managers.Server` with our door and our end.

What is reached here beyond the published surface of `multiprocessing.managers` (this class, and its
`registry`, `listener`, `stop_event`, `public`) stands in this file and `manager.py`, and a test holds
it against the Python it runs on.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import current_process, util
from multiprocessing.managers import Server
from typing import Any, NoReturn

from mppool._process.info import ManagerInfo
from mppool._system.exit import end_this_process, on_sigterm
from mppool._system.processes import ProcessId, await_end, kill_children
from mppool._system.runtime_dir import RuntimeDir, make_home, remove
from mppool._wire.connection import Address, Connection
from mppool._wire.handshake import hash_sample
from mppool._wire.listener import Listener, listen
from mppool.options import HOOK_BOUND

from .service import PoolService
from .session import Session

log = logging.getLogger("mppool")

_A_BREATH = 0.1
"""Seconds in which a creating process that was told to end together with this one does so."""

_ORPHANED_BOUND = 1.0
"""Seconds that close hooks get once the creating process is gone."""


@dataclass(frozen=True)
class Settings:
    """What the creating process tells the manager's."""

    watch_interval: float = 1.0
    creator_pid: int | None = None
    start_method: str | None = None
    """Of `multiprocessing`, for objects in a process of their own; None is the default one."""
    home: str | None = None
    """The home that the creating process made; None: the manager makes its own."""
    listener: socket.socket | None = None
    """Likewise. Given by a creating process that has a successor take both over if the manager dies."""
    initialize: Callable[[], object] | None = None
    """What is to be called first in the manager's process, and in those of objects."""


_settings = Settings()


def configure(settings: Settings) -> None:
    """Settings for the server that this process is about to make."""
    global _settings
    _settings = settings


def open_door(address: Address | None = None, backlog: int = 1) -> Listener:  # noqa: ARG001  # too short for a crowd
    """The door of the server that is being made, as `multiprocessing.managers` asks for a listener."""
    if _settings.home is not None and _settings.listener is not None:
        return Listener(RuntimeDir(_settings.home), _settings.listener)
    home = make_home()
    try:
        return Listener(home, listen(address, home))
    except OSError:
        remove(home)
        raise


class PoolServer(Server):
    """Serves pools, and whatever else is registered in the way of `BaseManager.register`."""

    public = (*Server.public, "serve_pools")  # type: ignore[assignment]

    def __init__(self, registry: Any, address: Any, authkey: bytes, serializer: str) -> None:
        super().__init__(registry, address, authkey, serializer)
        self.door: Listener = self.listener  # type: ignore[attr-defined]
        self._key = bytes(authkey)
        self._has_successor = _settings.listener is not None
        if not self._has_successor:
            self.door.home.leave_key(self._key)
        self.stop_event = threading.Event()
        self._bound = HOOK_BOUND
        self._lock = threading.Lock()  # guards what follows
        self._closing: threading.Thread | None = None
        self._closing_since = 0.0
        self._creator_pid = _settings.creator_pid
        self._creator: ProcessId | None = None
        info = ManagerInfo(
            address=self.door.address,
            runtime_dir=self.door.home.path,
            key=self._key,
            creator_pid=_settings.creator_pid,
            start_method=_settings.start_method,
            watch_interval=_settings.watch_interval,
            restart=self._has_successor,
            initializer=_settings.initialize,
        )
        self._desk = PoolService(info)
        self._desk.restore()
        # For a server that is made and never serves; one that does ends without any finalizers.
        util.Finalize(self, self.door.close, exitpriority=0)

    def serve_forever(self) -> NoReturn:
        """Serve until `shutdown`, SIGTERM or the end of the creating process; then close all."""
        current_process()._manager_server = self  # type: ignore[attr-defined]
        try:
            on_sigterm(_leave)
            if self._creator_pid is not None:
                self._creator = ProcessId.of(self._creator_pid)
                self._desk.end_with(self._creator, self._orphaned)
            self._desk.watchdog.start()
            threading.Thread(target=self.accepter, name="mppool door", daemon=True).start()
            self.stop_event.wait()
        except (KeyboardInterrupt, SystemExit):
            pass
        self._finish()

    def accepter(self) -> None:
        """Start a thread for everyone who proved to have the key."""
        for connection in self.door.admit(self._key):
            try:
                threading.Thread(target=self.handle_request, args=(connection,), daemon=True).start()
            except RuntimeError as error:  # "can't start new thread"
                log.warning("mppool: the manager cannot serve a connection: %s", error)
                connection.close()

    def handle_request(self, conn: Any) -> None:
        """Serve one connection, to its end. Its first message names one of our public methods."""
        try:
            _, name, args, kwargs = conn.recv()
            if name not in self.public:
                raise AttributeError(f"{name!r} is nothing that the manager offers")
            reply = ("#RETURN", getattr(self, name)(conn, *args, **kwargs))
        except (EOFError, SystemExit):
            conn.close()
            return
        except Exception:
            reply = ("#TRACEBACK", traceback.format_exc())
        try:
            conn.send(reply)
        except OSError:
            pass  # the caller does not wait for it
        conn.close()

    def serve_pools(self, conn: Connection, pid: int, name: str, mark: str) -> NoReturn:
        """Serve a client of the pools: a process, as the kernel reports it or else as it says."""
        owner = self._owner_behind(conn, pid, name, mark)
        if not owner.mark:
            self._desk.watchdog.watch(owner)
        if self._desk.left:
            raise EOFError  # who is cut off now waits for the successor
        conn.send(("#RETURN", (self.door.home.path, conn.can_share, hash_sample())))
        self._desk.serve(Session(conn, owner, self._desk))
        raise SystemExit  # as the server's other ways to serve a connection end

    def shutdown(self, c: Any) -> None:
        """End the manager. The reply comes when the objects are closed."""
        self._has_successor = False
        self._close_pools()
        try:
            c.send(("#RETURN", None))
        finally:
            self.stop_event.set()

    def _owner_behind(self, conn: Connection, pid: int, name: str, mark: str) -> ProcessId:
        peer = conn.peer()
        if conn.peer_pid or (conn.peer_pid is None and peer is None):  # a platform that tells nothing
            return ProcessId.of(conn.peer_pid or pid, name)
        return ProcessId.at(peer, pid, mark, name)

    def _orphaned(self) -> None:
        self._bound = _ORPHANED_BOUND
        self._has_successor = False
        self.stop_event.set()

    def _close_pools(self) -> None:
        """Close all objects, once; bounded, whatever their hooks do."""
        with self._lock:
            if self._closing is None:
                self._closing = threading.Thread(
                    target=self._desk.close_all, name="mppool close", daemon=True
                )
                self._closing.start()
                self._closing_since = time.monotonic()
        self._closing.join(max(0.0, self._closing_since + self._bound - time.monotonic()))

    def _finish(self) -> NoReturn:
        on_sigterm(lambda: None)  # told already; and the end is bounded
        if self._has_successor:
            self.door.leave_to_successor()
            self._desk.leave_to_successor()
        else:
            self.door.close()
        self._close_pools()
        if self._creator is not None:  # else it is the process of a program, which may have others
            kill_children()
            if not self._has_successor or await_end(self._creator, _A_BREATH):
                self.door.close()  # also if both were told to end at once, and nobody is left to do it
        end_this_process()


def _leave() -> NoReturn:
    on_sigterm(lambda: None)
    raise SystemExit
