"""The server in the manager's process: `multiprocessing.managers.Server` with our listener and our end.

What is reached here beyond the published surface of `multiprocessing.managers` (this class, with its
`registry`, `listener`, `stop_event`, `public`, and `listener_client`) stands in this file and `manager.py`,
and a test holds it against the Python it runs on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import sys
import threading
import traceback
from multiprocessing import current_process, get_context, util
from multiprocessing.connection import wait
from multiprocessing.managers import Server, listener_client  # type: ignore[attr-defined]
from typing import Any, NoReturn

from mppool._process.info import ManagerInfo
from mppool._process.launched import LaunchedProcesses
from mppool._process.launcher import new_launcher
from mppool._process.main import main
from mppool._process.runner import Processes
from mppool._remote.errors import cannot_unpickle
from mppool._system.detached import keep_log
from mppool._system.exit import exit_now, on_sigterm
from mppool._system.fork import keep_from_children
from mppool._system.inherited import reset_inherited_state
from mppool._system.open_files import allow_open_files
from mppool._system.output import print_to_descriptors
from mppool._system.processes import ProcessId, await_end, kill_children
from mppool._system.runtime_dir import belong_to
from mppool._wire.connection import Address, Connection, encode
from mppool._wire.handshake import Key, connect, hash_sample
from mppool._wire.listener import Endpoint, Listener
from mppool.errors import ManagerLost, RemoteError
from mppool.options import HOOK_BOUND

from .service import PoolService
from .users import Users

log = logging.getLogger("mppool")

SERIALIZER = "mppool"
"""The key of `listener_client` under which a `BaseManager` finds our way to listen and to connect."""

_TOGETHER_SECONDS = 0.1
"""In which the creating process ends, if a signal to the group has told both to end."""

_ORPHANED_SECONDS = 1.0
"""For close hooks once the creating process is gone: all is to be over within two seconds."""


def _client(address: Address, authkey: bytes) -> Connection:
    try:
        return connect(address, bytes(authkey))
    except FileNotFoundError as error:
        raise ManagerLost(f"no manager can be reached at {address!r}: {error}") from error


# `Server` listens with what it is given in the place of an address: a `Listener`, which listens already.
listener_client[SERIALIZER] = (lambda address, backlog: address, _client)  # noqa: ARG005


def run(
    kind: type[PoolServer],
    info: ManagerInfo,
    registry: dict[str, Any],
    endpoint: Endpoint,
    creator: socket.socket,
) -> NoReturn:
    """The main function of a manager's process. The creating process is told when it serves."""
    prepare_process()
    keep_from_children(creator)
    try:
        server = kind(registry, info, endpoint)
    except BaseException:
        # The creating process sees to what is left. Both may have been told to end at once.
        if wait([creator], _TOGETHER_SECONDS):  # it says nothing: this is its end
            endpoint.remove()
        raise
    with contextlib.suppress(OSError):  # it has just ended
        creator.send(b"!")
    server.end_with(creator)
    server.serve_forever()


def prepare_process() -> None:
    """What a manager's process does first."""
    reset_inherited_state()
    on_sigterm(_raise_exit)
    print_to_descriptors()


