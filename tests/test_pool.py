"""The pool for the threads of one process.

Most tests move the clock by hand and have the slow work done when they say so; those with threads
wait for what they can see.
"""

from __future__ import annotations

import gc
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from helpers import wait_until
from standins import (
    Call,
    Caller,
    Clock,
    InlineThreads,
    LocalPool,
    ManualThreads,
    Thing,
    Things,
    Timeline,
    calling,
    side_by_side,
)

from mppool import (
    FactoryError,
    LeaseError,
    LeaseLost,
    PoolClosed,
    PoolError,
    PoolTimeout,
    TooManyWaiting,
)
from mppool._pool import pool as pool_module
from mppool._pool.threads import Job
from mppool._system.processes import ProcessId
from mppool.options import BUILDS_AT_ONCE, HOOK_BOUND


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def things() -> Things:
    return Things()


@pytest.fixture
def threads() -> ManualThreads:
    return ManualThreads()


MakePool = Callable[..., LocalPool]


@pytest.fixture
def make_pool(clock: Clock, things: Things) -> MakePool:
    """A pool of things. Time stands still; slow work is done at once, or when the test's `threads` do it."""

    def make(factory: Callable[[], Any] = things.make, **options: Any) -> LocalPool:
        defaults = {"close": things.close, "clock": clock, "threads": InlineThreads(), "max_size": 1}
        return LocalPool(factory, name="db", **{**defaults, **options})

    return make


def after(pool: LocalPool, clock: Clock, seconds: float) -> None:
    clock.now += seconds
    pool.tend()


# -- lending ------------------------------------------------------------------------------------------


def test_what_comes_home_is_lent_again(make_pool: MakePool, things: Things) -> None:
    pool = make_pool()
    for _ in range(3):
        pool.release(pool.acquire())
    assert len(things.made) == 1


def test_the_last_used_object_goes_first(make_pool: MakePool) -> None:
    pool = make_pool(max_size=3)
    callers = [Caller(pool) for _ in range(3)]
    for caller in callers:
        caller.give_back()
    assert Caller(pool).thing is callers[2].thing


def test_in_fifo_order_objects_take_turns(make_pool: MakePool) -> None:
    pool = make_pool(max_size=3, order="fifo")
    callers = [Caller(pool) for _ in range(3)]
    for caller in callers:
        caller.give_back()
    turns = []
    for _ in range(6):
        caller = Caller(pool)
        turns.append(caller.thing)
        caller.give_back()
    assert turns == [caller.thing for caller in callers] * 2


def test_it_grows_on_demand_up_to_its_size(make_pool: MakePool, things: Things) -> None:
    pool = make_pool(min_size=1, max_size=3)
    assert len(things.made) == 1
    callers = [Caller(pool) for _ in range(5)]
    assert len(things.made) == 3
    assert [caller.waiting for caller in callers] == [False, False, False, True, True]
    assert len({caller.thing for caller in callers[:3]}) == 3


def test_a_fixed_pool_raises_at_once_when_it_is_exhausted(make_pool: MakePool) -> None:
    pool = make_pool(min_size=2, max_size=2, timeout=0)
    for _ in range(2):
        pool.acquire()
    with pytest.raises(PoolTimeout, match="2 held"):
        pool.acquire()
    assert pool.stats().waiting == 0


def test_now_or_never_builds_where_there_is_room(
    make_pool: MakePool, things: Things, threads: ManualThreads
) -> None:
    pool = make_pool(max_size=1, threads=threads)
    caller = Caller(pool, timeout=0)
    assert caller.waiting
    threads.do()
    assert caller.thing is things.made[0]
    with pytest.raises(PoolTimeout):
        Caller(pool, timeout=0)


@pytest.mark.parametrize("discard", [False, True])
def test_now_or_never_is_not_refused_for_an_object_that_nobody_holds(
    make_pool: MakePool, discard: bool, threads: ManualThreads
) -> None:
    pool = make_pool(max_size=1, threads=threads, reset=lambda thing: None)
    first = Caller(pool)
    threads.do_all()
    first.give_back(discard=discard)  # being reset, or closed, from here on
    second = Caller(pool, timeout=0)
    threads.do_all()
    assert (second.thing is first.thing) is not discard


def test_one_after_the_other_never_exhausts_a_pool_of_one(things: Things) -> None:
    pool = LocalPool(things.make, max_size=1, timeout=0, reset=lambda thing: None, check=lambda thing: None)
    for _ in range(200):
        with pool.lease():
            pass
    pool.close()


@pytest.mark.parametrize("timeout", [None, float("inf"), 1e300, threading.TIMEOUT_MAX])
def test_a_timeout_may_be_longer_than_threads_can_count(timeout: float | None) -> None:
    pool = LocalPool(object, max_size=1)
    lease = pool.acquire(timeout)
    thread = threading.Thread(target=lambda: pool.release(pool.acquire(timeout)))
    thread.start()
    wait_until(lambda: pool.stats().waiting)
    pool.release(lease)
    thread.join(10)
    pool.close(timeout)
    assert pool.stats().size == 0


@pytest.mark.parametrize(
    ("timeout", "error"), [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError)]
)
def test_a_wrong_timeout_is_named(make_pool: MakePool, timeout: Any, error: type[Exception]) -> None:
    pool = make_pool()
    with pytest.raises(error, match="timeout"):
        pool.acquire(timeout)
    with pytest.raises(error, match="timeout"):
        pool.close(timeout)
    pool.acquire()


def test_a_wrong_option_is_named(things: Things) -> None:
    with pytest.raises(ValueError, match="max_size"):
        LocalPool(things.make, max_size=0)
    with pytest.raises(TypeError, match="max_sise"):
        LocalPool(things.make, max_sise=0)
    assert not things.made


def test_any_value_can_be_pooled() -> None:
    pool = LocalPool(lambda: None, max_size=1, check=lambda value: value, threads=InlineThreads())
    for _ in range(2):
        with pool.lease() as value:
            assert value is None


def test_what_was_released_cannot_be_released_again(make_pool: MakePool) -> None:
    pool = make_pool()
    lease = pool.acquire()
    pool.release(lease)
    again = pool.acquire()
    with pytest.raises(LeaseError, match="'db'"):
        pool.release(lease)
    assert pool.held(again.id) is again  # it has the same object
    assert pool.stats().late_releases == 1


def test_another_pools_lease_is_refused(make_pool: MakePool) -> None:
    one, other = make_pool(), make_pool()
    lease = one.acquire()
    other.acquire()
    with pytest.raises(LeaseError):
        other.release(lease)
    assert other.stats().leased == one.stats().leased == 1


def test_a_lease_can_be_looked_up_while_it_lasts(make_pool: MakePool) -> None:
    pool = make_pool()
    lease = pool.acquire()
    assert pool.held(lease.id) is lease
    assert isinstance(lease.object, Thing)
    pool.release(lease)
    assert lease.over
    with pytest.raises(LeaseLost, match="is over"):
        _ = lease.object
    with pytest.raises(LeaseLost, match=f"'db'.*{lease.id}"):
        pool.held(lease.id)


def test_a_discarded_object_is_closed_and_not_lent_again(make_pool: MakePool, things: Things) -> None:
    pool = make_pool()
    first = Caller(pool)
    first.give_back(discard=True)
    assert things.closed[first.thing] == 1
    assert Caller(pool).thing is not first.thing
    assert pool.stats().retired == {"discarded": 1}


# -- the queue ----------------------------------------------------------------------------------------


def test_first_come_first_served(make_pool: MakePool) -> None:
    pool = make_pool()
    callers = [Caller(pool) for _ in range(6)]
    for index in range(5):
        assert [caller.waiting for caller in callers] == [False] * (index + 1) + [True] * (5 - index)
        callers[index].give_back()


