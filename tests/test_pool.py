"""The pool for the threads of one process.

Most tests move the clock by hand and have the slow work done when they say so; those with threads
wait for what they can see.
"""

from __future__ import annotations

import gc
import logging
import pickle
import random
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import inf
from typing import Any, cast

import pytest
from helpers import wait_until
from standins import (
    ME,
    Call,
    Caller,
    Delegated,
    FarRunner,
    LocalPool,
    Regular,
    SteppedRunner,
    Thing,
    ThingPool,
    Things,
    Timeline,
    calling,
    side_by_side,
)

from mppool import FactoryError, Histogram, LeaseError, LeaseLost, PoolClosed, PoolTimeout, TooManyWaiting
from mppool._pool.hooks import Task
from mppool._pool.objects import HOT_SECONDS
from mppool._pool.pool import BUILDS_AT_ONCE
from mppool._pool.threads import Job
from mppool._system.processes import ProcessId
from mppool.options import HOOK_BOUND


@pytest.fixture
def things() -> Things:
    return Things()


# -- lending ------------------------------------------------------------------------------------------


def test_what_comes_home_is_lent_again() -> None:
    pool = ThingPool()
    for _ in range(3):
        pool.release(pool.acquire())
    assert len(pool.things.made) == 1


@pytest.mark.parametrize("order", ["lifo", "fifo"])
def test_the_last_used_object_goes_first_or_they_take_turns(order: str) -> None:
    pool = ThingPool(max_size=3, order=order)
    callers = [Caller(pool) for _ in range(3)]
    for caller in callers:
        caller.give_back()
    first, second, last = (caller.thing for caller in callers)
    turns = []
    for _ in range(6):
        caller = Caller(pool)
        turns.append(caller.thing)
        caller.give_back()
    assert turns == ([last] * 6 if order == "lifo" else [first, second, last] * 2)


def test_it_grows_on_demand_up_to_its_size() -> None:
    pool = ThingPool(min_size=1, max_size=3)
    assert len(pool.things.made) == 1
    callers = [Caller(pool) for _ in range(5)]
    assert len(pool.things.made) == 3
    assert [caller.waiting for caller in callers] == [False, False, False, True, True]
    assert len({caller.thing for caller in callers[:3]}) == 3


def test_now_or_never_builds_where_there_is_room() -> None:
    pool = ThingPool(by_hand=True)
    caller = Caller(pool, timeout=0)
    assert caller.waiting
    pool.threads.do()
    assert caller.thing is pool.things.made[0]
    with pytest.raises(PoolTimeout):
        Caller(pool, timeout=0)


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
def test_a_wrong_timeout_is_named(timeout: Any, error: type[Exception]) -> None:
    pool = ThingPool()
    with pytest.raises(error, match="timeout"):
        pool.acquire(timeout)
    with pytest.raises(error, match="timeout"):
        pool.close(timeout)
    pool.acquire()


def test_any_value_can_be_pooled() -> None:
    pool = LocalPool(lambda: None, max_size=1, check=lambda value: value)
    for _ in range(2):
        with pool.lease() as value:
            assert value is None


def test_what_was_released_cannot_be_released_again() -> None:
    pool = ThingPool()
    lease = pool.acquire()
    pool.release(lease)
    again = pool.acquire()
    with pytest.raises(LeaseError, match="'db'"):
        pool.release(lease)
    assert pool.held(again.id) is again  # it has the same object
    assert pool.stats().late_releases == 1


def test_a_lease_can_be_looked_up_while_it_lasts() -> None:
    pool = ThingPool()
    lease = pool.acquire()
    assert pool.held(lease.id) is lease
    assert isinstance(lease.object, Thing)
    pool.release(lease)
    assert lease.over
    with pytest.raises(LeaseLost, match="is over"):
        _ = lease.object
    with pytest.raises(LeaseLost, match=f"'db'.*{lease.id}"):
        pool.held(lease.id)


# -- the queue ----------------------------------------------------------------------------------------


def test_first_come_first_served() -> None:
    pool = ThingPool()
    callers = [Caller(pool) for _ in range(6)]
    for index in range(5):
        assert [caller.waiting for caller in callers] == [False] * (index + 1) + [True] * (5 - index)
        callers[index].give_back()


def test_those_who_left_are_passed_over() -> None:
    pool = ThingPool()
    holder = Caller(pool)
    cancelled, patient, impatient, last = (Caller(pool, timeout) for timeout in (9, 9, 3, 9))
    assert cancelled.cancel()
    pool.after(3)
    assert isinstance(impatient.error, PoolTimeout)
    holder.give_back()
    assert patient.thing is holder.thing
    assert last.waiting
    patient.give_back()
    assert last.thing is holder.thing
    assert cancelled.waiting  # it was told nothing
    assert pool.stats().waiting == 0


def test_nobody_overtakes_the_queue() -> None:
    pool = ThingPool(reset=lambda thing: None, check=lambda thing: None)
    holder, waiter, late = Caller(pool), Caller(pool), Caller(pool)
    holder.give_back()
    assert not waiter.waiting
    with pytest.raises(PoolTimeout):
        Caller(pool, timeout=0)
    assert late.waiting


def test_a_cancel_comes_once_and_may_come_too_late() -> None:
    pool = ThingPool()
    holder, waiter, other = Caller(pool), Caller(pool), Caller(pool)
    assert other.cancel()
    assert not other.cancel()
    holder.give_back()
    assert not waiter.cancel()
    for each in (waiter, other):
        pool.expire(each.waiter)
    assert waiter.thing is holder.thing
    assert pool.stats().timeouts == 0


def test_a_crowd_that_has_gone_costs_no_recursion() -> None:
    pool = ThingPool()
    holder = Caller(pool)
    for _ in range(3000):
        Caller(pool, takes=False)
    holder.give_back()
    assert pool.stats().idle == 1


def test_a_way_to_a_waiter_that_breaks_costs_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    def broken(outcome: object) -> bool:
        raise OSError("broken pipe")

    pool = ThingPool()
    holder = Caller(pool)
    pool.request(ProcessId(5, None), broken)
    next_one = Caller(pool)
    holder.give_back()
    assert next_one.thing is holder.thing
    assert "broken pipe" in caplog.text


def test_a_full_queue_refuses_at_once() -> None:
    pool = ThingPool(max_waiting=2)
    holder, first, second = Caller(pool), Caller(pool), Caller(pool)
    with pytest.raises(TooManyWaiting, match=r"'db': 2 wait already, max_waiting=2; 1 of at most 1 .* held"):
        Caller(pool)
    assert pool.stats().waiting == 2
    holder.give_back()
    third = Caller(pool)
    first.give_back()
    second.give_back()
    assert third.thing is holder.thing


def test_those_whose_object_is_being_built_are_no_queue() -> None:
    pool = ThingPool(max_size=2, max_waiting=0, by_hand=True)
    callers = [Caller(pool), Caller(pool)]
    with pytest.raises(TooManyWaiting):
        Caller(pool)
    pool.threads.do_all()
    assert not any(caller.waiting for caller in callers)


def test_a_timeout_says_who_holds_and_how_long() -> None:
    pool = ThingPool(max_size=2)
    Caller(pool, pid=41)
    pool.clock.now += 7
    Caller(pool, pid=42)
    waiter = Caller(pool, timeout=2.5)
    pool.after(2.5)
    assert str(waiter.error) == (
        "pool 'db': no object came free in 2.5 s: 2 held (longest by pid 41 (worker-41), 9.5 s), "
        "0 being built, 1 waiting, max_size=2"
    )


def test_a_timeout_says_so_when_the_one_that_waits_holds_the_objects_itself() -> None:
    pool = ThingPool(max_size=3)
    for pid in (41, 42, 41):
        Caller(pool, pid=pid)
    own, other = Caller(pool, timeout=1, pid=41), Caller(pool, timeout=1, pid=43)
    with pytest.raises(PoolTimeout, match=r"max_size=3; this process holds 1 of them itself"):
        Caller(pool, timeout=0, pid=42)
    pool.after(1)
    assert str(own.error).endswith("max_size=3; this process holds 2 of them itself")
    assert str(other.error).endswith("max_size=3")


def test_a_timeout_tells_the_last_failure_to_build() -> None:
    pool = ThingPool(max_size=2, by_hand=True, fails=OSError("refused"))
    first = Caller(pool)
    pool.threads.do()
    assert isinstance(first.error, FactoryError)
    hung = Caller(pool, timeout=1)
    pool.after(1)
    assert isinstance(hung.error, PoolTimeout)
    assert "1 being built" in str(hung.error)
    assert "the last build failed: OSError: refused" in str(hung.error)


