"""A manager that is full or has many pools, and arguments that ask for the end of what rebuilds them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import resource
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.managers import RemoteError as RemoteCallError  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import pytest
from actors import (
    FORK,
    START_METHODS,
    Tool,
    Worker,
    all_idle,
    count_descriptors,
    descriptors_for,
    fill_gaps,
    hang_up,
    manager_in,
    no_descriptors,
    pool_of,
    process_of,
    stopped,
)
from helpers import do_without_linux, promptly, wait_until
from standins import side_by_side
from wire import KEY, Stranger

from mppool import FactoryError, ManagerLost, ObjectPool, PoolManager, PoolTimeout, RemoteError
from mppool._pool.pool import Pool
from mppool._server.agenda import Agenda
from mppool._server.watchdog import _SILENT_SECONDS

# -- no descriptor is left --------------------------------------------------------------------------------

SILENCE = 0.7

ASKED_SOON = pytest.mark.bounds(silence=SILENCE)
"""A manager is asked for a sign of life after less than a second of silence instead of five."""

LONG = 3 * SILENCE
"""Seconds in which a manager without signs of life is lost."""

CAN_LIMIT_OTHERS = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="no way to limit another process here"
)


@pytest.fixture
def full_manager(tmp_path: Path) -> Iterator[PoolManager]:
    """One that `descriptors_for` leaves as many descriptors as it says. It logs to a file `log`."""
    manager = PoolManager(authkey=KEY, ctx=FORK)
    manager.start(log_and_fill_gaps, (tmp_path / "log",))
    with manager:
        yield manager


def log_and_fill_gaps(path: Path) -> None:
    logging.getLogger("mppool").addHandler(logging.FileHandler(path))
    fill_gaps()


@CAN_LIMIT_OTHERS
@ASKED_SOON
@pytest.mark.everywhere
def test_a_manager_without_descriptors_goes_on_serving_those_it_has(full_manager: PoolManager) -> None:
    pool = full_manager.create_pool(Tool, max_size=1)

    def wait_and_call(number: int) -> Any:
        with pool.lease(None) as tool:
            return tool.echo(number)

    with ThreadPoolExecutor(4) as executor:
        with pool.lease() as tool:
            got = executor.map(wait_and_call, range(4))
            wait_until(lambda: pool.stats().waiting == 4)
            with descriptors_for(full_manager, 0):
                assert tool.nap(LONG) == LONG
                assert pool.stats().waiting == 4
        assert list(got) == [0, 1, 2, 3]


@CAN_LIMIT_OTHERS
@ASKED_SOON
def test_a_manager_without_descriptors_that_stands_still_is_lost(full_manager: PoolManager) -> None:
    pool = full_manager.create_pool(Tool, max_size=1)
    standing_still, lost = stopped(process_of(full_manager)), pytest.raises(ManagerLost, match="no answer")
    with pool.lease(), descriptors_for(full_manager, 0), standing_still, promptly(), lost:
        pool.acquire(None)


@CAN_LIMIT_OTHERS
@pytest.mark.parametrize("more", [0, 2, 4])
def test_a_manager_has_no_descriptor_for_connections_of_a_loop(full_manager: PoolManager, more: int) -> None:
    pool: Any = full_manager.create_pool(Tool, max_size=2)

    async def main() -> None:
        with descriptors_for(full_manager, more):
            tasks = [asyncio.create_task(pool.aio.apply(Tool.echo, number)) for number in range(20)]
            await asyncio.wait(tasks, timeout=1)
            tasks[-1].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for number, outcome in enumerate(outcomes):
            assert outcome == number or isinstance(outcome, (ManagerLost, asyncio.CancelledError))
        again = [pool.aio.apply(Tool.echo, number) for number in range(20)]
        assert await asyncio.gather(*again) == list(range(20))

    with promptly():
        asyncio.run(main())
    wait_until(lambda: all_idle(pool, pool.stats().size))


KEPT: list[logging.LogRecord] = []


class Keeping(logging.Handler):
    """Keeps what is logged, with the errors and their frames: so do handlers that send it later."""

    def emit(self, record: logging.LogRecord) -> None:
        KEPT.append(record)


def keep_records_and_fill_gaps() -> None:
    logging.getLogger("mppool").addHandler(Keeping())
    fill_gaps()


@CAN_LIMIT_OTHERS
@pytest.mark.parametrize("portable", [False, True])
def test_what_failed_for_want_of_descriptors_keeps_none(
    portable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if portable:
        do_without_linux(monkeypatch)
    manager = PoolManager(ctx=FORK)
    manager.start(keep_records_and_fill_gaps)
    failed = []
    with manager:
        # A process that ends may have some for a moment longer than its pool.
        before = min(count_after_one(manager) for _ in range(4))
        for more in range(12):
            with descriptors_for(manager, more):
                failed.append(make_and_close(manager))
        assert {True, False} == set(failed)
        wait_until(lambda: count_descriptors(process_of(manager)) <= before)


def count_after_one(manager: PoolManager) -> int:
    make_and_close(manager)
    return count_descriptors(process_of(manager))


def make_and_close(manager: PoolManager) -> bool:
    """Have an object built ahead, of which a failure is logged. Whether it failed."""
    with manager.create_pool(Tool, min_size=1, isolation="process") as pool:
        wait_until(lambda: pool.stats().idle or pool.stats().failed_builds)
        return not pool.stats().idle


@CAN_LIMIT_OTHERS
def test_what_a_full_manager_turns_away_is_logged_once(full_manager: PoolManager, tmp_path: Path) -> None:
    pool = full_manager.create_pool(Tool)

    def ask(_: int) -> str:
        with pytest.raises(ManagerLost, match="no descriptor left for one more connection") as lost:
            pool.stats()
        return str(lost.value)

    pool.stats()
    with descriptors_for(full_manager, 0):
        side_by_side(10, ask)
        assert pool.stats().size == 0
    assert (tmp_path / "log").read_text().count("cannot take more connections") == 1


@CAN_LIMIT_OTHERS
def test_a_client_that_a_full_manager_cannot_look_at_is_the_same_later(full_manager: PoolManager) -> None:
    """Else the lifeline of a process that psutil could not tell of is not that of the leases it has later."""
    most = 6
    pool = full_manager.create_pool(Tool, max_size=2 * most)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker()) for _ in range(most)]
        for more, worker in enumerate(workers):
            with descriptors_for(full_manager, more):
                worker.do(connect, pool)
            worker.do(acquire_and_hang_up, pool)
        ends = time.monotonic() + 3 * _SILENT_SECONDS
        wait_until(lambda: time.monotonic() > ends)
        assert [worker.do(echo_on_held, pool) for worker in workers] == [7] * most


def connect(_: object, pool: ObjectPool[Any]) -> None:
    with contextlib.suppress(ManagerLost):  # it has no descriptor for us
        pool.stats()


def acquire_and_hang_up(things: dict[str, Any], pool: ObjectPool[Any]) -> None:
    for _ in range(2):  # the connection that was made when there were few, and another one
        hang_up(things, pool)
        things["held"] = pool.acquire()
        assert things["held"].echo(1) == 1
    hang_up(things, pool)


def echo_on_held(things: dict[str, Any], _: object) -> Any:
    return things["held"].echo(7)


def test_what_a_client_could_not_tell_goes_before_what_it_asks() -> None:
    """Else it waits for what it has given back, of which no further connection can tell."""
    with pool_of(max_size=1) as pool, Worker() as worker:
        assert worker.do(give_back_without_descriptors, pool) == 7


def give_back_without_descriptors(things: dict[str, Any], pool: ObjectPool[Any]) -> Any:
    handle = pool.acquire()
    hang_up(things, pool)
    with no_descriptors():
        pool.release(handle)
        ends = time.monotonic() + 0.1  # in which another thread tries to tell; it tries again after 0.5 s
        wait_until(lambda: time.monotonic() > ends)
    with pool.lease(timeout=0.2) as tool:
        return tool.echo(7)


@ASKED_SOON
def test_a_client_without_descriptors_goes_on_waiting() -> None:
    with pool_of(max_size=1) as pool, Worker() as worker:
        with pool.lease() as tool:
            worker.begin(wait_without_descriptors, pool)
            wait_until(lambda: pool.stats().waiting == 1)
            tool.nap(LONG)
        assert worker.result() == 7


def wait_without_descriptors(_: object, pool: ObjectPool[Any]) -> Any:
    pool.stats()  # from now on there is a connection
    with no_descriptors(), pool.lease(None) as tool:
        return tool.echo(7)


@contextlib.contextmanager
def open_files(soft: int) -> Iterator[int]:
    """This process may have so many open, by its soft limit; gives the hard one."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def soft_limit(_: object) -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_manager_opens_as_many_files_as_it_may_and_its_objects_as_many_as_before(start_method: str) -> None:
    with open_files(900) as hard, manager_in(start_method) as manager:
        most = 10240 if hard == resource.RLIM_INFINITY and sys.platform == "darwin" else hard
        assert manager.create_pool(Tool).apply(soft_limit) == most
        assert manager.create_pool(Tool, isolation="process").apply(soft_limit) == 900


