"""Code of the user's that hangs or fails in the manager, and a manager that stands still or dies."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable
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
    pool_of,
    process_of,
    stop,
    stopped,
    untold,
)
from helpers import GREETING, PROMPT, do_without_linux, promptly, wait_until

from mppool import FactoryError, LeaseLost, ManagerLost, ObjectPool, PoolClosed, PoolManager, PoolTimeout
from mppool._client.channel import Channel
from mppool._pool.entry import Lease
from mppool._pool.pool import Pool
from mppool._server.session import Session

# -- hooks and factories ------------------------------------------------------------------------------


class Late(Tool):
    """The first ones are built at once, all others hang at the gate."""

    built = FORK.Value("i", 0)
    at_once = FORK.Value("i", 0)

    def __init__(self) -> None:
        with Late.built:
            Late.built.value += 1
            number = Late.built.value
        if number > Late.at_once.value:
            self.wait_at_gate()


@pytest.fixture
def late() -> Callable[[int], None]:
    def at_once(number: int) -> None:
        Late.built.value, Late.at_once.value = 0, number

    return at_once


def hang(tool: Tool) -> None:
    tool.wait_at_gate()


def fail_in_a_hook(tool: Tool) -> None:
    raise RuntimeError("a hook that fails")


def leave_a_hook(tool: Tool) -> None:
    raise SystemExit


def ctrl_c(tool: Tool) -> None:
    raise KeyboardInterrupt


def fine(tool: Tool) -> None:
    pass


def release_and_wait(pool: ObjectPool[Any], *handles: Any) -> None:
    for handle in handles:
        pool.release(handle)
    wait_until(lambda: pool.stats().leased == 0)


def test_who_waits_for_a_slow_build_takes_what_comes_home(gate: Gate, late: Callable[[int], None]) -> None:
    late(1)
    with pool_of(Late, max_size=2) as pool:
        first = pool.acquire()
        got: list[Any] = []
        waiting = threading.Thread(target=lambda: got.append(pool.acquire()))
        waiting.start()
        gate.wait_for_somebody()
        with promptly():
            pool.release(first)
            waiting.join()
        assert got[0].echo(1) == 1
        gate.open()
        pool.release(got[0])
        wait_until(lambda: all_idle(pool, 2))


@pytest.mark.everywhere
def test_a_factory_that_hangs_hinders_nobody_but_who_waits_for_it(
    gate: Gate, late: Callable[[int], None]
) -> None:
    late(0)
    with manager_in() as manager:
        stuck = manager.create_pool(Late, max_size=1)
        with promptly(), pytest.raises(PoolTimeout, match="1 being built"):
            stuck.acquire(timeout=0.2)
        with promptly():
            assert manager.create_pool(Tool).apply(Tool.echo, 1) == 1
            assert stuck.stats().building == 1
        gate.open()
        assert stuck.apply(Tool.echo, 1) == 1


@pytest.mark.everywhere
@pytest.mark.parametrize("hook", ["check", "reset", "close"])
def test_a_hook_that_hangs_hinders_nobody_else(gate: Gate, hook: str) -> None:
    with pool_of(max_size=2, **{hook: hang}) as pool:
        busy = pool.acquire() if hook != "check" else None
        if hook == "check":
            with pytest.raises(PoolTimeout):
                make_idle_and_acquire(pool)
        else:
            pool.release(pool.acquire(), discard=hook == "close")
        gate.wait_for_somebody()
        with promptly():
            assert pool.stats().size == (1 if hook == "check" else 2)
            if busy is not None:
                assert busy.echo(1) == 1
        gate.open()
        if busy is not None:
            pool.release(busy)
        wait_until(lambda: pool.stats().leased == 0)


def make_idle_and_acquire(pool: ObjectPool[Any]) -> None:
    pool.resize(max_size=1)
    pool.release(pool.acquire())
    pool.acquire(timeout=0.2)


@pytest.mark.everywhere
@pytest.mark.parametrize("error", [fail_in_a_hook, leave_a_hook, ctrl_c])
@pytest.mark.parametrize("hook", ["check", "reset", "close"])
def test_a_hook_that_fails_costs_its_object_only(
    hook: str, error: Callable[[Tool], None], capfd: pytest.CaptureFixture[str]
) -> None:
    with manager_in() as manager:
        other = manager.create_pool(Tool)
        pool = manager.create_pool(Tool, max_size=1, max_uses=1 if hook == "close" else None, **{hook: error})
        for number in range(5):
            assert pool.apply(Tool.echo, number) == number
        assert other.apply(Tool.echo, 1) == 1
        wait_until(lambda: pool.stats().leased == 0)
        assert pool.stats().built >= 3, "every failure retires one"


class Doomed(Tool):
    def __init__(self) -> None:
        raise SystemExit


@pytest.mark.everywhere
def test_a_factory_that_wants_to_leave_fails() -> None:
    with pool_of(Doomed, max_size=1) as pool:
        with pytest.raises(FactoryError, match="SystemExit"):
            pool.acquire()
        assert pool.stats().size == 0


class Killer(Tool):
    def leave(self) -> None:
        raise SystemExit(3)

    def ctrl_c(self) -> None:
        raise KeyboardInterrupt

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.everywhere
def test_a_method_that_wants_to_leave_ends_nothing() -> None:
    with pool_of(Killer, max_size=1) as pool:
        with pool.lease() as killer:
            with pytest.raises(SystemExit):
                killer.leave()
            with pytest.raises(KeyboardInterrupt):
                killer.ctrl_c()
            assert killer.echo(1) == 1
        wait_until(lambda: all_idle(pool, 1))


@pytest.mark.bounds(silence=60)  # the end of a connection tells it, no silence
def test_a_method_that_kills_the_manager_is_a_lost_manager() -> None:
    with pool_of(Killer, max_size=1) as pool:
        killer = pool.acquire()
        with promptly(), pytest.raises(ManagerLost):
            killer.die()
        with pytest.raises((ManagerLost, PoolClosed)):
            pool.acquire()
        pool.release(killer)


class EqualByName(type):  # noqa: PLW1641  # that is what it is for
    """A metaclass that makes its classes unhashable."""

    def __eq__(cls, other: object) -> bool:
        return cls.__name__ == getattr(other, "__name__", None)


class EqualByNameOnly(Tool, metaclass=EqualByName):
    pass


@pytest.mark.everywhere
def test_a_class_that_does_not_hash_can_be_pooled() -> None:
    with pool_of(EqualByNameOnly, max_size=1) as pool:
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
def test_a_class_that_cannot_be_read_is_an_error_and_no_lease(min_size: int) -> None:
    with pool_of(Secret, min_size=min_size, max_size=1) as pool:
        for _ in range(3):
            wait_until(lambda: pool.stats().idle == min_size)
            with promptly(), pytest.raises(RuntimeError, match="no business of yours"):
                in_a_thread(pool.acquire)
            wait_until(lambda: pool.stats().leased == 0)
        assert pool.stats().retired == {"discarded": 3}
        assert pool.stats().late_releases == 0


class Impostor(Tool):
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("whoever I am")


@pytest.mark.everywhere
def test_an_object_that_does_not_tell_its_class_can_be_pooled() -> None:
    with pool_of(Impostor, max_size=1) as pool, pool.lease() as tool:
        assert tool.echo(1) == 1


@pytest.mark.parametrize("end", ["max_hold", "close"])
def test_a_lease_that_ends_before_it_is_told_of_is_an_error(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    deliver = Session.deliver

    def deliver_late(self: Session, pool: Any, outcome: Any) -> bool:
        if isinstance(outcome, Lease):
            wait_until(lambda: outcome.over)
        return deliver(self, pool, outcome)

    monkeypatch.setattr(Session, "deliver", deliver_late)
    max_hold = 0.05 if end == "max_hold" else None
    with manager_in(watch_interval=0.02) as manager:
        pool = manager.create_pool(Tool, max_size=1, max_hold=max_hold)
        closing = threading.Thread(target=close_when_lent, args=(pool,))
        if end == "close":
            closing.start()
        with promptly(), pytest.raises((LeaseLost, PoolClosed)):
            in_a_thread(pool.acquire)
        if end == "close":
            closing.join()
        else:
            assert pool.stats().leased == pool.stats().late_releases == 0


def close_when_lent(pool: ObjectPool[Any]) -> None:
    wait_until(lambda: pool.stats().leased == 1)
    pool.close(timeout=0)


# -- the end, bounded -----------------------------------------------------------------------------------


@pytest.mark.everywhere
@pytest.mark.bounds(hook=0.5, shutdown=0.5)
@pytest.mark.parametrize("what", ["factory", "check", "reset", "close", "call", "apply"])
def test_shutdown_does_not_wait_for_what_hangs(gate: Gate, late: Callable[[int], None], what: str) -> None:
    late(0 if what == "factory" else 1000)
    hooks = {what: hang} if what in {"check", "reset", "close"} else {}
    with contextlib.ExitStack() as shutdown:
        manager = shutdown.enter_context(manager_in())
        process = process_of(manager)
        pool = manager.create_pool(Late, max_size=1, **hooks)
        if what in {"check", "reset", "close"}:  # a new object is not checked
            pool.release(pool.acquire(), discard=what == "close")
        if what in {"factory", "check"}:
            with pytest.raises(PoolTimeout):
                pool.acquire(timeout=0.1)
        if what in {"call", "apply"}:
            start_a_call_that_hangs(pool, what)
        gate.wait_for_somebody()
        with promptly():
            shutdown.close()
    assert not process.is_running()


def test_no_pool_is_made_while_the_manager_shuts_down(gate: Gate) -> None:
    with manager_in(authkey=b"key") as manager:
        other = PoolManager(manager.address, b"key")
        other.connect()
        pool = manager.create_pool(Tool, max_size=1, close=hang)
        release_and_wait(pool, pool.acquire())
        shutting = threading.Thread(target=manager.shutdown)
        shutting.start()
        gate.wait_for_somebody()
        with promptly(), pytest.raises(PoolClosed, match="shutting down"):
            other.create_pool(Tool)
        gate.open()
        shutting.join()


def start_a_call_that_hangs(pool: ObjectPool[Any], what: str) -> None:
    def call() -> None:
        with contextlib.suppress(ManagerLost, LeaseLost, PoolClosed):
            if what == "apply":
                pool.apply(Tool.wait_at_gate)
            else:
                with pool.lease() as tool:
                    tool.wait_at_gate()

    threading.Thread(target=call, daemon=True).start()


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
def test_a_stopped_manager_is_lost_by_pythons_timeouts_too(manager: PoolManager, question: str) -> None:
    test_a_stopped_manager_is_lost_within_the_bound(manager, question)


@pytest.mark.usefixtures("portable")
def test_over_tcp_nobody_waits_for_pythons_timeouts() -> None:
    with manager_in(address=("127.0.0.1", 0)) as manager, promptly():
        pool = manager.create_pool(Tool)
        for number in range(3):
            assert pool.apply(Tool.echo, number) == number


@ASKED_SOON
@pytest.mark.parametrize("question", ["call", "acquire", "wait", "apply", "stats", "newcomer"])
def test_a_stopped_manager_is_lost_within_the_bound(manager: PoolManager, question: str) -> None:
    pool = manager.create_pool(Tool, max_size=2)
    handle = pool.acquire()
    handle.echo(1)
    ask: dict[str, Callable[[], object]] = {
        "call": lambda: handle.echo("old"),
        "acquire": lambda: pool.acquire(timeout=60),
        "wait": lambda: pool.acquire(timeout=None),
        "apply": lambda: pool.apply(Tool.echo, "old"),
        "stats": pool.stats,
        "newcomer": lambda: in_a_thread(pool.stats),
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


def in_a_thread(ask: Callable[[], object]) -> None:
    """Ask in a thread, which has no connection yet, and is left alone if no answer comes."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            ask()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "no answer came"
    if errors:
        raise errors[0]


