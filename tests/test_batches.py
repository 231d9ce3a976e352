"""Calls of many callers that are put together into one."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import resource
import signal
import sys
import threading
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from actors import (
    FORK,
    Exclusive,
    Gate,
    KillStorm,
    Tool,
    Worker,
    all_idle,
    count_descriptors,
    manager_in,
    process_of,
)
from backends import Backend
from helpers import Beside, RunPython, do_without_linux, promptly, stress_seconds, stress_seed, wait_until

from mppool import (
    CallTimeout,
    LeaseLost,
    ManagerLost,
    ObjectPool,
    PoolClosed,
    PoolManager,
    PoolTimeout,
    RemoteError,
    TooManyWaiting,
)

KEY = b"a key of the tests' own"
MIB = 2**20
LONG = 60.0
"""Seconds that a batch waits which only its size is to start."""


def sizes(_: Tool, items: list[Any]) -> list[tuple[Any, int]]:
    return [(each, len(items)) for each in items]


def negatives(_: Tool, items: list[int]) -> list[int]:
    return [-each for each in items]


def at_gate(tool: Tool, items: list[Any]) -> list[Any]:
    tool.wait_at_gate()
    return sizes(tool, items)


def nap(tool: Tool, items: list[float]) -> list[float]:
    return [tool.nap(max(items))] * len(items)


def crash(_: Tool, items: list[Any]) -> list[Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return items


def evaluate(tool: Tool, items: list[str]) -> Any:
    """All items are the same, and say what is returned."""
    return eval(items[0], globals(), {"tool": tool, "items": items})


def each_evaluated(tool: Tool, items: list[str]) -> list[Any]:
    return [eval(each, globals(), {"tool": tool}) for each in items]


class Ruin:
    """What cannot be rebuilt."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("ruin",)


def outcome(future: Any) -> Any:
    """What a call returned, or its error."""
    return future.exception(20) or future.result()


def in_one_batch(beside: Beside, pool: ObjectPool[Any], func: Callable[..., Any], items: Any) -> list[Any]:
    """What comes of calls that are one batch, of a pool of which all batches have this size."""
    return [outcome(each) for each in [beside(pool.apply_batch, func, item) for item in items]]


def pool_of_batches(manager: PoolManager, size: int, **options: Any) -> ObjectPool[Tool]:
    """One whose batches wait until they have this size."""
    return manager.create_pool(Tool, max_size=1, max_batch_size=size, batch_wait=LONG, **options)


def hold_back(things: dict[str, Any], pool: ObjectPool[Any], func: Any, item: Any) -> Any:
    return pool.apply_batch(func, item)


# -- what shares a batch ---------------------------------------------------------------------------------


@pytest.mark.everywhere
def test_calls_of_many_callers_are_one(manager: PoolManager, beside: Beside) -> None:
    pool = pool_of_batches(manager, 3)
    assert in_one_batch(beside, pool, sizes, "abc") == [("a", 3), ("b", 3), ("c", 3)]
    assert pool.stats().acquired == 1


@pytest.mark.everywhere
def test_callers_may_be_any_processes(manager: PoolManager, beside: Beside, worker: Worker) -> None:
    pool = pool_of_batches(manager, 2)
    worker.begin(hold_back, pool, sizes, "there")
    assert pool.apply_batch(sizes, "here") == ("here", 2)
    assert worker.result() == ("there", 2)


@pytest.mark.everywhere
def test_only_calls_of_the_same_function_share_one(manager: PoolManager, beside: Beside) -> None:
    pool = pool_of_batches(manager, 2)
    pool.resize(max_size=3)
    functions = [sizes, partial(each_evaluated), negatives]
    items = ["1", "2", 3]
    calls = [beside(pool.apply_batch, functions[n], items[n]) for n in (0, 1, 2, 0, 1, 2)]
    assert [outcome(each) for each in calls] == [("1", 2), 2, -3, ("1", 2), 2, -3]
    assert pool.stats().acquired == 3


def test_a_function_that_goes_by_value_is_known_by_its_pickle(manager: PoolManager, beside: Beside) -> None:
    pytest.importorskip("cloudpickle")
    pool = pool_of_batches(manager, 2)
    assert in_one_batch(beside, pool, lambda _, items: [sum(items)] * len(items), [1, 2]) == [3, 3]


@pytest.mark.everywhere
def test_one_that_waits_long_enough_runs_with_what_it_has(pool: ObjectPool[Tool]) -> None:
    assert pool.apply_batch(sizes, 1) == (1, 1)


