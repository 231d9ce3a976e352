"""What no pool can beat: a round trip on a bare Unix socket, and a copy in warm memory.

The server answers each client in a thread, as both managers do. A request says how long it is and how
long the answer shall be; both sides keep their buffers.
"""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .things import KIB, MIB, Step, sample

__all__ = [
    "MESSAGE",
    "Wire",
    "copy",
    "echo",
    "is_copied",
    "open_wire",
    "request",
    "serve",
    "transfer_in",
    "transfer_out",
]

MESSAGE = 64
"""Bytes of a small message: about those of a plain call of mppool's."""

COPIED_FROM = 16 * MIB
"""Sizes that need not go through a socket: their limit is a copy in memory."""

_HEADER = struct.Struct("<QQ")  # bytes of the request, header included; bytes of the answer
_CHUNK = 64 * KIB


class Wire:
    """A client's end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray(COPIED_FROM)

    def exchange(self, request: bytes, answer: int) -> None:
        """Send a request, receive so many bytes."""
        self._socket.sendall(request)
        if answer <= _CHUNK:
            received = len(self._socket.recv(_CHUNK))
        else:
            received = self._socket.recv_into(self._buffer, answer)
        _receive(self._socket, self._buffer, received, answer)


@contextmanager
def serve() -> Iterator[str]:
    """The server, in this process; its address."""
    with tempfile.TemporaryDirectory(prefix="bench-") as home, socket.socket(socket.AF_UNIX) as listener:
        address = os.path.join(home, "echo")
        listener.bind(address)
        listener.listen(64)
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        yield address


@contextmanager
def open_wire(address: str) -> Iterator[Wire]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(address)
        yield Wire(sock)


def _accept(listener: socket.socket) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return  # closed
        threading.Thread(target=_answer, args=(sock,), daemon=True).start()


def _answer(sock: socket.socket) -> None:
    buffer, content = bytearray(COPIED_FROM), memoryview(bytes(COPIED_FROM))
    while begun := sock.recv(_CHUNK):
        request, answer = _HEADER.unpack_from(begun)
        _receive(sock, buffer, len(begun), request)
        sock.sendall(content[:answer])


def _receive(sock: socket.socket, buffer: bytearray, begun: int, size: int) -> None:
    """The rest of a message of which so much is there."""
    with memoryview(buffer) as view:
        while begun < size:
            received = sock.recv_into(view[begun:size])
            if not received:
                raise EOFError("the other side hung up")
            begun += received


# -- operations ---------------------------------------------------------------------------------------


def is_copied(size: int) -> bool:
    """Whether the limit for so many bytes is a copy in memory, not a transfer through a socket."""
    return size >= COPIED_FROM


@contextmanager
def echo(wire: Wire) -> Iterator[Step]:
    yield _exchange(wire, MESSAGE, MESSAGE)


@contextmanager
def transfer_in(wire: Wire, size: int) -> Iterator[Step]:
    yield _exchange(wire, size, MESSAGE)


@contextmanager
def transfer_out(wire: Wire, size: int) -> Iterator[Step]:
    yield _exchange(wire, MESSAGE, size)


@contextmanager
def copy(wire: Wire | None, size: int) -> Iterator[Step]:
    """One copy in memory that both sides have touched before."""
    source, target = memoryview(sample("bytes", size)), memoryview(bytearray(size))

    def step() -> None:
        target[:] = source

    step()
    yield step


def request(size: int, answer: int) -> bytes:
    """A request of so many bytes for an answer of so many."""
    return _HEADER.pack(size, answer) + bytes(size - _HEADER.size)


def _exchange(wire: Wire, size: int, answer: int) -> Step:
    message = request(size, answer)
    return lambda: wire.exchange(message, answer)