def test_a_repr_does_not_wait_for_a_stopped_manager(manager: PoolManager) -> None:
    pool, other = manager.create_pool(Tool), manager.create_pool(Tool, name="other")
    handle = pool.acquire()
    with stopped(process_of(manager)), promptly():
        for _ in range(2):  # on the connection of before, and as a newcomer
            assert repr(other) == "<ObjectPool 'other': no answer from the manager within 0.1 s>"
    wait_until(lambda: repr(other) == "<ObjectPool 'other' idle=0 leased=0 waiting=0>")
    assert (pool.stats().name, pool.stats().leased, handle.echo(1)) == (pool.name, 1, 1)
    pool.release(handle)


@ASKED_SOON
@pytest.mark.everywhere
def test_what_is_released_to_a_stopped_manager_comes_home_later(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=2)
    handle, forgotten = pool.acquire(), pool.acquire()
    with stopped(process_of(manager)):
        with promptly():
            pool.release(handle)
        with promptly(), pytest.warns(ResourceWarning):
            del forgotten
    wait_until(lambda: all_idle(pool, 2))


@ASKED_SOON
@pytest.mark.everywhere
def test_what_is_forgotten_while_the_manager_stands_still_comes_home_later(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=1)
    forgotten = pool.acquire()
    threads = threading.active_count()
    with stopped(process_of(manager)):
        with pytest.warns(ResourceWarning):
            del forgotten
        with pytest.raises(ManagerLost):
            in_a_thread(pool.stats)
        with pytest.raises(ManagerLost):
            in_a_thread(pool.stats)
    assert pool.apply(Tool.echo, 1) == 1
    assert threading.active_count() <= threads + 1


