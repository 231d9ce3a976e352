"""Acquires that share a connection, each under a number: an end may come at any time, and nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from actors import Tool, Worker, all_idle
from helpers import promptly, wait_until
from wire import ERROR, KEY, Numbered, number_of

from mppool import ObjectPool, PoolManager

GRANT = 2


@pytest.fixture
def tools(manager: PoolManager) -> ObjectPool[Tool]:
    return manager.create_pool(Tool, max_size=1)


@pytest.fixture
def newcomer(manager: PoolManager) -> Iterator[Callable[[], Numbered]]:
    made: list[Numbered] = []

    def connect() -> Numbered:
        made.append(Numbered(manager, os.getpid()))
        return made[-1]

    yield connect
    for each in made:
        each.hang_up()


pytestmark = pytest.mark.manager(authkey=KEY)


def waiting(pool: ObjectPool[Any]) -> int:
    return pool.stats().waiting


def test_a_grant_bears_its_number_and_its_end_gives_the_object_back(tools: Any, newcomer: Any) -> None:
    client = newcomer()
    client.enqueue(tools, 7)
    number, lease = client.granted()
    assert number == 7
    other = newcomer()
    assert other.echo(tools, lease, "by any connection") == "by any connection"
    client.end(7)
    wait_until(lambda: all_idle(tools, 1))
    client.enqueue(tools, 8)
    assert client.granted()[0] == 8
    client.end(8, True)
    wait_until(lambda: tools.stats().retired.get("discarded") == 1)


def test_an_end_before_the_grant_takes_it_out_of_the_queue(tools: Any, newcomer: Any) -> None:
    client = newcomer()
    with tools.lease():
        for number in range(5):
            client.enqueue(tools, number)
        wait_until(lambda: waiting(tools) == 5)
        for number in (1, 0, 4):
            client.end(number)
        wait_until(lambda: waiting(tools) == 2)
    assert client.granted()[0] == 2
    client.end(2)
    assert client.granted()[0] == 3


def test_an_end_that_crosses_the_grant_gives_it_back(tools: Any, newcomer: Any) -> None:
    client = newcomer()
    for number in range(200):  # both in one packet: nothing was granted when the client gave up
        client.enqueue(tools, number)
        client.end(number)
    client.enqueue(tools, 1000)
    last = None
    while last != 1000:
        last = client.granted()[0]
    client.end(1000)
    wait_until(lambda: all_idle(tools, 1))
    assert tools.stats().late_releases == 0


def test_the_end_of_what_is_unknown_or_has_ended_does_nothing(tools: Any, newcomer: Any) -> None:
    client = newcomer()
    client.end(99)
    client.enqueue(tools, 1)
    client.granted()
    client.end(1)
    client.end(1, True)
    wait_until(lambda: all_idle(tools, 1))
    client.enqueue(tools, 2, 0)
    assert client.granted()[0] == 2
    client.end("no number")
    client.enqueue(tools, 3, 0)
    assert client.answer()[:2] == (3, ERROR)
    client.end(3)
    stats = tools.stats()
    assert (stats.leased, stats.late_releases, sum(stats.retired.values())) == (1, 0, 0)


def test_the_numbers_of_two_sessions_have_nothing_to_do_with_each_other(tools: Any, newcomer: Any) -> None:
    one, other = newcomer(), newcomer()
    one.enqueue(tools, 1)
    one.granted()
    other.enqueue(tools, 1)
    wait_until(lambda: waiting(tools) == 1)
    one.end(1)
    assert other.granted()[0] == 1
    one.end(1)
    assert tools.stats().leased == 1
    other.end(1)
    wait_until(lambda: all_idle(tools, 1))


def test_a_number_that_is_in_use_is_refused(tools: Any, newcomer: Any) -> None:
    client = newcomer()
    client.enqueue(tools, 1)
    client.granted()
    client.enqueue(tools, 1)
    assert client.answer()[:2] == (1, ERROR)
    client.end(1)
    wait_until(lambda: all_idle(tools, 1))
    client.enqueue(tools, 1)
    assert client.granted()[0] == 1


@pytest.mark.parametrize("goodbye", [True, False], ids=["goodbye", "cut off"])
def test_a_client_hangs_up_with_waiters_and_leases(
    manager: PoolManager, newcomer: Any, goodbye: bool
) -> None:
    pool = manager.create_pool(Tool, max_size=2)
    client = newcomer()
    client.enqueue(pool, 1)
    _, called = client.granted()
    assert newcomer().echo(pool, called, 1) == 1
    client.enqueue(pool, 2)
    client.granted()
    for number in range(3, 10):
        client.enqueue(pool, number)
    wait_until(lambda: waiting(pool) == 7)
    if goodbye:
        client.say_goodbye()
    client.hang_up()
    # What it has called, it knows of, and may release it by its id while its process lives.
    wait_until(lambda: (waiting(pool), pool.stats().leased) == (0, not goodbye))
    newcomer().send(("release", number_of(pool), called, False))
    wait_until(lambda: all_idle(pool, 2))


def test_a_client_that_reads_nothing_holds_up_no_other(tools: Any, newcomer: Any, manager: Any) -> None:
    """Hundreds of errors and grants are due to it, more than its socket takes."""
    client, number = newcomer(), 3000
    with tools.lease():
        for each in range(number):
            client.enqueue(tools, each, 0)  # an error of some hundred bytes for each
        for each in range(number, number + 10):
            client.enqueue(tools, each)
        wait_until(lambda: waiting(tools) == 10)
        with promptly():
            other = manager.create_pool(Tool)
            for _ in range(20):
                with other.lease() as tool:
                    assert tool.echo(1) == 1
    wait_until(lambda: tools.stats().leased == 1)  # granted, though it does not read
    errors = [client.answer() for _ in range(number)]
    assert [(each, status) for each, status, _ in errors] == [(each, ERROR) for each in range(number)]
    for each in range(number, number + 10):
        assert client.granted()[0] == each
        client.end(each)
    wait_until(lambda: all_idle(tools, 1))


def test_a_client_that_reads_nothing_hangs_up(tools: Any, newcomer: Any) -> None:
    client = newcomer()
    with tools.lease():
        for each in range(3000):
            client.enqueue(tools, each, 0)
        client.enqueue(tools, 3000)
        wait_until(lambda: waiting(tools) == 1)
        client.hang_up()
        wait_until(lambda: waiting(tools) == 0)
    wait_until(lambda: all_idle(tools, 1))


def acquire_numbered(things: dict[str, Any], address: Any, pool: ObjectPool[Any], call: bool) -> None:
    """In a worker: hold one object, which was called or not, and wait for another one."""
    manager: Any = SimpleNamespace(address=address)
    client, other = things["clients"] = Numbered(manager, os.getpid()), Numbered(manager, os.getpid())
    client.enqueue(pool, 1)
    _, lease = client.granted()
    if call:
        other.echo(pool, lease, 1)
    client.enqueue(pool, 2)


@pytest.mark.parametrize("call", [True, False], ids=["called", "never called"])
def test_a_process_is_killed_with_a_lease_and_a_waiting_acquire(
    manager: PoolManager, tools: ObjectPool[Any], worker: Worker, call: bool
) -> None:
    worker.do(acquire_numbered, manager.address, tools, call)
    wait_until(lambda: waiting(tools) == 1)
    worker.kill()
    wait_until(lambda: (tools.stats().leased, waiting(tools)) == (0, 0))
    with tools.lease(timeout=10) as tool:
        assert tool.echo(1) == 1