def test_tend_says_when_the_next_waiter_gives_up() -> None:
    pool = ThingPool()
    assert pool.tend() is None
    holder = Caller(pool)
    Caller(pool, timeout=9)
    soonest = Caller(pool, timeout=4)
    Caller(pool, timeout=None)
    assert pool.tend() == pool.clock.now + 4
    soonest.cancel()
    assert pool.tend() == pool.clock.now + 9
    holder.give_back()
    assert pool.tend() is None


def test_waiters_give_up_in_the_order_of_their_deadlines() -> None:
    pool = ThingPool()
    Caller(pool)
    callers = [Caller(pool, timeout) for timeout in (5, 1, 3)]
    for moment in ([0, 1, 0], [0, 1, 1], [1, 1, 1]):
        pool.after(2)
        assert [len(caller.told) for caller in callers] == moment
    assert pool.stats().timeouts == 3


def test_those_who_were_served_are_forgotten_long_before_their_timeout() -> None:
    pool = ThingPool(timeout=1e6)
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


def test_an_interrupted_release_keeps_nobody_else_waiting() -> None:
    told: list[object] = []

    def interrupted_once(outcome: object) -> bool:
        told.append(outcome)
        if len(told) == 1:
            raise Interrupt
        return True

    pool = ThingPool(max_size=2, on_reclaim="reset")
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
def test_slow_work_that_an_interrupt_met_on_its_way_is_done_once(when: str, what: str) -> None:
    resets: list[Thing] = []
    pool = ThingPool(reset=resets.append, by_hand=True)
    hand_over = pool.threads.submit
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
        pool.threads.do_all()
        interrupt_it = partial(pool.give_back, caller.lease.id, discard=what == "close")
    pool.threads.submit = interrupted  # type: ignore[method-assign]
    with pytest.raises(Interrupt):
        interrupt_it()
    pool.tend()
    pool.threads.do_all()
    assert len(pool.things.made) == 1
    assert (len(resets), len(pool.things.alive)) == (what == "reset", what != "close")


# -- building -----------------------------------------------------------------------------------------


class Unspeakable(Exception):
    def __repr__(self) -> str:
        raise ZeroDivisionError

    __str__ = __repr__


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("refused"), "OSError: refused"),
        (Unspeakable(), ".*Unspeakable"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(3), "SystemExit: 3"),
        (GeneratorExit(), "GeneratorExit"),
    ],
)
def test_who_an_object_cannot_be_built_for_is_told_and_its_place_is_free(
    error: BaseException, said: str
) -> None:
    pool = ThingPool(fails=error)
    for _ in range(20):
        with pytest.raises(FactoryError, match=f"^pool 'db': the factory failed: {said}") as caught:
            pool.acquire()
        assert caught.value.__cause__ is error
    stats = pool.stats()
    assert stats.failed_builds == 20
    assert stats.size == stats.building == stats.waiting == stats.timeouts == 0
    pool.things.fail_builds = None
    with pool.lease(0), pytest.raises(PoolTimeout):
        pool.acquire(0)
    assert pool.stats().waiting == 0


def test_now_or_never_does_not_wait_for_a_build_that_hangs() -> None:
    pool = ThingPool(by_hand=True)
    gave_up = Caller(pool, timeout=1)  # his is the build that never ends
    pool.clock.now += HOOK_BOUND + 1
    pool.tend()
    assert isinstance(gave_up.error, PoolTimeout)
    with pytest.raises(PoolTimeout):
        pool.acquire(0)
    pool.threads.do()
    with pool.lease(0):
        pass


def test_lease_ids_are_never_met_again() -> None:
    pools = [ThingPool() for _ in range(2)]
    ids = []
    for pool in pools * 50:
        lease = pool.acquire(0)
        ids.append(lease.id)
        pool.release(lease)
    assert len(set(ids)) == 100
    assert ids[::2] == sorted(ids[::2])


def test_only_a_few_are_built_at_a_time() -> None:
    pool = ThingPool(min_size=10, max_size=10, by_hand=True)
    for left in range(10, 0, -1):
        assert len(pool.threads.jobs) == min(left, BUILDS_AT_ONCE)
        pool.threads.do()
    assert len(pool.things.made) == pool.stats().idle == 10


def test_a_build_is_not_begun_when_nobody_wants_it_any_more() -> None:
    pool = ThingPool(max_size=50, by_hand=True)
    callers = [Caller(pool) for _ in range(50)]
    for caller in callers[6:]:
        caller.cancel()
    pool.threads.do_all()
    assert len(pool.things.made) == 6


@pytest.mark.parametrize("fails", [False, True])
def test_whichever_comes_first_is_taken(fails: bool, caplog: pytest.LogCaptureFixture) -> None:
    pool = ThingPool(max_size=2, by_hand=True)
    first = Caller(pool)
    pool.threads.do()
    second = Caller(pool)
    first.give_back()
    assert second.thing is first.thing
    pool.things.fail_builds = OSError("refused") if fails else None
    pool.threads.do()  # the build that was begun for the second
    assert second.thing is first.thing
    assert pool.stats().idle == (not fails)
    for said in ("pool 'db': an object could not be built", "refused"):
        assert (said in caplog.text) is fails


def test_the_queue_goes_before_the_one_whose_build_it_was() -> None:
    pool = ThingPool(max_size=9, by_hand=True)
    callers = [Caller(pool) for _ in range(3)]
    pool.threads.do(2)
    assert [caller.waiting for caller in callers] == [False, True, True]


def test_a_short_spike_is_served_without_a_row_of_objects() -> None:
    """50 requests at once, 5 objects there, a build takes 150 ms and a use 2 ms."""
    line = Timeline(0.150)
    pool = ThingPool(min_size=5, max_size=50, line=line)
    line.run()
    began, served = pool.clock.now, []

    def use(caller: Caller) -> None:
        if caller.waiting:
            line.after(0.001, partial(use, caller))
        else:
            served.append(pool.clock.now - began)
            line.after(0.002, caller.give_back)

    for _ in range(50):
        use(Caller(pool))
    line.run()
    assert len(served) == 50
    assert max(served) <= 0.200
    assert len(pool.things.made) <= 10


def test_slow_builds_of_threads_go_side_by_side() -> None:
    together = threading.Barrier(4)

    def build() -> object:
        together.wait(10)  # none is done before all four are under way
        return object()

    pool = LocalPool(build, max_size=4)
    side_by_side(4, lambda _: pool.acquire(10))
    assert pool.stats().leased == 4
    pool.close(0)


def test_a_failure_strikes_only_the_one_it_was_for() -> None:
    pool = ThingPool(max_size=2, by_hand=True)
    callers = [Caller(pool) for _ in range(4)]
    pool.things.fail_builds = OSError("refused")
    pool.threads.do(1)  # begun for the second
    pool.things.fail_builds = None
    assert [caller.waiting for caller in callers] == [True, False, True, True]
    assert isinstance(callers[1].error, FactoryError)
    pool.threads.do_all()
    assert [caller.waiting for caller in callers] == [False, False, False, True]


def test_one_who_counted_on_a_build_ahead_gets_another_when_it_fails() -> None:
    pool = ThingPool(min_size=1, by_hand=True)
    caller = Caller(pool)
    assert len(pool.threads.jobs) == 1
    pool.things.fail_builds = OSError("refused")
    pool.threads.do()
    assert caller.waiting  # that build was not for him
    pool.things.fail_builds = None
    pool.threads.do()
    assert caller.thing


def test_a_build_ahead_is_tried_again_after_growing_pauses(caplog: pytest.LogCaptureFixture) -> None:
    pool = ThingPool(min_size=2, max_size=4, fails=OSError("refused"))
    began, tries = pool.clock.now, [0.0]
    failed = pool.stats().failed_builds
    while pool.clock.now < began + 500:
        pool.after(0.25)
        if pool.stats().failed_builds > failed:
            tries.append(pool.clock.now - began)
        failed = pool.stats().failed_builds
    for wanted, (earlier, later) in zip([1, 2, 4, 8, 16, 32, 60, 60, 60], pairwise(tries), strict=False):
        assert 0.9 * wanted <= later - earlier <= 1.1 * wanted + 0.25
    assert "could not be built" in caplog.text
    pool.things.fail_builds = None
    pool.after(66)
    assert pool.stats().idle == 2


def test_builds_that_fail_side_by_side_make_one_pause() -> None:
    pool = ThingPool(min_size=4, max_size=4, by_hand=True, fails=OSError("refused"))
    pool.threads.do_all()
    assert pool.stats().failed_builds == 4
    pool.after(1.1)
    assert pool.stats().building == 4