def test_those_who_left_are_passed_over(make_pool: MakePool, clock: Clock) -> None:
    pool = make_pool()
    holder = Caller(pool)
    cancelled, patient, impatient, last = (Caller(pool, timeout) for timeout in (9, 9, 3, 9))
    assert cancelled.waiter
    assert pool.cancel(cancelled.waiter)
    after(pool, clock, 3)
    assert isinstance(impatient.error, PoolTimeout)
    holder.give_back()
    assert patient.thing is holder.thing
    assert last.waiting
    patient.give_back()
    assert last.thing is holder.thing
    assert cancelled.waiting  # it was told nothing
    assert pool.stats().waiting == 0


def test_nobody_overtakes_the_queue(make_pool: MakePool) -> None:
    pool = make_pool(reset=lambda thing: None, check=lambda thing: None)
    holder, waiter, late = Caller(pool), Caller(pool), Caller(pool)
    holder.give_back()
    assert not waiter.waiting
    with pytest.raises(PoolTimeout):
        Caller(pool, timeout=0)
    assert late.waiting


def test_a_cancel_comes_once_and_may_come_too_late(make_pool: MakePool) -> None:
    pool = make_pool()
    holder, waiter, other = Caller(pool), Caller(pool), Caller(pool)
    assert waiter.waiter
    assert other.waiter
    assert pool.cancel(other.waiter)
    assert not pool.cancel(other.waiter)
    holder.give_back()
    assert not pool.cancel(waiter.waiter)
    pool.expire(waiter.waiter)
    pool.expire(other.waiter)
    assert waiter.thing is holder.thing
    assert pool.stats().timeouts == 0


def test_what_nobody_is_there_to_take_goes_to_the_next(make_pool: MakePool) -> None:
    pool = make_pool()
    holder = Caller(pool)
    gone = [Caller(pool, takes=False) for _ in range(3)]
    there = Caller(pool)
    holder.give_back()
    assert there.thing is holder.thing
    assert not any(each.told for each in gone)
    there.give_back()
    assert pool.stats().idle == 1


def test_a_crowd_that_has_gone_costs_no_recursion(make_pool: MakePool) -> None:
    pool = make_pool()
    holder = Caller(pool)
    for _ in range(3000):
        Caller(pool, takes=False)
    holder.give_back()
    assert pool.stats().idle == 1


def test_a_way_to_a_waiter_that_breaks_costs_nobody_else(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(outcome: object) -> bool:
        raise OSError("broken pipe")

    pool = make_pool()
    holder = Caller(pool)
    pool.request(ProcessId(5, None), broken)
    next_one = Caller(pool)
    holder.give_back()
    assert next_one.thing is holder.thing
    assert "broken pipe" in caplog.text


def test_a_full_queue_refuses_at_once(make_pool: MakePool) -> None:
    pool = make_pool(max_waiting=2)
    holder, first, second = Caller(pool), Caller(pool), Caller(pool)
    with pytest.raises(TooManyWaiting, match=r"'db': 2 wait already, max_waiting=2; 1 of at most 1 .* held"):
        Caller(pool)
    assert pool.stats().waiting == 2
    holder.give_back()
    third = Caller(pool)
    first.give_back()
    second.give_back()
    assert third.thing is holder.thing


def test_those_whose_object_is_being_built_are_no_queue(make_pool: MakePool, threads: ManualThreads) -> None:
    pool = make_pool(max_size=2, max_waiting=0, threads=threads)
    callers = [Caller(pool), Caller(pool)]
    with pytest.raises(TooManyWaiting):
        Caller(pool)
    threads.do_all()
    assert not any(caller.waiting for caller in callers)


def test_a_timeout_says_who_holds_and_how_long(make_pool: MakePool, clock: Clock) -> None:
    pool = make_pool(max_size=2)
    Caller(pool, pid=41)
    clock.now += 7
    Caller(pool, pid=42)
    waiter = Caller(pool, timeout=2.5)
    after(pool, clock, 2.5)
    assert str(waiter.error) == (
        "pool 'db': no object came free in 2.5 s: 2 held (longest by pid 41 (worker-41), 9.5 s), "
        "0 being built, 1 waiting, max_size=2"
    )


def test_a_timeout_says_so_when_the_one_that_waits_holds_the_objects_itself(
    make_pool: MakePool, clock: Clock
) -> None:
    pool = make_pool(max_size=3)
    for pid in (41, 42, 41):
        Caller(pool, pid=pid)
    own, other = Caller(pool, timeout=1, pid=41), Caller(pool, timeout=1, pid=43)
    with pytest.raises(PoolTimeout, match=r"max_size=3; this process holds 1 of them itself"):
        Caller(pool, timeout=0, pid=42)
    after(pool, clock, 1)
    assert str(own.error).endswith("max_size=3; this process holds 2 of them itself")
    assert str(other.error).endswith("max_size=3")


def test_a_timeout_tells_the_last_failure_to_build(
    make_pool: MakePool, clock: Clock, things: Things, threads: ManualThreads
) -> None:
    pool = make_pool(max_size=2, threads=threads)
    things.fail_builds = OSError("refused")
    first = Caller(pool)
    threads.do()
    assert isinstance(first.error, FactoryError)
    hung = Caller(pool, timeout=1)
    after(pool, clock, 1)
    assert isinstance(hung.error, PoolTimeout)
    assert "1 being built" in str(hung.error)
    assert "the last build failed: OSError: refused" in str(hung.error)


def test_tend_says_when_the_next_waiter_gives_up(make_pool: MakePool, clock: Clock) -> None:
    pool = make_pool()
    assert pool.tend() is None
    holder = Caller(pool)
    Caller(pool, timeout=9)
    soonest = Caller(pool, timeout=4)
    Caller(pool, timeout=None)
    assert pool.tend() == clock.now + 4
    assert soonest.waiter
    pool.cancel(soonest.waiter)
    assert pool.tend() == clock.now + 9
    holder.give_back()
    assert pool.tend() is None


def test_waiters_give_up_in_the_order_of_their_deadlines(make_pool: MakePool, clock: Clock) -> None:
    pool = make_pool()
    Caller(pool)
    callers = [Caller(pool, timeout) for timeout in (5, 1, 3)]
    for moment in ([0, 1, 0], [0, 1, 1], [1, 1, 1]):
        after(pool, clock, 2)
        assert [len(caller.told) for caller in callers] == moment
    assert pool.stats().timeouts == 3


def test_those_who_were_served_are_forgotten_long_before_their_timeout(make_pool: MakePool) -> None:
    pool = make_pool(timeout=1e6)
    holder = Caller(pool)
    first = Caller(pool)
    seen = weakref.ref(first)
    for _ in range(500):
        holder.give_back()
        holder = first
        first = Caller(pool)
    gc.collect()
    assert seen() is None


class Interrupt(BaseException):
    """What a signal handler might raise."""


def test_an_interrupted_release_keeps_nobody_else_waiting(make_pool: MakePool) -> None:
    told: list[object] = []

    def interrupted_once(outcome: object) -> bool:
        told.append(outcome)
        if len(told) == 1:
            raise Interrupt
        return True

    pool = make_pool(max_size=2, on_reclaim="reset")
    for _ in range(2):
        Caller(pool, pid=41)
    pool.request(ProcessId(42, None), interrupted_once)
    waiter = Caller(pool, pid=43)
    with pytest.raises(Interrupt):
        pool.reclaim(ProcessId(41, None))
    pool.tend()
    assert waiter.lease.holder.pid == 43
    assert told == [told[0]] * 2, "who was being told when the interrupt came has been told"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["build", "reset", "close"])
