"""Both sides of a new connection prove that they have the key. Neither shows it.

    manager -> magic, nonce;  client -> nonce, proof;  manager -> proof

SHA-256 throughout, so that it works where MD5 is forbidden.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import time
from functools import partial

from mppool.errors import ManagerLost

from . import connection
from .connection import A_MOMENT, Address, Connection, DeadlineExceeded, set_bound

_MAGIC = b"mppool 1"
NONCE = 32
_PROOF = 32  # bytes of a SHA-256
_REFUSED = bytes(_PROOF)


def greet(nonce: bytes) -> bytes:
    """The manager's first words."""
    return _MAGIC + nonce


def prove(key: bytes, role: bytes, theirs: bytes, ours: bytes) -> bytes:
    """The proof that the one with this role has the key."""
    return hmac.digest(key, role + theirs + ours, "sha256")


def verify(key: bytes, nonce: bytes, answer: bytes) -> bytes | None:
    """The manager's last words to a client that answered `greet(nonce)`; None: it has another key."""
    theirs, proof = answer[:NONCE], answer[NONCE:]
    if not hmac.compare_digest(proof, prove(key, b"client", nonce, theirs)):
        return None
    return prove(key, b"manager", theirs, nonce)


ANSWER = NONCE + _PROOF
"""Bytes of a client's answer."""


class _Socket(socket.socket):
    """One that is forgotten when its thread ends, or in a forked child: that is no leak to warn of."""

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it never came to be: no descriptor was free
            self.close()


def connect(address: Address, authkey: bytes, until: float | None = None) -> Connection:
    """A connection to the manager there, within `BOUND` seconds. `ManagerLost` says what failed.

    `FileNotFoundError` passes: a socket that is not there any more tells of an orderly shutdown. So does
    `DeadlineExceeded`, if it had only `until` then.
    """
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    try:
        sock = _Socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ManagerLost(f"no connection to the manager at {address!r} can be opened: {error}") from error
    try:
        _reach(sock, address, authkey, until)
    except BaseException:
        sock.close()
        raise
    opened = Connection(sock, address, partial(knock, address, authkey))
    opened.give(until)
    return opened


def knock(address: Address, authkey: bytes) -> None:
    """See whether anybody is there: who still welcomes a newcomer is only busy. Raises as `connect`."""
    connect(address, authkey).close()


def _reach(sock: socket.socket, address: Address, key: bytes, until: float | None) -> None:
    try:
        set_bound(sock, until)
        sock.connect(address)
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _shake_hands(sock, address, key)
    except (BlockingIOError, TimeoutError):
        if until is not None and time.monotonic() > until - A_MOMENT:
            raise DeadlineExceeded from None
        text = f"the manager at {address!r} gave no answer within {connection.BOUND:g} s"
        raise ManagerLost(text) from TimeoutError("timed out")
    except (FileNotFoundError, ManagerLost):
        raise
    except OSError as error:
        raise ManagerLost(f"no manager can be reached at {address!r}: {error}") from error


def _shake_hands(sock: socket.socket, address: Address, key: bytes) -> None:
    refused = ConnectionRefusedError("another listens there")  # as final as where nobody does
    if _exactly(sock, len(_MAGIC)) != _MAGIC:
        raise ManagerLost(f"who listens at {address!r} is no mppool manager of this version") from refused
    theirs, ours = _exactly(sock, NONCE), os.urandom(NONCE)
    sock.sendall(ours + prove(key, b"client", theirs, ours))
    answer = _exactly(sock, _PROOF)
    if answer == _REFUSED:
        raise ManagerLost(f"the manager at {address!r} refused the authkey") from refused
    if not hmac.compare_digest(answer, prove(key, b"manager", ours, theirs)):
        raise ManagerLost(f"the manager at {address!r} has another authkey") from refused


def refusal() -> bytes:
    """The manager's last words to a client that has another key."""
    return _REFUSED


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ConnectionResetError("the connection was closed during the handshake")
        data += more
    return data