def test_a_manager_takes_what_it_gets_where_the_hard_limit_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As macOS does, where the hard limit is infinite.
    set_limit, granted = resource.setrlimit, 10240

    def refuse(kind: int, limits: tuple[int, int]) -> None:
        if limits[0] > granted:
            raise ValueError("current limit exceeds maximum limit")
        set_limit(kind, limits)

    with open_files(900) as hard:
        if hard <= granted:
            pytest.skip("too few descriptors")
        monkeypatch.setattr(resource, "setrlimit", refuse)
        with pool_of() as pool:
            monkeypatch.undo()
            assert pool.apply(soft_limit) == granted


def test_a_manager_serves_more_clients_than_its_creator_may_have_files() -> None:
    with contextlib.ExitStack() as stack:
        with open_files(100):
            manager = stack.enter_context(manager_in(authkey=KEY))
        pool = manager.create_pool(Tool, isolation="process")
        strangers = [Stranger(manager, 1) for _ in range(150)]
        for each in strangers:
            stack.callback(each.hang_up)
        assert [each.ask("stats", pool).name for each in strangers] == [pool.name] * 150
        assert pool.apply(soft_limit) == 100, "its process inherits no descriptor beyond its limit"


# -- many pools -------------------------------------------------------------------------------------------

POOLS = 50


