"""Many processes at once, killed at random or only in a hurry: nothing is lost, nobody is left out.

MPPOOL_STRESS_SECONDS is the length of the random parts, MPPOOL_STRESS_SEED their seed; each prints its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from actors import (
    Diary,
    Exclusive,
    KillStorm,
    Tool,
    Witness,
    acquire,
    all_idle,
    process_of,
    release,
)
from backends import Backend
from helpers import stress_seconds, stress_seed, stress_times, wait_until
from standins import side_by_side

from mppool import FactoryError, LeaseError, LeaseLost, ObjectPool, PoolManager, PoolStats, PoolTimeout

# -- kill storm -----------------------------------------------------------------------------------


class Witnessed(Exclusive, Witness):
    """Proves from inside that it has one holder at a time, and that it is closed once."""

    def __init__(self, directory: Path) -> None:
        Exclusive.__init__(self, directory / "complaints")
        Witness.__init__(self, directory / "diary")


def work_until_killed(pool: ObjectPool[Any], seed: float, counts: Any) -> None:
    """Acquire, call, release, in all ways there are, as fast as can be."""
    dice = random.Random(seed)
    for number in range(10**9):
        token = (os.getpid(), number)
        if dice.random() < 0.3:
            assert pool.apply(Exclusive.step, token, dice.choice((0.0, 0.001)), timeout=None) == token
        else:
            with pool.lease(timeout=None) as thing:
                for _ in range(dice.randrange(1, 4)):
                    assert thing.step(token, dice.choice((0.0, 0.0, 0.002))) == token
        counts[0] += 1


@pytest.mark.far
@pytest.mark.everywhere("none", "process")
@pytest.mark.parametrize(
    ("portable", "on_reclaim"), [(False, "close"), (True, "reset")], ids=["pidfd", "portable"]
)
@pytest.mark.stress
def test_a_kill_storm(
    tmp_path: Path, backend: Backend, portable: bool, on_reclaim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if portable:
        backend.do_without_linux(monkeypatch)
    seed = stress_seed()
    dice = random.Random(seed)
    complaints, diary = tmp_path / "complaints", Diary(tmp_path / "diary")
    complaints.touch()
    options = {"close": Witness.close, "on_reclaim": on_reclaim, "reset": Tool.pid}
    with backend.manager(watch_interval=1.0) as manager:
        pool = manager.create_pool(partial(Witnessed, tmp_path), max_size=4, **options)
        with KillStorm(backend.worker, partial(work_until_killed, pool), dice, backend.many(16)) as storm:
            storm.rage(stress_seconds(), pauses=(0.0, 0.005, 0.02))
            storm.all_go_on(timeout=20)
        wait_until(lambda: (pool.stats().leased, pool.stats().waiting) == (0, 0))
        wait_until(lambda: pool.stats().idle == pool.stats().size)
        side_by_side(4, lambda index: pool.apply(Exclusive.step, index, 0.1))
        assert pool.stats().size <= 4
    assert complaints.read_text() == ""
    if backend.kills:  # an object that was called when its holder was killed is killed, too
        assert diary.all_closed_at_most_once()
    else:
        assert diary.all_closed_once()


def work_through_losses(pool: ObjectPool[Any], seed: float, counts: Any) -> None:
    """Acquire and call, also when objects die. What a handle is asked after its lease is refused."""
    dice = random.Random(seed)
    for number in range(10**9):
        token = (os.getpid(), number)
        try:
            with pool.lease(timeout=None) as thing:
                for _ in range(dice.randrange(1, 4)):
                    assert thing.step(token, dice.choice((0.0, 0.0, 0.002))) == token
            counts[0] += 1
        except FactoryError:  # it died while it was built, for this one
            continue
        except LeaseLost:
            counts[1] += 1
        with pytest.raises(LeaseError):
            thing.step(token)


def holders_of(pool: ObjectPool[Any]) -> set[int]:
    return {each.pid for each in wait_until(pool.leases, 30)}


def storm_among_objects(
    backend: Backend, manager: PoolManager, directory: Path, *, workers: int, kills: int
) -> None:
    """Kill holders, waiters and objects' processes: so many of them, each at a random moment."""
    dice = random.Random(stress_seed())
    complaints = directory / "complaints"
    complaints.touch()
    pool = manager.create_pool(partial(Exclusive, complaints), max_size=3)
    with KillStorm(backend.worker, partial(work_through_losses, pool), dice, workers) as storm:
        while storm.kills + storm.objects < kills:
            if dice.random() < 0.3:
                storm.strike_object(pool, pauses=(0.0, 0.005, 0.02))
            else:
                holders = dice.random() < 0.6
                storm.strike(pauses=(0.0, 0.005, 0.02), among=partial(holders_of, pool) if holders else set)
        storm.all_go_on(timeout=30)
    wait_until(lambda: all_idle(pool, pool.stats().size))
    side_by_side(3, lambda index: pool.apply(Exclusive.step, index, 0.1))
    assert pool.stats().size <= 3
    holders = pool.stats().reclaimed
    print(f"killed {storm.kills} workers, {holders} of them holders, and {storm.objects} objects")
    print(f"{storm.served} leases were given back, {storm.refused} lost")
    assert min(holders, storm.kills - holders, storm.objects) > 0
    assert complaints.read_text() == ""


