"""Who may come in: the manager's socket, and the handshake of all who connect. Runs in the manager.

One thread serves all who have not yet proved that they have the key: such a peer costs a descriptor
for `BOUND` seconds at most, and there are never more than `MOST_STRANGERS` of them.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import selectors
import shutil
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import wire
from .wire import Address, Connection

__all__ = ["KEY_FILE", "MOST_STRANGERS", "Door"]

log = logging.getLogger("mppool")

MOST_STRANGERS = 512
KEY_FILE = "key"
_SOCKET_FILE = "socket"
_LONGEST_PATH = 100  # bytes; the shortest limit for the path of a Unix socket is 104
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE = 0.5


class _Stranger:
    """A peer in the middle of the handshake."""

    def __init__(self, sock: socket.socket, pid: int | None) -> None:
        self.socket = sock
        self.pid = pid
        self.nonce = secrets.token_bytes(wire.NONCE)
        self.answer = b""
        self.deadline = time.monotonic() + wire.BOUND


class Door:
    """The manager's listener, as `multiprocessing.managers` makes one: of an address and a backlog.

    `home` is its private directory (0700): the key (0600) lies there, and the socket unless an
    address is given.
    """

    def __init__(self, address: Address | None = None, backlog: int = 1) -> None:  # noqa: ARG002  # too short for a crowd
        self.home = _make_home()
        try:
            self._listener = _listen(address, self.home)
        except OSError:
            shutil.rmtree(self.home, ignore_errors=True)
            raise
        self.address: Address = self._listener.getsockname()
        if not isinstance(self.address, str):
            self.address = self.address[:2]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._strangers: dict[_Stranger, None] = {}  # in the order of their coming
        self._spare = _open_spare()
        self._deaf_until = 0.0

    def leave_key(self, key: bytes) -> None:
        """Lay the key where this user's processes find it, and nobody else."""
        file = os.open(self.home / KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(file, "wb") as stream:
            stream.write(key)

    def close(self) -> None:
        """Let nobody in any more, and leave nothing behind."""
        if isinstance(self.address, str):
            Path(self.address).unlink(missing_ok=True)
        self._listener.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def admit(self, key: bytes) -> Iterator[Connection]:
        """All who connect and prove that they have the key, as they come."""
        while True:
            for ready, _ in self._selector.select(self._patience()):
                if ready.data is None:
                    self._let_in()
                else:
                    yield from self._hear(ready.data, key)
            self._drop_late()

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
        sock.setblocking(False)
        pid, same_user = _peer(sock)
        if not same_user:
            log.warning("mppool: refused a connection of another user (pid %s)", pid)
            sock.close()
            return
        stranger = _Stranger(sock, pid)
        while len(self._strangers) >= MOST_STRANGERS:
            self._drop(next(iter(self._strangers)))
        self._strangers[stranger] = None
        try:
            sock.send(wire.greet(stranger.nonce))
            self._selector.register(sock, selectors.EVENT_READ, stranger)
        except OSError:
            self._drop(stranger)

    def _hear(self, stranger: _Stranger, key: bytes) -> Iterator[Connection]:
        try:
            data = stranger.socket.recv(wire.ANSWER - len(stranger.answer))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        stranger.answer += data
        if not data:
            self._drop(stranger)
        elif len(stranger.answer) == wire.ANSWER:
            connection = self._welcome(stranger, key)
            if connection is not None:
                yield connection

    def _welcome(self, stranger: _Stranger, key: bytes) -> Connection | None:
        proof = wire.verify(key, stranger.nonce, stranger.answer)
        sock = stranger.socket
        try:
            sock.send(proof or wire.refusal())
        except OSError:
            proof = None
        if proof is None:
            self._drop(stranger)
            return None
        self._selector.unregister(sock)
        del self._strangers[stranger]
        sock.setblocking(True)
        connection = Connection(sock, self.address, None)
        connection.peer_pid = stranger.pid
        return connection

    def _drop(self, stranger: _Stranger) -> None:
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


def _make_home() -> Path:
    """A private directory whose path leaves room for a socket's name."""
    for base in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp"):  # noqa: S108  # mkdtemp is safe there
        if base and os.path.isdir(base) and len(os.fsencode(base)) + 32 < _LONGEST_PATH:
            return Path(tempfile.mkdtemp(prefix="mppool-", dir=base))
    return Path(tempfile.mkdtemp(prefix="mppool-"))


def _listen(address: Address | None, home: Path) -> socket.socket:
    if address is None:
        address = str(home / _SOCKET_FILE) if hasattr(socket, "AF_UNIX") else ("127.0.0.1", 0)
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


def _peer(sock: socket.socket) -> tuple[int | None, bool]:
    """The peer's pid, and whether it is of this user, as far as the kernel tells."""
    if sock.family != getattr(socket, "AF_UNIX", None):
        return None, True
    if hasattr(socket, "SO_PEERCRED"):
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid or None, uid == os.geteuid()
    if sys.platform == "darwin":
        local_peerpid = 2  # <sys/un.h>
        return struct.unpack("i", sock.getsockopt(0, local_peerpid, 4))[0], True
    return None, True
