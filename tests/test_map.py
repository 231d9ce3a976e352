"""Work mapped over a pool."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from actors import Gate, Tool, all_idle, child_process, my_threads
from helpers import promptly, wait_until

from mppool import ObjectPool, PoolClosed, PoolError, PoolManager, PoolTimeout


def echo_at_gate(tool: Tool, item: Any) -> Any:
    tool.wait_at_gate()
    return item


def divide(_: Tool, item: int) -> float:
    return 6 / item


class Input(Iterator[int]):
    """Numbers, and how many of them were read."""

    read = 0

    def __next__(self) -> int:
        self.read += 1
        return self.read


@pytest.mark.everywhere
def test_results_come_in_order(pool: ObjectPool[Tool]) -> None:
    assert list(pool.map(Tool.echo, (str(each) for each in range(50)))) == [str(each) for each in range(50)]
    assert pool.stats().acquired == 50
    assert list(pool.map(Tool.echo, [])) == []


@pytest.mark.everywhere
def test_as_many_at_once_as_there_are_objects(gate: Gate, pool: ObjectPool[Tool]) -> None:
    numbers = Input()
    results = pool.map(echo_at_gate, numbers)
    for _ in range(2):
        gate.wait_for_somebody()
    assert pool.stats().leased == 2
    assert numbers.read == 4, "two for each object"
    gate.open()
    assert [next(results) for _ in range(10)] == list(range(1, 11))
    assert numbers.read == 14


def test_it_is_as_wide_as_the_pool_at_the_call(pool: ObjectPool[Tool]) -> None:
    pool.resize(max_size=3)
    numbers = Input()
    results = pool.map(Tool.echo, numbers)
    pool.resize(max_size=1)
    assert next(results) == 1
    assert numbers.read == 7


@pytest.mark.everywhere
def test_an_error_comes_at_its_item_and_the_rest_is_given_up(pool: ObjectPool[Tool]) -> None:
    results = pool.map(divide, (3 - each for each in range(1000)))
    assert [next(results) for _ in range(3)] == [2.0, 3.0, 6.0]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []
    wait_until(lambda: all_idle(pool, pool.stats().size))
    assert pool.stats().acquired <= 8


def test_an_error_of_the_input_comes_in_its_place(pool: ObjectPool[Tool]) -> None:
    results = pool.map(Tool.echo, (6 / (2 - each) for each in range(9)))
    assert [next(results), next(results)] == [3.0, 6.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


class Broken(Input):
    """Its third number is an error, and it would go on after that."""

    def __next__(self) -> int:
        if super().__next__() == 3:
            raise OSError("no third one")
        return self.read


def test_nothing_is_read_behind_an_error_of_the_input(pool: ObjectPool[Tool]) -> None:
    numbers = Broken()
    results = pool.map(Tool.echo, numbers)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(OSError, match="no third one"):
        next(results)
    assert numbers.read == 3


@pytest.mark.everywhere
@pytest.mark.parametrize("end", ["dropped", "closed", "exhausted by an error"])
def test_what_waits_is_cancelled(manager: PoolManager, end: str) -> None:
    pool = manager.create_pool(Tool, max_size=3)
    threads = my_threads()
    held = [pool.acquire() for _ in range(3)]
    results = pool.map(divide, range(100))
    wait_until(lambda: pool.stats().waiting == 3)
    with promptly():
        if end == "closed":
            results.close()  # type: ignore[attr-defined]
        elif end == "dropped":
            del results
        else:
            pool.release(held.pop())
            with pytest.raises(ZeroDivisionError):
                next(results)
        wait_until(lambda: pool.stats().waiting == 0)
        wait_until(lambda: my_threads() <= threads)
    assert pool.stats().acquired <= 3 + (6 if end == "exhausted by an error" else 0)
    for handle in held:
        pool.release(handle)


def test_a_call_that_runs_goes_on(gate: Gate, pool: ObjectPool[Tool]) -> None:
    results = pool.map(echo_at_gate, range(4))
    for _ in range(2):
        gate.wait_for_somebody()
    del results
    assert pool.stats().leased == 2
    gate.open()
    wait_until(lambda: all_idle(pool, 2))
    assert pool.stats().acquired == 2
    assert pool.apply(Tool.echo, 1) == 1


@pytest.mark.everywhere
def test_all_of_it_has_one_time(gate: Gate, pool: ObjectPool[Tool]) -> None:
    for timeout in (60, 1e300, float("inf")):
        assert list(pool.map(Tool.echo, range(3), timeout=timeout)) == [0, 1, 2]
    results = pool.map(echo_at_gate, [1], timeout=0.2)
    with promptly(), pytest.raises(PoolTimeout, match=r"0\.2 s were too short for all of a map"):
        next(results)
    gate.open()
    with pool.lease(), pool.lease(), promptly(), pytest.raises(PoolTimeout):
        list(pool.map(Tool.echo, [1], timeout=0.2))
    with pytest.raises(ValueError, match="timeout must be 0 or more"):
        pool.map(Tool.echo, [1], timeout=-1)


def test_it_waits_for_others_without_end(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=1, timeout=0.1)
    with pool.lease():
        results = pool.map(Tool.echo, [1])
        with pytest.raises(PoolTimeout):
            pool.acquire()
        with pytest.raises(PoolTimeout):
            pool.acquire()
    assert list(results) == [1]


def test_what_cannot_begin_is_told_at_once(pool: ObjectPool[Tool]) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        pool.map(Tool.echo, 7)  # type: ignore[arg-type]
    pool.close()
    with pytest.raises(PoolClosed):
        pool.map(Tool.echo, [1])


# -- values -----------------------------------------------------------------------------------------------


def test_functions_of_values_run_here(manager: PoolManager) -> None:
    pool = manager.create_pool(each=["a", "b"])
    seen: list[tuple[str, int]] = []

    def note(value: str, item: int) -> int:
        seen.append((value, item))
        return item

    assert list(pool.map(note, range(20))) == list(range(20))
    assert sorted(item for _, item in seen) == list(range(20))
    wait_until(lambda: pool.stats().leased == 0)


def test_a_value_stays_with_a_function_that_runs_on(manager: PoolManager) -> None:
    pool = manager.create_pool(each=["a", "b"])
    begun, go_on = threading.Semaphore(0), threading.Event()

    def hold(value: str, _: int) -> None:
        begun.release()
        assert go_on.wait(20)

    results = pool.map(hold, range(9))
    for _ in range(2):
        begun.acquire()
    del results
    with pytest.raises(PoolTimeout):
        pool.acquire(0.3)
    assert pool.stats().leased == 2
    go_on.set()
    wait_until(lambda: pool.stats().leased == 0)
    assert pool.stats().acquired == 2


# -- forks ------------------------------------------------------------------------------------------------


def use_in_child(pipe: Any, results: Any, pool: ObjectPool[Tool]) -> None:
    try:
        next(results)
    except PoolError as error:
        pipe.send((str(error), pool.apply(Tool.echo, 7)))
    pipe.recv()  # until it is killed


def test_a_map_is_of_the_process_that_called_it(pool: ObjectPool[Tool]) -> None:
    results = pool.map(Tool.echo, range(9))
    assert next(results) == 0
    with child_process(use_in_child, results, pool) as (_, pipe):
        assert pipe.poll(20)
        said, echo = pipe.recv()
    assert "a map belongs to the process that called it" in said
    assert echo == 7
    assert list(results) == list(range(1, 9)), "the child has cut nothing"