@pytest.mark.everywhere
@pytest.mark.pool(Tool, batch_wait=0, max_size=1)
def test_without_a_wait_it_takes_what_is_there_when_an_object_comes_free(
    gate: Gate, pool: ObjectPool[Tool], beside: Beside
) -> None:
    first = beside(pool.apply_batch, at_gate, "alone")
    gate.wait_for_somebody()

    async def come() -> list[Any]:
        await _arrived(pool)
        calls = [asyncio.ensure_future(pool.aio.apply_batch(sizes, each)) for each in range(5)]
        await _arrived(pool)
        gate.open()
        return await asyncio.gather(*calls)

    assert asyncio.run(come()) == [(each, 5) for each in range(5)]
    assert outcome(first) == ("alone", 1)
    assert pool.stats().acquired == 2


async def _arrived(pool: ObjectPool[Tool]) -> None:
    """All that this loop has asked for before: it goes one way. No object is free."""
    with pytest.raises(PoolTimeout):
        await pool.aio.acquire(timeout=0)


@pytest.mark.everywhere
def test_several_run_at_once_on_several_objects(gate: Gate, pool: ObjectPool[Tool], beside: Beside) -> None:
    calls = [beside(pool.apply_batch, partial(at_gate), each) for each in range(1)]
    gate.wait_for_somebody()
    calls += [beside(pool.apply_batch, at_gate, 1)]
    gate.wait_for_somebody()
    assert pool.stats().leased == 2
    gate.open()
    assert [outcome(each) for each in calls] == [(0, 1), (1, 1)]


def test_each_object_of_given_items_has_a_batch(gate: Gate, manager: PoolManager, beside: Beside) -> None:
    pool = manager.create_pool(_tool_of, each=["a", "b"], max_batch_size=1)
    calls = [beside(pool.apply_batch, _letters_at_gate, None) for _ in range(2)]
    for _ in calls:
        gate.wait_for_somebody()
    assert {each.item for each in pool.leases()} == {"a", "b"}
    gate.open()
    assert sorted(map(outcome, calls)) == ["a", "b"]


def _tool_of(letter: str) -> Tool:
    tool: Any = Tool()
    tool.letter = letter
    return tool  # type: ignore[no-any-return]


def _letters_at_gate(tool: Any, items: list[Any]) -> list[str]:
    tool.wait_at_gate()
    return [tool.letter] * len(items)


# -- the queue -------------------------------------------------------------------------------------------


@pytest.mark.pool(Tool, max_size=1, max_batch_size=2)
def test_a_batch_has_the_place_of_its_first_call(pool: ObjectPool[Tool]) -> None:
    async def queue() -> None:
        with pool.lease():
            await _arrived(pool)
            batched, alone = partial(pool.aio.apply_batch, _noted), partial(pool.aio.apply, _noted)
            calls = batched(1), alone(["a"]), batched(2), batched(3), alone(["b"])
            tasks = [asyncio.ensure_future(each) for each in calls]
            await _becomes(pool, waiting=4)
        await asyncio.gather(*tasks)

    asyncio.run(queue())
    assert pool.apply(vars) == {"notes": [[1, 2], ["a"], [3], ["b"]]}


def _noted(tool: Any, items: list[Any]) -> list[Any]:
    vars(tool).setdefault("notes", []).append(items)
    return items


async def _becomes(pool: ObjectPool[Any], **figures: int) -> None:
    deadline = asyncio.get_running_loop().time() + 10
    while not figures.items() <= vars(stats := await pool.aio.stats()).items():
        assert asyncio.get_running_loop().time() < deadline, stats
        await asyncio.sleep(0.005)


@pytest.mark.pool(Tool, max_size=1, max_waiting=1)
def test_one_that_may_not_wait_is_refused_and_those_who_join_a_place_are_not(
    pool: ObjectPool[Tool], beside: Beside
) -> None:
    with pool.lease():
        calls = [beside(pool.apply_batch, sizes, 0)]
        wait_until(lambda: pool.stats().waiting == 1)
        with pytest.raises(TooManyWaiting):
            pool.apply_batch(negatives, 1)
        calls += [beside(pool.apply_batch, sizes, 1)]
        assert isinstance(outcome(beside(pool.apply_batch, sizes, 2, timeout=0)), PoolTimeout)
    assert [outcome(each)[0] for each in calls] == [0, 1]


