"""How a process finds a manager: its key and its files, a connection, and who both sides are."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from multiprocessing import current_process
from typing import Any

from mppool._system.program import token
from mppool._system.runtime_dir import RuntimeDir
from mppool._wire.connection import Address, Connection, DeadlineExceeded
from mppool._wire.handshake import Key, connect, listens, pair, ping
from mppool._wire.signals import is_handlers
from mppool.errors import ManagerLost, PoolClosed

CUT_OFF = (EOFError, BrokenPipeError, ConnectionAbortedError, ConnectionResetError)
"""What shows that the process at the other end of a connection has ended."""

USES = {"join", "create_pool", "acquire", "apply", "apply_batch", "enqueue", "enqueue_batch", "wait"}
"""The requests that the next manager serves as well. Others are about what ends with this one."""

RETURN_SECONDS = 3.0
"""For a manager to put back its files, which it looks for each second."""

_LOOK_SECONDS = 0.05
"""Between two looks for files that another process puts back: nothing portable tells of them."""

Request = tuple[Any, ...]
"""The name of a method of the manager's service, and its arguments."""


class Connector:
    """Makes connections to one manager, which learns by them who this process is."""

    def __init__(
        self, address: Address, runtime_dir: str | None, fingerprint: bytes, key: Key | None
    ) -> None:
        self.address = address
        self.runtime_dir = runtime_dir
        self.fingerprint = fingerprint
        self._key = key
        self._lifeline: Connection | None = None

    def open(self, request: Request, deadline: float | None) -> tuple[Connection, Any]:
        """A connection that serves this request, and what the manager answered to our first words.

        Raises `ManagerLost`, `PoolClosed` or `DeadlineExceeded` (`time.monotonic`).
        """
        try:
            return self._enter(request, deadline)
        except ManagerLost as error:
            if not isinstance(error.__cause__, CUT_OFF):
                raise
        # The manager died meanwhile. If it has a successor, that one answers now; if not, this says so.
        return self._enter(request, deadline)

    def _enter(self, request: Request, deadline: float | None) -> tuple[Connection, Any]:
        """A connection for requests. The manager learns of the end of this program before it lends anything.

        It learns of it by the lifeline: a socket that it gets along with the first message, and that ends
        with this program. Where it got none (on TCP, without a free descriptor here or there, or where this
        connection leads to a new manager) that is a second connection.
        """
        wire = self._connect(request, deadline)
        lifeline, passed = (None, None) if self._has_lifeline() else pair(self.address)
        with passed or contextlib.nullcontext():  # macOS may lose what is closed here before it has arrived
            answer = self._introduce(wire, "serve_pools", passed)
        self._lifeline = lifeline or self._lifeline
        if not self._has_lifeline():
            lifeline = self._connect(request, deadline)
            self._introduce(lifeline, "hold_lifeline")
            self._lifeline = lifeline
        return wire, answer

    def _has_lifeline(self) -> bool:
        """Whether this program has one. A forked child has closed its parent's; a new manager got none."""
        return self._lifeline is not None and not self._lifeline.has_ended()

    def _terms(self) -> dict[str, Any]:
        """What else the manager has to know of this process."""
        return {}

    def _introduce(self, wire: Connection, method: str, passed: socket.socket | None = None) -> Any:
        """Tell this method of the manager who we are; returns what it answers."""
        try:
            me = (os.getpid(), current_process().name, token())
            # As clients of `multiprocessing.managers` do.
            wire.send((None, method, me, self._terms()), passed)
            wire.await_reply()
            kind, answer = wire.recv()
            if kind != "#RETURN":
                raise ManagerLost(f"the manager at {self.address!r} refused a connection: {answer}")
        except BaseException as error:
            wire.close()
            if is_cut_off(error):
                text = f"the manager at {self.address!r} refused a connection: {error!r}"
                raise ManagerLost(text) from error
            raise
        return answer

    def _connect(self, request: Request, deadline: float | None) -> Connection:  # noqa: ARG002
        patience = time.monotonic() + RETURN_SECONDS
        while True:
            try:
                return connect(self.address, self._find_key(), deadline)
            except FileNotFoundError as error:
                if not self._is_still_there():
                    raise PoolClosed(f"the manager at {self.address!r} has shut down") from None
                self._await_files(error, patience, deadline)
            except ManagerLost as error:
                reason = None
                if self.runtime_dir is not None and is_end(error):
                    reason = RuntimeDir(self.runtime_dir).give_up_reason()
                if reason is None:
                    raise
                raise ManagerLost(reason) from error.__cause__

    def ping(self) -> None:
        """See whether the manager is alive. `ManagerLost` or `PoolClosed` if not."""
        ping(self.address, self._find_key())

    def _is_still_there(self) -> bool:
        """Whether a manager of which files are missing lives: at its end it removes its directory first.

        It is looked for twice. While the manager puts a socket in the place of a removed one, a first look at
        the list of sockets may show neither; the directory is back by then.
        """
        directory = RuntimeDir(self.runtime_dir) if self.runtime_dir is not None else None
        return any((directory is not None and directory.exists()) or listens(self.address) for _ in range(2))

    def _await_files(self, error: FileNotFoundError, patience: float, deadline: float | None) -> None:
        """A moment for the manager to put back what a cleaner removed."""
        if deadline is not None and time.monotonic() > deadline:
            raise DeadlineExceeded from None
        if time.monotonic() > patience:
            text = (
                f"the files of the manager at {self.address!r} were removed, perhaps by a cleaner of "
                "temporary directories, and it has not put them back"
            )
            raise ManagerLost(text) from error
        time.sleep(_LOOK_SECONDS)

    def _find_key(self) -> Key:
        """The key of this manager. Another one that lies in its place is used for nothing."""
        key = self._key
        if key is None and self.runtime_dir is not None:
            try:
                with key_errors(self.address):
                    key = Key(RuntimeDir(self.runtime_dir).key())
            except (FileNotFoundError, ManagerLost):
                if isinstance(self.address, str) or RuntimeDir(self.runtime_dir).exists():
                    raise
        if key is None:
            key = Key(current_process().authkey)  # perhaps it is a manager on another machine
        if key.fingerprint != self.fingerprint:
            text = f"another manager listens at {self.address!r} now"
            if not isinstance(self.address, str):
                text += ", or the authkey of this process is not that of the manager"
            raise ManagerLost(text) from ConnectionRefusedError("its key is another")
        return key


@contextlib.contextmanager
def key_errors(address: Address) -> Iterator[None]:
    """`ManagerLost` where the key of the manager there cannot be had, or may be another user's.

    `FileNotFoundError` passes: there is none any more.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ManagerLost(f"the key of the manager at {address!r} cannot be read: {error}") from error


def is_cut_off(error: BaseException) -> bool:
    """Whether it shows that the process at the other end of a connection has ended."""
    return isinstance(error, CUT_OFF) and not is_handlers(error)


def is_end(error: BaseException) -> bool:
    """Whether the manager is gone, or another user's. Else it may be told later what it should know."""
    return isinstance(error, PoolClosed) or isinstance(
        error.__cause__, (ConnectionRefusedError, PermissionError)
    )
