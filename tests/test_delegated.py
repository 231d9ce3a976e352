"""What users see of delegated leases: holders give objects back, and take them again, by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import psutil
import pytest
from actors import (
    FORK,
    Diary,
    Gate,
    Tool,
    Witness,
    Worker,
    acquire,
    all_idle,
    child_process,
    count_descriptors,
    echo,
    manager_in,
    no_descriptors,
    process_of,
    release,
    stopped,
    tokens,
    untold,
)
from backends import Backend
from eater import LARGE, MIB, Eater
from helpers import ROOT, Beside, RunPython, do_without_linux, promptly, wait_until

from mppool import (
    CallTimeout,
    LeaseError,
    LeaseLost,
    ManagerLost,
    ObjectPool,
    PoolClosed,
    PoolManager,
    PoolTimeout,
    shared_pool,
)

pytestmark = pytest.mark.skipif(
    not hasattr(os, "eventfd") or "MPPOOL_PORTABLE" in os.environ, reason="no lease is delegated here"
)

Pool = ObjectPool[Any]

LONG = 0.15
"""Seconds between two uses that are not close together any more."""


def use(pool: Pool, objects: int = 1) -> None:
    """Take so many objects at a time, and give them back."""
    handles = [pool.acquire(20) for _ in range(objects)]
    for handle in reversed(handles):
        pool.release(handle)


def park(pool: Pool, objects: int = 1) -> None:
    """Use so many objects until they lie parked at this process."""
    wait_until(lambda: use(pool, objects) or tokens() >= objects)


def pause(seconds: float) -> None:
    ends = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > ends)


def park_here(_: object, pool: Pool, objects: int = 1) -> None:
    park(pool, objects)


def use_again(_: object, pool: Pool, times: int) -> None:
    for _ in range(times):
        use(pool)


def is_closed(pool: Pool) -> bool:
    try:
        pool.acquire(timeout=0)
    except PoolClosed:
        return True
    except PoolTimeout:
        return False
    raise AssertionError


def is_idle(pool: Pool, size: int = 1) -> Callable[[], bool]:
    return partial(all_idle, pool, size)


@pytest.fixture(autouse=True)
def _nothing_delegated() -> None:
    """Whatever earlier tests left to the collector."""
    gc.collect()


@pytest.fixture
def tools(manager: PoolManager) -> Pool:
    """A pool of one tool."""
    return manager.create_pool(Tool, max_size=1)


@pytest.fixture
def parked(tools: Pool) -> Pool:
    """The same, and the tool lies parked at this process."""
    park(tools)
    return tools


# -- without a request ------------------------------------------------------------------------------------


def test_an_object_that_is_taken_again_at_once_needs_no_word_from_the_manager(
    manager: PoolManager, parked: Pool
) -> None:
    with stopped(process_of(manager)):
        for _ in range(1000):
            parked.release(parked.acquire())
            with parked.lease():
                pass
    assert untold(parked) == 0


def test_an_object_that_is_taken_once_in_a_while_is_not_delegated(tools: Pool) -> None:
    for _ in range(3):
        use(tools)
        pause(LONG)
    assert tokens() == 0


def test_several_objects_lie_parked_at_a_process(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=3)
    park(pool, 3)
    with stopped(process_of(manager)):
        for _ in range(10):
            use(pool, 3)
    assert all_idle(pool, 3)


@pytest.mark.everywhere
def test_calls_reach_the_object_that_was_taken_again(manager: PoolManager) -> None:
    pool = manager.create_pool(list, max_size=1)
    park(pool)
    for number in range(20):
        with pool.lease() as numbers:
            assert len(numbers) == number
            numbers.append(number)
    assert tokens() == 1
    assert pool.apply(list.copy) == list(range(20))


def test_calls_of_an_object_in_a_process_of_its_own_need_no_manager_either(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=1, isolation="process")
    park(pool)
    assert pool.apply(Tool.echo, 0) == 0  # which connects to its process
    with stopped(process_of(manager)):
        for number in range(20):
            with pool.lease() as tool:
                assert tool.echo(number) == number
            assert pool.apply(Tool.echo, number) == number


def test_threads_of_a_process_take_what_another_has_parked(
    manager: PoolManager, parked: Pool, beside: Beside
) -> None:
    with stopped(process_of(manager)):
        for _ in range(10):
            beside(use, parked).result(20)
            use(parked)
    assert is_idle(parked)()


# -- what is told -----------------------------------------------------------------------------------------


def test_leases_tell_of_a_holder_since_its_own_acquire(parked: Pool) -> None:
    assert parked.leases() == []
    began = time.monotonic()
    handle = parked.acquire()
    (lease,) = parked.leases()
    assert lease.pid == os.getpid()
    assert 0 <= lease.age <= time.monotonic() - began
    parked.release(handle)
    assert parked.leases() == []


def test_stats_count_what_the_manager_was_not_told_of(manager: PoolManager, tools: Pool) -> None:
    park(tools)
    before = tools.stats()
    with stopped(process_of(manager)):
        for _ in range(50):
            use(tools)
        handle = tools.acquire()
    now = tools.stats()
    assert (now.acquired - before.acquired, now.reused - before.reused) == (51, 51)
    assert now.hold.count - before.hold.count == 50
    assert (now.idle, now.leased) == (0, 1)
    tools.release(handle)
    parked = tools.stats()
    assert (parked.acquired, parked.hold.count) == (now.acquired, now.hold.count + 1)
    assert (parked.idle, parked.leased) == (1, 0)
    tools.resize(max_size=2)  # which recalls it
    assert tools.stats() == replace(parked, max_size=2)


def test_objects_tell_of_one_that_lies_parked(manager: PoolManager, parked: Pool) -> None:
    (before,) = parked.objects()
    with stopped(process_of(manager)):
        for _ in range(10):
            use(parked)
    (now,) = parked.objects()
    assert (now.state, now.uses - before.uses) == ("idle", 10)
    with parked.lease():
        (now,) = parked.objects()
    assert (now.state, now.uses - before.uses) == ("leased", 11)


# -- what ends it -----------------------------------------------------------------------------------------


def test_another_process_gets_a_parked_object_at_once(parked: Pool, worker: Worker) -> None:
    worker.do(acquire, parked, 0)
    assert worker.do(echo, 1) == 1
    with pytest.raises(PoolTimeout, match="held"):
        parked.acquire(timeout=0)
    worker.do(release, parked)
    with parked.lease(timeout=20) as tool:
        assert tool.echo(2) == 2
    assert parked.stats().built == 1


def test_one_that_waits_is_served_before_the_holder_takes_the_object_again(
    parked: Pool, worker: Worker
) -> None:
    handle = parked.acquire()
    worker.begin(acquire, parked)
    wait_until(lambda: parked.stats().waiting == 1)
    parked.release(handle)
    with pytest.raises(PoolTimeout):
        parked.acquire(timeout=0)
    worker.result()
    worker.do(release, parked)
    wait_until(is_idle(parked))


def test_max_uses_counts_them_all(manager: PoolManager, diary: Diary) -> None:
    pool = manager.create_pool(partial(Witness, diary.path), max_size=1, max_uses=60)
    names, delegated = [], 0
    for _ in range(300):
        with pool.lease() as witness:
            names.append(witness.name())
        delegated += tokens()
        pause(0.003)
    assert [len(list(group)) for _, group in groupby(names)] == [60] * 5
    assert delegated
    wait_until(lambda: pool.stats().retired == {"uses": 5})  # each when it came home, the last one, too


def test_an_object_is_not_taken_again_past_its_lifetime(manager: PoolManager, diary: Diary) -> None:
    pool = manager.create_pool(partial(Witness, diary.path), max_size=1, max_lifetime=0.6)
    with pool.lease() as witness:
        first = witness.name()
    is_there = time.monotonic()
    park(pool)
    while True:
        took = time.monotonic()
        with pool.lease() as witness:
            if witness.name() != first:
                break
        assert took - is_there <= 0.6
    assert pool.stats().retired == {"lifetime": 1}


@pytest.mark.manager(watch_interval=0.05)
def test_an_object_that_lies_parked_is_retired_after_max_idle(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=1, max_idle=0.1)
    park(pool)
    wait_until(lambda: pool.stats().retired == {"idle": 1})
    use(pool)
    assert pool.stats().built == 2


@pytest.mark.manager(start_method="spawn", watch_interval=0.05)
def test_an_object_that_lies_parked_is_replaced_when_it_holds_too_much(
    manager: PoolManager, diary: Diary
) -> None:
    options = {"isolation": "process", "max_size": 1, "max_memory": 80 * MIB}
    pool = manager.create_pool(partial(Eater, diary.path), **options)
    park(pool)
    with pool.lease() as eater:
        eater.grow(LARGE)
    wait_until(lambda: pool.stats().retired == {"memory": 1})


def test_refresh_replaces_it(parked: Pool) -> None:
    parked.refresh()
    with parked.lease() as tool:
        assert tool.echo(1) == 1
    now = parked.stats()
    assert (now.built, now.retired) == (2, {"refreshed": 1})


def test_refresh_replaces_one_that_is_in_use_when_it_comes_home(parked: Pool) -> None:
    with parked.lease():
        parked.refresh()
    use(parked)
    assert parked.stats().retired == {"refreshed": 1}


def test_resize_closes_those_beyond_the_bound(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=3)
    park(pool, 3)
    pool.resize(max_size=1)
    wait_until(is_idle(pool))
    assert pool.stats().retired == {"shrunk": 2}
    with pool.lease(), pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)


def test_a_pool_that_is_closed_lends_no_parked_object(manager: PoolManager, diary: Diary) -> None:
    pool = manager.create_pool(partial(Witness, diary.path), max_size=2, close=Witness.close)
    park(pool, 2)
    with promptly():
        pool.close(timeout=60)
    assert diary.all_closed_once()
    with pytest.raises(PoolClosed):
        pool.acquire()


def test_a_pool_that_is_closed_waits_for_one_that_is_in_use(parked: Pool, beside: Beside) -> None:
    handle = parked.acquire()
    closing = beside(parked.close, 60)
    wait_until(lambda: is_closed(parked))
    assert not closing.done()
    parked.release(handle)
    with promptly():
        closing.result(20)


def test_a_manager_that_shuts_down_closes_what_lies_parked(diary: Diary) -> None:
    with manager_in() as manager:
        pool = manager.create_pool(partial(Witness, diary.path), max_size=2, close=Witness.close)
        park(pool, 2)
        with promptly():
            manager.shutdown()
    assert diary.all_closed_once()
    with pytest.raises((PoolClosed, ManagerLost)):
        pool.acquire()
    assert tokens() == 0


def test_what_a_dead_manager_had_delegated_is_lost_with_it(manager: PoolManager, parked: Pool) -> None:
    process_of(manager).kill()
    with pytest.raises(ManagerLost):
        parked.stats()
    for _ in range(2):
        with pytest.raises(ManagerLost):
            parked.acquire()
    assert tokens() == 0


@pytest.mark.manager(restart=True)
def test_the_next_acquire_after_a_manager_has_died_is_served_by_its_successor(
    manager: PoolManager, parked: Pool
) -> None:
    handle = parked.acquire()
    process_of(manager).kill()
    wait_until(lambda: parked.stats().acquired == 0)
    parked.release(handle)
    with parked.lease(timeout=20) as tool:
        assert tool.echo(1) == 1
    assert parked.stats().acquired == 1
    park(parked)


def test_the_next_acquire_after_a_shared_manager_has_died_starts_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPPOOL_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    with PoolManager.shared("tools", linger=0) as shared:
        pool = shared_pool("tools", Tool, linger=0, max_size=1)
        park(pool)
        first = pool.apply(Tool.pid)
        psutil.Process(first).kill()
        wait_until(lambda: not psutil.pid_exists(first))
        assert pool.apply(Tool.pid) != first
        park(pool)
        pool.close()  # else the way to the manager, which stays, keeps what lay parked
        shared.shutdown()


def test_a_discarded_object_is_not_parked(parked: Pool) -> None:
    parked.release(parked.acquire(), discard=True)
    with pytest.raises(KeyError), parked.lease(discard_on_error=True):
        raise KeyError
    use(parked)
    now = parked.stats()
    assert (now.built, now.retired) == (3, {"discarded": 2})


# -- what calls leave behind ------------------------------------------------------------------------------


class Book:
    """Stays where it is."""

    def title(self) -> str:
        return "a book"

    def __reduce__(self) -> Any:
        raise TypeError("it does not pickle")


class Shelf:
    """Knows what it has lent."""

    def __init__(self) -> None:
        self._lent: weakref.WeakSet[Book] = weakref.WeakSet()

    def lend(self) -> Book:
        book = Book()
        self._lent.add(book)
        return book

    def lend_all(self) -> Iterator[str]:
        book = self.lend()
        while True:
            yield book.title()

    def lent(self) -> int:
        gc.collect()
        return len(self._lent)


@pytest.fixture
def shelf(manager: PoolManager, backend: Backend) -> Pool:
    pool = manager.create_pool(Shelf, max_size=1)
    park(pool)
    return pool


@pytest.mark.everywhere
def test_what_a_call_left_is_dropped_before_the_next_use(shelf: Pool) -> None:
    for _ in range(3):
        with shelf.lease() as one:
            book = one.lend()
            books = iter(one.lend_all())
            assert next(books) == book.title() == "a book"
            assert one.lent() == 2
        with shelf.lease() as one:
            assert one.lent() == 0
        with pytest.raises(LeaseError, match="was released"):
            book.title()
        park(shelf)


@pytest.mark.everywhere
def test_after_a_call_that_raised_the_object_goes_back_by_the_manager(parked: Pool) -> None:
    with pytest.raises(KeyError), parked.lease() as tool:
        tool.fail_with(KeyError)
    with parked.lease() as tool:
        assert tool.echo(1) == 1
    assert parked.stats().built == 1


@pytest.mark.everywhere
def test_a_call_that_another_thread_makes_at_release_is_not_in_the_next_use(
    gate: Gate, manager: PoolManager, beside: Beside
) -> None:
    pool = manager.create_pool(Tool, max_size=1)
    park(pool)
    tool = pool.acquire()
    call = beside(tool.wait_at_gate)
    gate.wait_for_somebody()
    pool.release(tool)
    with pool.lease(timeout=20) as another:
        assert another.echo(1) == 1
    gate.open()
    with contextlib.suppress(LeaseLost):
        call.result(20)
    assert pool.stats().retired == {"interrupted": 1}


@pytest.mark.everywhere
def test_a_call_that_takes_too_long_ends_the_lease(gate: Gate, manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=1, call_timeout=0.3)
    park(pool)
    with pytest.raises(CallTimeout), pool.lease() as tool:
        tool.wait_at_gate()
    with pool.lease(timeout=20) as tool:
        assert tool.echo(1) == 1
    assert pool.stats().retired == {"call": 1}


# -- handles ----------------------------------------------------------------------------------------------


def test_a_forgotten_handle_warns_and_comes_home(parked: Pool) -> None:
    handles = [parked.acquire()]
    with pytest.warns(ResourceWarning, match="never released"):
        handles.clear()
    wait_until(is_idle(parked))
    use(parked)
    assert parked.stats().built == 1


def test_a_handle_is_released_once(parked: Pool) -> None:
    handle = parked.acquire()
    parked.release(handle)
    with pytest.raises(LeaseError, match="was released"):
        parked.release(handle)
    assert is_idle(parked)()


@pytest.mark.everywhere
def test_a_handle_of_an_earlier_use_is_refused(parked: Pool) -> None:
    before = parked.acquire()
    assert before.echo(1) == 1
    parked.release(before)
    with parked.lease() as tool:
        with pytest.raises(LeaseError, match="was released"):
            before.echo(2)
        with pytest.raises(LeaseError, match="was released"):
            parked.release(before)
        assert tool.echo(3) == 3
        with pytest.raises(PoolTimeout):
            parked.acquire(timeout=0)


# -- processes --------------------------------------------------------------------------------------------


def as_a_child(pipe: Any, pool: Pool, handle: Any) -> None:
    inherited = tokens()
    with pytest.raises(LeaseError, match="forked"):
        handle.echo(1)
    with pytest.raises(LeaseError, match="forked"):
        pool.release(handle)
    pipe.send(inherited)
    pipe.recv()
    wait_until(lambda: use(pool) or tokens() > inherited)
    pipe.send(pool.apply(Tool.echo, 1))
    pipe.recv()


def test_a_forked_child_has_leases_of_its_own(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=2)
    park(pool, 2)
    handle = pool.acquire()
    with child_process(as_a_child, pool, handle) as (_, pipe):
        assert pipe.recv() <= 1  # of the one in use, which the handle keeps
        with stopped(process_of(manager)):
            use(pool)
        pipe.send("go on")
        assert pipe.recv() == 1
        assert handle.echo(2) == 2
        pool.release(handle)
        with stopped(process_of(manager)):
            use(pool)
    wait_until(is_idle(pool, 2))
    assert pool.stats().reclaimed == 0


def test_a_holder_that_is_killed_while_its_object_lies_parked_held_nothing(
    manager: PoolManager, tools: Pool, worker: Worker
) -> None:
    worker.do(park_here, tools)
    worker.kill()
    wait_until(lambda: not tokens(process_of(manager).pid))
    now = tools.stats()
    assert (now.reclaimed, now.built, now.idle) == (0, 1, 1)


def test_what_a_process_that_stands_still_has_parked_is_lent_at_once(tools: Pool, worker: Worker) -> None:
    worker.do(park_here, tools)
    worker.stop()
    with tools.lease(timeout=0) as tool:
        assert tool.echo(1) == 1
        worker.go_on()
        with pytest.raises(PoolTimeout):
            worker.do(acquire, tools, 0)


@pytest.mark.everywhere
def test_what_a_holder_has_in_use_when_it_is_killed_is_taken_back(tools: Pool, worker: Worker) -> None:
    worker.do(park_here, tools)
    worker.do(acquire, tools)
    worker.do(echo, 1)
    worker.kill()
    with tools.lease(timeout=20) as tool:
        assert tool.echo(1) == 1
    now = tools.stats()
    assert (now.reclaimed, now.built, now.retired) == (1, 2, {"reclaimed": 1})


def replace_program(_: object) -> None:
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)"])


@pytest.mark.parametrize("in_use", [False, True])
def test_a_holder_that_is_replaced_by_exec(
    manager: PoolManager, tools: Pool, worker: Worker, in_use: bool
) -> None:
    worker.do(park_here, tools)
    if in_use:
        worker.do(acquire, tools)
        worker.do(echo, 1)
    worker.begin(replace_program)
    wait_until(lambda: not tokens(process_of(manager).pid))
    wait_until(is_idle(tools, 1 - in_use))
    assert tools.stats().reclaimed == in_use
    assert not tokens(worker.pid)


def use_it(pool: Pool, number: int) -> tuple[int, int]:
    with pool.lease() as tool:
        return tool.echo(number), tokens()


def test_workers_of_an_executor(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=2, min_size=2)
    pool.wait()
    with ProcessPoolExecutor(2, mp_context=FORK) as executor:
        results = list(executor.map(partial(use_it, pool), range(500)))
        assert [number for number, _ in results] == list(range(500))
        now = pool.stats()
        assert (now.acquired, now.leased) == (500, 0)
    wait_until(lambda: not tokens(process_of(manager).pid))
    assert is_idle(pool, 2)()
    assert pool.stats().reclaimed == 0


def test_map_uses_what_lies_parked(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=2)
    park(pool, 2)
    before = pool.stats().acquired
    assert list(pool.map(Tool.echo, range(100))) == list(range(100))
    now = pool.stats()
    assert (now.acquired - before, now.built) == (100, 2)
    assert tokens() == 2


# -- what is left to the round trip -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"max_hold": 60},
        {"warn_hold": 60},
        {"check": Tool.echo_true},
        {"reset": Tool.echo_true},
        {"order": "fifo"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_where_the_pool_has_something_to_see_to_nothing_is_delegated(
    manager: PoolManager, options: dict[str, Any]
) -> None:
    assert_round_trips(manager.create_pool(Tool, max_size=1, **options))


def test_values_are_not_delegated(manager: PoolManager) -> None:
    assert_round_trips(manager.create_pool(each=[1]))


def test_over_tcp_nothing_is_delegated() -> None:
    with manager_in(address=("127.0.0.1", 0), authkey=b"a key of 16 bytes") as manager:
        assert_round_trips(manager.create_pool(Tool, max_size=1))


def test_without_what_only_linux_has_nothing_is_delegated(monkeypatch: pytest.MonkeyPatch) -> None:
    do_without_linux(monkeypatch)
    with manager_in() as manager:
        assert_round_trips(manager.create_pool(Tool, max_size=1))


TRACED = """
from mppool import PoolManager
from test_delegated import Tool, assert_round_trips