@pytest.mark.everywhere
def test_now_or_never(pool: ObjectPool[Tool]) -> None:
    assert pool.apply_batch(sizes, 1, timeout=0) == (1, 1)  # its object is being built
    with pool.lease(), pool.lease(), promptly(), pytest.raises(PoolTimeout, match="2 held"):
        pool.apply_batch(sizes, 1, timeout=0)
    assert pool.apply_batch(sizes, 1, timeout=0) == (1, 1)


def test_one_that_has_its_object_takes_those_who_do_not_wait(manager: PoolManager, beside: Beside) -> None:
    pool = pool_of_batches(manager, 3)
    calls = [beside(pool.apply_batch, sizes, 0, timeout=0)]
    wait_until(lambda: pool.stats().leased == 1)
    calls += [beside(pool.apply_batch, sizes, 1, timeout=0)]
    assert pool.apply_batch(sizes, 2) == (2, 3)
    assert [outcome(each) for each in calls] == [(0, 3), (1, 3)]


@pytest.mark.pool(Tool, max_size=1)
def test_each_caller_has_its_own_time(pool: ObjectPool[Tool], beside: Beside) -> None:
    with pool.lease():
        patient = beside(pool.apply_batch, sizes, "patient")
        wait_until(lambda: pool.stats().waiting == 1)
        with promptly(), pytest.raises(PoolTimeout, match=r"no object came free in .* s: 1 held"):
            pool.apply_batch(sizes, "late", timeout=0.1)
        assert (pool.stats().waiting, pool.stats().timeouts) == (1, 1)
    assert outcome(patient) == ("patient", 1)


def test_a_time_runs_out_while_a_batch_waits_for_others(manager: PoolManager) -> None:
    pool = pool_of_batches(manager, 2)
    pool.apply(Tool.echo, 1)
    with promptly(), pytest.raises(PoolTimeout):
        pool.apply_batch(sizes, 1, timeout=0.1)
    wait_until(lambda: all_idle(pool, 1))


# -- errors ----------------------------------------------------------------------------------------------


@pytest.mark.everywhere
def test_an_error_is_that_of_all_callers(manager: PoolManager, beside: Beside) -> None:
    pool = pool_of_batches(manager, 2)
    errors = in_one_batch(beside, pool, evaluate, ["1 / 0"] * 2)
    assert [type(each) for each in errors] == [ZeroDivisionError] * 2
    assert "in evaluate" in str(errors[0].__cause__)
    wait_until(lambda: all_idle(pool, 1))


@pytest.mark.everywhere
def test_an_error_among_the_results_is_that_of_one(manager: PoolManager, beside: Beside) -> None:
    pool = pool_of_batches(manager, 3)
    one, two, three = in_one_batch(beside, pool, each_evaluated, ["1", "KeyError('k')", "SystemExit(3)"])
    assert (one, type(two), two.args, type(three)) == (1, KeyError, ("k",), SystemExit)


@pytest.mark.everywhere
@pytest.mark.parametrize(
    ("returned", "error", "text"),
    [
        ("[1]", ValueError, "returned 1 results for 2 items"),
        ("[]", ValueError, "returned 0 results for 2 items"),
        ("(1, 2, 3)", ValueError, "returned 3 results for 2 items"),
        ("None", TypeError, "has to return a list or array of 2 results, and returned a 'NoneType'"),
        ("iter([1, 2])", TypeError, "returned a 'list_iterator'"),
        ("'ab'", TypeError, "returned a 'str'"),
        ("{1: 2, 3: 4}", TypeError, "returned a 'dict'"),
    ],
)
def test_what_is_no_result_for_each_is_an_error_for_all(
    manager: PoolManager, beside: Beside, returned: str, error: type[Exception], text: str
) -> None:
    pool = pool_of_batches(manager, 2)
    for each in in_one_batch(beside, pool, evaluate, [returned] * 2):
        assert type(each) is error
        assert text in str(each)
        assert "evaluate" in str(each)


@pytest.mark.everywhere
@pytest.mark.parametrize("result", ["threading.Lock()", "tool", "tool.echo", "Ruin()"])
def test_a_result_that_cannot_be_brought_is_an_error_of_its_own(
    manager: PoolManager, beside: Beside, result: str
) -> None:
    pool = pool_of_batches(manager, 3)
    one, bad, three = in_one_batch(beside, pool, each_evaluated, ["1", result, "3"])
    assert (one, three, type(bad)) == (1, 3, TypeError), bad
    assert "apply() " in str(bad)


