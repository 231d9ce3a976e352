"""Peers that do not behave, peers without end, and a manager that has run out of something."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from actors import (
    FORK,
    Gate,
    Tool,
    Worker,
    acquire,
    all_idle,
    descriptors_for,
    fill_gaps,
    hang_up,
    home_of,
    manager_in,
    no_descriptors,
    process_of,
    untold,
)
from helpers import promptly, wait_until
from standins import side_by_side
from wire import ERROR, KEY, Stranger, connect, encode, number_of

from mppool import ManagerLost, ObjectPool, PoolManager
from mppool._wire import listener

BOUND = 0.5
"""Seconds of silence after which a peer is dropped here."""

PATIENT = pytest.mark.bounds(silence=5.0)
"""As long as in the package: a test where a busy machine may be silent for long."""

pytestmark = [pytest.mark.bounds(silence=BOUND), pytest.mark.manager(authkey=KEY)]


Connect = Callable[[], socket.socket]


@pytest.fixture
def stranger(manager: PoolManager) -> Iterator[Connect]:
    """Connects to the manager, and no more."""
    with contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(10)
            sock.connect(str(manager.address))
            return sock

        yield connect


def is_hung_up(peer: socket.socket) -> bool:
    """Read what there is; whether the manager closed its end. Fails if that takes long."""
    try:
        while peer.recv(10000):
            pass
    except ConnectionResetError:
        pass
    return True


def assert_served(pool: ObjectPool[Any]) -> None:
    side_by_side(3, lambda index: pool.apply(Tool.echo, index))  # each with a new connection


# -- without the key --------------------------------------------------------------------------------


TOO_LITTLE = pytest.mark.parametrize(
    "words",
    [b"", b"x", bytes(63), b"\xff" * 8 + bytes(20), b"GET / HTTP/1.0\r\n\r\n"],
    ids=["silent", "a byte", "nearly all", "a giant length", "http"],
)


@TOO_LITTLE
def test_who_says_too_little_is_dropped_in_time(
    pool: ObjectPool[Any], stranger: Connect, words: bytes
) -> None:
    peer = stranger()
    began = time.monotonic()
    peer.sendall(words)
    assert_served(pool)
    assert is_hung_up(peer)
    assert time.monotonic() - began > BOUND / 2


@pytest.mark.bounds(silence=60)
@TOO_LITTLE
def test_who_says_too_little_keeps_nobody_waiting(
    pool: ObjectPool[Any], stranger: Connect, words: bytes
) -> None:
    peer = stranger()
    peer.sendall(words)
    with promptly():
        assert_served(pool)
    peer.settimeout(0)
    with pytest.raises(BlockingIOError):
        is_hung_up(peer)


@pytest.mark.bounds(silence=60)
@pytest.mark.parametrize(
    "words", [bytes(64), os.urandom(100_000), b"\xff" * 64], ids=["zeros", "much", "ones"]
)
def test_who_says_nonsense_is_dropped_at_once(pool: ObjectPool[Any], stranger: Connect, words: bytes) -> None:
    peer = stranger()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        peer.sendall(words)
    assert is_hung_up(peer)
    assert_served(pool)


def test_who_drips_is_dropped_in_time(pool: ObjectPool[Any], stranger: Connect) -> None:
    peer = stranger()
    peer.setblocking(False)

    def hung_up() -> bool:
        try:
            peer.send(b"x")
            return peer.recv(1000) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    wait_until(hung_up)
    assert_served(pool)


@pytest.mark.bounds(silence=60)
def test_the_wrong_key_is_refused_at_once(manager: PoolManager, pool: ObjectPool[Any]) -> None:
    for _ in range(20):
        with promptly(), pytest.raises(ManagerLost, match="refused the authkey"):
            connect(manager.address, b"the wrong key")
    assert_served(pool)


def test_the_greeting_holds_nothing_of_the_key(stranger: Connect) -> None:
    greetings = {stranger().recv(1000) for _ in range(5)}
    assert len(greetings) == 5, "a nonce is used once"
    assert not any(KEY in each for each in greetings)


@PATIENT
@pytest.mark.bounds(strangers=8)
def test_strangers_are_limited_in_number(
    manager: PoolManager, pool: ObjectPool[Any], stranger: Connect
) -> None:
    descriptors = process_of(manager).num_fds()
    peers = [stranger() for _ in range(100)]
    assert_served(pool)
    assert all(is_hung_up(peer) for peer in peers[:92])
    assert process_of(manager).num_fds() <= descriptors + 8 + 2 * 3 + 1


# -- who makes the manager stumble -------------------------------------------------------------------


stumbles = FORK.Value("i", 0)


def stumbling(function: Callable[..., Any], error: type[Exception]) -> Callable[..., Any]:
    """In the manager: a function that fails as often as `stumbles` says."""

    def stumble(*args: Any) -> Any:
        if stumbles.value:
            stumbles.value -= 1
            raise error("of whatever")
        return function(*args)

    return stumble


@PATIENT
@pytest.mark.parametrize("error", [OSError, RuntimeError])
@pytest.mark.parametrize("step", ["check_peer", "verify"])  # which never fail by themselves
def test_a_peer_that_cannot_be_told_apart_closes_the_door_for_nobody(
    monkeypatch: pytest.MonkeyPatch, step: str, error: type[Exception]
) -> None:
    monkeypatch.setattr(listener, step, stumbling(getattr(listener, step), error))
    with manager_in(authkey=KEY) as manager:
        pool = manager.create_pool(Tool, max_size=2)
        descriptors = process_of(manager).num_fds()
        stumbles.value = 3
        for _ in range(3):
            with promptly(), pytest.raises(ManagerLost):
                connect(manager.address, KEY)
        assert stumbles.value == 0
        assert_served(pool)
        wait_until(lambda: process_of(manager).num_fds() <= descriptors)


# -- with the key --------------------------------------------------------------------------------------


@pytest.fixture
def friend(manager: PoolManager) -> Iterator[socket.socket]:
    """One who has the key, and then speaks as he likes."""
    with contextlib.closing(connect(manager.address, KEY)) as connection:
        sock = socket.socket(fileno=os.dup(connection.fileno()))
    with sock:
        yield sock


@pytest.mark.parametrize(
    "words",
    [
        struct.pack("<Q", 2**64 - 1),
        struct.pack("<Q", 2**62) + b"x",
        struct.pack("<Q", 100) + b"half of it",
        struct.pack("<Q", 5) + b"nopes",
        encode("not a request"),
        encode((None, "_finish", (), {})),
        encode((None, "serve_pools", (), {})),
        encode((None, "serve_pools", (1, "me", "mark"), {})) + struct.pack("<Q", 2**63) + b"x",
        encode((None, "serve_pools", (1, "me", "mark"), {})) + encode(17),
        encode((None, "serve_pools", (1, "me", "mark"), {})) + encode(("_end", 1, 2)),
    ],
)
def test_a_friend_who_speaks_nonsense_harms_himself_only(
    pool: ObjectPool[Any], manager: PoolManager, friend: socket.socket, words: bytes
) -> None:
    process = process_of(manager)
    memory = process.memory_info().rss
    friend.sendall(words)
    friend.shutdown(socket.SHUT_WR)
    friend.settimeout(5)
    assert is_hung_up(friend)
    assert_served(pool)
    assert process.memory_info().rss < memory + 50e6


@pytest.fixture
def client(manager: PoolManager) -> Iterator[Stranger]:
    """One whom the pools serve, and who then asks as he likes."""
    client = Stranger(manager, os.getpid())
    yield client
    client.hang_up()


@pytest.mark.parametrize("says_goodbye", [True, False])
def test_who_takes_leave_says_which_grant_has_arrived(
    manager: PoolManager, client: Stranger, says_goodbye: bool
) -> None:
    """Of one that is cut off, a call on another connection shows that it has what was granted."""
    pool = manager.create_pool(Tool, max_size=1)
    other = Stranger(manager, os.getpid())
    lease_id = client.acquire(pool)
    assert other.echo(pool, lease_id, 1) == 1
    if says_goodbye:
        client.send(("acknowledge", None))
    client.hang_up()
    if says_goodbye:
        wait_until(lambda: pool.stats().idle == 1)
    else:
        assert other.echo(pool, lease_id, 2) == 2
    other.hang_up()


def test_what_a_client_says_last_is_heard_though_it_reads_no_answer(
    gate: Gate, manager: PoolManager, client: Stranger
) -> None:
    pool = manager.create_pool(Tool, max_size=1)
    lease_id = client.acquire(pool)
    client.send(("call", number_of(pool), lease_id, 0, "wait_at_gate", (), {}))
    gate.wait_for_somebody()
    client.send(("release", number_of(pool), lease_id, False))
    client.hang_up()
    gate.open()
    wait_until(lambda: pool.stats().idle == 1)


def assert_gets_his_own_answer(client: Stranger, pool: ObjectPool[Any]) -> None:
    assert client.ask("stats", pool).name == pool.name
    assert client.has_no_more_to_read()


@pytest.mark.parametrize(
    "request_", [("release",), ("release", 1, 2, 3, 4, 5), ("release", [], 0, 0), ("acknowledge",)]
)
def test_a_wrong_request_that_has_no_reply_gets_none(
    pool: ObjectPool[Any], client: Stranger, request_: Any
) -> None:
    client.send(request_)
    assert_gets_his_own_answer(client, pool)


@pytest.mark.parametrize(
    "request_", [17, None, (), "text", ("nothing",), ([], 1), ({},), (1,), ("stats",), ("stats", 1, 2, 3)]
)
def test_a_request_that_is_none_gets_an_error(pool: ObjectPool[Any], client: Stranger, request_: Any) -> None:
    client.send(request_)
    assert client.recv()[0] == ERROR
    assert_gets_his_own_answer(client, pool)


@pytest.mark.parametrize("name", ["serve_pools", "hold_lifeline", "nothing"])
@pytest.mark.parametrize("pair", [os.pipe, lambda: [each.detach() for each in socket.socketpair()]])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_what_a_friend_passes_along_is_closed_in_the_end(
    manager: PoolManager, friend: socket.socket, name: str, pair: Callable[[], list[int]], times: int
) -> None:
    process = process_of(manager)
    descriptors = process.num_fds()
    ours, theirs = pair()
    socket.send_fds(friend, [encode((None, name, (1, "me", "mark"), {}))], [theirs] * times)
    for each in ours, theirs:
        os.close(each)
    friend.shutdown(socket.SHUT_WR)
    friend.settimeout(5)
    assert is_hung_up(friend)
    wait_until(lambda: process.num_fds() < descriptors)


def test_a_friend_who_says_nothing_holds_nobody_up(pool: ObjectPool[Any], friend: socket.socket) -> None:
    assert_served(pool)
    friend.setblocking(False)
    with pytest.raises(BlockingIOError):
        friend.recv(1)


# -- nothing left -----------------------------------------------------------------------------------------


@PATIENT
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no way to limit another process here")
@pytest.mark.parametrize("more", range(5))
@pytest.mark.manager(authkey=KEY, initializer=fill_gaps)
def test_without_descriptors_the_manager_refuses_and_recovers(
    manager: PoolManager, pool: ObjectPool[Any], more: int
) -> None:
    handle = pool.acquire()
    with contextlib.ExitStack() as stack, descriptors_for(manager, more):
        refused = 0
        for _ in range(12):
            try:
                stack.enter_context(contextlib.closing(connect(manager.address, KEY)))
            except ManagerLost:
                refused += 1
        assert refused >= 12 - more
        assert handle.echo(1) == 1, "who is in already is served"
        assert pool.apply(Tool.echo, 2) == 2
        assert cpu_share(process_of(manager)) < 0.3
    wait_until(lambda: can_connect(pool))
    pool.release(handle)
    wait_until(lambda: pool.stats().leased == 0)


def cpu_share(process: psutil.Process) -> float:
    """How busy a process is while nobody wants anything of it."""
    began, before = time.monotonic(), process.cpu_times()
    threading.Event().wait(0.2)
    after = process.cpu_times()
    return (sum(after[:2]) - sum(before[:2])) / (time.monotonic() - began)


def can_connect(pool: ObjectPool[Any]) -> bool:
    try:
        assert_served(pool)
    except ManagerLost:
        return False
    return True


# -- nothing left, on the client's side -------------------------------------------------------------------


def test_a_client_without_descriptors_is_told_so(
    manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    socket.getaddrinfo("127.0.0.1", 1)  # loads what Python needs for it from files
    for address in (manager.address, ("127.0.0.1", 1)):
        with no_descriptors(), pytest.raises(ManagerLost, match=r"can be opened: .*Too many open files"):
            connect(address, KEY)
    gc.collect()
    assert not ignored


def test_what_is_released_without_descriptors_comes_home_when_there_are_some(
    pool: ObjectPool[Any], worker: Worker
) -> None:
    worker.do(acquire, pool)
    worker.do(release_without_descriptors, pool)
    wait_until(lambda: worker.do(untold_there, pool) == 1)
    assert pool.stats().leased == 1
    worker.do(have_descriptors)
    wait_until(lambda: all_idle(pool, 1))
    assert worker.do(untold_there, pool) == 0
    assert pool.stats().reclaimed == 0


def release_without_descriptors(things: dict[str, Any], pool: ObjectPool[Any]) -> None:
    things["handle"].echo(1)
    hang_up(things, pool)
    things["nothing"] = no_descriptors()
    things["nothing"].__enter__()
    pool.release(things.pop("handle"))


def untold_there(_: object, pool: ObjectPool[Any]) -> int:
    return untold(pool)


def have_descriptors(things: dict[str, Any]) -> None:
    things["nothing"].__exit__(None, None, None)


# -- no threads left ------------------------------------------------------------------------------------


no_threads = FORK.Value("b", 0)


def refuse_threads() -> None:
    """In the manager: let no thread start while `no_threads` is set, as the kernel may do."""
    start = threading.Thread.start

    def start_or_not(thread: threading.Thread) -> None:
        if no_threads.value:
            raise RuntimeError("can't start new thread")
        start(thread)

    threading.Thread.start = start_or_not  # type: ignore[method-assign]
    logging.disable()


@pytest.fixture
def threadless() -> Iterator[PoolManager]:
    with manager_in(initializer=refuse_threads) as manager:
        yield manager
        no_threads.value = 0


@PATIENT
def test_without_threads_the_manager_refuses_and_recovers(threadless: PoolManager) -> None:
    pool = threadless.create_pool(Tool, max_size=2)
    handle = pool.acquire()
    no_threads.value = 1
    for _ in range(5):
        with pytest.raises(ManagerLost):
            side_by_side(1, lambda index: pool.stats())
    assert handle.echo(1) == 1, "who is in already is served"
    assert cpu_share(process_of(threadless)) < 0.3
    no_threads.value = 0
    assert can_connect(pool)
    pool.release(handle)
    wait_until(lambda: pool.stats().leased == 0)


@PATIENT
def test_without_threads_objects_are_built_and_closed(threadless: PoolManager) -> None:
    pool = threadless.create_pool(Tool, max_size=4, max_uses=1, reset=Tool.pid, check=Tool.echo_true)
    no_threads.value = 1
    for number in range(10):
        assert pool.apply(Tool.echo, number) == number
    no_threads.value = 0
    assert pool.apply(Tool.echo, 1) == 1


@PATIENT
def test_a_shutdown_without_threads(threadless: PoolManager) -> None:
    process, home = process_of(threadless), home_of(threadless)
    threadless.create_pool(Tool, min_size=1)
    no_threads.value = 1
    threadless.shutdown()
    assert not process.is_running()
    assert not home.exists()


# -- many at once -------------------------------------------------------------------------------------------


@PATIENT
@pytest.mark.manager(authkey=KEY, watch_interval=0.2)  # what is parked comes home after a second
@pytest.mark.pool(Tool, max_size=10)
def test_three_hundred_clients_that_connect_at_once_are_all_served(
    manager: PoolManager, pool: ObjectPool[Any]
) -> None:
    descriptors = process_of(manager).num_fds()

    def use(index: int) -> None:
        with pool.lease(timeout=20) as tool:
            assert tool.echo(index) == index

    side_by_side(300, use)
    assert pool.stats().acquired == 300
    wait_until(lambda: all_idle(pool, pool.stats().size))
    wait_until(lambda: process_of(manager).num_fds() <= descriptors)
