"""Speaks to a manager or to an object's process past what a worker is offered: they must bear it."""

from __future__ import annotations

import os
import socket
from multiprocessing.managers import dispatch  # type: ignore[attr-defined]
from typing import Any

from mppool import ObjectPool, PoolManager
from mppool._remote.family import lease_of
from mppool._remote.opcodes import ERROR, VALUE
from mppool._wire.connection import Connection, encode
from mppool._wire.handshake import connect

__all__ = [
    "ERROR",
    "KEY",
    "VALUE",
    "CallAgain",
    "Connection",
    "Numbered",
    "Stranger",
    "connect",
    "encode",
    "number_of",
    "socket_to",
]

KEY = b"the right key, and long"
"""Of managers to which these tests speak without a pool."""


class Stranger:
    """A client with the key. What it says of itself is its own business."""

    def __init__(self, manager: PoolManager, pid: int) -> None:
        self.connection = connect(manager.address, KEY)
        dispatch(self.connection, None, "serve_pools", (pid, "far away", "its mark"))

    def send(self, request: Any) -> None:
        self.connection.send(request)

    def recv(self) -> tuple[int, Any]:
        answer: tuple[int, Any] = self.connection.recv()
        return answer

    def ask(self, op: str, pool: ObjectPool[Any], *args: Any) -> Any:
        self.send((op, number_of(pool), *args))
        status, payload = self.recv()
        assert status != ERROR, payload
        return payload

    def acquire(self, pool: ObjectPool[Any]) -> int:
        lease_id: int = self.ask("acquire", pool, 5, None)[0]
        return lease_id

    def echo(self, pool: ObjectPool[Any], lease_id: int, value: Any) -> Any:
        return self.ask("call", pool, lease_id, 0, "echo", (value,), {})

    def has_no_more_to_read(self) -> bool:
        return not self.connection.wait_readable(0)

    def hang_up(self) -> None:
        self.connection.close()


def number_of(pool: ObjectPool[Any]) -> int:
    """By which the manager knows it. It has no public name: a worker has no use for it."""
    return pool._id


class Numbered(Stranger):
    """A client that acquires as an event loop does."""

    def enqueue(self, pool: ObjectPool[Any], number: object, timeout: float | None = 20) -> None:
        self.send(("enqueue", number_of(pool), number, timeout, None))

    def end(self, number: object, discard: bool = False) -> None:
        self.send(("end", number, discard))

    def answer(self) -> tuple[int, int, Any]:
        answer: tuple[int, int, Any] = self.connection.recv()
        return answer

    def granted(self) -> tuple[int, int]:
        """Number and lease."""
        number, status, payload = self.answer()
        assert status != ERROR, payload
        return number, payload[0]

    def say_goodbye(self) -> None:
        self.send(("acknowledge", None))


class CallAgain:
    """Calls an object past the worker's knowledge of its lease."""

    def __init__(self, handle: Any) -> None:
        lease: Any = lease_of(handle)
        self.channel = lease._object_channel or lease._channel  # the lease itself refuses
        self._lease = (lease.pool_id, lease.id)

    def request(self, op: str, *args: Any) -> Any:
        return ("call", *self._lease, 0, op, args, {})

    def __call__(self, op: str, *args: Any) -> Any:
        return self.channel.request(self.request(op, *args))[1]


def socket_to(address: str) -> socket.socket:
    """A duplicate of the socket by which this process is connected to that path."""
    for descriptor in range(3, 1000):
        try:
            sock = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue  # it is not open, or no socket
        try:
            if sock.getpeername() == address:
                return sock
        except OSError:
            pass  # it is not connected
        sock.close()
    raise AssertionError(f"not connected to {address}")
