"""Delegated leases under all that can happen to their holders: an object is never with two, and none is lost.

MPPOOL_STRESS_SECONDS is the length of the random parts, MPPOOL_STRESS_SEED their seed. How often the fast way
was gone is counted by what the manager granted: what is acquired beyond that was taken again without a word.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from actors import Interrupted, Tool, Worker, all_idle
from helpers import stress_seed, stress_times, wait_until

import mppool
import mppool._client.pool
from mppool import LeaseError, ObjectPool, PoolTimeout
from mppool._wire.delegation import AVAILABLE

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="no lease is delegated on this platform")

PACKAGE = os.path.dirname(mppool.__file__)

_TOOL = 4

# -- at each step -----------------------------------------------------------------------------------------


class Step:
    """Something happens at one step of what the package does in a block, as a signal or a thread would."""

    def __init__(self, number: int, happens: Callable[[], object]) -> None:
        self._left = number
        self._happens = happens
        self.place = ""

    @property
    def was_reached(self) -> bool:
        return self._left < 0

    def __enter__(self) -> Step:  # noqa: PYI034  # `Self` came with Python 3.11
        self._trace(True)
        return self

    def __exit__(self, *_: object) -> None:
        self._trace(False)

    def _trace(self, on: bool) -> None:
        if sys.version_info < (3, 12):
            sys.settrace(self._on_call if on else None)
            return
        seen = sys.monitoring.events.INSTRUCTION
        if sys.monitoring.get_tool(_TOOL) is None:
            sys.monitoring.use_tool_id(_TOOL, "steps")
        sys.monitoring.register_callback(_TOOL, seen, self._on_step if on else None)
        sys.monitoring.set_events(_TOOL, seen if on else 0)

    def _on_call(self, frame: Any, event: str, _: object) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode":
            self._on_step(frame.f_code, frame.f_lasti)
        return self._on_call

    def _on_step(self, code: types.CodeType, _: int) -> None:
        if code.co_filename.startswith(PACKAGE):
            self._left -= 1
            if self.was_reached:
                self._trace(False)
                self.place = code.co_name
                self._happens()


def raise_interrupted() -> None:
    raise Interrupted


def acquire_delegated(pool: ObjectPool[Any]) -> Any:
    """A handle of a lease that is delegated by now."""
    while not tokens():
        pool.release(pool.acquire(10))
    return pool.acquire(10)


def tokens() -> int:
    """How many leases are delegated to this process: it has event counters for nothing else."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of this listing
            count += os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventfd]"
    return count


def take(pool: ObjectPool[Any], step: Step) -> None:
    pool.release(acquire_delegated(pool))
    with step:
        handle = pool.acquire(10)
    pool.release(handle)


def give(pool: ObjectPool[Any], step: Step) -> None:
    handle = acquire_delegated(pool)
    with step:
        pool.release(handle)


def throw_away(pool: ObjectPool[Any], step: Step) -> None:
    handle = acquire_delegated(pool)
    with step:
        pool.release(handle, discard=True)


def forget(pool: ObjectPool[Any], step: Step) -> None:
    handle = acquire_delegated(pool)
    with step:
        del handle


def lease_and_call(pool: ObjectPool[Any], step: Step) -> None:
    pool.release(acquire_delegated(pool))
    with step, pool.lease() as tool:
        tool.echo(1)


def go_through(
    things: dict[str, Any], pool: ObjectPool[Any], do: Callable[[ObjectPool[Any], Step], None], seed: int
) -> int:
    """Interrupt at each step, or at some of them; how many that were."""
    dice, longest = random.Random(seed), 2 if stress_times(2) else 25
    warnings.simplefilter("ignore")  # of handles that were never known, and so never released
    sys.unraisablehook = lambda _: None  # it came in a finalizer
    kept = acquire_delegated(pool)  # an old handle keeps nothing
    pool.release(kept)
    number = times = 0
    while True:
        step = Step(number, raise_interrupted)
        with contextlib.suppress(Interrupted):
            do(pool, step)
        if not step.was_reached:
            return times
        number, times = number + dice.randrange(1, longest), times + 1
        # No acquire waits here: for a while after that no lease is delegated.
        wait_until(lambda: not pool.stats().leased, message=f"lost at step {number} in {step.place}")


