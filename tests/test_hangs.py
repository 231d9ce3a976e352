"""Code of the user's that hangs or fails in the manager, and a manager that stands still or dies."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil
import pytest
from actors import (
    FORK,
    Gate,
    Tool,
    all_idle,
    lives,
    manager_in,
    my_threads,
    process_of,
    stop,
    stopped,
    untold,
)
from backends import Backend
from helpers import GREETING, PROMPT, Beside, do_without_linux, promptly, wait_until
from standins import side_by_side

from mppool import FactoryError, LeaseLost, ManagerLost, ObjectPool, PoolClosed, PoolManager, PoolTimeout
from mppool._client.channel import Channel
from mppool._pool.entry import Lease
from mppool._pool.pool import Pool
from mppool._server.session import Session

# -- hooks and factories ------------------------------------------------------------------------------


class Late(Tool):
    """So many more are built at once, all others hang at the gate."""

    at_once = FORK.Value("i", 0)

    def __init__(self) -> None:
        with Late.at_once:
            Late.at_once.value -= 1
            hangs = Late.at_once.value < 0
        if hangs:
            self.wait_at_gate()


HOOKS = ["check", "reset", "close"]


@pytest.mark.pool(Late, max_size=2)
def test_who_waits_for_a_slow_build_takes_what_comes_home(
    gate: Gate, pool: ObjectPool[Any], beside: Beside
) -> None:
    Late.at_once.value = 1
    first = pool.acquire()
    waiting = beside(pool.acquire)
    gate.wait_for_somebody()
    with promptly():
        pool.release(first)
        second = waiting.result()
    assert second.echo(1) == 1
    gate.open()
    pool.release(second)
    wait_until(lambda: all_idle(pool, 2))


@pytest.mark.everywhere
@pytest.mark.pool(Late, max_size=1)
def test_a_factory_that_hangs_hinders_nobody_but_who_waits_for_it(
    gate: Gate, manager: PoolManager, pool: ObjectPool[Any]
) -> None:
    Late.at_once.value = 0
    with promptly(), pytest.raises(PoolTimeout, match="1 being built"):
        pool.acquire(timeout=0.2)
    with promptly():
        assert manager.create_pool(Tool).apply(Tool.echo, 1) == 1
        assert pool.stats().building == 1
    gate.open()
    assert pool.apply(Tool.echo, 1) == 1


class Slow(type):
    """Of classes that are long in finding one of their names, as a module is that imports others."""

    @property
    def tool(cls) -> type[Tool]:
        Tool().wait_at_gate()
        return Tool


class Names(metaclass=Slow):
    pass


def test_a_type_to_keep_that_is_not_found_soon_hinders_nobody_else(
    gate: Gate, manager: PoolManager, beside: Beside
) -> None:
    making = beside(manager.create_pool, Tool, keep=["test_hangs:Names.tool"])
    gate.wait_for_somebody()
    with promptly():
        manager.create_pool(Tool).close()
    gate.open()
    assert making.result(20).apply(Tool.echo, 1) == 1


@pytest.mark.far
@pytest.mark.everywhere
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_hangs_hinders_nobody_else(gate: Gate, manager: PoolManager, hook: str) -> None:
    pool = manager.create_pool(Tool, max_size=2, **{hook: Tool.wait_at_gate})
    busy = pool.acquire()
    pool.release(pool.acquire(), discard=hook == "close")
    if hook == "check":
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.2)
    gate.wait_for_somebody()
    with promptly():
        assert pool.stats().size == 2
        assert busy.echo(1) == 1
    gate.open()
    pool.release(busy)
    wait_until(lambda: pool.stats().leased == 0)


@pytest.mark.everywhere
@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_fails_costs_its_object_only(
    manager: PoolManager, hook: str, error: type[BaseException]
) -> None:
    other = manager.create_pool(Tool)
    options = {hook: partial(Tool.fail_with, error=error), "max_uses": 1 if hook == "close" else None}
    pool = manager.create_pool(Tool, max_size=1, **options)
    for number in range(5):
        assert pool.apply(Tool.echo, number) == number
    assert other.apply(Tool.echo, 1) == 1
    wait_until(lambda: pool.stats().leased == 0)
    assert pool.stats().built >= 3, "every failure retires one"


@pytest.mark.everywhere
@pytest.mark.pool(sys.exit, max_size=1)
def test_a_factory_that_wants_to_leave_fails(pool: ObjectPool[Any]) -> None:
    with pytest.raises(FactoryError, match="SystemExit"):
        pool.acquire()
    assert pool.stats().size == 0


@pytest.mark.everywhere
@pytest.mark.pool(Tool, max_size=1)
def test_a_method_that_wants_to_leave_ends_nothing(pool: ObjectPool[Any]) -> None:
    with pool.lease() as tool:
        for error in SystemExit, KeyboardInterrupt:
            with pytest.raises(error):
                tool.fail_with(error)
        assert tool.echo(1) == 1
    wait_until(lambda: all_idle(pool, 1))


class EqualByName(type):  # noqa: PLW1641  # that is what it is for
    """A metaclass that makes its classes unhashable."""

    def __eq__(cls, other: object) -> bool:
        return cls.__name__ == getattr(other, "__name__", None)


class EqualByNameOnly(Tool, metaclass=EqualByName):
    pass


class Impostor(Tool):
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("whoever I am")


@pytest.mark.everywhere
@pytest.mark.parametrize("odd", [EqualByNameOnly, Impostor], ids=["does not hash", "tells no class"])
def test_an_object_of_an_odd_class_can_be_pooled(manager: PoolManager, odd: type[Tool]) -> None:
    pool = manager.create_pool(odd, max_size=1)
    for number in range(3):
        with pool.lease() as tool:
            assert tool.echo(number) == number
    wait_until(lambda: all_idle(pool, 1))
    assert pool.stats().built == 1


class Secretive(type):
    """A metaclass that keeps from others what its classes are."""

    def __getattribute__(cls, name: str) -> Any:
        if name == "__mro__":
            raise RuntimeError("no business of yours")
        return super().__getattribute__(name)


class Secret(metaclass=Secretive):
    pass


@pytest.mark.parametrize("min_size", [0, 1], ids=["after a wait", "at once"])
def test_a_class_that_cannot_be_read_is_an_error_and_no_lease(manager: PoolManager, min_size: int) -> None:
    pool = manager.create_pool(Secret, min_size=min_size, max_size=1)
    for _ in range(3):
        wait_until(lambda: pool.stats().idle == min_size)
        with promptly(), pytest.raises(RuntimeError, match="no business of yours"):
            as_newcomer(pool.acquire)
        wait_until(lambda: pool.stats().leased == 0)
    assert pool.stats().retired == {"discarded": 3}
    assert pool.stats().late_releases == 0


@pytest.mark.parametrize("end", ["max_hold", "close"])
def test_a_lease_that_ends_before_it_is_told_of_is_an_error(
    monkeypatch: pytest.MonkeyPatch, beside: Beside, end: str
) -> None:
    deliver = Session.deliver

    def deliver_late(self: Session, pool: Any, outcome: Any) -> bool:
        if isinstance(outcome, Lease):
            wait_until(lambda: outcome.over)
        return deliver(self, pool, outcome)

    monkeypatch.setattr(Session, "deliver", deliver_late)
    with manager_in(watch_interval=0.02) as manager:
        pool = manager.create_pool(Tool, max_size=1, max_hold=0.05 if end == "max_hold" else None)
        if end == "close":
            closing = beside(close_when_lent, pool)
        with promptly(), pytest.raises((LeaseLost, PoolClosed)):
            as_newcomer(pool.acquire)
        if end == "close":
            closing.result()
        else:
            assert pool.stats().leased == pool.stats().late_releases == 0


def close_when_lent(pool: ObjectPool[Any]) -> None:
    wait_until(lambda: pool.stats().leased == 1)
    pool.close(timeout=0)


# -- the end, bounded -----------------------------------------------------------------------------------


@pytest.mark.far
@pytest.mark.everywhere
@pytest.mark.local
@pytest.mark.bounds(hook=0.2, shutdown=0.2)
@pytest.mark.parametrize("what", ["factory", *HOOKS, "call", "apply"])
def test_shutdown_does_not_wait_for_what_hangs(
    gate: Gate, manager: PoolManager, beside: Beside, what: str
) -> None:
    Late.at_once.value = 0 if what == "factory" else 1000
    process = process_of(manager)
    pool = manager.create_pool(Late, max_size=1, **({what: Tool.wait_at_gate} if what in HOOKS else {}))
    if what in HOOKS:  # a new object is not checked
        pool.release(pool.acquire(), discard=what == "close")
    if what in {"factory", "check"}:
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.1)
    if what == "call":
        beside(hold_up, pool)
    if what == "apply":
        beside(pool.apply, Tool.wait_at_gate)
    gate.wait_for_somebody()
    with promptly():
        manager.shutdown()
    assert not process.is_running()


def hold_up(pool: ObjectPool[Any]) -> None:
    with pool.lease() as tool:
        tool.wait_at_gate()


@pytest.mark.manager(authkey=b"key")
@pytest.mark.pool(Tool, max_size=1, close=Tool.wait_at_gate)
def test_no_pool_is_made_while_the_manager_shuts_down(
    gate: Gate, manager: PoolManager, pool: ObjectPool[Any], beside: Beside
) -> None:
    other = PoolManager(manager.address, b"key")
    other.connect()
    pool.release(pool.acquire())
    wait_until(lambda: all_idle(pool, 1))
    shutting = beside(manager.shutdown)
    gate.wait_for_somebody()
    with promptly(), pytest.raises(PoolClosed, match="shutting down"):
        other.create_pool(Tool)
    gate.open()
    shutting.result()


# -- a defect of ours ---------------------------------------------------------------------------------------


def test_a_pool_that_cannot_be_tended_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    tend = Pool.tend

    def fail_to_tend(self: Pool[Any]) -> float | None:
        if self.name == "broken":
            raise RuntimeError("of whatever")
        return tend(self)

    monkeypatch.setattr(Pool, "tend", fail_to_tend)
    with manager_in(watch_interval=0.02) as manager:
        manager.create_pool(Tool, name="broken")
        pool = manager.create_pool(Tool, max_size=1, max_hold=0.05)
        handle = pool.acquire()
        wait_until(lambda: pool.stats().leased == 0)
        with promptly(), pytest.raises(LeaseLost):
            handle.echo(1)
        pool.release(handle)


# -- a manager that stands still --------------------------------------------------------------------------


ASKED_SOON = pytest.mark.bounds(silence=0.5)
"""A manager is asked for a sign of life after half a second of silence instead of five."""


@pytest.fixture
def portable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's timeouts instead of the kernel's."""
    do_without_linux(monkeypatch)


