"""Both sides of a new connection prove that they have the key. Neither shows it.

    manager -> magic, version, nonce;  client -> nonce, proof;  manager -> proof

In the place of its nonce a manager says why it hears no answer: the client is another user's, or it is full.
SHA-256 throughout, so that it works where MD5 is forbidden. On a Unix socket each side first asks the kernel
whether the other is of its own user.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import socket
import struct
import time
from functools import partial
from typing import Any

from mppool import _system, _version
from mppool._system.fork import keep_from_children
from mppool._system.users import check_owner, check_peer, check_user
from mppool.errors import ManagerLost

from . import connection
from .connection import (
    CLOCK_STEP,
    Address,
    Connection,
    DeadlineExceeded,
    Socket,
    keep_alive,
    resolve,
    set_timeout,
)
from .signals import is_handlers

NONCE = 32
_NO_NONCE = bytes(NONCE - 4)
_FULL = b"\xff" * NONCE
_MAGIC = b"mppool: "
_VERSION = 56  # bytes of it, filled up with zeros
_PROOF = 32  # bytes of a SHA-256

REFUSAL = bytes(_PROOF)
"""The manager's last words to a client that has another key."""

ANSWER = NONCE + _PROOF
"""Bytes of a client's answer."""

NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""What the kernel says where no descriptor is free, or no memory for one."""


class Key(bytes):
    """What both sides prove to have. It is seen in no repr, and in no traceback that shows variables."""

    def __repr__(self) -> str:
        return "<key>"

    __str__ = __repr__

    @property
    def fingerprint(self) -> bytes:
        """By which it is known again. To find the key with it one has to try all keys."""
        return hmac.digest(self, b"mppool: fingerprint", "sha256")[:16]


class OtherVersion(ConnectionRefusedError):
    """Why a manager is not to be talked to: the version of mppool that it has, which is the text of this."""


def greet(nonce: bytes) -> bytes:
    """The manager's first words."""
    return _MAGIC + _our_version() + nonce


def refuse_user() -> bytes:
    """The manager's only words to a process of another user: in the place of a nonce, which user it has."""
    return greet(_NO_NONCE + struct.pack("<I", os.geteuid()))


def turn_away() -> bytes:
    """The only words of a manager that has no descriptor for one more connection: it lives."""
    return greet(_FULL)


def verify(key: bytes, nonce: bytes, answer: bytes) -> bytes | None:
    """The manager's last words to a client that answered `greet(nonce)`; None: it has another key."""
    theirs, proof = answer[:NONCE], answer[NONCE:]
    if not hmac.compare_digest(proof, _prove(key, b"client", nonce, theirs)):
        return None
    return _prove(key, b"manager", theirs, nonce)


def other_version(who: str, theirs: str) -> ManagerLost:
    """The error where two versions of mppool meet: what they say to each other may mean different things."""
    ours = _version.__version__
    return ManagerLost(f"{who} is of mppool {theirs}, and this process has mppool {ours}: use one version")


def hash_sample() -> int:
    """The same in two processes only if strings hash alike in both, as after a fork."""
    return hash("mppool")


def connect(address: Address, authkey: bytes, deadline: float | None = None) -> Connection:
    """A connection to the manager there, within `SILENCE_SECONDS`. `ManagerLost` says what failed.

    `FileNotFoundError` passes: a socket that is not there any more tells of an orderly shutdown. So does
    `DeadlineExceeded`, where the deadline (`time.monotonic`) comes first.
    """
    authkey = Key(authkey)
    sock = _open(address, authkey, deadline)
    opened = Connection(sock, address, partial(ping, address, authkey))
    opened.set_deadline(deadline)
    return opened


def pair(address: Address) -> tuple[Connection, socket.socket] | tuple[None, None]:
    """Two ends of a stream: one to keep, and one to pass to the process that listens there.

    None where nothing passes, on TCP, or where no descriptors are free.
    """
    if isinstance(address, str):
        with contextlib.suppress(OSError):
            ours, theirs = socket.socketpair()
            kept = Socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, ours.detach())
            for each in kept, theirs:
                keep_from_children(each)
            return Connection(kept, address), theirs
    return None, None


def ping(address: Address, authkey: bytes) -> None:
    """See whether a manager is there: one that welcomes a newcomer, or has no room for it, is only busy.

    Raises `ManagerLost` if not. Where no descriptor is free here, there is no news of it.
    """
    try:
        connect(address, authkey).close()
    except FileNotFoundError as error:
        if not listens(address):  # else a cleaner removed the socket, and there is no news of the manager
            raise ManagerLost(f"nothing listens at {address!r} any more") from error
    except ManagerLost as error:
        if not lacked_room(error):
            raise