def test_slow_work_that_an_interrupt_met_on_its_way_is_done_once(
    make_pool: MakePool, things: Things, when: str, what: str, threads: ManualThreads
) -> None:
    hand_over = threads.submit
    resets: list[Thing] = []
    pool = make_pool(max_size=1, reset=resets.append, threads=threads)

    interrupts = iter([True])

    def interrupted(job: Job) -> None:
        now = next(interrupts, False)
        if not now or when == "after":
            hand_over(job)
        if now:
            raise Interrupt

    interrupt_it: Callable[[], object] = partial(Caller, pool)
    if what != "build":
        caller = Caller(pool)
        threads.do_all()
        interrupt_it = partial(pool.give_back, caller.lease.id, discard=what == "close")
    threads.submit = interrupted  # type: ignore[method-assign]
    with pytest.raises(Interrupt):
        interrupt_it()
    pool.tend()
    threads.do_all()
    assert len(things.made) == 1
    assert (len(resets), len(things.alive)) == (what == "reset", what != "close")


# -- building -----------------------------------------------------------------------------------------


class Unspeakable(Exception):
    def __repr__(self) -> str:
        raise ZeroDivisionError

    __str__ = __repr__


def test_a_factory_error_that_has_no_text_harms_nobody(make_pool: MakePool, things: Things) -> None:
    pool = make_pool()
    things.fail_builds = Unspeakable()
    for _ in range(2):
        with pytest.raises(FactoryError, match="Unspeakable") as caught:
            pool.acquire(0)
        assert caught.value.__cause__ is things.fail_builds
    assert (pool.stats().building, pool.stats().waiting, pool.stats().size) == (0, 0, 0)
    things.fail_builds = None
    with pool.lease(0), pytest.raises(PoolTimeout):
        pool.acquire(0)
    assert pool.stats().waiting == 0


def test_now_or_never_does_not_wait_for_a_build_that_hangs(
    make_pool: MakePool, clock: Clock, threads: ManualThreads
) -> None:
    pool = make_pool(max_size=1, threads=threads)
    gave_up = Caller(pool, timeout=1)  # his is the build that never ends
    clock.now += HOOK_BOUND + 1
    pool.tend()
    assert isinstance(gave_up.error, PoolTimeout)
    with pytest.raises(PoolTimeout):
        pool.acquire(0)
    threads.do()
    with pool.lease(0):
        pass


def test_lease_ids_are_never_met_again(make_pool: MakePool) -> None:
    pools = [make_pool() for _ in range(2)]
    ids = []
    for pool in pools * 50:
        lease = pool.acquire(0)
        ids.append(lease.id)
        pool.release(lease)
    assert len(set(ids)) == 100
    assert ids[::2] == sorted(ids[::2])


def test_objects_are_built_ahead_side_by_side(make_pool: MakePool, threads: ManualThreads) -> None:
    pool = make_pool(min_size=BUILDS_AT_ONCE, max_size=9, threads=threads)
    assert len(threads.jobs) == BUILDS_AT_ONCE
    assert pool.stats().building == BUILDS_AT_ONCE
    threads.do_all()
    assert pool.stats().idle == BUILDS_AT_ONCE


def test_only_a_few_are_built_at_a_time(make_pool: MakePool, things: Things, threads: ManualThreads) -> None:
    pool = make_pool(min_size=10, max_size=10, threads=threads)
    for left in range(10, 0, -1):
        assert len(threads.jobs) == min(left, BUILDS_AT_ONCE)
        threads.do()
    assert len(things.made) == pool.stats().idle == 10


def test_a_build_is_not_begun_when_nobody_wants_it_any_more(
    make_pool: MakePool, things: Things, threads: ManualThreads
) -> None:
    pool = make_pool(max_size=50, threads=threads)
    callers = [Caller(pool) for _ in range(50)]
    for caller in callers[6:]:
        assert caller.waiter
        pool.cancel(caller.waiter)
    threads.do_all()
    assert len(things.made) == 6


def test_a_build_outlives_the_caller_that_gave_up(
    make_pool: MakePool, clock: Clock, things: Things, threads: ManualThreads
) -> None:
    pool = make_pool(max_size=1, threads=threads)
    first = Caller(pool, timeout=1)
    after(pool, clock, 1)
    assert isinstance(first.error, PoolTimeout)
    second = Caller(pool)
    threads.do()
    assert second.thing is things.made[0]
    assert not threads.jobs


def test_whichever_comes_first_is_taken(make_pool: MakePool, threads: ManualThreads) -> None:
    pool = make_pool(max_size=2, threads=threads)
    first = Caller(pool)
    threads.do()
    second = Caller(pool)
    first.give_back()
    assert second.thing is first.thing
    threads.do()
    assert pool.stats().idle == 1


def test_the_queue_goes_before_the_one_whose_build_it_was(
    make_pool: MakePool, threads: ManualThreads
) -> None:
    pool = make_pool(max_size=9, threads=threads)
    callers = [Caller(pool) for _ in range(3)]
    threads.do(2)
    assert [caller.waiting for caller in callers] == [False, True, True]


def test_a_short_spike_is_served_without_a_row_of_objects(
    make_pool: MakePool, clock: Clock, things: Things
) -> None:
    """50 requests at once, 5 objects there, a build takes 150 ms and a use 2 ms."""
    line = Timeline(clock, 0.150)
    pool = make_pool(min_size=5, max_size=50, threads=line)
    line.run()
    began, served = clock.now, []

    def use(caller: Caller) -> None:
        if caller.waiting:
            line.after(0.001, partial(use, caller))
        else:
            served.append(clock.now - began)
            line.after(0.002, caller.give_back)

    for _ in range(50):
        use(Caller(pool))
    line.run()
    assert len(served) == 50
    assert max(served) <= 0.200
    assert len(things.made) <= 10


def test_slow_builds_go_side_by_side(make_pool: MakePool, clock: Clock) -> None:
    line = Timeline(clock, 1.0)
    pool = make_pool(max_size=4, threads=line)
    began = clock.now
    callers = [Caller(pool) for _ in range(4)]
    line.run()
    assert len({caller.thing for caller in callers}) == 4
    assert clock.now - began == 1.0


def test_a_short_spike_of_threads() -> None:
    things = Things()
    over = threading.Event()

    def build() -> Thing:
        if len(things.made) >= 5:
            over.wait(60)  # which is longer than any of them waits
        return things.make()

    pool = LocalPool(build, min_size=5, max_size=50)
    wait_until(lambda: pool.stats().idle == 5)

    def use(_: int) -> None:
        with pool.lease(timeout=30):
            time.sleep(0.002)

    side_by_side(50, use)
    over.set()
    assert pool.stats().acquired == 50
    wait_until(lambda: not pool.stats().building)
    assert len(things.made) <= 5 + BUILDS_AT_ONCE
    pool.close()


def test_slow_builds_of_threads_go_side_by_side() -> None:
    together = threading.Barrier(4)

    def build() -> object:
        together.wait(10)  # none is done before all four are under way
        return object()

    pool = LocalPool(build, max_size=4)
    side_by_side(4, lambda _: pool.acquire(10))
    assert pool.stats().leased == 4
    pool.close(0)


def test_who_an_object_cannot_be_built_for_is_told_at_once(make_pool: MakePool, things: Things) -> None:
    pool = make_pool()
    things.fail_builds = OSError("refused")
    with pytest.raises(FactoryError, match=r"pool 'db': the factory failed: OSError: refused") as caught:
        pool.acquire()
    assert caught.value.__cause__ is things.fail_builds
    stats = pool.stats()
    assert (stats.failed_builds, stats.size, stats.waiting, stats.timeouts) == (1, 0, 0, 0)
    things.fail_builds = None
    pool.acquire()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_whatever_a_factory_raises_its_place_is_free_again(
    make_pool: MakePool, things: Things, error: BaseException
) -> None:
    pool = make_pool()
    things.fail_builds = error
    for _ in range(2):
        with pytest.raises(FactoryError):
            pool.acquire()