@ASKED_SOON
@pytest.mark.usefixtures("portable")
@pytest.mark.parametrize("question", ["call", "newcomer"])
def test_a_stopped_manager_is_lost_by_pythons_timeouts_too(
    manager: PoolManager, pool: ObjectPool[Any], question: str
) -> None:
    test_a_stopped_manager_is_lost_within_the_bound(manager, pool, question)


@pytest.mark.usefixtures("portable")
@pytest.mark.manager(address=("127.0.0.1", 0))
def test_over_tcp_nobody_waits_for_pythons_timeouts(pool: ObjectPool[Any]) -> None:
    with promptly():
        for number in range(3):
            assert pool.apply(Tool.echo, number) == number


@ASKED_SOON
@pytest.mark.parametrize("question", ["call", "acquire", "wait", "apply", "stats", "newcomer"])
def test_a_stopped_manager_is_lost_within_the_bound(
    manager: PoolManager, pool: ObjectPool[Any], question: str
) -> None:
    handle = pool.acquire()
    handle.echo(1)
    ask: dict[str, Callable[[], object]] = {
        "call": lambda: handle.echo("old"),
        "acquire": lambda: pool.acquire(timeout=60),
        "wait": lambda: pool.acquire(timeout=None),
        "apply": lambda: pool.apply(Tool.echo, "old"),
        "stats": pool.stats,
        "newcomer": lambda: as_newcomer(pool.stats),
    }
    if question == "wait":
        pool.resize(max_size=1)
    lost = pytest.raises(ManagerLost, match=r"no answer within 0\.5 s")
    with stopped(process_of(manager)), promptly(), lost:
        ask[question]()
    assert handle.echo("new") == "new"
    pool.resize(max_size=2)
    assert pool.apply(Tool.echo, 2) == 2
    pool.release(handle)
    wait_until(lambda: (pool.stats().leased, pool.stats().waiting) == (0, 0))