@pytest.mark.everywhere
def test_an_item_that_cannot_be_rebuilt_fails_alone(manager: PoolManager, beside: Beside) -> None:
    pool = manager.create_pool(Tool, max_size=1, max_batch_size=3, batch_wait=0.5)
    one, bad, three = in_one_batch(beside, pool, sizes, ["one", Ruin(), "three"])
    assert {one[1], three[1]} <= {1, 2}
    assert isinstance(bad, RemoteError)
    assert "cannot be rebuilt where the object lives: ValueError" in str(bad)


@pytest.mark.everywhere
def test_what_does_not_pickle_is_named(pool: ObjectPool[Tool]) -> None:
    with pytest.raises(TypeError, match=r"an argument does not pickle, .*: the function, of type 'partial'"):
        pool.apply_batch(partial(sizes, threading.Lock()), 1)
    with pytest.raises(TypeError, match=r"an argument does not pickle, .*: argument 1, of type 'lock'"):
        pool.apply_batch(sizes, threading.Lock())
    with pool.lease() as tool, pytest.raises(TypeError, match="a handle cannot be an item of a batch"):
        pool.apply_batch(sizes, [tool])
    assert pool.stats().acquired == 1


@pytest.mark.everywhere
def test_a_function_that_is_not_known_there_is_an_error_that_says_so(pool: ObjectPool[Tool]) -> None:
    with pytest.raises(RemoteError, match="cannot be rebuilt where the object lives"):
        pool.apply_batch(RuinedFunction(), 1)


class RuinedFunction(Ruin):
    def __call__(self, tool: Tool, items: list[Any]) -> list[Any]:
        return items


def test_values_are_no_objects_of_batches(manager: PoolManager) -> None:
    pool = manager.create_pool(each=[1, 2])
    with pytest.raises(TypeError, match=r"apply\(\) runs here"):
        pool.apply_batch(sizes, 1)  # type: ignore[arg-type]


def test_bad_input_is_refused_at_once(pool: ObjectPool[Tool]) -> None:
    with pytest.raises(ValueError, match="timeout must be 0 or more"):
        pool.apply_batch(sizes, 1, timeout=-1)
    with pytest.raises(RuntimeError, match=r"pool\.aio\.apply_batch\(\) was called where no event loop runs"):
        pool.aio.apply_batch(sizes, 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nothing bounds memory here")
def test_an_item_for_which_there_is_no_memory_fails_alone(beside: Beside) -> None:
    manager = PoolManager(("127.0.0.1", 0), KEY, ctx=FORK)  # on TCP all goes in the stream
    manager.start(_leave_memory)
    with manager:
        pool = pool_of_batches(manager, 2)
        other = beside(pool.apply_batch, sizes, 0)
        wait_until(lambda: pool.stats().leased == 1)
        with pytest.raises(RemoteError, match="too large for the memory"):
            pool.apply_batch(sizes, bytes(160 * MIB))
        assert pool.apply_batch(sizes, 1) == (1, 2)
        assert outcome(other) == (0, 2)


def _leave_memory() -> None:
    """For what this process is at, and not for much more."""
    size = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (size + 128 * MIB, size + 128 * MIB))


# -- callers that go -------------------------------------------------------------------------------------


@pytest.mark.everywhere
@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_a_caller_that_goes_before_its_batch_runs_is_not_in_it(
    manager: PoolManager, beside: Beside, worker: Worker, how: str
) -> None:
    pool = pool_of_batches(manager, 3)
    worker.begin(_until_interrupted, pool, sizes, "gone")
    wait_until(lambda: [each.callers for each in pool.leases()] == [(worker.pid,)])
    calls = [beside(pool.apply_batch, sizes, "here")]
    wait_until(lambda: [each.callers for each in pool.leases()] == [(worker.pid, os.getpid())])
    os.kill(worker.pid, signal.SIGKILL if how == "killed" else signal.SIGINT)
    wait_until(lambda: [each.callers for each in pool.leases()] == [(os.getpid(),)])
    calls += [beside(pool.apply_batch, sizes, each) for each in range(2)]
    assert {outcome(each)[1] for each in calls} == {3}
    assert pool.stats().retired == {}


def _until_interrupted(things: dict[str, Any], pool: ObjectPool[Any], func: Any, item: Any) -> Any:
    try:
        return pool.apply_batch(func, item)
    except KeyboardInterrupt:
        return None