def test_a_failure_strikes_only_the_one_it_was_for(
    make_pool: MakePool, things: Things, threads: ManualThreads
) -> None:
    pool = make_pool(max_size=2, threads=threads)
    callers = [Caller(pool) for _ in range(4)]
    things.fail_builds = OSError("refused")
    threads.do(1)  # begun for the second
    things.fail_builds = None
    assert [caller.waiting for caller in callers] == [True, False, True, True]
    assert isinstance(callers[1].error, FactoryError)
    threads.do_all()
    assert [caller.waiting for caller in callers] == [False, False, False, True]


def test_when_every_build_fails_all_are_told_and_none_is_stuck(make_pool: MakePool, things: Things) -> None:
    pool = make_pool(max_size=3)
    things.fail_builds = OSError("refused")
    for _ in range(20):
        with pytest.raises(FactoryError):
            pool.acquire()
    assert pool.stats().size == 0


def test_a_failure_is_no_concern_of_one_who_has_got_something(
    make_pool: MakePool, things: Things, caplog: pytest.LogCaptureFixture, threads: ManualThreads
) -> None:
    pool = make_pool(max_size=2, threads=threads)
    first = Caller(pool)
    threads.do()
    second = Caller(pool)
    first.give_back()
    things.fail_builds = OSError("refused")
    threads.do()
    assert second.thing is first.thing
    assert "pool 'db': an object could not be built" in caplog.text
    assert "refused" in caplog.text


def test_one_who_counted_on_a_build_ahead_gets_another_when_it_fails(
    make_pool: MakePool, things: Things, threads: ManualThreads
) -> None:
    pool = make_pool(min_size=1, max_size=1, threads=threads)
    caller = Caller(pool)
    assert len(threads.jobs) == 1
    things.fail_builds = OSError("refused")
    threads.do()
    assert caller.waiting  # that build was not for him
    things.fail_builds = None
    threads.do()
    assert caller.thing


def test_a_build_ahead_is_tried_again_after_growing_pauses(
    make_pool: MakePool, clock: Clock, things: Things, caplog: pytest.LogCaptureFixture
) -> None:
    things.fail_builds = OSError("refused")
    pool = make_pool(min_size=2, max_size=4)
    began, tries = clock.now, [0.0]
    failed = pool.stats().failed_builds
    while clock.now < began + 500:
        after(pool, clock, 0.25)
        if pool.stats().failed_builds > failed:
            tries.append(clock.now - began)
        failed = pool.stats().failed_builds
    for wanted, (earlier, later) in zip([1, 2, 4, 8, 16, 32, 60, 60, 60], pairwise(tries), strict=False):
        assert 0.9 * wanted <= later - earlier <= 1.1 * wanted + 0.25
    assert "could not be built" in caplog.text
    things.fail_builds = None
    after(pool, clock, 66)
    assert pool.stats().idle == 2


def test_builds_that_fail_side_by_side_make_one_pause(
    make_pool: MakePool, clock: Clock, things: Things, threads: ManualThreads
) -> None:
    pool = make_pool(min_size=4, max_size=4, threads=threads)
    things.fail_builds = OSError("refused")
    threads.do_all()
    assert pool.stats().failed_builds == 4
    after(pool, clock, 1.1)
    assert pool.stats().building == 4


def test_after_a_success_the_pauses_start_small_again(
    make_pool: MakePool, clock: Clock, things: Things
) -> None:
    things.fail_builds = OSError("refused")
    pool = make_pool(min_size=1, max_size=2)
    for _ in range(5):
        after(pool, clock, 60)
    things.fail_builds = None
    after(pool, clock, 60)
    caller = Caller(pool)
    things.fail_builds = OSError("refused")
    caller.give_back(discard=True)
    things.fail_builds = None
    after(pool, clock, 1.1)
    assert pool.stats().idle == 1


@pytest.mark.parametrize("ahead", [True, False])
def test_a_factory_that_hangs_takes_its_place_and_holds_up_nobody_else(
    make_pool: MakePool, clock: Clock, things: Things, ahead: bool, threads: ManualThreads
) -> None:
    hanging = BUILDS_AT_ONCE
    pool = make_pool(min_size=hanging if ahead else 0, max_size=hanging + 1, threads=threads)
    if not ahead:
        gone = [Caller(pool, timeout=1) for _ in range(hanging)]
        after(pool, clock, 1)
        assert all(isinstance(each.error, PoolTimeout) for each in gone)
    caller = Caller(pool, timeout=None)
    assert len(threads.jobs) == hanging
    after(pool, clock, HOOK_BOUND)
    assert len(threads.jobs) == hanging + 1
    threads.do(hanging)
    assert caller.thing is things.made[0]
    assert (pool.stats().size, pool.stats().building) == (hanging + 1, hanging)
    late = Caller(pool, timeout=1)
    after(pool, clock, 1)
    assert f"1 held (longest by pid 1 (worker-1), 1.0 s), {hanging} being built" in str(late.error)
    threads.do_all()  # they return after all
    assert (pool.stats().size, pool.stats().building) == (hanging + 1, 0)
    assert len([Caller(pool, timeout=0) for _ in range(hanging)]) == hanging


def test_a_build_may_take_long_for_the_one_who_waits_for_it(
    make_pool: MakePool, clock: Clock, things: Things, threads: ManualThreads
) -> None:
    pool = make_pool(max_size=9, threads=threads)
    caller = Caller(pool, timeout=None)
    for _ in range(5):
        after(pool, clock, HOOK_BOUND)
    assert len(threads.jobs) == 1
    threads.do()
    assert caller.thing is things.made[0]


@pytest.mark.parametrize("loss", ["discard", "uses", "reset", "reclaim", "hold", "lifetime"])
def test_it_refills_to_its_least_size(make_pool: MakePool, clock: Clock, things: Things, loss: str) -> None:
    def reset(thing: Thing) -> None:
        assert loss != "reset"

    pool = make_pool(
        min_size=3,
        max_size=3,
        reset=reset,
        max_uses=1 if loss == "uses" else None,
        max_hold=1,
        max_lifetime=10,
    )
    first = list(things.made)
    callers = [Caller(pool) for _ in range(3)]
    if loss in {"hold", "lifetime"}:
        after(pool, clock, 10 if loss == "lifetime" else 1)
    elif loss == "reclaim":
        pool.reclaim(ProcessId(1, None))
    else:
        for caller in callers:
            caller.give_back(discard=loss == "discard")
    stats = pool.stats()
    assert (stats.size, stats.idle) == (3, 3)
    assert all(things.closed[each] == 1 for each in first)


# -- check, reset, close ------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [True, None, 0, "yes"])
def test_an_object_is_fine_unless_its_check_says_no(
    make_pool: MakePool, things: Things, verdict: object
) -> None:
    pool = make_pool(check=lambda thing: verdict)
    for _ in range(3):
        Caller(pool).give_back()
    assert len(things.made) == 1


@pytest.mark.parametrize("raises", [False, True])
def test_broken_idle_objects_are_closed_and_the_next_is_tried(
    make_pool: MakePool, things: Things, raises: bool
) -> None:
    broken: set[Thing] = set()

    def check(thing: Thing) -> bool:
        if raises and thing in broken:
            raise OSError("gone")
        return thing not in broken

    pool = make_pool(check=check, min_size=3, max_size=3)
    pool.resize(min_size=0)
    broken.update(things.made[1:])
    assert Caller(pool).thing is things.made[0]
    assert dict(things.closed) == dict.fromkeys(broken, 1)
    assert pool.stats().retired == {"check": 2}


def test_when_all_idle_objects_are_broken_a_new_one_is_built(make_pool: MakePool, things: Things) -> None:
    pool = make_pool(check=lambda thing: thing.number >= 5, min_size=5, max_size=5)
    callers = [Caller(pool, timeout=0) for _ in range(5)]
    assert {caller.thing.number for caller in callers} == {5, 6, 7, 8, 9}
    assert things.most == 5