def as_newcomer(ask: Callable[[], object]) -> None:
    """Ask in a new thread, which has no connection yet."""
    side_by_side(1, lambda _: ask())


def test_a_repr_does_not_wait_for_a_stopped_manager(manager: PoolManager, pool: ObjectPool[Any]) -> None:
    other = manager.create_pool(Tool, name="other")
    handle = pool.acquire()
    with stopped(process_of(manager)), promptly():
        for _ in range(2):  # on the connection of before, and as a newcomer
            assert repr(other) == "<ObjectPool 'other': no answer from the manager within 0.1 s>"
    wait_until(lambda: repr(other) == "<ObjectPool 'other' idle=0 leased=0 waiting=0>")
    assert (pool.stats().name, pool.stats().leased, handle.echo(1)) == (pool.name, 1, 1)
    pool.release(handle)


@ASKED_SOON
@pytest.mark.far
@pytest.mark.everywhere
def test_what_is_released_or_forgotten_while_the_manager_stands_still_comes_home_later(
    backend: Backend, manager: PoolManager, pool: ObjectPool[Any]
) -> None:
    handle, forgotten = pool.acquire(), pool.acquire()
    threads = threading.active_count()
    with stopped(backend.process_of(manager)):
        with promptly():
            pool.release(handle)
        with promptly(), pytest.warns(ResourceWarning):
            del forgotten
        for _ in range(2):
            with pytest.raises(ManagerLost):
                as_newcomer(pool.stats)
    assert pool.apply(Tool.echo, 1) == 1
    wait_until(lambda: all_idle(pool, 2))
    assert threading.active_count() <= threads + 1