class PoolServer(Server):
    """Serves pools, and whatever else is registered in the way of `BaseManager.register`."""

    public = (*Server.public, "serve_pools", "hold_lifeline", "end")  # type: ignore[assignment]
    authkey: Key
    listener: Listener
    _exit_code = 0

    def __init__(self, registry: dict[str, Any], info: ManagerInfo, endpoint: Endpoint) -> None:
        keep_from_children(endpoint)
        # Before this process has a second thread: also before anything of the user's, which may start one.
        processes = self.new_processes(info)
        if info.initializer is not None:
            info.initializer()
        super().__init__(registry, Listener(endpoint.socket), info.key, SERIALIZER)  # type: ignore[arg-type]
        self.authkey = info.key  # the base class's own kind shows itself in a repr
        self.runtime_dir = endpoint.directory
        belong_to(self.runtime_dir.path)
        self._endpoint = endpoint
        self._renewing = threading.Lock()  # held while files are put back; for good once the end has begun
        self._complaint = ""  # the latest about that
        self.stop_event = threading.Event()
        self._has_successor = info.restart  # which then gets listener, runtime directory and clients
        self._bound = HOOK_BOUND
        self._log = info.log
        self._has_name = info.linger is not None
        self._is_of_program = info.creator_pid is None and not self._has_name
        linger = math.inf if info.linger is None else info.linger
        self._users = Users(linger, on_end=self.stop_event.set)
        self._service = PoolService(info, processes, self._users, self._orphaned, self._renew)
        # For a server that is made and never serves; one that does ends without any finalizers.
        util.Finalize(self, self._leave_nothing, exitpriority=0)

    def new_processes(self, info: ManagerInfo) -> Processes:
        """Where the processes of objects come from. This process has no second thread yet."""
        return LaunchedProcesses(info, new_launcher(get_context(info.start_method), main))

    def begin(self) -> None:
        """Serve from now on, on threads."""
        allow_open_files()  # clients cost two each
        self._service.watchdog.start()
        threading.Thread(target=self.accepter, name="mppool listener", daemon=True).start()

    def serve_forever(self) -> NoReturn:
        """Serve until `shutdown`, SIGTERM or the end of the creating process; then close all."""
        try:
            current_process()._manager_server = self  # type: ignore[attr-defined]
            on_sigterm(_raise_exit)
            self.begin()
            self.stop_event.wait()
        except (KeyboardInterrupt, SystemExit):
            pass
        self._finish()

    def accepter(self) -> None:
        """Start a thread for each peer that proves to have the key."""
        for connection in self.listener.accept(self.authkey):
            try:
                threading.Thread(target=self.handle_request, args=(connection,), daemon=True).start()
            except RuntimeError as error:  # "can't start new thread"
                log.warning("mppool: the manager cannot serve a connection: %s", error)
                connection.close()

    def handle_request(self, conn: Any) -> None:
        """Serve one connection, to its end. Its first message names one of our public methods.

        A socket that is passed along with it is the last argument.
        """
        with contextlib.closing(conn), contextlib.suppress(OSError, SystemExit):
            try:
                (_, name, args, kwargs), passed = _received(conn)
                if name not in self.public:
                    raise AttributeError(f"{name!r} is nothing that the manager offers")
                args = args if passed is None else (*args, passed)
                reply = ("#RETURN", getattr(self, name)(conn, *args, **kwargs))
            except Exception:
                reply = ("#TRACEBACK", traceback.format_exc())
            conn.send(reply)  # in vain if the peer has hung up

    def end_with(self, creator: socket.socket) -> None:
        """End when the creating process closes its end of this."""
        assert self._service.creator is not None
        self._service.watchdog.attend(self._service.creator, creator)

    def hold_lifeline(
        self, conn: Connection, *client: Any, linger: float | None = None, **terms: Any
    ) -> NoReturn:
        """Learn of a client's end by that of this connection, where it could pass no lifeline."""
        process = self._client_of(conn, *client, **terms)
        lifeline = conn.detach()
        self._admit(process, linger, lifeline)
        lifeline.sendall(encode(("#RETURN", None)))
        self._service.watchdog.attend(process, lifeline)
        raise SystemExit

    def serve_pools(
        self,
        conn: Connection,
        pid: int,
        name: str,
        token: Any,
        lifeline: socket.socket | None = None,
        *,
        linger: float | None = None,
        python: tuple[int, int] | None = None,
        **terms: Any,
    ) -> NoReturn:
        """Serve a client of the pools, and learn of its end by that of the lifeline, if it passes one."""
        client = self._client_of(conn, pid, name, token, **terms)
        ours = sys.version_info[:2]
        if python not in (None, ours):
            of_both = (".".join(map(str, each)) for each in (ours, python))
            conn.send(("#REFUSED", "it runs Python {}, and this process Python {}".format(*of_both)))
            raise SystemExit
        if self._service.left:
            raise SystemExit  # the client connects anew, and waits for the successor
        self._admit(client, linger, lifeline)
        conn.send(("#RETURN", (self.runtime_dir.path, conn.can_share, hash_sample())))
        if lifeline is not None:  # before the first request is read; the client goes on meanwhile
            self._service.watchdog.attend(client, lifeline)
        self._service.serve(self._service.new_session(conn, client))
        raise SystemExit  # as the server's other ways to serve a connection end

    def _client_of(self, conn: Connection, pid: int, name: str, token: Any, **_: Any) -> ProcessId:
        """The process there, as the kernel reports it or else as it says."""
        if not token or not isinstance(token, str):
            raise TypeError("a client has to have a name for itself")
        if conn.peer_pid:
            return ProcessId.of(conn.peer_pid, name, token)
        return ProcessId.claimed_by(conn.peer(), pid, name, token)

    def _admit(self, client: ProcessId, linger: float | None, lifeline: socket.socket | None) -> None:
        """With `linger` the client uses this manager as long as its lifeline is open."""
        if linger is None or _is_of_this_session(client):  # an object may use a pool
            return
        if not self._users.add(client, linger, lifeline):
            raise SystemExit  # the client finds or starts the next manager of this name

    def shutdown(self, c: Any) -> None:
        """End the manager. The reply comes when the objects are closed."""
        self._has_successor = False
        self._leave_clients()
        self._service.close_all(self._bound)
        try:
            c.send(("#RETURN", None))
        finally:
            self.stop_event.set()

    def end(self, c: Any, runtime_dir: str) -> None:
        """`shutdown` for a creating process, which may find the manager of another here by now."""
        if runtime_dir == self.runtime_dir.path:
            self.shutdown(c)

    def _leave_clients(self) -> None:
        """Those of a manager with a name wait for its end: for them the next one makes its pools anew."""
        self._users.refuse()
        if self._has_name:
            self._service.hand_over()

    def _orphaned(self) -> None:
        self._bound = _ORPHANED_SECONDS
        self._has_successor = False
        self.stop_event.set()

    def _renew(self) -> bool:
        """Put back what a cleaner of temporary directories removed. Whether the directory is a new one."""
        if not self._renewing.acquire(blocking=False):
            return False
        try:
            lost = self._endpoint.renew(self.authkey)
            self.listener.move_to(self._endpoint.socket)
            if self._log is not None:
                keep_log(self._log)
        except OSError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warning("mppool: the manager at %r cannot see to its files: %s", self.address, error)
            return False
        else:
            return lost
        finally:
            self._renewing.release()

    def _leave_nothing(self) -> None:
        self._endpoint.remove()  # first: that it is gone tells clients of the end
        self.listener.close()

    def _finish(self) -> NoReturn:
        on_sigterm(lambda *_: None)  # this is the end already, and it is bounded
        self._renewing.acquire()
        if self._has_successor:
            self.listener.hand_over()
            self._service.hand_over()
        else:
            self._leave_nothing()
            self._leave_clients()
        self._service.close_all(self._bound)
        creator = self._service.creator
        self._kill_children()
        # After all it has no successor, if it was shut down meanwhile or the creating process ends, too.
        if creator is not None and (not self._has_successor or await_end(creator, _TOGETHER_SECONDS)):
            self._leave_nothing()
        exit_now(self._exit_code)

    def _kill_children(self) -> None:
        """Kill what objects have left."""
        if not self._is_of_program:  # which may have other children
            kill_children()


def _received(conn: Connection) -> tuple[Any, socket.socket | None]:
    """A first message, and what was passed along.

    What its arguments raise is not the end of the thread that serves it.
    """
    try:
        return conn.recv_with_socket()
    except (KeyboardInterrupt, SystemExit) as error:
        raise RemoteError(cannot_unpickle("the request cannot be rebuilt in the manager", error)) from error


def _is_of_this_session(process: ProcessId) -> bool:
    """Whether it is this process, or was started by it, where this one leads a session."""
    try:
        return os.getsid(process.pid) == os.getpid()
    except OSError:  # it has ended, or is elsewhere
        return False


def _raise_exit(*_: object) -> NoReturn:
    on_sigterm(lambda *_: None)
    raise SystemExit