def test_what_was_just_built_needs_no_check(make_pool: MakePool) -> None:
    checked: list[Thing] = []
    pool = make_pool(check=checked.append)
    caller = Caller(pool)
    assert not checked
    caller.give_back()
    assert not checked
    assert Caller(pool).thing is checked[0]


def test_what_comes_home_to_a_waiter_is_checked_first(make_pool: MakePool, things: Things) -> None:
    pool = make_pool(check=lambda thing: thing.number > 0)
    first, second = Caller(pool), Caller(pool)
    first.give_back()
    assert second.thing is things.made[1]


def test_an_idle_object_does_not_wait_for_a_build_that_is_under_way(
    make_pool: MakePool, things: Things, threads: ManualThreads
) -> None:
    pool = make_pool(min_size=2, max_size=2, check=lambda thing: True, threads=threads)
    threads.do()
    caller = Caller(pool)
    threads.do(1)  # the check; the build before it takes its time
    assert caller.thing is things.made[0]


def test_a_check_is_not_in_the_callers_way_when_it_left(make_pool: MakePool, threads: ManualThreads) -> None:
    pool = make_pool(min_size=1, max_size=1, check=lambda thing: True, threads=threads)
    threads.do()
    caller = Caller(pool)
    assert caller.waiter
    pool.cancel(caller.waiter)
    threads.do()
    assert pool.stats().idle == 1


def test_the_next_holder_never_sees_the_last_ones_state() -> None:
    pool = LocalPool(list, max_size=1, reset=list.clear, threads=InlineThreads())
    for number in range(3):
        with pool.lease() as values:
            assert values == []
            values.append(number)


def test_an_object_that_is_being_reset_is_not_lent(make_pool: MakePool, threads: ManualThreads) -> None:
    pool = make_pool(max_size=1, reset=lambda thing: None, threads=threads)
    first = Caller(pool)
    threads.do()
    second = Caller(pool)
    first.give_back()
    assert second.waiting
    assert pool.stats().size == 1
    threads.do()
    assert second.thing is first.thing


def test_what_cannot_be_reset_is_closed_and_replaced(
    make_pool: MakePool, things: Things, caplog: pytest.LogCaptureFixture
) -> None:
    def reset(thing: Thing) -> None:
        raise OSError("dirty")

    pool = make_pool(reset=reset)
    first, second = Caller(pool), Caller(pool)
    first.give_back()
    assert second.thing is things.made[1]
    assert things.closed == {first.thing: 1}
    assert pool.stats().retired == {"reset": 1}
    assert "dirty" in caplog.text


@pytest.mark.parametrize("hook", ["check", "reset", "close"])
def test_a_hook_that_hangs_is_written_off(
    make_pool: MakePool,
    clock: Clock,
    things: Things,
    hook: str,
    caplog: pytest.LogCaptureFixture,
    threads: ManualThreads,
) -> None:
    hooks: dict[str, Any] = {"close": things.close, hook: getattr(things, hook, lambda thing: True)}
    pool = make_pool(max_size=1, threads=threads, **hooks)
    first = Caller(pool)
    threads.do()
    first.give_back(discard=hook == "close")
    waiter = Caller(pool, timeout=None)
    (hung,) = threads.jobs
    after(pool, clock, HOOK_BOUND - 1)
    assert threads.jobs == [hung]
    assert pool.stats().size == 1
    after(pool, clock, 1)
    assert "has not returned" in caplog.text
    threads.do(1)
    assert waiter.thing is things.made[1]
    after(pool, clock, HOOK_BOUND)
    assert caplog.text.count("has not returned") == 1
    assert pool.stats().size == 1
    threads.do_all()  # it returns after all
    assert things.closed == {first.thing: 1}
    assert pool.stats().retired == {"discarded" if hook == "close" else "hung": 1}
    waiter.give_back()
    threads.do_all()
    assert pool.stats().size == pool.stats().idle == 1


def test_until_it_is_closed_an_object_counts(
    make_pool: MakePool, things: Things, threads: ManualThreads
) -> None:
    pool = make_pool(max_size=1, threads=threads)
    first = Caller(pool)
    threads.do()
    first.give_back(discard=True)
    second = Caller(pool)
    assert len(threads.jobs) == 1  # nothing is built beside it
    threads.do_all()
    assert second.thing is things.made[1]
    assert things.most == 1


def test_an_error_in_close_costs_nothing_but_a_line_in_the_log(
    make_pool: MakePool, things: Things, caplog: pytest.LogCaptureFixture
) -> None:
    def close(thing: Thing) -> None:
        things.close(thing)
        raise OSError("already gone")

    pool = make_pool(close=close)
    for _ in range(3):
        Caller(pool).give_back(discard=True)
    assert pool.stats().size == 0
    pool.acquire()
    pool.close(0)
    assert things.all_closed_once()
    assert caplog.text.count("close failed") == 4


def test_without_a_close_hook_objects_are_dropped(make_pool: MakePool, things: Things) -> None:
    pool = make_pool(close=None)
    caller = Caller(pool)
    seen = weakref.ref(caller.thing)
    caller.give_back(discard=True)
    caller.thing = None
    things.made.clear()
    gc.collect()
    assert seen() is None