@pytest.mark.everywhere
def test_a_batch_whose_callers_have_all_gone_does_not_run(manager: PoolManager, worker: Worker) -> None:
    pool = pool_of_batches(manager, 2)
    worker.begin(_until_interrupted, pool, crash, "gone")
    wait_until(lambda: pool.stats().leased == 1)
    os.kill(worker.pid, signal.SIGINT)
    assert worker.result() is None
    wait_until(lambda: all_idle(pool, 1))
    with pool.lease():
        worker.begin(_until_interrupted, pool, crash, "gone")
        wait_until(lambda: pool.stats().waiting == 1)
        worker.kill()
        wait_until(lambda: pool.stats().waiting == 0)
    assert (pool.stats().retired, pool.stats().built) == ({}, 1)


@pytest.mark.everywhere
def test_a_caller_that_is_killed_in_its_batch_is_not_missed(
    gate: Gate, manager: PoolManager, beside: Beside, worker: Worker
) -> None:
    pool = pool_of_batches(manager, 2)
    worker.begin(hold_back, pool, at_gate, "gone")
    wait_until(lambda: pool.stats().leased == 1)
    other = beside(pool.apply_batch, at_gate, "here")
    gate.wait_for_somebody()
    worker.kill()
    wait_until(worker.has_ended)
    (lease,) = pool.leases()
    assert lease.callers == (worker.pid, os.getpid())
    gate.open()
    assert outcome(other) == ("here", 2)
    wait_until(lambda: all_idle(pool, 1))
    stats = pool.stats()
    assert (stats.retired, stats.built, stats.reclaimed) == ({}, 1, 0)


def test_a_caller_that_was_stopped_holds_up_no_other(
    gate: Gate, manager: PoolManager, beside: Beside, worker: Worker
) -> None:
    pool = pool_of_batches(manager, 2)
    worker.begin(hold_back, pool, _megabytes_at_gate, 8)  # more than lies in a socket
    wait_until(lambda: pool.stats().leased == 1)
    other = beside(pool.apply_batch, _megabytes_at_gate, 1)
    gate.wait_for_somebody()
    worker.stop()
    gate.open()
    assert len(outcome(other)) == MIB
    wait_until(lambda: all_idle(pool, 1))
    worker.go_on()
    assert len(worker.result()) == 8 * MIB


def _megabytes_at_gate(tool: Tool, items: list[int]) -> list[bytes]:
    tool.wait_at_gate()
    return [bytes(each * MIB) for each in items]


@pytest.mark.everywhere
def test_the_holder_is_the_batch_with_its_callers(
    backend: Backend, manager: PoolManager, beside: Beside
) -> None:
    pool = pool_of_batches(manager, 2)
    call = beside(pool.apply_batch, sizes, 1)
    (lease,) = wait_until(pool.leases)
    assert (lease.pid, lease.process_name) == (backend.process_of(manager).pid, "a batch")
    assert lease.callers == (os.getpid(),)
    assert pool.apply_batch(sizes, 2) == (2, 2)
    assert outcome(call) == (1, 2)
    with pool.lease():
        assert [each.callers for each in pool.leases()] == [()]


# -- objects and managers that go ------------------------------------------------------------------------


@pytest.mark.everywhere
def test_a_call_that_takes_too_long_is_an_error_for_all(manager: PoolManager, beside: Beside) -> None:
    pool = pool_of_batches(manager, 2, call_timeout=0.3)
    assert in_one_batch(beside, pool, sizes, [1, 2]) == [(1, 2), (2, 2)]
    for error in in_one_batch(beside, pool, nap, [0.0, 1.5]):
        assert isinstance(error, CallTimeout), error
        assert "call_timeout=0.3 s" in str(error)
    assert in_one_batch(beside, pool, sizes, [1, 2]) == [(1, 2), (2, 2)]
    assert pool.stats().retired == {"call": 1}


@pytest.mark.everywhere
@pytest.mark.local  # on a cluster it is looked each second, and the call is over by then
@pytest.mark.manager(watch_interval=0.05)
def test_a_lease_that_lasts_too_long_is_lost_to_all(manager: PoolManager, beside: Beside) -> None:
    pool = pool_of_batches(manager, 2, max_hold=0.3, call_timeout=5)
    for error in in_one_batch(beside, pool, nap, [1.0, 1.0]):
        assert isinstance(error, LeaseLost), error
        assert "it was held longer than max_hold" in str(error)
    assert in_one_batch(beside, pool, sizes, [1, 2]) == [(1, 2), (2, 2)]