@pytest.fixture(params=["pidfd", "portable"])
def looked_at(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """How many pools the watchdog looked at, in a manager that is forked from here."""
    if request.param == "portable":
        do_without_linux(monkeypatch)
    count = FORK.Value("i", 0)

    def counted(method: Any) -> Any:
        def look(self: Pool) -> Any:
            with count:
                count.value += 1
            return method(self)

        return look

    for method in (Pool.tend, Pool.processes):
        monkeypatch.setattr(Pool, method.__name__, counted(method))
    return count


def test_an_acquire_that_waits_concerns_no_other_pool(looked_at: Any) -> None:
    with manager_in() as manager:
        pools = [manager.create_pool(Tool, max_size=1) for _ in range(POOLS)]
        held = [each.acquire() for each in pools[:2]]
        before = looked_at.value
        for _ in range(3):
            with pytest.raises(PoolTimeout):
                pools[0].acquire(0.05)
        waiting = threading.Thread(target=lambda: pools[1].release(pools[1].acquire(5)))
        waiting.start()
        wait_until(lambda: pools[1].stats().waiting)
        pools[1].release(held.pop())
        waiting.join()
        assert looked_at.value - before < POOLS / 2
        pools[0].release(held.pop())


def test_an_agenda_names_each_pool_once_at_its_first_moment() -> None:
    agenda = Agenda()
    for pool_id, moment in (1, 30.0), (2, 20.0), (1, 10.0), (2, 40.0), (3, math.inf):
        agenda.note(pool_id, moment)
    assert (agenda.next_moment(), agenda.take_due(9.0)) == (10.0, [])
    assert (agenda.take_due(25.0), agenda.take_due(50.0)) == ([1, 2], [])
    agenda.note(1, 60.0)
    assert (agenda.next_moment(), agenda.take_due(60.0)) == (60.0, [1])
    assert agenda.next_moment() == math.inf


# -- what an argument raises ------------------------------------------------------------------------------

ENDS = pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, MemoryError])