if __name__ == "__main__":
    with PoolManager() as manager:
        pool = manager.create_pool(Tool, max_size=1)
        assert_round_trips(pool)
        with pool.lease():
            print(pool.leases()[0].where)
"""


def test_with_traces_nothing_is_delegated(
    run_python: RunPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPPOOL_TRACE", "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    program = tmp_path / "traced.py"
    program.write_text(TRACED)
    assert run_python(program).stdout == f"{program}:9\n"


def assert_round_trips(pool: Pool) -> None:
    ends = time.monotonic() + 2 * LONG
    wait_until(lambda: use(pool) or time.monotonic() > ends)
    for _ in range(10):
        use(pool)
        assert tokens() == 0


# -- asyncio ----------------------------------------------------------------------------------------------


async def use_async(pool: Pool, objects: int = 1) -> None:
    handles = [await pool.aio.acquire(20) for _ in range(objects)]
    for handle in reversed(handles):
        await pool.aio.release(handle)


async def park_async(pool: Pool, objects: int = 1) -> None:
    deadline = time.monotonic() + 10
    while tokens() < objects:
        assert time.monotonic() < deadline, "it is not delegated"
        await use_async(pool, objects)
        await asyncio.sleep(0.005)


def test_tasks_of_a_loop_take_again_what_it_has_parked(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=2)

    async def cycle(number: int) -> None:
        async with pool.aio.lease(20) as tool:
            assert await tool.echo(number) == number

    async def main() -> None:
        await park_async(pool, 2)
        await asyncio.gather(*map(cycle, range(20)))
        await park_async(pool, 2)
        with stopped(process_of(manager)):
            for _ in range(100):
                await asyncio.gather(use_async(pool), use_async(pool))
        before = await pool.aio.acquire()
        await pool.aio.release(before)
        async with pool.aio.lease() as tool:
            with pytest.raises(LeaseError, match="was released"):
                await before.echo(1)
            assert await tool.echo(2) == 2
        now = await pool.aio.stats()
        assert (now.leased, now.built) == (0, 2)

    asyncio.run(main())


def test_a_loop_takes_what_another_one_and_the_threads_have_parked(tools: Pool) -> None:
    with (
        contextlib.closing(asyncio.new_event_loop()) as one,
        contextlib.closing(asyncio.new_event_loop()) as other,
    ):
        one.run_until_complete(park_async(tools))
        handle = other.run_until_complete(acquire_async(tools))
        with pytest.raises(PoolTimeout):
            tools.acquire(timeout=0)
        with pytest.raises(PoolTimeout):
            one.run_until_complete(acquire_async(tools))
        other.run_until_complete(release_async(tools, handle))
        with tools.lease(timeout=20) as tool:
            assert tool.echo(1) == 1
    assert tools.stats().built == 1


async def acquire_async(pool: Pool) -> Any:
    return await pool.aio.acquire(timeout=0)


async def release_async(pool: Pool, handle: Any) -> None:
    await pool.aio.release(handle)


def test_what_a_loop_has_parked_is_idle_when_that_is_closed(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=2)
    asyncio.run(park_async(pool, 2))
    wait_until(lambda: not tokens(process_of(manager).pid))
    assert is_idle(pool, 2)()
    assert tokens() == 0


def test_a_call_that_is_cancelled_is_not_in_the_next_use(gate: Gate, manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=1)

    async def main() -> None:
        await park_async(pool)
        tool = await pool.aio.acquire()
        call = asyncio.ensure_future(tool.wait_at_gate())
        await asyncio.to_thread(gate.wait_for_somebody)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await pool.aio.release(tool)
        async with pool.aio.lease(20) as another:
            assert await another.echo(1) == 1
        gate.open()

    asyncio.run(main())
    assert pool.stats().retired == {"interrupted": 1}


def test_a_task_that_is_cancelled_in_its_block_parks_the_object(manager: PoolManager, tools: Pool) -> None:
    async def hold() -> None:
        async with tools.aio.lease():
            await asyncio.sleep(1000)

    async def main() -> None:
        await park_async(tools)
        for _ in range(10):
            task = asyncio.ensure_future(hold())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with stopped(process_of(manager)):
            await use_async(tools)

    asyncio.run(main())


# -- what it costs ----------------------------------------------------------------------------------------


def test_a_parked_object_costs_one_descriptor_on_each_side(manager: PoolManager) -> None:
    sides = psutil.Process(), process_of(manager)
    pool = manager.create_pool(Tool, max_size=8)
    use(pool, 8)
    before = [*map(count_descriptors, sides)]

    def more() -> list[int]:
        return [count_descriptors(each) - was for each, was in zip(sides, before, strict=True)]

    for number in 1, 8:
        park(pool, number)
        wait_until(lambda n=number: more() == [n, n])
    pool.close()
    wait_until(lambda: more() == [0, 0])


def test_what_another_process_has_closed_is_let_go_with_the_next_delegation(
    manager: PoolManager, worker: Worker
) -> None:
    pools = [manager.create_pool(Tool, max_size=3) for _ in range(2)]
    park(pools[0], 3)
    worker.do(close, pools[0])
    wait_until(lambda: use(pools[1]) or tokens() == 1)


@pytest.mark.pool(Tool, max_size=1)
def test_a_thread_that_ends_at_once_leaves_what_it_parked(pool: Pool) -> None:
    """Its connection ends in the moment in which the manager has sent the grant."""

    def park_and_end() -> bool:
        thread = threading.Thread(target=use, args=(pool,))
        thread.start()
        thread.join()
        return tokens() > 0

    for _ in range(150):
        wait_until(park_and_end)
        with pool.lease() as tool:
            assert [tool.echo(number) for number in range(3)] == [0, 1, 2]
        pool.resize(max_size=1)  # what lies parked comes home
    assert pool.stats().late_releases == 0


def test_a_holder_without_descriptors_goes_by_the_manager(pool: Pool, worker: Worker) -> None:
    assert worker.do(use_without_descriptors, pool) == 0
    wait_until(lambda: all_idle(pool, pool.stats().size))


def use_without_descriptors(_: object, pool: Pool) -> int:
    use(pool)  # it is connected
    for name in [each for each in sys.modules if each.endswith("_wire.delegation")]:
        del sys.modules[name]  # it is loaded with the first delegated lease
    pause(LONG)  # the first acquire had to wait for a build
    with no_descriptors():
        for _ in range(5):
            use(pool)
    return tokens()


def close(_: object, pool: Pool) -> None:
    pool.close()


def switches(process: psutil.Process) -> int:
    """How often its threads have waited for something."""
    found = 0
    for each in Path(f"/proc/{process.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            text = (each / "status").read_text()
            found += int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return found


def test_nothing_wakes_the_manager_while_objects_lie_parked(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=30)
    park(pool, 30)
    before = switches(process_of(manager))
    pause(1)
    assert switches(process_of(manager)) - before < 10
    with stopped(process_of(manager)):
        use(pool, 30)