def test_after_a_success_the_pauses_start_small_again() -> None:
    pool = ThingPool(min_size=1, max_size=2, fails=OSError("refused"))
    for _ in range(5):
        pool.after(60)
    pool.things.fail_builds = None
    pool.after(60)
    caller = Caller(pool)
    pool.things.fail_builds = OSError("refused")
    caller.give_back(discard=True)
    pool.things.fail_builds = None
    pool.after(1.1)
    assert pool.stats().idle == 1


@pytest.mark.parametrize("ahead", [True, False])
def test_a_factory_that_hangs_takes_its_place_and_holds_up_nobody_else(ahead: bool) -> None:
    hanging = BUILDS_AT_ONCE
    pool = ThingPool(min_size=hanging if ahead else 0, max_size=hanging + 1, by_hand=True)
    if not ahead:
        gone = [Caller(pool, timeout=1) for _ in range(hanging)]
        pool.after(1)
        assert all(isinstance(each.error, PoolTimeout) for each in gone)
    caller = Caller(pool, timeout=None)
    assert len(pool.threads.jobs) == hanging
    pool.after(HOOK_BOUND)
    assert len(pool.threads.jobs) == hanging + 1
    pool.threads.do(hanging)
    assert caller.thing is pool.things.made[0]
    assert (pool.stats().size, pool.stats().building) == (hanging + 1, hanging)
    late = Caller(pool, timeout=1)
    pool.after(1)
    assert f"1 held (longest by pid 1 (worker-1), 1.0 s), {hanging} being built" in str(late.error)
    pool.threads.do_all()  # they return after all
    assert (pool.stats().size, pool.stats().building) == (hanging + 1, 0)
    assert len([Caller(pool, timeout=0) for _ in range(hanging)]) == hanging


def test_a_build_may_take_long_for_the_one_who_waits_for_it() -> None:
    pool = ThingPool(max_size=9, by_hand=True)
    caller = Caller(pool, timeout=None)
    for _ in range(5):
        pool.after(HOOK_BOUND)
    assert len(pool.threads.jobs) == 1
    pool.threads.do()
    assert caller.thing is pool.things.made[0]


@pytest.mark.parametrize("loss", ["discard", "uses", "reset", "reclaim", "hold", "lifetime"])
def test_it_refills_to_its_least_size(loss: str) -> None:
    def reset(thing: Thing) -> None:
        assert loss != "reset"

    uses = 1 if loss == "uses" else None
    pool = ThingPool(min_size=3, max_size=3, reset=reset, max_uses=uses, max_hold=1, max_lifetime=10)
    first = list(pool.things.made)
    callers = [Caller(pool) for _ in range(3)]
    if loss in {"hold", "lifetime"}:
        pool.after(10 if loss == "lifetime" else 1)
    elif loss == "reclaim":
        pool.reclaim(ProcessId(1, None))
    else:
        for caller in callers:
            caller.give_back(discard=loss == "discard")
    stats = pool.stats()
    assert (stats.size, stats.idle) == (3, 3)
    assert all(pool.things.closed[each] == 1 for each in first)


# -- check, reset, close ------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [True, None, 0, "yes"])
def test_an_object_is_fine_unless_its_check_says_no(verdict: object) -> None:
    pool = ThingPool(check=lambda thing: verdict)
    for _ in range(3):
        Caller(pool).give_back()
    assert len(pool.things.made) == 1


@pytest.mark.parametrize("raises", [False, True])
def test_broken_idle_objects_are_closed_and_the_next_is_tried(raises: bool) -> None:
    broken: set[Thing] = set()

    def check(thing: Thing) -> bool:
        if raises and thing in broken:
            raise OSError("gone")
        return thing not in broken

    pool = ThingPool(check=check, min_size=3, max_size=3)
    pool.resize(min_size=0)
    broken.update(pool.things.made[1:])
    assert Caller(pool).thing is pool.things.made[0]
    assert dict(pool.things.closed) == dict.fromkeys(broken, 1)
    assert pool.stats().retired == {"check": 2}


def test_when_all_idle_objects_are_broken_a_new_one_is_built() -> None:
    pool = ThingPool(check=lambda thing: thing.number >= 5, min_size=5, max_size=5)
    callers = [Caller(pool, timeout=0) for _ in range(5)]
    assert {caller.thing.number for caller in callers} == {5, 6, 7, 8, 9}
    assert pool.things.most == 5


def test_what_was_just_built_needs_no_check() -> None:
    checked: list[Thing] = []
    pool = ThingPool(check=checked.append)
    caller = Caller(pool)
    assert not checked
    caller.give_back()
    assert not checked
    assert Caller(pool).thing is checked[0]


def test_what_comes_home_to_a_waiter_is_checked_first() -> None:
    pool = ThingPool(check=lambda thing: thing.number > 0)
    first, second = Caller(pool), Caller(pool)
    first.give_back()
    assert second.thing is pool.things.made[1]


def test_an_idle_object_does_not_wait_for_a_build_that_is_under_way() -> None:
    pool = ThingPool(min_size=2, max_size=2, check=lambda thing: True, by_hand=True)
    pool.threads.do()
    caller = Caller(pool)
    pool.threads.do(1)  # the check; the build before it takes its time
    assert caller.thing is pool.things.made[0]


def test_a_check_is_not_in_the_callers_way_when_it_left() -> None:
    pool = ThingPool(min_size=1, check=lambda thing: True, by_hand=True)
    pool.threads.do()
    caller = Caller(pool)
    caller.cancel()
    pool.threads.do()
    assert pool.stats().idle == 1


@pytest.mark.parametrize("discard", [False, True])
def test_an_object_that_is_being_reset_or_closed_counts_and_is_waited_for(discard: bool) -> None:
    pool = ThingPool(by_hand=True, reset=lambda thing: None)
    first = Caller(pool)
    pool.threads.do()
    first.give_back(discard=discard)
    second = Caller(pool, timeout=0)  # no holder is in its way
    assert second.waiting
    assert pool.stats().size == len(pool.threads.jobs) == 1  # nothing is built beside it
    pool.threads.do_all()
    assert (second.thing is first.thing) is not discard
    assert pool.things.most == 1


def test_what_cannot_be_reset_is_closed_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    def reset(thing: Thing) -> None:
        raise OSError("dirty")

    pool = ThingPool(reset=reset)
    first, second = Caller(pool), Caller(pool)
    first.give_back()
    assert second.thing is pool.things.made[1]
    assert pool.things.closed == {first.thing: 1}
    assert pool.stats().retired == {"reset": 1}
    assert "dirty" in caplog.text