@pytest.mark.bounds(silence=2)  # a busy machine, too, answers within it once the manager goes on
@pytest.mark.pool(Tool, max_size=1)
def test_what_a_newcomer_releases_to_a_stopped_manager_comes_home_later(
    manager: PoolManager, pool: ObjectPool[Any]
) -> None:
    handle = pool.acquire()
    with stopped(process_of(manager)), promptly():
        as_newcomer(lambda: pool.release(handle))  # it returns when the bound is over
    wait_until(lambda: all_idle(pool, 1))


@pytest.mark.bounds(silence=30)  # so long would each thread of its own stay
@pytest.mark.pool(Tool, max_size=5)
def test_one_thread_tells_of_all_that_is_forgotten_meanwhile(
    manager: PoolManager, pool: ObjectPool[Any]
) -> None:
    forgotten = [pool.acquire() for _ in range(5)]
    threads = my_threads()
    with stopped(process_of(manager)):
        with pytest.warns(ResourceWarning):
            forgotten.clear()
        assert untold(pool) == 5
        wait_until(lambda: my_threads() <= threads + 1)
    wait_until(lambda: all_idle(pool, 5))
    wait_until(lambda: my_threads() <= threads)


@pytest.mark.bounds(silence=60)  # the end of a connection tells it, no silence
@pytest.mark.parametrize("address", [None, ("127.0.0.1", 0)], ids=["unix", "tcp"])
def test_a_release_to_a_manager_that_died_is_given_up_at_once(address: Any) -> None:
    with manager_in(address=address) as manager:
        pool = manager.create_pool(Tool, max_size=3)
        with_connection, without, forgotten = (pool.acquire() for _ in range(3))
        process = process_of(manager)
        process.kill()
        wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE)
        threads = my_threads()
        with promptly():
            pool.release(with_connection)
            as_newcomer(lambda: pool.release(without))
            with pytest.warns(ResourceWarning):
                del forgotten
            wait_until(lambda: not untold(pool) and my_threads() <= threads)


@pytest.mark.bounds(silence=60)
@pytest.mark.parametrize("listener", [b"a stranger", GREETING + bytes(64)], ids=["protocol", "key"])
def test_a_release_is_given_up_when_another_listens_where_the_manager_was(
    listener: bytes, beside: Beside
) -> None:
    with manager_in(address=("127.0.0.1", 0)) as manager:
        pool = manager.create_pool(Tool, max_size=1)
        handle = pool.acquire()
        address = manager.address
    threads = my_threads()
    with socket.create_server(address) as successor:  # type: ignore[arg-type]

        def greet() -> None:
            while True:
                with successor.accept()[0] as sock:
                    sock.sendall(listener)
                    sock.recv(1000)

        beside(greet)
        try:
            with promptly():
                as_newcomer(lambda: pool.release(handle))
                wait_until(lambda: not untold(pool) and my_threads() <= threads + 1)
        finally:
            successor.shutdown(socket.SHUT_RDWR)