def test_a_process_that_dies_is_an_error_for_all(manager: PoolManager, beside: Beside) -> None:
    pool = pool_of_batches(manager, 2, isolation="process")
    for _ in range(2):
        for error in in_one_batch(beside, pool, crash, [1, 2]):
            assert isinstance(error, LeaseLost), error
            assert "was killed by SIGKILL" in str(error)
        assert in_one_batch(beside, pool, sizes, [1, 2]) == [(1, 2), (2, 2)]
    assert pool.stats().retired == {"died": 2}


def test_a_manager_that_dies_is_an_error_for_all(beside: Beside) -> None:
    with manager_in() as manager:
        pool = pool_of_batches(manager, 2)
        waiting = beside(pool.apply_batch, sizes, 1)
        wait_until(lambda: pool.stats().leased == 1)
        process_of(manager).kill()
        assert isinstance(outcome(waiting), ManagerLost)


@pytest.mark.everywhere
def test_a_pool_that_is_closed_refuses_all_that_wait(pool: ObjectPool[Tool], beside: Beside) -> None:
    with pool.lease(), pool.lease():
        calls = [beside(pool.apply_batch, sizes, each) for each in range(3)]
        wait_until(lambda: pool.stats().waiting == 1)
        closing = beside(pool.close)
        assert {type(outcome(each)) for each in calls} == {PoolClosed}
    closing.result()
    with pytest.raises(PoolClosed):
        pool.apply_batch(sizes, 1)


def test_one_that_runs_when_the_pool_is_closed_comes_to_its_end(
    gate: Gate, pool: ObjectPool[Tool], beside: Beside
) -> None:
    call = beside(pool.apply_batch, at_gate, 1)
    gate.wait_for_somebody()
    closing = beside(pool.close)
    wait_until(lambda: isinstance(outcome(beside(pool.apply_batch, sizes, 1)), PoolClosed))
    gate.open()
    assert outcome(call) == (1, 1)
    closing.result()


# -- event loops -----------------------------------------------------------------------------------------


@pytest.mark.everywhere
def test_a_loop_has_one_connection_for_all_its_callers(backend: Backend, manager: PoolManager) -> None:
    pool = pool_of_batches(manager, 100)
    pool.apply(Tool.echo, 1)
    process = backend.process_of(manager)

    async def call() -> list[Any]:
        await pool.aio.stats()
        calls = [asyncio.ensure_future(pool.aio.apply_batch(sizes, each)) for each in range(99)]
        before = count_descriptors(process), process.num_threads()
        await _becomes(pool, leased=1)
        after = count_descriptors(process), process.num_threads()
        assert max(now - then for now, then in zip(after, before, strict=True)) < 10
        return await asyncio.gather(pool.aio.apply_batch(sizes, "last"), *calls)

    assert asyncio.run(call()) == [("last", 100), *((each, 100) for each in range(99))]


@pytest.mark.everywhere
def test_a_task_that_is_cancelled_is_in_no_batch(manager: PoolManager) -> None:
    pool = pool_of_batches(manager, 2)

    async def call() -> None:
        given_up = asyncio.ensure_future(pool.aio.apply_batch(sizes, "given up"))
        await _becomes(pool, leased=1)
        given_up.cancel()
        await _becomes(pool, leased=0)
        both = await asyncio.gather(*(pool.aio.apply_batch(sizes, each) for each in range(2)))
        assert both == [(0, 2), (1, 2)]

    asyncio.run(call())


@pytest.mark.everywhere
def test_a_task_gets_what_went_wrong(manager: PoolManager) -> None:
    pool = pool_of_batches(manager, 1)

    async def call() -> None:
        with pytest.raises(ZeroDivisionError):
            await pool.aio.apply_batch(evaluate, "1 / 0")
        with pytest.raises(RemoteError, match="cannot be rebuilt"):
            await pool.aio.apply_batch(sizes, Ruin())
        with pytest.raises(TypeError, match="does not pickle"):
            await pool.aio.apply_batch(sizes, threading.Lock())
        async with pool.aio.lease():
            with pytest.raises(PoolTimeout):
                await pool.aio.apply_batch(sizes, 1, timeout=0.05)
            with pytest.raises(PoolTimeout):
                await pool.aio.apply_batch(sizes, 1, timeout=0)
        await pool.aio.close()
        with pytest.raises(PoolClosed):
            await pool.aio.apply_batch(sizes, 1)

    asyncio.run(call())


def _noted_and_stopped(_: Tool, items: list[Any]) -> list[Any]:
    """Has the manager stand still, once it has noted that it ran."""
    with open(items[0], "a") as notes:
        notes.write("ran ")
    os.kill(os.getpid(), signal.SIGSTOP)
    threading.Event().wait(20)  # this thread may still go on for a while
    return items


