"""The manager's socket, and the handshake of all who connect. Runs in the manager.

One thread serves all peers that have not yet proved that they have the key: such a peer costs a descriptor
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
import stat
import sys
import time
from collections.abc import Iterator
from typing import Any

from mppool._system.fork import keep_from_children
from mppool._system.locks import locked
from mppool._system.runtime_dir import HeldDir, rejuvenate
from mppool._system.users import check_owner, check_peer

from . import connection
from .connection import Address, Connection, keep_alive, resolve
from .handshake import ANSWER, NO_ROOM, NONCE, REFUSAL, Key, greet, refuse_user, turn_away, verify

log = logging.getLogger("mppool")

MAX_PENDING = 512
_SEND_BUFFER = 256 * 1024  # bytes: macOS's 8 KiB would not hold every answer to an acquire that waits

_SPARE = 4
"""Descriptors kept for peers that come when no other is free: the one that is given up for a moment may go to
another thread, which keeps it."""

_PAUSE_SECONDS = 0.5
"""Without a descriptor to accept a peer with, which makes the socket ready as long as it waits. Handshakes
in progress wait, too: they have seconds."""


class Endpoint:
    """Where clients find a manager: its runtime directory, and the socket that listens.

    The creating process makes it and passes it to each of its managers in turn. `OSError` if the address
    cannot be had; then nothing is left behind.
    """

    def __init__(self, address: Address | None, directory: HeldDir) -> None:
        self.directory = directory
        try:
            self._listen(self.directory.socket if address is None else address)
        except BaseException:
            self.directory.remove()
            self.directory.close()
            raise
        try:
            self.directory.note(self.address)
        except BaseException:
            self.remove()
            self.close()
            raise

    def _listen(self, address: Address) -> None:
        self.socket = claim(address) if isinstance(address, str) else listen(address)
        self.address = address_of(self.socket)
        self._file = _file_at(self.address) if isinstance(self.address, str) else None

    def renew(self, key: Key) -> bool:
        """Put back what a cleaner removed. Whether all that lay in the directory is lost.

        The socket may be another one then. `OSError` if it cannot be done.
        """
        lost = self.directory.renew(key)
        self.directory.note(self.address)
        if isinstance(self.address, str):
            if _file_at(self.address) != self._file:
                self._listen(self.address)
            rejuvenate(self.address)
        return lost

    def remove(self) -> None:
        """Remove directory and socket, unless others have taken their place."""
        self.directory.remove()
        if isinstance(self.address, str):
            with contextlib.suppress(OSError), _locked(self.address):  # its directory is gone, too
                # As long as the socket is open here, no other file gets this file's number.
                ours = self.socket.fileno() >= 0 and _file_at(self.address) == self._file
                if ours or _is_dead(self.address):
                    os.unlink(self.address)

    def close(self) -> None:
        """This process has no more to do with it."""
        self.socket.close()
        self.directory.close()


def claim(path: str) -> socket.socket:
    """A socket that listens at this path, in the place of one that a dead process left there.

    `OSError` if a process listens there, something else lies there, or none can be made.
    """
    try:
        with _locked(path):
            if os.path.lexists(path):
                check_owner(path)
                if not stat.S_ISSOCK(os.lstat(path).st_mode):
                    raise FileExistsError(f"what lies at {path!r} is no socket: choose another path")
                if not _is_dead(path):
                    in_use = os.strerror(errno.EADDRINUSE)
                    raise OSError(errno.EADDRINUSE, f"{in_use}: a process listens there")
                os.unlink(path)
            return listen(path)
    except FileNotFoundError as error:
        text = f"there is no directory {os.path.dirname(path)!r}: make it first"
        raise FileNotFoundError(text) from error


def _locked(path: str) -> contextlib.AbstractContextManager[None]:
    """Held by a process that takes over or removes a socket: what it finds there stays so meanwhile."""
    return locked(f"{path}.mppool-lock")


def _file_at(path: str) -> tuple[int, int] | None:
    """Which file lies at this path; None if there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_dead(path: str) -> bool:
    """Whether a socket lies there at which no process listens any more."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # one that does not accept has a full queue, and lives
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return stat.S_ISSOCK(os.lstat(path).st_mode)
        except OSError:
            pass
    return False


def listen(address: Address) -> socket.socket:
    """A socket that listens at this address. `OSError` if it cannot be had."""
    refusal = OSError(f"{address!r} stands for no address")
    for family, where in resolve(address, socket.AI_PASSIVE):
        try:
            return _listen_at(family, where)
        except OSError as error:
            refusal = error
    raise refusal


def _listen_at(family: int, where: Any) -> socket.socket:
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # says nothing to a Unix socket
        listener.bind(where)
        if family == socket.AF_UNIX:
            os.chmod(where, 0o600)
        listener.listen(socket.SOMAXCONN)
    except BaseException:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> Address:
    """Where it listens, as clients need to know."""
    address: Any = listener.getsockname()
    return address if isinstance(address, str) else address[:2]


class _Handshake:
    """A peer in the middle of the handshake."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.pid: int | None = None
        self.nonce = secrets.token_bytes(NONCE)
        self.answer = b""
        self.deadline = time.monotonic() + connection.SILENCE_SECONDS