@pytest.mark.bounds(silence=2)  # a busy machine, too, answers within it once the manager goes on
def test_what_a_newcomer_releases_to_a_stopped_manager_comes_home_later(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=1)
    handle = pool.acquire()
    with stopped(process_of(manager)), promptly():
        in_a_thread(lambda: pool.release(handle))  # it returns when the bound is over
    wait_until(lambda: all_idle(pool, 1))


@pytest.mark.bounds(silence=30)  # so long would each thread of its own stay
def test_one_thread_tells_of_all_that_is_forgotten_meanwhile() -> None:
    with manager_in() as manager:
        pool = manager.create_pool(Tool, max_size=5)
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
@pytest.mark.parametrize("family", ["unix", "tcp"])
def test_a_release_to_a_manager_that_died_is_given_up_at_once(family: str) -> None:
    address = None if family == "unix" else ("127.0.0.1", 0)
    with manager_in(address=address) as manager:
        pool = manager.create_pool(Tool, max_size=3)
        with_connection, without, forgotten = (pool.acquire() for _ in range(3))
        process = process_of(manager)
        process.kill()
        wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE)
        threads = my_threads()
        with promptly():
            pool.release(with_connection)
            in_a_thread(lambda: pool.release(without))
            with pytest.warns(ResourceWarning):
                del forgotten
            wait_until(lambda: not untold(pool) and my_threads() <= threads)