def fail(error: type[BaseException], *args: Any) -> None:
    raise error(*args)


class Bomb:
    """Cannot be rebuilt."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return fail, (self._error, "on the way")


class Unspeakable(Exception):
    """Does not pickle, and asks for the end."""

    def __reduce__(self) -> Any:
        raise SystemExit


class Maker(Tool):
    def make_bomb(self, error: type[BaseException]) -> Bomb:
        return Bomb(error)

    def fail(self) -> None:
        raise Unspeakable("so it is")


@ENDS
@pytest.mark.everywhere
def test_an_argument_that_cannot_be_rebuilt_ends_nothing(error: type[BaseException]) -> None:
    with pool_of(Maker, max_size=1) as pool:
        with pool.lease() as tool:
            with pytest.raises(RemoteError, match=f"{error.__name__}: on the way"):
                tool.echo(Bomb(error))
            assert tool.echo(1) == 1
        with pytest.raises(RemoteError, match=f"{error.__name__}: on the way"):
            pool.apply(Tool.echo, Bomb(error))
        wait_until(lambda: all_idle(pool, 1))
        assert pool.stats().built == 1


@ENDS
def test_it_does_not_end_the_connection(error: type[BaseException]) -> None:
    with manager_in(authkey=KEY) as manager:
        pool = manager.create_pool(Tool)
        stranger = Stranger(manager, 1)
        with contextlib.closing(stranger.connection):
            lease_id = stranger.acquire(pool)
            with pytest.raises(AssertionError, match=error.__name__):  # it gets an answer, which is an error
                stranger.echo(pool, lease_id, Bomb(error))
            assert stranger.echo(pool, lease_id, 1) == 1


@ENDS
@pytest.mark.everywhere
def test_a_factory_that_cannot_be_rebuilt_is_told_of(error: type[BaseException]) -> None:
    with manager_in() as manager, pytest.raises(FactoryError, match=f"{error.__name__}: on the way"):
        manager.create_pool(partial(Tool, Bomb(error)))


class Registry(PoolManager):
    """A manager that also has what `multiprocessing` offers: objects made by a name."""


Registry.register("make_tool", Tool)


@ENDS
def test_an_argument_to_what_is_registered_is_told_of_too(error: type[BaseException]) -> None:
    with Registry(ctx=FORK) as manager, pytest.raises(RemoteCallError, match=f"{error.__name__}: on the way"):
        manager.make_tool(Bomb(error))


@ENDS
@pytest.mark.everywhere
def test_what_a_result_raises_here_is_raised_here(error: type[BaseException]) -> None:
    # It may be a signal handler's: then it must pass.
    with pool_of(Maker, max_size=1) as pool:
        with pool.lease() as tool:
            with pytest.raises(error, match="on the way"):
                tool.make_bomb(error)
            assert tool.echo(1) == 1
        wait_until(lambda: all_idle(pool, 1))
        assert pool.stats().built == 1


@pytest.mark.everywhere
def test_an_error_that_asks_for_the_end_when_it_is_pickled_arrives() -> None:
    with pool_of(Maker, max_size=1) as pool, pool.lease() as tool:
        with pytest.raises(Unspeakable, match="so it is"):
            tool.fail()
        assert tool.echo(1) == 1


MIB = 2**20


def leave_memory() -> None:
    """In the manager: for what it is at, and not for much more."""
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 128 * MIB, size + 128 * MIB))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nothing bounds memory here")
def test_a_message_for_which_there_is_no_memory_ends_no_connection() -> None:
    manager = PoolManager(("127.0.0.1", 0), KEY, ctx=FORK)  # on TCP all goes in the stream
    manager.start(leave_memory)
    with manager:
        pool = manager.create_pool(Tool, max_size=1)
        with pool.lease() as tool:
            for _ in range(2):
                with pytest.raises(RemoteError, match=r"[Mm]emory"):  # for the message, or for what is in it
                    tool.echo(bytes(160 * MIB))
                assert tool.echo(1) == 1