class Listener:
    """Accepts connections of peers that pass the handshake."""

    def __init__(self, listener: socket.socket) -> None:
        self._selector = selectors.DefaultSelector()
        self._add(listener)
        self.address = address_of(listener)
        self._pending: dict[_Handshake, None] = {}  # in the order of their coming
        self._full = False  # as far as the log tells
        self._spare: list[int] = []
        self._open_spare()

    def _add(self, listener: socket.socket) -> None:
        self._socket = listener
        listener.setblocking(False)  # a peer that is gone when its turn comes may leave nothing to accept
        keep_from_children(listener)
        self._selector.register(listener, selectors.EVENT_READ)

    def move_to(self, listener: socket.socket) -> None:
        """Accept from this socket instead, which listens at the same address."""
        before = self._socket
        if listener is not before:
            self._add(listener)
            self._selector.unregister(before)
            before.close()

    def hand_over(self) -> None:
        """Accept no more: peers that connect from now on wait in the socket's queue for the next manager."""
        self._selector.unregister(self._socket)

    def close(self) -> None:
        """Refuse peers that connect from now on."""
        self._socket.close()

    def accept(self, key: Key) -> Iterator[Connection]:
        """Connections of all peers that prove that they have the key, as they come."""
        while True:
            for ready, _ in self._selector.select(self._drop_expired()):
                handshake = ready.data or self._on_connect()
                accepted = None if handshake is None else self._advance(handshake, key)
                if accepted is not None:
                    yield accepted

    def _on_connect(self) -> _Handshake | None:
        try:
            handshake = _Handshake(self._socket.accept()[0])
        except OSError as error:
            if error.errno in NO_ROOM:
                self._turn_away(error)
            return None
        self._full = False
        return handshake

    def _advance(self, handshake: _Handshake, key: Key) -> Connection | None:
        """One step. A peer's trouble must not end the thread that all others need."""
        try:
            if handshake in self._pending:
                return self._on_answer(handshake, key)
            self._greet(handshake)
        except BlockingIOError:
            pass
        except OSError:  # the peer has hung up, is of another user, or has another key
            self._drop(handshake)
        except Exception:
            log.exception("mppool: a handshake failed")
            self._drop(handshake)
        return None

    def _greet(self, handshake: _Handshake) -> None:
        sock = handshake.socket
        sock.setblocking(False)
        keep_from_children(sock)
        try:
            handshake.pid = check_peer(sock, "a process that connects to the manager")
        except PermissionError as error:
            log.warning("mppool: refused a connection: %s", error)
            sock.send(refuse_user())
            raise
        while len(self._pending) >= MAX_PENDING:
            self._drop(next(iter(self._pending)))
        self._pending[handshake] = None
        self._selector.register(sock, selectors.EVENT_READ, handshake)
        sock.send(greet(handshake.nonce))

    def _on_answer(self, handshake: _Handshake, key: Key) -> Connection | None:
        """The connection, if the whole answer proves that the peer has the key."""
        sock = handshake.socket
        data = sock.recv(ANSWER - len(handshake.answer))
        if not data:
            raise ConnectionResetError("the peer has hung up")
        handshake.answer += data
        if len(handshake.answer) < ANSWER:
            return None
        proof = verify(key, handshake.nonce, handshake.answer)
        sock.send(proof or REFUSAL)
        if proof is None:
            raise PermissionError("the peer has another key")
        self._selector.unregister(sock)
        del self._pending[handshake]
        sock.setblocking(True)
        keep_alive(sock)
        if sys.platform == "darwin" and sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        accepted = Connection(sock, self.address)
        accepted.peer_pid = handshake.pid
        return accepted

    def _drop(self, handshake: _Handshake) -> None:
        self._pending.pop(handshake, None)
        with contextlib.suppress(KeyError, ValueError):  # it was never registered
            self._selector.unregister(handshake.socket)
        handshake.socket.close()

    def _drop_expired(self) -> float | None:
        """Seconds until the next handshake in progress is too slow; None if there is none."""
        now = time.monotonic()
        for handshake in list(self._pending):
            if handshake.deadline > now:
                return handshake.deadline - now
            self._drop(handshake)
        return None

    def _turn_away(self, error: OSError) -> None:
        """No descriptor is left: give up a spare one to tell a peer so, and hang up on it.

        To a client that is served, and has asked for a sign of life, that is one. Left in the queue, the peer
        would make the socket ready again and again. Without a spare descriptor, pause.
        """
        if not self._full:
            log.error("mppool: the manager cannot take more connections: %s", error)
        self._full = True
        if self._spare:
            os.close(self._spare.pop())
            with contextlib.suppress(OSError), self._socket.accept()[0] as sock:
                sock.send(turn_away(), socket.MSG_DONTWAIT)
        else:
            time.sleep(_PAUSE_SECONDS)
        self._open_spare()

    def _open_spare(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._spare) < _SPARE:
                self._spare.append(os.open(os.devnull, os.O_RDONLY))