@pytest.mark.parametrize("hook", ["check", "reset", "close"])
def test_a_hook_that_hangs_is_written_off(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    pool = ThingPool(by_hand=True, **({} if hook == "close" else {hook: lambda thing: True}))
    first = Caller(pool)
    pool.threads.do()
    first.give_back(discard=hook == "close")
    waiter = Caller(pool, timeout=None)
    (hung,) = pool.threads.jobs
    pool.after(HOOK_BOUND - 1)
    assert pool.threads.jobs == [hung]
    assert pool.stats().size == 1
    pool.after(1)
    assert "has not returned" in caplog.text
    pool.threads.do(1)
    assert waiter.thing is pool.things.made[1]
    pool.after(HOOK_BOUND)
    assert caplog.text.count("has not returned") == 1
    assert pool.stats().size == 1
    pool.threads.do_all()  # it returns after all
    assert pool.things.closed == {first.thing: 1}
    assert pool.stats().retired == {"discarded" if hook == "close" else "hung": 1}
    waiter.give_back()
    pool.threads.do_all()
    assert pool.stats().size == pool.stats().idle == 1


def test_an_error_in_close_costs_nothing_but_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def close(thing: Thing) -> None:
        pool.things.close(thing)
        raise OSError("already gone")

    pool = ThingPool(close=close)
    for _ in range(3):
        Caller(pool).give_back(discard=True)
    assert pool.stats().size == 0
    pool.acquire()
    pool.close(0)
    assert pool.things.all_closed_once()
    assert caplog.text.count("close failed") == 4


def test_without_a_close_hook_objects_are_dropped() -> None:
    pool = ThingPool(close=None)
    caller = Caller(pool)
    seen = weakref.ref(caller.thing)
    caller.give_back(discard=True)
    caller.thing = None
    pool.things.made.clear()
    gc.collect()
    assert seen() is None


class Cursors(list[object]):
    """What calls left behind; tells when it is dropped."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def clear(self) -> None:
        self._log.append("dropped" if self else "dropped empty")


@pytest.mark.parametrize("end", ["release", "release, no reset", "discard", "reclaim", "abandon"])
def test_what_a_lease_left_behind_goes_before_the_object_is_used_again(end: str) -> None:
    seen: list[str] = []
    pool = ThingPool(
        by_hand=True,
        new_leftovers=lambda _: Cursors(seen),
        on_reclaim="reset",
        reset=None if end == "release, no reset" else lambda thing: seen.append("reset"),
        close=lambda thing: seen.append("close"),
    )
    first = Caller(pool)
    pool.threads.do()
    second = Caller(pool)
    call = Call(first.lease)
    if end == "abandon":
        first.give_back()
    call.end(leaves="cursor")
    if end == "abandon":
        pool.call_ended(first.lease)
    elif end == "reclaim":
        pool.reclaim(ProcessId(1, None))
    else:
        first.give_back(discard=end == "discard")
    assert second.waiting
    assert not seen
    pool.threads.do_all()
    assert second.waiting == (end == "reclaim")  # which ended the second one's wait as well
    then = {"release": ["reset"], "release, no reset": [], "reclaim": ["reset"]}.get(end, ["close"])
    assert seen == ["dropped", *then]


@pytest.mark.parametrize("left", [0, 2])
def test_each_lease_starts_without_what_the_one_before_it_left(left: int) -> None:
    pool = ThingPool(new_leftovers=lambda _: [])
    found: list[list[int]] = []
    for number in range(3):
        lease = pool.acquire()
        call = partial(lease.entry.runner.call, lease.id)
        call(lambda place: found.append([*place.leftovers]))
        for _ in range(left):
            call(lambda place, number=number: place.leftovers.append(number))
        pool.release(lease)
    assert found == [[], [], []]


def test_a_call_of_a_lease_that_is_over_is_refused() -> None:
    pool = ThingPool()
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


def test_a_late_call_does_not_pass_for_one_of_the_present_lease() -> None:
    """It read the lease that has ended since, and comes to the lock when the next lease has begun."""
    pool = ThingPool()
    first = Caller(pool)
    runner: Any = first.lease.entry.runner
    late_lock = runner.fence.lock
    first.give_back()
    second = Caller(pool)
    with late_lock:
        second.give_back()
    assert pool.stats().retired == {}, "no call was running"


def test_a_call_that_waits_for_another_is_refused_when_the_lease_ends_meanwhile() -> None:
    pool = ThingPool()
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


def test_a_refused_call_closes_no_object_in_which_another_runs() -> None:
    pool = ThingPool()
    caller = Caller(pool)
    lease = caller.lease
    with calling(lease):
        caller.give_back()
        with pytest.raises(LeaseLost):
            lease.entry.runner.call(lease.id, lambda place: None)
        pool.call_ended(lease)  # as its session reports
        assert not pool.things.closed
    pool.call_ended(lease)
    assert pool.things.closed == {caller.thing: 1}


# -- time ---------------------------------------------------------------------------------------------


def test_it_shrinks_to_its_least_size_under_light_use() -> None:
    pool = ThingPool(min_size=2, max_size=8, max_idle=60)
    crowd = [Caller(pool) for _ in range(8)]
    for caller in crowd:
        caller.give_back()
    used: set[Thing] = set()
    for _ in range(70):  # one caller a second
        caller = Caller(pool)
        pool.after(1)
        caller.give_back()
        used.add(caller.thing)
    stats = pool.stats()
    assert len(used) == 1
    assert (stats.size, stats.retired) == (2, {"idle": 6})
    assert len(pool.things.made) == 8
    assert used < set(pool.things.alive)


def test_an_object_that_is_used_now_and_then_stays() -> None:
    pool = ThingPool(max_idle=60)
    for _ in range(5):
        Caller(pool).give_back()
        pool.after(59)
    assert len(pool.things.made) == 1
    pool.after(1)
    assert pool.stats().size == 0


def test_without_a_bound_objects_lie_idle_for_ever() -> None:
    pool = ThingPool(max_idle=None)
    Caller(pool).give_back()
    pool.after(1e9)
    assert pool.stats().idle == 1


def test_lifetimes_end_a_little_early_and_not_all_at_once() -> None:
    pool = ThingPool(min_size=40, max_size=40, max_lifetime=1000)
    pool.after(949)
    assert pool.stats().retired == {}
    moments = set()
    for _ in range(52):
        before = pool.stats().retired.get("lifetime", 0)
        pool.after(1)
        if pool.stats().retired.get("lifetime", 0) > before:
            moments.add(pool.clock.now)
    assert len(moments) > 10


def test_what_is_too_old_is_not_lent() -> None:
    pool = ThingPool(max_lifetime=100)
    Caller(pool).give_back()
    pool.clock.now += 100  # and nobody has tended it
    assert Caller(pool).thing is pool.things.made[1]
    assert pool.stats().retired == {"lifetime": 1}


def test_what_is_too_old_is_replaced_when_it_comes_home() -> None:
    pool = ThingPool(min_size=1, max_lifetime=100)
    caller = Caller(pool)
    pool.after(500)
    assert pool.stats().leased == 1  # not while it is held
    caller.give_back()
    assert pool.things.closed == {caller.thing: 1}
    assert pool.stats().idle == 1


def test_renewal_never_takes_all_objects_away_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.0)  # the worst case: all end together
    pool = ThingPool(min_size=4, max_size=4, max_lifetime=100, by_hand=True)
    pool.threads.do_all()
    pool.clock.now += 100
    least, rounds = 4, 0
    while len(pool.things.made) < 8 or pool.threads.jobs:
        pool.tend()
        least = min(least, pool.stats().idle)
        pool.threads.do()
        least = min(least, pool.stats().idle)
        rounds += 1
        assert rounds < 100
    assert least == 3
    assert len(pool.things.closed) == 4
    pool.tend()
    assert not pool.threads.jobs


def test_spare_objects_that_are_too_old_go_without_being_replaced() -> None:
    pool = ThingPool(max_size=3, max_lifetime=100)
    for caller in [Caller(pool) for _ in range(3)]:
        caller.give_back()
    pool.after(100)
    assert (pool.stats().size, pool.stats().retired) == (0, {"lifetime": 3})


def test_after_so_many_uses_an_object_is_replaced() -> None:
    pool = ThingPool(max_uses=3)
    for _ in range(7):
        Caller(pool).give_back()
    assert len(pool.things.made) == 3
    assert pool.stats().retired == {"uses": 2}


def test_a_lease_that_lasts_too_long_is_taken_back(caplog: pytest.LogCaptureFixture) -> None:
    pool = ThingPool(max_hold=10)
    holder, waiter = Caller(pool, pid=41), Caller(pool, timeout=None)
    pool.after(9)
    assert waiter.waiting
    pool.after(1)
    assert waiter.thing is pool.things.made[1]
    assert pool.things.closed == {holder.thing: 1}
    assert pool.stats().retired == {"expired": 1}
    assert "took back lease" in caplog.text
    assert "pid 41 (worker-41), held for 10.0 s, acquired at here.py:1" in caplog.text
    (said,) = caplog.records
    assert isinstance(said.args, tuple)
    assert {*map(type, said.args)} <= {str, float}, "an object that is kept there would be kept for long"
    with pytest.raises(LeaseLost):
        pool.held(holder.lease.id)
    with pytest.raises(LeaseError):
        holder.give_back()


@pytest.mark.parametrize("end", ["hold", "reclaim", "release", "reclaim and reset"])
def test_an_object_with_a_call_running_is_replaced_now_and_closed_when_it_returns(end: str) -> None:
    pool = ThingPool(max_hold=10, on_reclaim="reset" if "reset" in end else "close")
    holder, waiter = Caller(pool, pid=41), Caller(pool, timeout=None, pid=42)
    lease = holder.lease
    with calling(lease):
        if end == "hold":
            pool.after(10)
        elif end == "release":
            holder.give_back()
        else:
            pool.reclaim(ProcessId(41, None))
        assert waiter.thing is pool.things.made[1]
        assert pool.stats().size == 1
        assert not pool.things.closed
    assert lease.over
    pool.call_ended(lease)
    pool.call_ended(lease)
    assert pool.things.closed == {holder.thing: 1}
    reason = {"hold": "expired", "reclaim": "reclaimed"}.get(end, "interrupted")
    assert pool.stats().retired == {reason: 1}


def test_the_end_of_a_call_closes_nothing_that_came_home() -> None:
    pool = ThingPool()
    caller = Caller(pool)
    caller.give_back()
    pool.call_ended(caller.lease)
    assert not pool.things.closed
    assert Caller(pool).thing is caller.thing


def test_a_long_hold_is_named_once_and_so_is_its_late_return(caplog: pytest.LogCaptureFixture) -> None:
    pool = ThingPool(warn_hold=5)
    caller = Caller(pool, pid=41)
    pool.after(4)
    assert not caplog.records
    for _ in range(3):
        pool.after(2)
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
    on_reclaim: str, caplog: pytest.LogCaptureFixture
) -> None:
    cleaned: list[Thing] = []
    pool = ThingPool(max_size=3, on_reclaim=on_reclaim, reset=cleaned.append)
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
        assert dict(pool.things.closed) == dict.fromkeys(lost, 1)
        assert waiter.thing not in lost
    else:
        assert not pool.things.closed
        assert set(cleaned) == lost
        assert waiter.thing in lost
    stats = pool.stats()
    assert (stats.reclaimed, stats.leased, stats.waiting) == (2, 2, 0)
    assert caplog.text.count("of pid 41, which has ended") == 2
    for each in dead:
        with pytest.raises(LeaseError):
            each.give_back()


def test_one_who_dies_between_grant_and_reply_keeps_nothing() -> None:
    pool = ThingPool(on_reclaim="reset")
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


def test_more_room_serves_those_who_wait_and_a_greater_least_size_is_built_ahead() -> None:
    pool = ThingPool()
    callers = [Caller(pool) for _ in range(3)]
    pool.resize(max_size=4)
    assert len({caller.thing for caller in callers}) == 3
    pool.resize(min_size=4)
    assert pool.stats().idle == 1
    pool.resize(min_size=6, max_size=7)
    assert pool.stats().idle == 3


def test_less_room_retires_the_idle_now_and_the_held_as_they_come_home() -> None:
    pool = ThingPool(max_size=5)
    held = [Caller(pool) for _ in range(5)]
    for caller in held[3:]:
        caller.give_back()
    pool.resize(max_size=2)
    assert pool.stats().size == 3
    assert dict(pool.things.closed) == dict.fromkeys((caller.thing for caller in held[3:]), 1)
    waiter = Caller(pool)
    held[0].give_back()
    assert waiter.waiting
    held[1].give_back()
    assert waiter.thing is held[1].thing
    assert pool.stats().retired == {"shrunk": 3}
    assert pool.stats().size == 2


def test_a_build_that_there_is_no_room_for_any_more_is_closed() -> None:
    pool = ThingPool(max_size=2, by_hand=True)
    callers = [Caller(pool), Caller(pool)]
    pool.threads.do()
    pool.resize(max_size=1)
    pool.threads.do_all()
    assert pool.stats().size == 1
    callers[0].give_back()
    assert callers[1].thing is pool.things.made[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_size": 0},
        {"min_size": 5},
        {"min_size": -1},
        {"max_size": 1.5},
        {"min_size": "2"},
        {"max_size": "2"},
    ],
)
def test_wrong_bounds_change_nothing(wrong: dict[str, Any]) -> None:
    pool = ThingPool(min_size=1, max_size=4)
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        pool.resize(**wrong)
    assert (pool.options.min_size, pool.options.max_size) == (1, 4)
    pool.release(pool.acquire())


def test_refresh_retires_every_present_object() -> None:
    pool = ThingPool(min_size=2, max_size=3)
    held, other = Caller(pool), Caller(pool)
    other.give_back()
    old = set(pool.things.made)
    pool.refresh()
    assert pool.things.closed == {other.thing: 1}
    assert pool.held(held.lease.id) is held.lease
    held.give_back()
    assert dict(pool.things.closed) == dict.fromkeys(old, 1)
    assert pool.stats().idle == 2
    assert pool.stats().retired == {"refreshed": 2}


@pytest.mark.parametrize("moment", ["build", "check", "reset"])
def test_refresh_reaches_objects_that_are_busy(moment: str) -> None:
    pool = ThingPool(check=lambda thing: True, reset=lambda thing: None, by_hand=True)
    first = Caller(pool)
    if moment != "build":
        pool.threads.do()
        first.give_back()
    if moment == "check":
        pool.threads.do()
    second = Caller(pool)
    pool.refresh()
    pool.threads.do_all()
    assert pool.things.closed == {pool.things.made[0]: 1}
    assert (first if moment == "build" else second).thing is pool.things.made[1]


def test_close_fails_those_who_wait_and_lends_no_more() -> None:
    pool = ThingPool(min_size=1)
    holder, waiter = Caller(pool), Caller(pool)
    pool.close(0)
    assert isinstance(waiter.error, PoolClosed)
    with pytest.raises(PoolClosed, match="pool 'db' is closed"):
        pool.acquire()
    with pytest.raises(LeaseError):
        holder.give_back()
    assert holder.lease.over
    assert pool.things.all_closed_once()
    stats = pool.stats()
    assert (stats.size, stats.leased, stats.waiting) == (0, 0, 0)
    assert stats.retired == {"closed": 1}
    pool.close(0)
    pool.tend()
    pool.refresh()
    pool.resize(min_size=1)
    assert len(pool.things.made) == 1


def test_close_awaits_what_is_held(things: Things) -> None:
    pool = LocalPool(things.make, max_size=3, close=things.close, reset=lambda thing: None)
    leases = [pool.acquire(), pool.acquire()]
    closer = threading.Thread(target=pool.close, args=(None,))
    closer.start()
    wait_until(lambda: pool.closed)
    with pytest.raises(PoolClosed):
        pool.acquire(0)
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


@pytest.mark.bounds(hook=0.02)
@pytest.mark.parametrize("busy", ["build", "check", "reset", "close"])
def test_close_waits_a_bounded_time_for_what_hangs(things: Things, busy: str) -> None:
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

    hooks: Any = {"check": lambda _: hang("check"), "reset": lambda _: hang("reset"), "close": close}
    pool = LocalPool(make, max_size=1, **hooks)
    Caller(pool, takes=False)  # built, not taken, reset
    if busy == "check":
        wait_until(lambda: pool.stats().idle)
        Caller(pool, takes=False)
    if busy != "close":
        assert entered.wait(10)
    pool.close(0)
    assert not things.closed
    go_on.set()
    wait_until(lambda: pool.stats().size == 0)
    pool.close(0)
    assert things.all_closed_once()


@pytest.mark.bounds(hook=0.02)
def test_close_waits_a_bounded_time_for_a_call_that_hangs(things: Things) -> None:
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
    side_by_side(3, lambda index: pool.close(None if index else 0))  # the impatient one ends it for all
    assert lease.over
    assert things.all_closed_once()


# -- figures ------------------------------------------------------------------------------------------


def test_stats_count_what_happened() -> None:
    pool = ThingPool(max_size=2)
    first, second = Caller(pool), Caller(pool)
    waiter = Caller(pool)
    pool.clock.now += 3
    first.give_back()  # to the waiter
    pool.clock.now += 4
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


def of(histogram: Histogram) -> dict[float, int]:
    """What is in its buckets, by their upper bounds."""
    bounds = (*histogram.bounds, inf)
    return {bound: count for bound, count in zip(bounds, histogram.counts, strict=True) if count}


def test_histograms_tell_how_long_waits_and_leases_lasted() -> None:
    pool = ThingPool()
    first, waiter = Caller(pool), Caller(pool)
    pool.clock.now += 2.5  # as long as a bucket's bound says
    first.give_back()
    pool.clock.now += 1000
    waiter.give_back()
    Caller(pool)
    stats = pool.stats()
    assert (of(stats.wait), stats.wait.sum) == ({0.0005: 2, 2.5: 1}, 2.5)
    assert (of(stats.hold), stats.hold.sum) == ({2.5: 1, inf: 1}, 1002.5)
    assert repr(stats.hold) == "<Histogram of 2, 1e+03 s in all - <=2.5: 1, >300: 1>"
    assert repr(Histogram()) == "<Histogram of 0, 0 s in all>"
    assert stats == pickle.loads(pickle.dumps(stats))


@pytest.mark.parametrize("seconds", [4.0, HOOK_BOUND + 4])
def test_a_build_takes_as_long_as_it_takes_also_when_no_acquire_counts_on_it(seconds: float) -> None:
    pool = ThingPool(max_size=2, by_hand=True)
    for _ in range(2):
        Caller(pool, timeout=1)
    pool.after(2)
    pool.after(seconds - 2)
    pool.threads.do()
    pool.things.fail_builds = OSError("refused")
    pool.threads.do()
    stats = pool.stats()
    assert (stats.built, stats.build_seconds, stats.build_longest) == (1, seconds, seconds)
    assert stats.build.count == 1


def test_rejected_are_those_that_were_too_many() -> None:
    pool = ThingPool(max_waiting=1)
    for _ in range(2):
        Caller(pool, timeout=1)
    with pytest.raises(TooManyWaiting):
        Caller(pool)
    pool.after(1)
    assert (pool.stats().rejected, pool.stats().timeouts) == (1, 1)


def test_leases_tell_who_holds_what_the_longest_first() -> None:
    pool = ThingPool(max_size=2)
    callers = []
    for pid in (41, 42):
        callers.append(Caller(pool, pid=pid))
        pool.clock.now += 1
    first, second = pool.leases()
    number = callers[0].lease.id
    assert (first.lease_id, first.pid, first.process_name, first.age) == (number, 41, "worker-41", 2)
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

    def use(index: int) -> None:
        holder = ProcessId(index, None)
        for _ in range(100):
            if index % 2:
                pool.request(holder, lambda outcome: True, None)
                pool.reclaim(holder)  # at any moment: waiting, granted, holding
            else:
                pool.release(pool.acquire(None, holder))  # which no other's death has taken

    side_by_side(8, use)
    stats = pool.stats()
    assert (stats.leased, stats.waiting) == (0, 0)
    pool.close(10)
    assert things.most <= 3
    assert things.all_closed_once()


def test_a_timeout_tells_what_builds_wait_for() -> None:
    pool = ThingPool(by_hand=True, max_size=3)
    waiters = [Caller(pool, timeout=5) for _ in range(3)]
    for build, what in zip(pool.threads.jobs, ["two GPUs", "", "two GPUs"], strict=True):
        cast("Task", build).entry.runner.waits_for = what
    pool.after(5)
    assert ", 3 being built (waiting for two GPUs), " in str(waiters[0].error)
    pool.resize(min_size=1)
    with pytest.raises(PoolTimeout, match=r"after 0 s, 3 being built \(waiting for two GPUs\)"):
        pool.await_min_size(ME, bool, 0)


def test_the_machine_of_a_cluster_on_which_a_holder_is_stands_where_the_holder_does() -> None:
    pool = ThingPool()
    there = ProcessId(41, None, "worker", elsewhere=True, node="node-7")
    lease = pool.acquire(holder=there)
    assert [each.node for each in pool.leases()] == ["node-7"]
    assert [each.node for each in pool.objects()] == [None]
    late = Caller(pool, timeout=5)
    pool.after(5)
    assert "longest by pid 41 on node-7 (worker)" in str(late.error)
    assert there != ProcessId(41, None, "worker", elsewhere=True, node="node-8")
    pool.release(lease)


# -- a place that has to be asked for the end of a lease ----------------------------------------------


class Asked:
    """A pool of one far object, of which the lease has just ended: the place is being asked."""

    def __init__(self, ends: Any = None, calls: bool = False, leaves: object = None, **options: Any) -> None:
        self.pool = ThingPool(by_hand=True, runner=FarRunner, isolation="process", **options)
        holder = Caller(self.pool, pid=41)
        self.pool.threads.do()
        self.lease, self.thing = holder.lease, holder.thing
        self.runner = cast("FarRunner", self.lease.entry.runner)
        if leaves is not None:
            Call(self.lease).end(leaves=leaves)
        if calls:
            Call(self.lease)
        (ends or Asked.release)(self)
        (self.answer,) = self.pool.threads.jobs

    def release(self) -> None:
        self.pool.release(self.lease)

    @property
    def state(self) -> str:
        return self.lease.entry.state.name.lower()

    def is_replaced(self, why: str) -> bool:
        """Whether the object, and nothing else, was replaced for a waiter, and ends."""
        waiter = Caller(self.pool, timeout=None)
        self.pool.threads.do_all()
        assert self.pool.things.closed[self.thing] <= self.runner.alive
        return waiter.thing is self.pool.things.made[1] and self.pool.stats().retired == {why: 1}


def test_an_object_whose_lease_is_being_revoked_is_not_lent_and_counts() -> None:
    asked = Asked()
    waiter = Caller(asked.pool, timeout=0)  # no holder is in its way
    stats = asked.pool.stats()
    assert (asked.state, stats.size, stats.idle, stats.leased, stats.hold.count) == ("revoking", 1, 0, 0, 1)
    assert asked.pool.leases() == []
    with pytest.raises(LeaseLost):
        asked.pool.held(asked.lease.id)
    assert waiter.waiting
    assert asked.pool.threads.jobs == [asked.answer]


def test_nothing_is_built_in_the_stead_of_an_object_that_is_back_in_a_moment() -> None:
    asked = Asked(max_size=2)
    waiter = Caller(asked.pool)
    assert asked.pool.threads.jobs == [asked.answer]
    asked.pool.threads.do()
    assert waiter.thing is asked.thing


def test_a_stale_call_that_begins_before_the_answer_keeps_the_object_from_being_lent() -> None:
    asked = Asked()
    waiter = Caller(asked.pool, timeout=None)
    call = Call(asked.lease)
    asked.pool.threads.do()
    assert asked.state == "abandoned"
    call.end()
    asked.pool.threads.do_all()
    assert waiter.thing is asked.pool.things.made[1]
    assert not asked.runner.fence.enter(asked.lease.id)


@pytest.mark.parametrize("calls", [False, True])
@pytest.mark.parametrize("what", ["released", "discarded", "holder died", "expired"])
def test_the_answer_decides_what_becomes_of_an_object(what: str, calls: bool) -> None:
    ends: dict[str, Callable[[Asked], object]] = {
        "released": Asked.release,
        "discarded": lambda asked: asked.pool.release(asked.lease, discard=True),
        "holder died": lambda asked: asked.pool.reclaim(ProcessId(41, None)),
        "expired": lambda asked: asked.pool.after(5.0),
    }
    asked = Asked(ends[what], calls, max_hold=5.0)
    asked.pool.threads.do()
    if what == "released" and not calls:
        assert asked.state == "idle"
        return
    assert asked.state == ("abandoned" if calls else "closing")
    words = {"released": "interrupted", "holder died": "reclaimed"}
    assert asked.is_replaced(words.get(what, what))


def test_what_calls_left_behind_is_dropped_when_the_place_has_told_of_it() -> None:
    asked = Asked(leaves="cursor")
    waiter = Caller(asked.pool)
    asked.pool.threads.do()
    assert asked.state == "resetting"
    asked.pool.threads.do_all()
    assert waiter.thing in asked.pool.things.made
    assert asked.runner.leftovers == []


@pytest.mark.parametrize("on_reclaim", ["close", "reset"])
def test_a_reset_comes_after_the_answer(on_reclaim: str) -> None:
    cleaned: list[Thing] = []
    asked = Asked(
        lambda asked: asked.pool.reclaim(ProcessId(41, None)), reset=cleaned.append, on_reclaim=on_reclaim
    )
    assert not cleaned
    asked.pool.threads.do()
    assert asked.state == ("resetting" if on_reclaim == "reset" else "closing")
    asked.pool.threads.do()
    assert cleaned == [asked.thing] * (on_reclaim == "reset")


@pytest.mark.parametrize(
    ("fails", "why"), [(TimeoutError("silent"), "interrupted"), (ChildProcessError("gone"), "died")]
)
def test_a_place_that_gives_no_answer_is_replaced(
    fails: OSError, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Asked()
    asked.runner.fence.fails = fails
    asked.runner.alive = why != "died"
    asked.pool.threads.do()
    assert asked.state == "abandoned"
    assert f"a call of the last lease runs on: {fails}" in caplog.text
    assert asked.is_replaced(why)


@pytest.mark.parametrize("first", ["the answer", "the kill"])
@pytest.mark.parametrize("calls", [False, True])
@pytest.mark.parametrize("what", ["hung", "died", "memory_hard"])
def test_what_is_abandoned_meanwhile_needs_no_answer(
    what: str, calls: bool, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(calls=calls, max_memory_hard=100)
    home = cast("ProcessId", asked.runner.process)
    if what == "hung":
        asked.pool.after(HOOK_BOUND)
    elif what == "died":
        monkeypatch.setattr(asked.runner, "exit_reason", lambda: "was killed")
        asked.runner.alive = False
        asked.pool.process_died(home)
    else:
        asked.pool.measured({home: 200})
    assert asked.state == "abandoned"
    assert asked.pool.stats().size == 0
    if first == "the kill":
        asked.pool.threads.do(1)
        asked.pool.threads.do(1)  # and the close that it brings about
    asked.pool.threads.do()
    assert asked.is_replaced(what)


@pytest.mark.parametrize("what", ["refresh", "shrink", "wear", "grow large"])
def test_what_happened_meanwhile_counts_when_the_answer_comes(what: str) -> None:
    asked = Asked(max_size=2, min_size=0, max_lifetime=60.0, max_memory=100)
    if what == "refresh":
        asked.pool.refresh()
    elif what == "shrink":
        waiter = [Caller(asked.pool) for _ in range(2)]
        asked.pool.threads.do(1)
        assert not waiter[0].waiting
        asked.pool.resize(max_size=1)
    elif what == "wear":
        asked.pool.clock.now += 61.0
    else:
        asked.pool.measured({cast("ProcessId", asked.runner.process): 200})
    asked.pool.threads.do()
    why = {"refresh": "refreshed", "shrink": "shrunk", "wear": "lifetime", "grow large": "memory"}
    assert asked.pool.stats().retired == {why[what]: 1}
    asked.pool.threads.do_all()
    assert asked.pool.things.closed == {asked.thing: 1}


@pytest.mark.bounds(last_call=0.0, hook=0.0)
@pytest.mark.parametrize("answers", [True, False])
def test_closing_a_pool_waits_for_the_answer_or_kills(answers: bool) -> None:
    asked = Asked()
    asked.pool.close(0)
    if answers:
        asked.pool.threads.do()
        asked.pool.threads.do(1)  # its close; the kill comes too late
    else:
        asked.pool.threads.do(1)
        asked.runner.fence.fails = ChildProcessError("killed")
    asked.pool.threads.do_all()
    assert asked.pool.stats().retired == ({"closed": 1} if answers else {"died": 1})
    assert asked.pool.things.closed == ({asked.thing: 1} if answers else {})
    asked.pool.close(None)
    assert asked.pool.stats().size == 0


@pytest.mark.parametrize("ends", ["call", "died", "memory_hard"])
def test_a_place_whose_process_is_killed_or_dead_is_not_asked(
    ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ThingPool(by_hand=True, runner=FarRunner, isolation="process", max_memory_hard=100)
    holder = Caller(pool)
    pool.threads.do()
    runner = holder.lease.entry.runner
    if ends == "call":
        pool.give_up(holder.lease.id)
    elif ends == "died":
        monkeypatch.setattr(runner, "exit_reason", lambda: "was killed")
        pool.process_died(cast("ProcessId", runner.process))
    else:
        pool.measured({cast("ProcessId", runner.process): 200})
    assert [each.state for each in pool.objects()] == ["abandoned"]
    assert pool.stats().retired == {ends: 1}


# -- delegated leases ---------------------------------------------------------------------------------


def test_a_lease_may_be_delegated_to_a_process_that_takes_its_object_again_at_once() -> None:
    pool = ThingPool()
    first = Caller(pool)
    pool.clock.now += 2 * HOT_SECONDS
    first.give_back()
    second = Caller(pool, pid=2)
    assert not second.lease.is_delegable  # it was another's
    second.give_back()
    pool.clock.now += 2 * HOT_SECONDS
    late = Caller(pool, pid=2)
    assert not late.lease.is_delegable
    late.give_back()
    assert Caller(pool, pid=2).lease.is_delegable


def test_no_lease_is_delegated_where_an_acquire_has_just_had_to_wait() -> None:
    pool = ThingPool()
    holder = Caller(pool)
    pool.clock.now += 2 * HOT_SECONDS
    with pytest.raises(PoolTimeout):
        Caller(pool, timeout=0, pid=2)
    holder.give_back()
    again = Caller(pool)
    assert not again.lease.is_delegable
    again.give_back()
    pool.clock.now += 2 * HOT_SECONDS
    Caller(pool).give_back()
    assert Caller(pool).lease.is_delegable


@pytest.mark.parametrize(
    "options",
    [
        {"order": "fifo"},
        {"check": bool},
        {"reset": bool},
        {"max_hold": 60.0},
        {"warn_hold": 60.0},
        {"values": ["a"], "close": None},
    ],
    ids=lambda options: next(iter(options)),
)
def test_no_lease_is_delegated_where_the_pool_has_something_to_do_or_to_see(options: dict[str, Any]) -> None:
    pool = ThingPool(**options)
    for _ in range(3):
        pool.clock.now += 2 * HOT_SECONDS
        Caller(pool).give_back()
        caller = Caller(pool)
        assert not caller.lease.is_delegable
        caller.give_back()


def test_a_process_gets_the_object_that_it_had_unless_that_was_long_ago() -> None:
    pool = ThingPool(max_size=3)
    callers = [Caller(pool, pid=pid) for pid in range(3)]
    for caller in callers:
        caller.give_back()
    for caller in callers:
        again = Caller(pool, pid=caller.lease.holder.pid)
        assert again.thing is caller.thing
        again.give_back()
    pool.clock.now += 2 * HOT_SECONDS
    assert Caller(pool, pid=0).thing is callers[-1].thing  # which was used last


@pytest.mark.parametrize("what", ["ended", "waited for", "refreshed", "shrunk", "worn", "closed"])
def test_no_lease_is_delegated_after_what_happened_since_it_was_granted(what: str) -> None:
    pool = ThingPool(max_size=2, max_uses=3 if what == "worn" else None)
    if what == "shrunk":
        other = Caller(pool, pid=2)
    Caller(pool).give_back()
    pool.clock.now += 2 * HOT_SECONDS
    Caller(pool).give_back()
    caller = Caller(pool)
    assert caller.lease.is_delegable
    if what == "ended":
        caller.give_back()
    elif what == "waited for":
        pool.resize(max_size=1)
        Caller(pool, pid=2)
    elif what == "refreshed":
        pool.refresh()
    elif what == "shrunk":
        pool.resize(max_size=1)
        assert not other.lease.over
    elif what == "closed":
        threading.Thread(target=pool.close, args=(None,), daemon=True).start()
        wait_until(lambda: pool.closed)
    assert not pool.delegate(caller.lease, Delegated(pool.clock))
    if what != "ended":
        caller.give_back()


def test_its_holder_takes_the_object_again_and_again_and_it_is_one_lease() -> None:
    pool = ThingPool()
    holder = Regular(pool)
    pool.clock.now += 1.0
    for _ in range(3):
        assert holder.delegated.park()
        assert pool.leases() == []
        assert [each.state for each in pool.objects()] == ["idle"]
        assert (pool.stats().idle, pool.stats().leased) == (1, 0)
        assert holder.delegated.resume()
        pool.clock.now += 0.5
        (lease,) = pool.leases()
        assert (lease.lease_id, lease.age) == (holder.lease.id, 0.5)
        assert [each.state for each in pool.objects()] == ["leased"]
        assert (pool.stats().idle, pool.stats().leased) == (0, 1)
    assert not holder.lease.over


@pytest.mark.parametrize("how", ["told", "recalled"])
def test_what_it_did_by_itself_is_in_the_figures_before_and_after_its_end(how: str) -> None:
    pool = ThingPool()
    holder = Regular(pool)
    for seconds in (0.5, 2.0):
        pool.clock.now += seconds
        holder.delegated.park()
        holder.delegated.resume()
    before = pool.stats()
    assert (before.acquired, before.reused, before.built) == (5, 4, 1)
    assert (before.hold.count, before.hold_seconds, before.hold_longest) == (4, 2.5, 2.0)
    assert before.wait.count == 5
    assert [each.uses for each in pool.objects()] == [5]
    pool.clock.now += 4.0
    if how == "told":
        holder.give_back()
    else:
        holder.delegated.park()
        Caller(pool, pid=2).give_back()
    after = pool.stats()
    more = how == "recalled"
    assert (after.acquired, after.reused) == (5 + more, 4 + more)
    assert (after.hold.count, after.hold_seconds, after.hold_longest) == (5 + more, 6.5, 4.0)
    assert after.wait.count == 5 + more
    assert [each.uses for each in pool.objects()] == [5 + more]
    assert after.late_releases == 0


def test_a_parked_object_is_there_for_the_next_that_asks() -> None:
    pool = ThingPool(max_size=2)
    holder = Regular.parked(pool)
    other = Caller(pool, timeout=0, pid=2)
    assert other.thing is holder.thing
    assert holder.lease.over
    assert holder.delegated.is_home
    assert holder.delegated.is_over
    assert not holder.delegated.resume()
    assert len(pool.things.made) == 1  # none is built while one is parked


def test_an_object_in_use_is_recalled_for_one_that_waits_and_no_other_is_built_for_it() -> None:
    pool = ThingPool(max_size=1)
    holder = Regular(pool)
    waiter = Caller(pool, pid=2)
    assert waiter.waiting
    assert holder.delegated.is_recalled
    assert not holder.delegated.park()  # it is to tell
    holder.give_back()
    assert waiter.thing is holder.thing


def test_a_recalled_object_comes_home_when_its_holder_had_not_seen_that() -> None:
    pool = ThingPool(max_size=1)
    holder = Regular(pool)
    waiters = [Caller(pool, pid=2), Caller(pool, pid=3)]
    holder.delegated.record_parked()
    holder.delegated.put()
    come_home = holder.delegated.come_home
    assert come_home
    come_home()
    assert [each.waiting for each in waiters] == [False, True]
    assert holder.lease.over
    come_home()  # there is nothing left to do
    assert pool.stats().late_releases == 0


def test_one_that_is_noticed_before_it_is_home_stays_out() -> None:
    pool = ThingPool(max_size=1)
    holder = Regular(pool)
    waiter = Caller(pool, pid=2)
    assert holder.delegated.come_home
    holder.delegated.come_home()
    assert waiter.waiting
    assert not holder.lease.over


def test_while_one_waits_all_are_recalled() -> None:
    pool = ThingPool(min_size=3, max_size=3)
    users = [Regular(pool, pid=1), Regular(pool, pid=2)]
    assert not Caller(pool, pid=3).waiting
    assert not any(each.delegated.is_recalled for each in users)
    assert Caller(pool, pid=4).waiting
    assert all(each.delegated.is_recalled for each in users)


@pytest.mark.parametrize("reason", ["max_idle", "max_lifetime", "unused"])
def test_what_lies_parked_comes_home_after_a_second_and_was_idle_since_it_was_parked(reason: str) -> None:
    options = {} if reason == "unused" else {reason: 10.0}
    pool = ThingPool(**options)
    holder = Regular.parked(pool)
    pool.after(0.9)
    assert not holder.lease.over
    pool.after(0.2)
    assert holder.lease.over
    assert holder.delegated.is_home
    assert (pool.stats().idle, pool.stats().acquired, pool.stats().reclaimed) == (1, 3, 0)
    pool.after(8.8)  # 9.9 in all
    assert not pool.stats().retired or reason == "max_lifetime"
    pool.after(0.2)
    assert sum(pool.stats().retired.values()) == (reason != "unused")


def test_one_that_is_used_again_within_a_second_stays_where_it_is() -> None:
    pool = ThingPool(max_idle=1.0)
    holder = Regular.parked(pool)
    for _ in range(5):
        pool.after(0.9)
        assert holder.delegated.resume()
        assert holder.delegated.park()
    assert not holder.lease.over


def test_one_that_was_not_parked_for_long_is_hot_when_it_came_home() -> None:
    pool = ThingPool()
    holder = Regular.parked(pool)
    pool.clock.now += HOT_SECONDS / 2
    assert Caller(pool).lease.is_delegable
    assert holder.lease.over


def test_one_that_lay_parked_for_longer_is_not() -> None:
    pool = ThingPool()
    Regular.parked(pool)
    pool.clock.now += 2 * HOT_SECONDS
    assert not Caller(pool).lease.is_delegable


@pytest.mark.parametrize("what", ["refreshed", "shrunk", "memory", "lifetime", "closed"])
def test_what_is_parked_goes_when_an_idle_one_would(what: str) -> None:
    runner = FarRunner if what == "memory" else SteppedRunner
    isolation: dict[str, Any] = {"isolation": "process", "max_memory": 100} if what == "memory" else {}
    pool = ThingPool(max_size=2, max_lifetime=60.0, runner=runner, **isolation)
    if what == "shrunk":
        Caller(pool, pid=2)
    holder = Regular.parked(pool)
    if what == "refreshed":
        pool.refresh()
    elif what == "shrunk":
        pool.resize(max_size=1)
    elif what == "memory":
        pool.measured({cast("ProcessId", holder.lease.entry.runner.process): 200})
    elif what == "lifetime":
        pool.after(61.0)
    else:
        pool.close(None)  # which waits for no holder
    assert holder.delegated.is_home
    assert not holder.delegated.resume()
    assert pool.stats().retired == {what: 1}


@pytest.mark.parametrize("on_reclaim", ["close", "reset"])
def test_what_a_dead_process_had_parked_was_not_held_by_it(
    on_reclaim: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = ThingPool(on_reclaim=on_reclaim)
    holder = Regular.parked(pool)
    assert pool.reclaim(holder.lease.holder) == 0
    assert holder.lease.over
    assert (pool.stats().idle, pool.stats().reclaimed, pool.stats().retired) == (1, 0, {})
    assert not caplog.records
    assert Caller(pool, pid=2).thing is holder.thing


@pytest.mark.parametrize("is_resuming", [False, True])
def test_what_it_was_using_was(is_resuming: bool, caplog: pytest.LogCaptureFixture) -> None:
    pool = ThingPool()
    holder = Regular(pool)
    if is_resuming:  # it had the token, and has not said so
        holder.delegated.park()
        holder.delegated.take()
    assert pool.reclaim(holder.lease.holder) == 1
    assert (pool.stats().reclaimed, pool.stats().retired) == (1, {"reclaimed": 1})
    assert len(caplog.records) == 1


def test_a_holder_in_doubt_tells_and_the_object_is_back() -> None:
    for in_doubt in ("before it was put back", "put back", "taken"):
        pool = ThingPool()
        holder = Regular(pool)
        holder.delegated.record_parked()
        if in_doubt != "before it was put back":
            holder.delegated.put()
        if in_doubt == "taken":
            holder.delegated.take()
        holder.give_back()
        assert holder.delegated.is_home
        assert (pool.stats().idle, pool.stats().leased, pool.stats().acquired) == (1, 0, 3)
        assert pool.stats().hold.count == 3
        assert not holder.delegated.resume()


@pytest.mark.parametrize("way", ["told", "discarded", "parked", "came home"])
def test_a_lease_that_ended_at_home_leaves_its_slot_to_others(way: str) -> None:
    pool = ThingPool()
    holder = Regular(pool)
    if way in ("told", "discarded"):
        holder.give_back(discard=way == "discarded")
    elif way == "parked":
        holder.delegated.park()
        pool.refresh()
    else:
        pool.refresh()
        holder.delegated.record_parked()
        holder.delegated.put()
        assert holder.delegated.come_home
        holder.delegated.come_home()
    assert holder.lease.over
    assert holder.delegated.is_over
    assert holder.delegated.is_home


@pytest.mark.parametrize("end", ["killed", "taken away", "died", "closed"])
def test_one_that_was_ended_by_force_does_not(end: str) -> None:
    pool = ThingPool()
    holder = Regular(pool)
    if end == "killed":
        pool.reclaim(holder.lease.holder)
    elif end == "taken away":
        pool.give_up(holder.lease.id)
    elif end == "died":
        runner = holder.lease.entry.runner
        runner.exit_reason = lambda timeout=0.0: "was killed"  # type: ignore[method-assign]
        pool.process_died(cast("ProcessId", runner.process))
    else:
        pool.close(0)
    assert holder.lease.over
    assert holder.delegated.is_over
    assert holder.delegated.is_recalled
    assert not holder.delegated.is_home


def test_leases_are_told_in_the_order_in_which_objects_were_taken_last() -> None:
    pool = ThingPool(min_size=3, max_size=3)
    first, second = Regular(pool, pid=1), Regular(pool, pid=2)
    third = Caller(pool, pid=3)
    assert first.delegated.park()
    pool.clock.now += 0.5
    assert [each.lease_id for each in pool.leases()] == [second.lease.id, third.lease.id]
    assert first.delegated.resume()
    pool.clock.now += 0.5
    assert [(each.lease_id, each.age) for each in pool.leases()][-1] == (first.lease.id, 0.5)


def test_an_error_counts_no_object_as_held_that_is_just_coming_home() -> None:
    pool = ThingPool(max_size=2, min_size=2)
    holder, other = Regular(pool, pid=1), Caller(pool, pid=2)
    holder.delegated.record_parked()
    with pytest.raises(PoolTimeout, match=r"in 0 s: 1 held \(longest by .*worker-2"):
        Caller(pool, timeout=0, pid=3)
    assert not other.lease.over


def test_one_of_which_the_uses_are_over_is_told_and_replaced_at_once() -> None:
    pool = ThingPool(min_size=1, max_uses=4)
    holder = Regular(pool)
    assert holder.delegated.park()
    assert holder.delegated.resume()
    assert not holder.delegated.park()
    holder.give_back()
    assert pool.stats().retired == {"uses": 1}
    assert pool.stats().idle == 1


def test_a_lifetime_ends_the_use_of_a_parked_object_in_time() -> None:
    pool = ThingPool(max_lifetime=10.0)
    holder = Regular(pool)
    pool.clock.now += 9.0
    assert holder.delegated.park()
    pool.clock.now += 1.0
    assert not holder.delegated.resume()
    assert Caller(pool).thing is not holder.thing
    assert pool.stats().retired == {"lifetime": 1}