def lacked_room(error: ManagerLost) -> bool:
    """Whether no connection came about for want of a descriptor, here or there: the manager may be well."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_ROOM


def listens(address: Address) -> bool:
    """Whether a process listens at this path, though nothing may lie there any more. Only Linux tells."""
    with contextlib.suppress(OSError):
        if not _system.PORTABLE and isinstance(address, str):
            with open("/proc/net/unix", "rb") as sockets:
                # number, references, protocol, flags (of one that listens), type, state, inode, path
                sought = os.fsencode(address)
                rows = (line.rstrip(b"\n").split(b" ", 7) for line in sockets)
                return any(row[3] == b"00010000" and row[-1] == sought for row in rows)
    return False


def _open(address: Address, key: Key, deadline: float | None) -> socket.socket:
    try:
        *others, last = resolve(address)
    except OSError as error:
        raise ManagerLost(f"no manager can be reached at {address!r}: {error}") from error
    for family, where in others:
        with contextlib.suppress(ManagerLost):
            return _try_to_open(family, where, address, key, deadline)
    return _try_to_open(*last, address, key, deadline)


def _try_to_open(
    family: int, where: Any, address: Address, key: Key, deadline: float | None
) -> socket.socket:
    try:
        sock = Socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ManagerLost(f"no connection to the manager at {address!r} can be opened: {error}") from error
    keep_from_children(sock)  # the manager sees by its connections whether a process has ended
    try:
        _reach(sock, where, address, key, deadline)
    except BaseException:
        sock.close()
        raise
    return sock


def _reach(sock: socket.socket, where: Any, address: Address, key: Key, deadline: float | None) -> None:
    try:
        set_timeout(sock, deadline)
        _connect(sock, where)
        check_peer(sock, f"the manager at {address!r}")  # before it gets a proof, or is believed anything
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(sock)
        _authenticate(sock, address, key)
    except (BlockingIOError, TimeoutError) as error:
        if is_handlers(error):
            raise
        if deadline is not None and time.monotonic() > deadline - CLOCK_STEP:
            raise DeadlineExceeded from None
        text = f"the manager at {address!r} gave no answer within {connection.SILENCE_SECONDS:g} s"
        raise ManagerLost(text) from TimeoutError("timed out")
    except (FileNotFoundError, ManagerLost):
        raise
    except OSError as error:
        if is_handlers(error):
            raise
        raise ManagerLost(f"no manager can be reached at {address!r}: {error}") from error


def _connect(sock: socket.socket, where: Any) -> None:
    try:
        sock.connect(where)
    except PermissionError:
        if isinstance(where, str):
            check_owner(where)  # which tells more
        raise


def _authenticate(sock: socket.socket, address: Address, key: bytes) -> None:
    refused = ConnectionRefusedError("another listens there")  # as final as where nothing listens
    if _recv_exactly(sock, len(_MAGIC)) != _MAGIC:
        raise ManagerLost(f"what listens at {address!r} is no mppool manager of this version") from refused
    version = _recv_exactly(sock, _VERSION)
    if version != _our_version():
        theirs = version.rstrip(b"\0").decode("ascii", "backslashreplace")
        raise other_version(f"the manager at {address!r}", theirs) from OtherVersion(theirs)
    nonce, ours = _recv_exactly(sock, NONCE), os.urandom(NONCE)
    if nonce == _FULL:
        raise OSError(errno.EMFILE, "it has no descriptor left for one more connection")
    if nonce.startswith(_NO_NONCE):
        check_user(f"the manager at {address!r}", *struct.unpack("<I", nonce[len(_NO_NONCE) :]))
    sock.sendall(ours + _prove(key, b"client", nonce, ours))
    answer = _recv_exactly(sock, _PROOF)
    if answer == REFUSAL:
        raise ManagerLost(f"the manager at {address!r} refused the authkey") from refused
    if not hmac.compare_digest(answer, _prove(key, b"manager", ours, nonce)):
        raise ManagerLost(f"the manager at {address!r} has another authkey") from refused


def _our_version() -> bytes:
    return _version.__version__.encode()[:_VERSION].ljust(_VERSION, b"\0")


def _prove(key: bytes, role: bytes, theirs: bytes, ours: bytes) -> bytes:
    """The proof that the one with this role has the key."""
    return hmac.digest(key, role + theirs + ours, "sha256")


def _recv_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ConnectionResetError("the connection was closed during the handshake")
        data += more
    return data