@pytest.mark.bounds(silence=60)
@pytest.mark.parametrize("listener", [b"a stranger", GREETING + bytes(64)], ids=["protocol", "key"])
def test_a_release_is_given_up_when_another_listens_where_the_manager_was(listener: bytes) -> None:
    with manager_in(address=("127.0.0.1", 0)) as manager:
        pool = manager.create_pool(Tool, max_size=1)
        handle = pool.acquire()
        address = manager.address
    threads = my_threads()
    with socket.create_server(address) as successor:  # type: ignore[arg-type]

        def greet() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with successor.accept()[0] as sock:
                        sock.sendall(listener)
                        sock.recv(1000)

        greeting = threading.Thread(target=greet)
        greeting.start()
        try:
            with promptly():
                in_a_thread(lambda: pool.release(handle))
                wait_until(lambda: not untold(pool) and my_threads() <= threads + 1)
        finally:
            successor.shutdown(socket.SHUT_RDWR)
            greeting.join()


@ASKED_SOON
@pytest.mark.everywhere
def test_a_busy_manager_is_not_lost(gate: Gate, manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=1)
    with pool.lease() as handle:
        assert handle.nap(1.2) == 1.2


@ASKED_SOON
@pytest.mark.everywhere
def test_a_long_wait_is_no_lost_manager(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=1)
    with pool.lease(), promptly(), pytest.raises(PoolTimeout):
        in_a_thread(lambda: pool.acquire(timeout=1.2))