@pytest.mark.far
@pytest.mark.everywhere("process")
@pytest.mark.local  # on a cluster it is longer
@pytest.mark.stress
def test_a_kill_storm_among_objects_too(backend: Backend, manager: PoolManager, tmp_path: Path) -> None:
    storm_among_objects(backend, manager, tmp_path, workers=backend.many(16), kills=40 + stress_times(400))


# -- fairness -------------------------------------------------------------------------------------


def ask_again(things: dict[str, Any], pool: ObjectPool[Any]) -> None:
    release(things, pool)
    acquire(things, pool, None)


@pytest.mark.everywhere("none")
def test_a_hundred_workers_on_ten_objects_are_served_in_the_order_in_which_they_asked(
    backend: Backend, manager: PoolManager
) -> None:
    number = backend.many(100)
    size, wait = number // 10, number - number // 10
    pool = manager.create_pool(Tool, max_size=size)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(backend.worker()) for _ in range(number)]
        for asked, worker in enumerate(workers, start=1):
            worker.begin(acquire, pool, None)
            wait_until(lambda asked=asked: pool.stats().leased + pool.stats().waiting == asked)
        for worker in workers[:size]:
            worker.result()
        # One by one: each one's release serves the one who has waited longest.
        for holder, first in zip(workers[:wait], workers[size:], strict=True):
            holder.begin(ask_again, pool)
            first.result()
            wait_until(lambda: pool.stats().waiting == wait)
        # Ten at a time, who ask again in any order, but after all others.
        holders = workers[wait:]
        for start in range(0, wait, size):
            for holder in holders:
                holder.begin(ask_again, pool)
            holders = workers[start : start + size]
            for holder in holders:
                holder.result()
            wait_until(lambda: pool.stats().waiting == wait)
        assert (pool.stats().acquired, pool.stats().leased) == (number + wait, size)
        assert pool.stats().timeouts == 0


# -- in a hurry ---------------------------------------------------------------------------------------


@pytest.mark.everywhere("none")
@pytest.mark.manager(watch_interval=600)
@pytest.mark.pool(Tool, max_size=1)
def test_no_timeout_waits_for_a_sweep(pool: ObjectPool[Any]) -> None:
    with pool.lease():

        def wait(index: int) -> None:
            dice = random.Random(index)
            for _ in range(20):
                with pytest.raises(PoolTimeout):
                    pool.acquire(dice.uniform(0, 0.02))

        side_by_side(8, wait)
        assert pool.stats().timeouts == 160


def is_at_rest(now: PoolStats) -> bool:
    """Whether all objects are home. After a release the process of a far one is asked first."""
    return (now.idle, now.leased, now.waiting, now.building) == (now.size, 0, 0, 0)


@pytest.mark.everywhere("none")
@pytest.mark.pool(Tool, max_size=3)
@pytest.mark.stress
def test_acquires_that_hardly_wait_lose_nothing(pool: ObjectPool[Any]) -> None:
    seed, seconds = stress_seed(), stress_seconds()
    end = time.monotonic() + seconds
    asked, served = [0] * 8, [0] * 8

    def hurry(index: int) -> None:
        dice = random.Random(seed + index)
        while time.monotonic() < end:
            asked[index] += 1
            try:
                with pool.lease(timeout=dice.choice((0, 0.0001, 0.001, 0.005))) as tool:
                    served[index] += 1
                    if dice.random() < 0.2:
                        tool.nap(0.001)
            except PoolTimeout:
                continue

    side_by_side(8, hurry, seconds + 30)
    wait_until(lambda: is_at_rest(pool.stats()))
    now = pool.stats()
    assert now.acquired == sum(served)
    assert now.acquired + now.timeouts == sum(asked)