def test_what_has_run_does_not_run_again_when_the_manager_dies_with_more_to_read(tmp_path: Path) -> None:
    """The kernel then says that something was not read, and not what."""
    notes = tmp_path / "notes"

    async def call() -> None:
        batch = asyncio.ensure_future(pool.aio.apply_batch(_noted_and_stopped, str(notes)))
        standing_still = partial(wait_until, lambda: process.status() == psutil.STATUS_STOPPED)
        await asyncio.get_running_loop().run_in_executor(None, standing_still)
        more = asyncio.ensure_future(pool.aio.acquire())
        await asyncio.sleep(0)  # it asks in this turn of the loop, and that is sent in the next one
        await asyncio.sleep(0)
        process.kill()
        with pytest.raises(ManagerLost):
            await batch
        await pool.aio.release(await more)

    with manager_in(restart=True) as manager:
        pool = manager.create_pool(Tool, max_size=1, batch_wait=0)
        process = psutil.Process(pool.apply(_pid))
        asyncio.run(call())
    assert notes.read_text() == "ran "


def _pid(_: Tool) -> int:
    return os.getpid()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nothing bounds memory here")
def test_a_result_for_which_a_loop_has_no_memory_fails_alone(manager: PoolManager, worker: Worker) -> None:
    pool = pool_of_batches(manager, 2)
    large, small, lent = worker.do(_calls_with_little_memory, pool)
    assert (type(large), "too large for the memory" in str(large)) == (RemoteError, True)
    assert (small, lent) == ("small", "lent")
    assert all_idle(pool, 1)


def _calls_with_little_memory(things: dict[str, Any], pool: ObjectPool[Tool]) -> list[Any]:
    async def call() -> list[Any]:
        _leave_memory()
        calls = [pool.aio.apply_batch(_zeros, each) for each in (160 * MIB, "small")]
        return await asyncio.gather(*calls, _lent(pool), return_exceptions=True)

    return asyncio.run(call())


async def _lent(pool: ObjectPool[Tool]) -> str:
    async with pool.aio.lease() as tool:
        return await tool.echo("lent")


def _zeros(_: Tool, items: list[Any]) -> list[Any]:
    return [bytes(each) if isinstance(each, int) else each for each in items]


async def _open_tool() -> Tool:
    return Tool()


async def _awaited(_: Tool, items: list[Any]) -> list[Any]:
    await asyncio.sleep(0)
    return [-each for each in items]


@pytest.mark.everywhere("thread", "process")
def test_what_a_coroutine_function_gives_is_awaited_beside_an_asynchronous_object(
    manager: PoolManager, beside: Beside
) -> None:
    pool: Any = manager.create_pool(_open_tool, max_size=1, max_batch_size=2, batch_wait=LONG)
    assert in_one_batch(beside, pool, _awaited, [1, 2]) == [-1, -2]


# -- ways and data ---------------------------------------------------------------------------------------


@pytest.mark.everywhere
def test_arrays_pass(manager: PoolManager, beside: Beside) -> None:
    numpy = pytest.importorskip("numpy")
    pool = pool_of_batches(manager, 2)
    arrays = [numpy.full(MIB, number, "u1") for number in (1, 2)]
    for _ in range(3):  # the first one goes in the stream
        one, two = in_one_batch(beside, pool, _stacked, arrays)
        assert (one == 11).all()
        assert (two == 12).all()

    async def call() -> None:
        for _ in range(3):
            one, two = await asyncio.gather(*(pool.aio.apply_batch(_stacked, each) for each in arrays))
            assert (one == 11).all()
            assert (two == 12).all()

    asyncio.run(call())


def _stacked(tool: Any, items: list[Any]) -> Any:
    """Rows of an array that the object uses again."""
    import numpy as np

    if not hasattr(tool, "memory"):
        tool.memory = np.empty((2, MIB), "u1")
    tool.memory[:] = np.stack(items)
    tool.memory += 10
    return tool.memory


@pytest.mark.skipif(
    not hasattr(os, "memfd_create") or "MPPOOL_PORTABLE" in os.environ, reason="there are no memory files"
)
@pytest.mark.everywhere
@pytest.mark.local
@pytest.mark.pool(Tool, max_size=1, batch_wait=0)
def test_memory_files_are_used_again(pool: ObjectPool[Tool]) -> None:
    """A caller learns with its answer that its item is not needed any more."""
    for _ in range(6):
        pool.apply_batch(_lengths, bytearray(MIB))
    files = _memory_files()
    assert files
    for _ in range(6):
        pool.apply_batch(_lengths, bytearray(MIB))
    assert _memory_files() == files


