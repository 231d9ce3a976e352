"""Who may come in: the manager's socket, and the handshake of all who connect. Runs in the manager.

One thread serves all who have not yet proved that they have the key: such a peer costs a descriptor
for `SILENCE_SECONDS` at most, and there are never more than `MAX_PENDING` of them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

from mppool._system.fork import keep_from_children
from mppool._system.runtime_dir import RuntimeDir, tidy

from . import connection
from .connection import Address, Connection
from .handshake import ANSWER, NONCE, greet, refusal, verify

log = logging.getLogger("mppool")

MAX_PENDING = 512
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE, _FOR_GOOD = 0.5, 3600.0


class _Handshake:
    """A peer in the middle of the handshake."""

    def __init__(self, sock: socket.socket, pid: int | None) -> None:
        self.socket = sock
        self.pid = pid
        self.nonce = secrets.token_bytes(NONCE)
        self.answer = b""
        self.deadline = time.monotonic() + connection.SILENCE_SECONDS


def listen(address: Address | None, home: RuntimeDir) -> socket.socket:
    """A socket on which a manager listens: at this address, or in its home. `OSError` if it can't be had."""
    if address is None:
        address = home.socket if hasattr(socket, "AF_UNIX") else ("127.0.0.1", 0)
    if not isinstance(address, str):
        return socket.create_server(address, backlog=socket.SOMAXCONN)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(address)
        os.chmod(address, 0o600)
        listener.listen(socket.SOMAXCONN)
    except OSError:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> Address:
    """Where it listens, as clients need to know."""
    address: Any = listener.getsockname()
    return address if isinstance(address, str) else address[:2]


class Listener:
    """The manager's listener, for `multiprocessing.managers` to know the `address` of and to close."""

    def __init__(self, home: RuntimeDir, listener: socket.socket) -> None:
        self.home = home
        self._listener = listener
        keep_from_children(listener)
        self.address = address_of(listener)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._strangers: dict[_Handshake, None] = {}  # in the order of their coming
        self._spare = _open_spare()
        self._deaf_until = 0.0

    def leave_to_successor(self) -> None:
        """Let nobody in any more: whoever comes waits before the closed door for the next manager."""
        self._deaf_until = time.monotonic() + _FOR_GOOD
        with contextlib.suppress(KeyError):  # no descriptor was free just now: it is not listening
            self._selector.unregister(self._listener)

    def close(self) -> None:
        """Let nobody in any more, and leave nothing behind."""
        tidy(self.address, self.home)
        self._listener.close()

    def admit(self, key: bytes) -> Iterator[Connection]:
        """All who connect and prove that they have the key, as they come."""
        while True:
            for ready, _ in self._selector.select(self._patience()):
                admitted = self._attend_to(ready.data, key)
                if admitted is not None:
                    yield admitted
            self._drop_late()

    def _attend_to(self, stranger: _Handshake | None, key: bytes) -> Connection | None:
        try:
            if stranger is not None:
                return self._hear(stranger, key)
            self._let_in()
        except Exception:  # whatever one peer does, the others still come to an open door
            log.exception("mppool: the manager stumbled over a peer")
            if stranger is not None:
                self._drop(stranger)
        return None

    def _patience(self) -> float | None:
        now = time.monotonic()
        moments = [each.deadline for each in self._strangers][:1]
        if self._deaf_until:
            moments.append(self._deaf_until)
        return max(0.0, min(moments) - now) if moments else None

    def _let_in(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                self._turn_away(error)
            return
        try:
            self._greet(sock)
        except OSError:
            sock.close()  # the caller has hung up already
        except BaseException:
            sock.close()
            raise

    def _greet(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        keep_from_children(sock)
        pid, same_user = _peer(sock)
        if not same_user:
            log.warning("mppool: refused a connection of another user (pid %s)", pid)
            sock.close()
            return
        stranger = _Handshake(sock, pid)
        while len(self._strangers) >= MAX_PENDING:
            self._drop(next(iter(self._strangers)))
        sock.send(greet(stranger.nonce))
        self._selector.register(sock, selectors.EVENT_READ, stranger)
        self._strangers[stranger] = None

    def _hear(self, stranger: _Handshake, key: bytes) -> Connection | None:
        try:
            data = stranger.socket.recv(ANSWER - len(stranger.answer))
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        stranger.answer += data
        if not data:
            self._drop(stranger)
        elif len(stranger.answer) == ANSWER:
            return self._welcome(stranger, key)
        return None

    def _welcome(self, stranger: _Handshake, key: bytes) -> Connection | None:
        proof = verify(key, stranger.nonce, stranger.answer)
        sock = stranger.socket
        try:
            sock.send(proof or refusal())
        except OSError:
            proof = None
        if proof is None:
            self._drop(stranger)
            return None
        self._selector.unregister(sock)
        del self._strangers[stranger]
        sock.setblocking(True)
        admitted = Connection(sock, self.address)
        admitted.peer_pid = stranger.pid
        return admitted

    def _drop(self, stranger: _Handshake) -> None:
        self._strangers.pop(stranger, None)
        try:
            self._selector.unregister(stranger.socket)
        except (KeyError, ValueError):
            pass  # it was never registered
        stranger.socket.close()

    def _drop_late(self) -> None:
        now = time.monotonic()
        while self._strangers and next(iter(self._strangers)).deadline <= now:
            self._drop(next(iter(self._strangers)))
        if self._deaf_until and self._deaf_until <= now:
            self._deaf_until = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _turn_away(self, error: OSError) -> None:
        """No descriptor is left: give up the spare one to take the caller in and send it away.

        Left in the queue it would wake us for ever. Without a spare, stop listening for a while.
        """
        log.error("mppool: the manager cannot take a connection: %s", error)
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
            try:
                self._listener.accept()[0].close()
            except OSError:
                pass  # the caller is gone, or somebody took the descriptor
            self._spare = _open_spare()
        if self._spare is None:
            self._selector.unregister(self._listener)
            self._deaf_until = time.monotonic() + _PAUSE
            self._spare = _open_spare()


def _open_spare() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return None


def _peer(sock: socket.socket) -> tuple[int | None, bool]:
    """The peer's pid, and whether it is of this user, as far as the kernel tells.

    The pid is 0 for a process that has none here, such as one in another container.
    """
    if sock.family != getattr(socket, "AF_UNIX", None):
        return None, True
    if hasattr(socket, "SO_PEERCRED"):
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid, uid == os.geteuid()
    if sys.platform == "darwin":  # options of <sys/un.h>, at the level SOL_LOCAL
        local_peercred, local_peerpid = 1, 2
        _, uid = struct.unpack_from("2I", sock.getsockopt(0, local_peercred, 76))  # a `struct xucred`
        return struct.unpack("i", sock.getsockopt(0, local_peerpid, 4))[0], uid == os.geteuid()
    return None, True