# -- leaks ----------------------------------------------------------------------------------------------


class Nest(Tool):
    def nested(self) -> Any:
        return (each for each in range(3))  # does not pickle

    def large(self, size: int) -> bytes:
        return bytes(size)


NESTS = pytest.mark.pool(Nest, max_size=2)


def assert_leaves_nothing(
    manager: PoolManager, use: Callable[[int], object], *, first: int, then: int, mebibytes: float = 2
) -> None:
    """Once `use` has been done `first` times, doing it `then` more leaves no memory, thread or descriptor."""
    process = process_of(manager)
    use(first)
    memory, threads, descriptors = process.memory_info().rss, process.num_threads(), process.num_fds()
    use(then)
    spare = 2  # threads that wait a while for the next hook
    wait_until(lambda: process.num_threads() <= threads + spare)
    wait_until(lambda: process.num_fds() <= descriptors)
    grown = (process.memory_info().rss - memory) / 2**20
    assert grown < mebibytes, f"{grown:.1f} MiB more"


@pytest.mark.everywhere
@pytest.mark.local
@pytest.mark.manager(watch_interval=0.2)  # what is parked comes home after a second
@pytest.mark.stress
def test_many_cycles_leave_nothing(manager: PoolManager, pool: ObjectPool[Any]) -> None:
    def cycle(times: int) -> None:
        for number in range(times):
            with pool.lease() as tool:
                assert tool.echo(number) == number

    assert_leaves_nothing(manager, cycle, first=500, then=stress_times(100_000))
    assert pool.stats().size == 1


@NESTS
@pytest.mark.stress
def test_many_nested_handles_leave_nothing(manager: PoolManager, pool: ObjectPool[Any]) -> None:
    def nest(times: int) -> None:
        with pool.lease() as nest:
            for _ in range(times):
                assert list(nest.nested()) == [0, 1, 2]

    assert_leaves_nothing(manager, nest, first=200, then=stress_times(10_000))


def test_many_waits_leave_nothing(manager: PoolManager, pool: ObjectPool[Any]) -> None:
    def wait(times: int) -> None:
        for timeout in (0, 0.0005) * times:
            with contextlib.suppress(PoolTimeout):
                pool.acquire(timeout)

    with pool.lease(), pool.lease():
        assert_leaves_nothing(manager, wait, first=100, then=500)


@NESTS
def test_large_answers_leave_nothing(manager: PoolManager, pool: ObjectPool[Any]) -> None:
    def answer(times: int) -> None:
        for _ in range(times):
            assert len(nest.large(10_000_000)) == 10_000_000
            assert len(nest.echo(bytes(10_000_000))) == 10_000_000
        pool.stats()

    with pool.lease() as nest:  # the memory files of this connection are there after the first, for a while
        assert_leaves_nothing(manager, answer, first=3, then=20, mebibytes=15)


@pytest.mark.everywhere("none", "process")
@pytest.mark.local
@pytest.mark.pool(Tool, min_size=2, max_size=2)  # each object has descriptors, in a process of its own
@pytest.mark.stress
def test_many_short_lived_clients_leave_nothing(manager: PoolManager, pool: ObjectPool[Any]) -> None:
    def fork_clients(times: int) -> None:
        for _ in range(times):
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    status = pool.apply(Tool.echo, 0)
                    pool.acquire()
                finally:
                    os._exit(status)  # holding an object
            assert os.waitpid(pid, 0)[1] == 0
        wait_until(lambda: all_idle(pool, 2))

    assert_leaves_nothing(manager, fork_clients, first=20, then=stress_times(1000), mebibytes=3)
    assert pool.leases() == []


def test_many_short_lived_threads_leave_nothing(manager: PoolManager, pool: ObjectPool[Any]) -> None:
    def use_in_threads(times: int) -> None:
        for _ in range(times):
            side_by_side(30, lambda index: pool.apply(Tool.echo, index))
        wait_until(lambda: process_of(manager).num_threads() < 10)

    assert_leaves_nothing(manager, use_in_threads, first=1, then=10, mebibytes=3)


def test_many_pools_leave_nothing(manager: PoolManager) -> None:
    def make_and_close(times: int) -> None:
        for _ in range(times):
            pool = manager.create_pool(Tool, max_size=2, min_size=1)
            assert pool.apply(Tool.echo, 1) == 1
            pool.close()

    assert_leaves_nothing(manager, make_and_close, first=50, then=300)