@ASKED_SOON
@pytest.mark.everywhere
@pytest.mark.pool(Tool, max_size=1)
def test_a_busy_manager_is_not_lost(pool: ObjectPool[Any]) -> None:
    with pool.lease() as handle:
        assert handle.nap(1.2) == 1.2


@ASKED_SOON
@pytest.mark.everywhere
@pytest.mark.pool(Tool, max_size=1)
def test_a_long_wait_is_no_lost_manager(pool: ObjectPool[Any]) -> None:
    with pool.lease(), promptly(), pytest.raises(PoolTimeout):
        as_newcomer(lambda: pool.acquire(timeout=1.2))


@ASKED_SOON
@pytest.mark.usefixtures("portable")
@pytest.mark.pool(Tool, max_size=1)
def test_a_stopped_manager_is_lost_also_under_many_signals(
    manager: PoolManager, pool: ObjectPool[Any], beside: Beside
) -> None:
    # Each signal begins the system call anew; the kernel's timeout (but not Python's) with it.
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    done = threading.Event()
    me = threading.get_ident()

    def strike() -> None:
        while not done.wait(0.02):
            signal.pthread_kill(me, signal.SIGUSR1)

    striker = beside(strike)
    try:
        with stopped(process_of(manager)), promptly(), pytest.raises(ManagerLost):
            pool.stats()
    finally:
        done.set()
        striker.result()
        signal.signal(signal.SIGUSR1, before)


@ASKED_SOON
def test_the_shutdown_of_a_stopped_manager_ends_it(manager: PoolManager) -> None:
    process = process_of(manager)
    stop(process)
    with promptly():
        manager.shutdown()
    wait_until(lambda: not lives(process))
    assert not os.path.exists(os.path.dirname(str(manager.address)))


# -- a manager that dies ------------------------------------------------------------------------------------


@pytest.mark.bounds(silence=60)  # the end of a connection tells it, no silence
@pytest.mark.far
@pytest.mark.everywhere
@pytest.mark.local  # a cluster starts another manager
@pytest.mark.pool(Tool, max_size=1)
def test_everybody_learns_at_once_that_the_manager_died(
    gate: Gate, manager: PoolManager, pool: ObjectPool[Any], beside: Beside
) -> None:
    other = manager.create_pool(Tool, max_size=1)
    handle = other.acquire()
    asking = [beside(pool.apply, Tool.wait_at_gate)]
    gate.wait_for_somebody()
    asking += [beside(pool.acquire, None), beside(pool.acquire, 60), beside(pool.apply, Tool.echo, 1)]
    asking += [beside(handle.wait_at_gate)]
    gate.wait_for_somebody()
    wait_until(lambda: pool.stats().waiting == 3)
    process_of(manager).kill()
    for each in asking:
        assert isinstance(each.exception(PROMPT), ManagerLost)
    with promptly():
        for ask in (pool.stats, pool.acquire, lambda: handle.echo(1), lambda: manager.get_pool("x")):
            with pytest.raises((ManagerLost, PoolClosed)):
                ask()  # type: ignore[operator]
    other.release(handle)


def fail_after(step: Callable[[], object]) -> None:
    step()
    raise KeyError("mine")


@pytest.mark.everywhere
def test_a_lease_block_is_left_by_its_own_error_when_the_manager_dies(
    backend: Backend, manager: PoolManager, pool: ObjectPool[Any]
) -> None:
    with pytest.raises(KeyError, match="mine"), pool.lease():
        fail_after(backend.process_of(manager).kill)


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_a_lease_block_is_left_by_its_own_error_whatever_hinders_the_release(
    monkeypatch: pytest.MonkeyPatch, pool: ObjectPool[Any], error: type[Exception]
) -> None:
    def fail_to_tell(*_: object) -> None:
        raise error("of whatever")

    def check() -> None:
        with pytest.raises(KeyError, match="mine"), pool.lease():
            fail_after(lambda: monkeypatch.setattr(Channel, "notify", fail_to_tell))
        gc.collect()

    with pytest.warns(ResourceWarning):  # the finalizer of the lease tells then
        check()
    monkeypatch.undo()
    wait_until(lambda: all_idle(pool, 1))