class Cursors(list[object]):
    """What calls left behind; tells when it is dropped."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def clear(self) -> None:
        self._log.append("dropped" if self else "dropped empty")


@pytest.mark.parametrize("end", ["release", "discard", "reclaim", "abandon"])
def test_what_a_lease_left_behind_goes_before_the_object_is_used_again(
    make_pool: MakePool, threads: ManualThreads, end: str
) -> None:
    seen: list[str] = []
    pool = make_pool(
        threads=threads,
        new_leftovers=lambda _: Cursors(seen),
        on_reclaim="reset",
        reset=lambda thing: seen.append("reset"),
        close=lambda thing: seen.append("close"),
    )
    first = Caller(pool)
    threads.do()
    second = Caller(pool)
    lease = first.lease
    call = Call(lease)
    if end == "abandon":
        first.give_back()
        call.end(leaves="cursor")
        pool.call_ended(lease)
    else:
        call.end(leaves="cursor")
        if end == "reclaim":
            pool.reclaim(ProcessId(1, None))
        else:
            first.give_back(discard=end == "discard")
    assert not seen
    threads.do_all()
    if end != "reclaim":  # it ended the second one's wait as well
        assert not second.waiting
    assert seen == ["dropped", "reset" if end in {"release", "reclaim"} else "close"]


def test_without_a_reset_what_a_lease_left_behind_goes_first_all_the_same(
    make_pool: MakePool, threads: ManualThreads
) -> None:
    seen: list[str] = []
    pool = make_pool(threads=threads, new_leftovers=lambda _: Cursors(seen))
    first = Caller(pool)
    threads.do()
    second = Caller(pool)
    Call(first.lease).end(leaves="cursor")
    first.give_back()
    assert second.waiting
    threads.do()
    assert seen == ["dropped"]
    assert second.thing


@pytest.mark.parametrize("left", [0, 2])
def test_each_lease_starts_without_what_the_one_before_it_left(make_pool: MakePool, left: int) -> None:
    pool = make_pool(new_leftovers=lambda _: [])
    found: list[list[int]] = []
    for number in range(3):
        lease = pool.acquire()
        call = partial(lease.entry.runner.call, lease.id)
        call(lambda place: found.append([*place.leftovers]))
        for _ in range(left):
            call(lambda place, number=number: place.leftovers.append(number))
        pool.release(lease)
    assert found == [[], [], []]


def test_a_call_of_a_lease_that_is_over_is_refused(make_pool: MakePool) -> None:
    pool = make_pool()
    first = Caller(pool)
    runner = first.lease.entry.runner
    assert not runner.fence.called
    assert runner.call(first.lease.id, lambda place: "done") == "done"
    assert runner.fence.called
    first.give_back()
    second = Caller(pool)
    assert second.lease.entry.runner is runner
    assert not runner.fence.called
    with pytest.raises(LeaseLost, match=f"lease {first.lease.id} is over"):
        runner.call(first.lease.id, lambda place: "not done")
    assert not runner.fence.called, "which is no sign of the present holder"
    second.give_back()
    assert pool.stats().retired == {}


def test_a_late_call_does_not_pass_for_one_of_the_present_lease(make_pool: MakePool) -> None:
    """It read the lease that has ended since, and comes to the lock when the next lease has begun."""
    pool = make_pool()
    first = Caller(pool)
    runner: Any = first.lease.entry.runner
    late_lock = runner.fence.lock
    first.give_back()
    second = Caller(pool)
    with late_lock:
        second.give_back()
    assert pool.stats().retired == {}, "no call was running"


def test_a_call_that_waits_for_another_is_refused_when_the_lease_ends_meanwhile(make_pool: MakePool) -> None:
    pool = make_pool()
    caller = Caller(pool)
    runner: Any = caller.lease.entry.runner
    waits = threading.Event()
    lock = threading.Lock()

    class Lock:
        locked, release = lock.locked, lock.release

        def acquire(self) -> None:
            if lock.locked():
                waits.set()
            lock.acquire()

    runner.fence.lock = Lock()
    seen: list[str] = []

    def call() -> None:
        with pytest.raises(LeaseLost):
            runner.call(caller.lease.id, lambda place: seen.append("called"))
        seen.append("refused")

    with calling(caller.lease):
        thread = threading.Thread(target=call)
        thread.start()
        assert waits.wait(10)
        caller.give_back()
    thread.join(10)
    assert seen == ["refused"]


def test_a_refused_call_closes_no_object_in_which_another_runs(make_pool: MakePool, things: Things) -> None:
    pool = make_pool()
    caller = Caller(pool)
    lease = caller.lease
    with calling(lease):
        caller.give_back()
        with pytest.raises(LeaseLost):
            lease.entry.runner.call(lease.id, lambda place: None)
        pool.call_ended(lease)  # as its session reports
        assert not things.closed
    pool.call_ended(lease)
    assert things.closed == {caller.thing: 1}


# -- time ---------------------------------------------------------------------------------------------


def test_it_shrinks_to_its_least_size_under_light_use(
    make_pool: MakePool, clock: Clock, things: Things
) -> None:
    pool = make_pool(min_size=2, max_size=8, max_idle=60)
    crowd = [Caller(pool) for _ in range(8)]
    for caller in crowd:
        caller.give_back()
    used: set[Thing] = set()
    for _ in range(70):  # one caller a second
        caller = Caller(pool)
        after(pool, clock, 1)
        caller.give_back()
        used.add(caller.thing)
    stats = pool.stats()
    assert len(used) == 1
    assert (stats.size, stats.retired) == (2, {"idle": 6})
    assert len(things.made) == 8
    assert used < set(things.alive)


def test_an_object_that_is_used_now_and_then_stays(make_pool: MakePool, clock: Clock, things: Things) -> None:
    pool = make_pool(max_idle=60)
    for _ in range(5):
        Caller(pool).give_back()
        after(pool, clock, 59)
    assert len(things.made) == 1
    after(pool, clock, 1)
    assert pool.stats().size == 0


def test_without_a_bound_objects_lie_idle_for_ever(make_pool: MakePool, clock: Clock) -> None:
    pool = make_pool(max_idle=None)
    Caller(pool).give_back()
    after(pool, clock, 1e9)
    assert pool.stats().idle == 1


def test_lifetimes_end_a_little_early_and_not_all_at_once(make_pool: MakePool, clock: Clock) -> None:
    pool = make_pool(min_size=40, max_size=40, max_lifetime=1000)
    after(pool, clock, 949)
    assert pool.stats().retired == {}
    moments = set()
    for _ in range(52):
        before = pool.stats().retired.get("lifetime", 0)
        after(pool, clock, 1)
        if pool.stats().retired.get("lifetime", 0) > before:
            moments.add(clock.now)
    assert len(moments) > 10


def test_what_is_too_old_is_not_lent(make_pool: MakePool, clock: Clock, things: Things) -> None:
    pool = make_pool(max_lifetime=100)
    Caller(pool).give_back()
    clock.now += 100  # and nobody has tended it
    assert Caller(pool).thing is things.made[1]
    assert pool.stats().retired == {"lifetime": 1}


def test_what_is_too_old_is_replaced_when_it_comes_home(
    make_pool: MakePool, clock: Clock, things: Things
) -> None:
    pool = make_pool(min_size=1, max_lifetime=100)
    caller = Caller(pool)
    after(pool, clock, 500)
    assert pool.stats().leased == 1  # not while it is held
    caller.give_back()
    assert things.closed == {caller.thing: 1}
    assert pool.stats().idle == 1


def test_renewal_never_takes_all_objects_away_at_once(
    make_pool: MakePool, clock: Clock, things: Things, monkeypatch: pytest.MonkeyPatch, threads: ManualThreads
) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.0)  # the worst case: all end together
    pool = make_pool(min_size=4, max_size=4, max_lifetime=100, threads=threads)
    threads.do_all()
    clock.now += 100
    least, rounds = 4, 0
    while len(things.made) < 8 or threads.jobs:
        pool.tend()
        least = min(least, pool.stats().idle)
        threads.do()
        least = min(least, pool.stats().idle)
        rounds += 1
        assert rounds < 100
    assert least == 3
    assert len(things.closed) == 4
    pool.tend()
    assert not threads.jobs


def test_spare_objects_that_are_too_old_go_without_being_replaced(make_pool: MakePool, clock: Clock) -> None:
    pool = make_pool(max_size=3, max_lifetime=100)
    for caller in [Caller(pool) for _ in range(3)]:
        caller.give_back()
    after(pool, clock, 100)
    assert (pool.stats().size, pool.stats().retired) == (0, {"lifetime": 3})


def test_after_so_many_uses_an_object_is_replaced(make_pool: MakePool, things: Things) -> None:
    pool = make_pool(max_uses=3)
    for _ in range(7):
        Caller(pool).give_back()
    assert len(things.made) == 3
    assert pool.stats().retired == {"uses": 2}


def test_a_lease_that_lasts_too_long_is_taken_back(
    make_pool: MakePool, clock: Clock, things: Things, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(max_hold=10)
    holder, waiter = Caller(pool, pid=41), Caller(pool, timeout=None)
    after(pool, clock, 9)
    assert waiter.waiting
    after(pool, clock, 1)
    assert waiter.thing is things.made[1]
    assert things.closed == {holder.thing: 1}
    assert pool.stats().retired == {"expired": 1}
    assert "took back lease" in caplog.text
    assert "pid 41 (worker-41), held for 10.0 s, acquired at here.py:1" in caplog.text
    with pytest.raises(LeaseLost):
        pool.held(holder.lease.id)
    with pytest.raises(LeaseError):
        holder.give_back()


@pytest.mark.parametrize("end", ["hold", "reclaim", "release", "reclaim and reset"])
def test_an_object_with_a_call_running_is_replaced_now_and_closed_when_it_returns(
    make_pool: MakePool, clock: Clock, things: Things, end: str
) -> None:
    pool = make_pool(max_hold=10, on_reclaim="reset" if "reset" in end else "close")
    holder, waiter = Caller(pool, pid=41), Caller(pool, timeout=None, pid=42)
    lease = holder.lease
    with calling(lease):
        if end == "hold":
            after(pool, clock, 10)
        elif end == "release":
            holder.give_back()
        else:
            pool.reclaim(ProcessId(41, None))
        assert waiter.thing is things.made[1]
        assert pool.stats().size == 1
        assert not things.closed
    assert lease.over
    pool.call_ended(lease)
    pool.call_ended(lease)
    assert things.closed == {holder.thing: 1}
    reason = {"hold": "expired", "reclaim": "reclaimed"}.get(end, "interrupted")
    assert pool.stats().retired == {reason: 1}


def test_the_end_of_a_call_closes_nothing_that_came_home(make_pool: MakePool, things: Things) -> None:
    pool = make_pool()
    caller = Caller(pool)
    caller.give_back()
    pool.call_ended(caller.lease)
    assert not things.closed
    assert Caller(pool).thing is caller.thing


def test_a_long_hold_is_named_once_and_so_is_its_late_return(
    make_pool: MakePool, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(warn_hold=5)
    caller = Caller(pool, pid=41)
    after(pool, clock, 4)
    assert not caplog.records
    for _ in range(3):
        after(pool, clock, 2)
    caller.give_back()
    early = Caller(pool)
    early.give_back()
    first, second = caplog.records
    assert (first.levelno, second.levelno) == (logging.WARNING, logging.WARNING)
    number = caller.lease.id
    assert first.getMessage() == (
        f"pool 'db': still out is lease {number} of pid 41 (worker-41), held for 6.0 s, acquired at here.py:1"
    )
    assert second.getMessage() == f"pool 'db': pid 41 (worker-41) gave back lease {number} after 10.0 s"


# -- death --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_reclaim", ["close", "reset"])
def test_what_one_owner_held_and_waited_for_is_taken_back(
    make_pool: MakePool, things: Things, on_reclaim: str, caplog: pytest.LogCaptureFixture
) -> None:
    cleaned: list[Thing] = []
    pool = make_pool(max_size=3, on_reclaim=on_reclaim, reset=cleaned.append)
    dead = [Caller(pool, pid=41), Caller(pool, pid=41)]
    alive = Caller(pool, pid=42)
    dead_waiter, waiter = Caller(pool, pid=41), Caller(pool, pid=42)
    assert pool.processes() == {ProcessId(41, None), ProcessId(42, None)}
    assert pool.reclaim(ProcessId(41, None)) == 2
    assert dead_waiter.waiting
    assert pool.processes() == {ProcessId(42, None)}
    assert pool.held(alive.lease.id) is alive.lease
    lost = {each.thing for each in dead}
    if on_reclaim == "close":
        assert dict(things.closed) == dict.fromkeys(lost, 1)
        assert waiter.thing not in lost
    else:
        assert not things.closed
        assert set(cleaned) == lost
        assert waiter.thing in lost
    stats = pool.stats()
    assert (stats.reclaimed, stats.leased, stats.waiting) == (2, 2, 0)
    assert caplog.text.count("of pid 41, which has ended") == 2
    for each in dead:
        with pytest.raises(LeaseError):
            each.give_back()


def test_an_owner_without_anything_is_no_loss(make_pool: MakePool) -> None:
    pool = make_pool()
    Caller(pool, pid=42)
    assert pool.reclaim(ProcessId(41, None)) == 0
    assert pool.stats().reclaimed == 0
    assert pool.stats().leased == 1


def test_one_who_dies_between_grant_and_reply_keeps_nothing(make_pool: MakePool) -> None:
    pool = make_pool(on_reclaim="reset")
    holder = Caller(pool, pid=42)

    def dies(outcome: object) -> bool:
        pool.reclaim(ProcessId(41, None))
        return False

    pool.request(ProcessId(41, None), dies)
    next_one = Caller(pool, pid=43)
    holder.give_back()
    assert next_one.thing is holder.thing
    assert pool.stats().leased == 1


# -- control ------------------------------------------------------------------------------------------


def test_more_room_serves_those_who_wait(make_pool: MakePool) -> None:
    pool = make_pool()
    callers = [Caller(pool) for _ in range(3)]
    pool.resize(max_size=3)
    assert len({caller.thing for caller in callers}) == 3


def test_a_greater_least_size_is_built_ahead(make_pool: MakePool) -> None:
    pool = make_pool(max_size=4)
    pool.resize(min_size=3)
    assert pool.stats().idle == 3
    pool.resize(min_size=5, max_size=6)
    assert pool.stats().idle == 5


def test_less_room_retires_the_idle_now_and_the_held_as_they_come_home(
    make_pool: MakePool, things: Things
) -> None:
    pool = make_pool(max_size=5)
    held = [Caller(pool) for _ in range(5)]
    for caller in held[3:]:
        caller.give_back()
    pool.resize(max_size=2)
    assert pool.stats().size == 3
    assert dict(things.closed) == dict.fromkeys((caller.thing for caller in held[3:]), 1)
    waiter = Caller(pool)
    held[0].give_back()
    assert waiter.waiting
    held[1].give_back()
    assert waiter.thing is held[1].thing
    assert pool.stats().retired == {"shrunk": 3}
    assert pool.stats().size == 2


def test_a_build_that_there_is_no_room_for_any_more_is_closed(
    make_pool: MakePool, things: Things, threads: ManualThreads
) -> None:
    pool = make_pool(max_size=2, threads=threads)
    callers = [Caller(pool), Caller(pool)]
    threads.do()
    pool.resize(max_size=1)
    threads.do_all()
    assert pool.stats().size == 1
    callers[0].give_back()
    assert callers[1].thing is things.made[0]


@pytest.mark.parametrize(
    "wrong", [{"max_size": 0}, {"min_size": 5}, {"min_size": -1}, {"max_size": 1.5}, {"min_size": "2"}]
)
def test_wrong_bounds_change_nothing(make_pool: MakePool, wrong: dict[str, Any]) -> None:
    pool = make_pool(min_size=1, max_size=4)
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        pool.resize(**wrong)
    assert (pool.options.min_size, pool.options.max_size) == (1, 4)
    pool.release(pool.acquire())


def test_refresh_retires_every_present_object(make_pool: MakePool, things: Things) -> None:
    pool = make_pool(min_size=2, max_size=3)
    held, other = Caller(pool), Caller(pool)
    other.give_back()
    old = set(things.made)
    pool.refresh()
    assert things.closed == {other.thing: 1}
    assert pool.held(held.lease.id) is held.lease
    held.give_back()
    assert dict(things.closed) == dict.fromkeys(old, 1)
    assert pool.stats().idle == 2
    assert pool.stats().retired == {"refreshed": 2}


@pytest.mark.parametrize("moment", ["build", "check", "reset"])
def test_refresh_reaches_objects_that_are_busy(
    make_pool: MakePool, things: Things, moment: str, threads: ManualThreads
) -> None:
    pool = make_pool(
        max_size=1,
        check=lambda thing: True,
        reset=lambda thing: None,
        threads=threads,
    )
    first = Caller(pool)
    if moment != "build":
        threads.do()
        first.give_back()
    if moment == "check":
        threads.do()
    second = Caller(pool)
    pool.refresh()
    threads.do_all()
    assert things.closed == {things.made[0]: 1}
    assert (first if moment == "build" else second).thing is things.made[1]


def test_close_fails_those_who_wait_and_lends_no_more(make_pool: MakePool, things: Things) -> None:
    pool = make_pool(min_size=1)
    holder, waiter = Caller(pool), Caller(pool)
    pool.close(0)
    assert isinstance(waiter.error, PoolClosed)
    with pytest.raises(PoolClosed, match="pool 'db' is closed"):
        pool.acquire()
    with pytest.raises(LeaseError):
        holder.give_back()
    assert holder.lease.over
    assert things.all_closed_once()
    stats = pool.stats()
    assert (stats.size, stats.leased, stats.waiting) == (0, 0, 0)
    assert stats.retired == {"closed": 1}
    pool.close(0)
    pool.tend()
    pool.refresh()
    pool.resize(min_size=1)
    assert len(things.made) == 1


def test_close_awaits_what_is_held(things: Things) -> None:
    pool = LocalPool(things.make, max_size=3, close=things.close, reset=lambda thing: None)
    leases = [pool.acquire(), pool.acquire()]
    closer = threading.Thread(target=pool.close, args=(None,))
    closer.start()

    def refused() -> bool:
        try:
            pool.release(pool.acquire(0))
        except PoolClosed:
            return True
        return False

    wait_until(refused)
    assert closer.is_alive()
    for lease in leases:
        assert pool.held(lease.id) is lease
        pool.release(lease)
    closer.join(10)
    assert not closer.is_alive()
    assert things.all_closed_once()


def test_close_lets_a_timeout_pass_for_what_is_held(things: Things) -> None:
    pool = LocalPool(things.make, max_size=1, close=things.close)
    lease = pool.acquire()
    began = time.monotonic()
    pool.close(0.02)
    assert time.monotonic() - began >= 0.02
    assert lease.over
    assert things.all_closed_once()
    assert not pool.give_back(lease.id)


@pytest.mark.parametrize("busy", ["build", "check", "reset", "close"])
def test_close_waits_a_bounded_time_for_what_hangs(
    things: Things, monkeypatch: pytest.MonkeyPatch, busy: str
) -> None:
    monkeypatch.setattr(pool_module, "HOOK_BOUND", 0.02)
    entered, go_on = threading.Event(), threading.Event()

    def hang(where: str) -> None:
        if where == busy:
            entered.set()
            go_on.wait(30)

    def make() -> Thing:
        hang("build")
        return things.make()

    def close(thing: Thing) -> None:
        hang("close")
        things.close(thing)

    pool = LocalPool(
        make, max_size=1, check=lambda _: hang("check"), reset=lambda _: hang("reset"), close=close
    )

    def use(outcome: object) -> bool:
        return False

    pool.request(ProcessId(1, None), use)  # built, not taken, reset
    if busy == "check":
        wait_until(lambda: pool.stats().idle)
        pool.request(ProcessId(1, None), use)
    if busy != "close":
        assert entered.wait(10)
    pool.close(0)
    assert not things.closed
    go_on.set()
    wait_until(lambda: pool.stats().size == 0)
    pool.close(0)
    assert things.all_closed_once()


def test_close_waits_a_bounded_time_for_a_call_that_hangs(
    things: Things, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "HOOK_BOUND", 0.02)
    pool = LocalPool(things.make, max_size=1, close=things.close)
    lease = pool.acquire()
    with calling(lease):
        pool.close(0)
        assert lease.over
        assert not things.closed
    pool.call_ended(lease)
    wait_until(things.all_closed_once)


def test_closing_twice_at_once_waits_twice(things: Things) -> None:
    pool = LocalPool(things.make, max_size=1, close=things.close)
    lease = pool.acquire()
    closers = [threading.Thread(target=pool.close, args=(None,)) for _ in range(2)]
    for closer in closers:
        closer.start()
    pool.close(0)  # the impatient one ends it for all
    for closer in closers:
        closer.join(10)
        assert not closer.is_alive()
    assert lease.over
    assert things.all_closed_once()


# -- figures ------------------------------------------------------------------------------------------


def test_stats_count_what_happened(make_pool: MakePool, clock: Clock, things: Things) -> None:
    pool = make_pool(max_size=2)
    first, second = Caller(pool), Caller(pool)
    waiter = Caller(pool)
    clock.now += 3
    first.give_back()  # to the waiter
    clock.now += 4
    second.give_back()
    waiter.give_back(discard=True)
    with pytest.raises(LeaseError):
        first.give_back()
    Caller(pool)
    Caller(pool)
    with pytest.raises(PoolTimeout):
        Caller(pool, timeout=0)
    Caller(pool)
    stats = pool.stats()
    assert stats.name == "db"
    assert (stats.size, stats.idle, stats.leased, stats.building, stats.waiting) == (2, 0, 2, 0, 1)
    assert (stats.acquired, stats.built, stats.reused) == (5, 3, 2)
    assert (stats.timeouts, stats.exhausted, stats.reclaimed) == (1, 3, 0)
    assert (stats.failed_builds, stats.late_releases) == (0, 1)
    assert stats.retired == {"discarded": 1}
    assert (stats.wait_seconds, stats.wait_longest) == (3, 3)
    assert (stats.hold_seconds, stats.hold_longest) == (3 + 7 + 4, 7)


def test_leases_tell_who_holds_what_the_longest_first(make_pool: MakePool, clock: Clock) -> None:
    pool = make_pool(max_size=2)
    callers = []
    for pid in (41, 42):
        callers.append(Caller(pool, pid=pid))
        clock.now += 1
    first, second = pool.leases()
    assert (first.lease_id, first.pid, first.process_name, first.age) == (
        callers[0].lease.id,
        41,
        "worker-41",
        2,
    )
    assert (second.pid, second.age, second.where) == (42, 1, "here.py:1")


# -- storms -------------------------------------------------------------------------------------------


def test_bounds_are_strict_under_a_storm() -> None:
    things = Things()
    users: dict[Thing, int] = {}

    def close(thing: Thing) -> None:
        assert thing not in users
        things.close(thing)

    pool = LocalPool(
        things.make,
        min_size=1,
        max_size=3,
        close=close,
        check=lambda thing: thing.number % 7 != 3,
        reset=lambda thing: 1 // (thing.number % 5),
        max_uses=20,
    )

    def use(index: int) -> None:
        dice = random.Random(index)
        for _ in range(40):
            lease = pool.acquire(30)
            assert users.setdefault(lease.object, index) == index
            del users[lease.object]
            if dice.random() < 0.1:
                pool.resize(max_size=dice.randint(1, 3))
            pool.release(lease, discard=dice.random() < 0.05)

    side_by_side(8, use)
    pool.resize(max_size=3)
    pool.close(10)
    assert things.most <= 3
    assert things.all_closed_once()
    stats = pool.stats()
    assert (stats.size, stats.acquired, stats.waiting) == (0, 320, 0)
    assert sum(stats.retired.values()) == stats.built == len(things.made)


def test_a_storm_of_timeouts_loses_nothing() -> None:
    pool = LocalPool(object, min_size=2, max_size=2)
    wait_until(lambda: pool.stats().idle == 2)
    ends: list[str] = []

    def use(index: int) -> None:
        dice = random.Random(index)
        for _ in range(1250):
            try:
                lease = pool.acquire(dice.choice([0, 0, dice.uniform(0, 0.005)]))
            except PoolTimeout:
                ends.append("timeout")
                continue
            if dice.random() < 0.02:
                time.sleep(0.002)
            pool.release(lease)
            ends.append("lease")

    side_by_side(8, use)
    stats = pool.stats()
    assert len(ends) == 10_000
    assert (stats.idle, stats.leased, stats.waiting, stats.size) == (2, 0, 0, 2)
    assert stats.acquired == ends.count("lease") > 0
    assert stats.timeouts == ends.count("timeout") > 0
    pool.close(0)


def test_a_storm_of_deaths_loses_nothing() -> None:
    things = Things()
    pool = LocalPool(things.make, max_size=3, close=things.close)
    over = threading.Event()

    def use(index: int) -> None:
        owner = ProcessId(index, None)
        for _ in range(100):
            told: list[object] = []
            arrived = threading.Event()

            def deliver(
                outcome: object, told: list[object] = told, arrived: threading.Event = arrived
            ) -> bool:
                told.append(outcome)
                arrived.set()
                return True

            got = pool.request(owner, deliver, None)
            if index % 2:
                pool.reclaim(owner)  # at any moment: waiting, granted, holding
            elif not pool.give_back(got.id if hasattr(got, "id") else _first_id(arrived, told)):
                raise AssertionError("somebody else's death took it")

    side_by_side(8, use)
    over.set()
    stats = pool.stats()
    assert (stats.leased, stats.waiting) == (0, 0)
    pool.close(10)
    assert things.most <= 3
    assert things.all_closed_once()


def _first_id(arrived: threading.Event, told: list[Any]) -> int:
    assert arrived.wait(30)
    assert not isinstance(told[0], PoolError)
    lease_id: int = told[0].id
    return lease_id
