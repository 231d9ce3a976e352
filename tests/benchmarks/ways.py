"""Rows about the ways in which an event loop can wait for a socket: what a library can choose among."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial

from .bench import LIMIT, MPPOOL, Bench
from .clients import in_a_process
from .limits import MESSAGE, request, serve
from .loops import LOOPS, new_loop, repeated
from .measure import Row, interleave
from .things import Step

__all__ = ["way_rows", "ways"]

REPEATED = 50  # round trips of a step
_CHUNK = 16 * 1024  # bytes of a `recv`, as in mppool

Exchange = Callable[[], Awaitable[object]]


def way_rows(kind: str) -> tuple[str, ...]:
    """Their names."""
    return tuple(f"aio-way-{way}{'' if kind == LOOPS[0] else f'-{kind}'}" for way in _WAYS)


def ways(kind: str, bench: Bench) -> Iterator[Row]:
    """A round trip to the bare echo, in each way, beside one that blocks."""
    with in_a_process(serve) as address:
        echo = f"the bare echo, for {kind}"
        bench.add(echo, partial(nullcontext, address))
        operations = {way: partial(_in_loop, way=way, kind=kind) for way in _WAYS}
        blocks = {way: bench.block(echo, operation) for way, operation in operations.items()}
        blocks[LIMIT] = bench.block(echo, _blocking)
        samples = repeated(interleave(blocks, bench.pace.rounds), REPEATED)
    for name, (way, (title, _)) in zip(way_rows(kind), _WAYS.items(), strict=True):
        compared = {MPPOOL: samples[way], LIMIT: samples[LIMIT]}
        yield Row(name, f"round trip on {kind}, {title}", "time", compared)


@contextmanager
def _connected(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(address)
        yield sock


@contextmanager
def _blocking(address: str) -> Iterator[Step]:
    message = request(MESSAGE, MESSAGE)

    def step() -> None:
        for _ in range(REPEATED):
            sock.send(message)
            sock.recv(_CHUNK)

    with _connected(address) as sock:
        yield step


@contextmanager
def _in_loop(address: str, way: str, kind: str) -> Iterator[Step]:
    async def step(exchange: Exchange) -> None:
        for _ in range(REPEATED):
            await exchange()

    _, begin = _WAYS[way]
    with _connected(address) as sock, closing(new_loop(kind)) as loop:
        sock.setblocking(False)
        exchange = loop.run_until_complete(begin(sock))
        yield lambda: loop.run_until_complete(step(exchange))


async def _by_reader(sock: socket.socket) -> Exchange:
    loop, message = asyncio.get_running_loop(), request(MESSAGE, MESSAGE)
    answer: asyncio.Future[bytes] = loop.create_future()
    loop.add_reader(sock, lambda: answer.set_result(sock.recv(_CHUNK)))

    def exchange() -> Awaitable[bytes]:
        nonlocal answer
        answer = loop.create_future()
        sock.send(message)
        return answer

    return exchange


async def _by_sock_functions(sock: socket.socket) -> Exchange:
    loop, message = asyncio.get_running_loop(), request(MESSAGE, MESSAGE)

    async def exchange() -> bytes:
        await loop.sock_sendall(sock, message)
        return await loop.sock_recv(sock, _CHUNK)

    return exchange


class _Answers(asyncio.Protocol):
    answer: asyncio.Future[bytes]

    def data_received(self, data: bytes) -> None:
        self.answer.set_result(data)


async def _by_protocol(sock: socket.socket) -> Exchange:
    loop, message = asyncio.get_running_loop(), request(MESSAGE, MESSAGE)
    transport, protocol = await loop.create_connection(_Answers, sock=sock.dup())

    def exchange() -> Awaitable[bytes]:
        protocol.answer = loop.create_future()
        transport.write(message)
        return protocol.answer

    return exchange


_WAYS: dict[str, tuple[str, Callable[[socket.socket], Awaitable[Exchange]]]] = {
    "reader": ("add_reader, as mppool does", _by_reader),
    "sock": ("sock_sendall and sock_recv", _by_sock_functions),
    "protocol": ("a Protocol", _by_protocol),
}