@ASKED_SOON
@pytest.mark.usefixtures("portable")
def test_a_stopped_manager_is_lost_also_under_many_signals(manager: PoolManager) -> None:
    # Each signal begins the system call anew; the kernel's timeout (but not Python's) with it.
    pool = manager.create_pool(Tool, max_size=1)
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    done = threading.Event()
    me = threading.main_thread().ident

    def strike() -> None:
        while not done.wait(0.02):
            signal.pthread_kill(me, signal.SIGUSR1)  # type: ignore[arg-type]

    striker = threading.Thread(target=strike)
    striker.start()
    try:
        with stopped(process_of(manager)), promptly(), pytest.raises(ManagerLost):
            pool.stats()
    finally:
        done.set()
        striker.join()
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
@pytest.mark.everywhere
def test_everybody_learns_at_once_that_the_manager_died(gate: Gate) -> None:
    with manager_in() as manager:
        pool = manager.create_pool(Tool, max_size=1)
        other = manager.create_pool(Tool, max_size=1)
        handle = other.acquire()
        told: list[str] = []
        unexpected: list[BaseException] = []

        def tell(name: str, ask: Callable[[], object]) -> threading.Thread:
            def run() -> None:
                try:
                    ask()
                except ManagerLost:
                    told.append(name)
                except BaseException as error:
                    unexpected.append(error)

            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            return thread

        threads = [tell("in a call", lambda: pool.apply(Tool.wait_at_gate))]
        gate.wait_for_somebody()
        threads.append(tell("waiting", lambda: pool.acquire(timeout=None)))
        threads.append(tell("waiting with a timeout", lambda: pool.acquire(timeout=60)))
        threads.append(tell("waiting to apply", lambda: pool.apply(Tool.echo, 1)))
        threads.append(tell("holding", handle.wait_at_gate))
        gate.wait_for_somebody()
        wait_until(lambda: pool.stats().waiting == 3)
        process_of(manager).kill()
        for thread in threads:
            thread.join(PROMPT)
        assert not unexpected
        assert len(told) == 5
        with promptly():
            for ask in (pool.stats, pool.acquire, lambda: handle.echo(1), lambda: manager.get_pool("x")):
                with pytest.raises((ManagerLost, PoolClosed)):
                    ask()  # type: ignore[operator]
        other.release(handle)
        home = os.path.dirname(str(manager.address))
    assert not os.path.exists(home)


@pytest.mark.everywhere
def test_a_lease_block_is_left_by_its_own_error_when_the_manager_dies() -> None:
    with manager_in() as manager:
        pool = manager.create_pool(Tool)

        def work() -> None:
            with pool.lease():
                process_of(manager).kill()
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            work()


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_a_lease_block_is_left_by_its_own_error_whatever_hinders_the_release(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail_to_tell(*_: object) -> None:
        raise error("of whatever")

    with pool_of() as pool:

        def work() -> None:
            with pool.lease():
                monkeypatch.setattr(Channel, "notify", fail_to_tell)
                raise KeyError("mine")

        def check() -> None:
            with pytest.raises(KeyError, match="mine"):
                work()
            gc.collect()

        with pytest.warns(ResourceWarning):  # the finalizer of the lease tells then
            check()
        monkeypatch.undo()
        wait_until(lambda: all_idle(pool, 1))