def _lengths(_: Tool, items: list[Any]) -> list[int]:
    return [len(each) for each in items]


def _memory_files() -> set[int]:
    """Those of this process, by their inodes."""
    paths = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return {os.stat(path).st_ino for path in paths if os.path.exists(path) and "memfd" in os.readlink(path)}


def test_where_memory_files_cannot_pass(monkeypatch: pytest.MonkeyPatch, beside: Beside) -> None:
    do_without_linux(monkeypatch)
    with manager_in() as manager:
        for isolation in ("none", "process"):
            pool = pool_of_batches(manager, 2, isolation=isolation)
            items = [bytearray(MIB), pickle.PickleBuffer(bytes(MIB))]
            for _ in range(2):
                assert [len(each[0]) for each in in_one_batch(beside, pool, sizes, items)] == [MIB, MIB]


@pytest.mark.everywhere
@pytest.mark.local
def test_on_tcp(beside: Beside) -> None:
    with manager_in(address=("127.0.0.1", 0), authkey=KEY) as manager:
        pool = pool_of_batches(manager, 2)
        assert in_one_batch(beside, pool, sizes, [1, bytes(MIB)]) == [(1, 2), (bytes(MIB), 2)]


SHARED = """
import asyncio, sys
from mppool import PoolManager, shared_pool
sys.path.insert(0, {tests!r})
from actors import Tool
from test_batches import sizes
pool = shared_pool("batches", Tool, max_size=1)
print(pool.apply_batch(sizes, 1))
PoolManager.shared("batches").shutdown()
print(pool.apply_batch(sizes, 2))
PoolManager.shared("batches").shutdown()
async def call():
    print(await pool.aio.apply_batch(sizes, 3))
asyncio.run(call())
PoolManager.shared("batches").shutdown()
"""


def test_in_a_shared_pool_whose_manager_is_started_anew(
    run_python: RunPython, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("MPPOOL_RUNTIME_DIR", str(tmp_path_factory.mktemp("r")))
    done = run_python("-c", SHARED.format(tests=os.path.dirname(__file__)))
    assert done.stdout == "(1, 1)\n(2, 1)\n(3, 1)\n"


# -- all at once ----------------------------------------------------------------------------------------


def _exclusively(thing: Exclusive, items: list[Any]) -> list[Any]:
    thing.step(uuid.uuid4().hex)
    return [-each for each in items]


def _call_until_killed(pool: ObjectPool[Any], seed: float, counts: Any) -> None:
    """Have calls done in batches, from threads and loops, some of which are given up."""
    dice = random.Random(seed)

    async def from_a_loop() -> None:
        numbers = [dice.randrange(10**9) for _ in range(6)]
        calls = [asyncio.ensure_future(pool.aio.apply_batch(_exclusively, each)) for each in numbers]
        await asyncio.sleep(dice.choice((0, 0.001, 0.003)))
        calls[0].cancel()
        came = await asyncio.gather(*calls, return_exceptions=True)
        assert came[1:] == [-each for each in numbers[1:]]

    while True:
        number = dice.randrange(10**9)
        try:
            timeout = dice.choice((0, 0.001, 0.01, 30, None))
            assert pool.apply_batch(_exclusively, number, timeout=timeout) == -number
            counts[0] += 1
        except PoolTimeout:
            counts[1] += 1
        if dice.random() < 0.2:
            asyncio.run(from_a_loop())


@pytest.mark.far
@pytest.mark.everywhere
def test_each_gets_its_own_while_callers_are_killed(
    backend: Backend, manager: PoolManager, tmp_path: Path
) -> None:
    dice = random.Random(stress_seed())
    complaints = tmp_path / "complaints"
    complaints.touch()
    factory = partial(Exclusive, complaints)
    pool = manager.create_pool(factory, max_size=2, max_batch_size=4, batch_wait=0.001)
    with KillStorm(backend.worker, partial(_call_until_killed, pool), dice, workers=8) as storm:
        storm.rage(stress_seconds(), pauses=(0.0, 0.005, 0.02))
        storm.all_go_on(timeout=20)
    wait_until(lambda: all_idle(pool, pool.stats().size))
    stats = pool.stats()
    assert (complaints.read_text(), stats.retired, stats.reclaimed) == ("", {}, 0)
    assert storm.served