@pytest.mark.everywhere("none", "process")
@pytest.mark.stress
@pytest.mark.pool(Tool, max_size=1)
@pytest.mark.parametrize("do", [take, give, throw_away, forget, lease_and_call])
def test_an_interrupt_at_any_step_loses_no_object(
    worker: Worker, pool: ObjectPool[Any], do: Callable[..., None]
) -> None:
    worker.begin(go_through, pool, do, stress_seed())
    steps = worker.result(100)
    assert steps > 5
    wait_until(lambda: all_idle(pool, pool.stats().size))
    print(f"interrupted at {steps} steps")


@pytest.mark.pool(Tool, max_size=1)
def test_an_interrupted_acquire_gives_back_its_object_though_its_error_is_kept(
    worker: Worker, pool: ObjectPool[Any]
) -> None:
    worker.do(keep_the_error, pool)
    wait_until(lambda: all_idle(pool, 1))


def keep_the_error(things: dict[str, Any], pool: ObjectPool[Any]) -> None:
    pool.release(acquire_delegated(pool))
    mppool._client.pool.make_handle = lambda *_: raise_interrupted()  # type: ignore[assignment, return-value]
    with pytest.raises(Interrupted) as things["kept"]:
        pool.acquire()


# -- two that release, and one that takes -----------------------------------------------------------------


def release_twice(things: dict[str, Any], pool: ObjectPool[Any], number: int) -> tuple[bool, list[str], str]:
    """At one step of a release, release and acquire: whether there is such a step, who failed, and where."""
    handle = acquire_delegated(pool)
    again: list[Any] = []
    refused = []

    def come_between() -> None:
        try:
            pool.release(handle)
        except LeaseError:
            refused.append("other")
        with contextlib.suppress(PoolTimeout):  # the token is about to be put back
            if pool.stats().idle:
                again.append(pool.acquire(0))

    step = Step(number, come_between)
    try:
        with step:
            pool.release(handle)
    except LeaseError:
        refused.append("first")
    again = again or [pool.acquire(10)]
    assert again[0].echo(number) == number
    assert pool.stats().idle == 0  # the object is not there for another one as well
    pool.release(again[0])
    return step.was_reached, refused, step.place


@pytest.mark.pool(Tool, max_size=1)
def test_of_two_that_release_one_ends_the_lease(worker: Worker, pool: ObjectPool[Any]) -> None:
    """Else the second puts back a token that another thread has taken meanwhile."""
    number = firsts = 0
    while (answer := worker.do(release_twice, pool, number))[0]:
        number += 1
        assert len(answer[1]) == 1, (number, answer)
        firsts += answer[1] == ["first"]
    assert 0 < firsts < number
    assert all_idle(pool, 1)


def be_interrupted_late(things: dict[str, Any], pool: ObjectPool[Any], number: int) -> tuple[bool, bool]:
    """At one step of a release, acquire if that is possible, and be interrupted: whether either was so."""
    handle = acquire_delegated(pool)
    again: list[Any] = []

    def come_between() -> None:
        with contextlib.suppress(PoolTimeout):  # the token is about to be put back
            if pool.stats().idle:
                again.append(pool.acquire(0))
        raise Interrupted

    step = Step(number, come_between)
    with contextlib.suppress(Interrupted), step:
        pool.release(handle)
    for each in again:  # the other thread's, which was not interrupted
        assert pool.stats().leased == 1
        assert each.echo(number) == number
        pool.release(each)
    with contextlib.suppress(LeaseError):  # it was interrupted before it began
        pool.release(handle)
    wait_until(lambda: all_idle(pool, 1), message=step.place)
    return step.was_reached, bool(again)


@pytest.mark.pool(Tool, max_size=1)
def test_an_interrupted_release_does_not_end_the_lease_of_the_next_one(
    worker: Worker, pool: ObjectPool[Any]
) -> None:
    number = taken = 0
    while (answer := worker.do(be_interrupted_late, pool, number))[0]:
        number += 1
        taken += answer[1]
    assert 0 < taken < number
