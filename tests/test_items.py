"""Items of iterators come when they are there, whatever comes after them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from actors import Gate, Tool, all_idle
from helpers import PROMPT, Beside, promptly, wait_until

from mppool import CallTimeout, ObjectPool, PoolManager


class Source(Tool):
    """Gives some items at once, and what is behind them when the gate is open."""

    def numbers(self, count: int = 2) -> Iterator[int]:
        yield from range(count)
        self.wait_at_gate()
        yield from range(count, 10)

    def ends(self) -> Iterator[int]:
        yield from range(2)
        self.wait_at_gate()
        return "over"

    def fails(self) -> Iterator[int]:
        yield from range(2)
        self.wait_at_gate()
        raise SystemExit("failed")

    def locks(self) -> Iterator[Any]:
        for _ in range(2):
            yield threading.Lock()
        self.wait_at_gate()
        yield "text"

    def rows(self) -> Rows:
        return Rows(self)


class Rows:
    """A cursor, as far as one can tell from outside."""

    def __init__(self, source: Source) -> None:
        self.lock = threading.Lock()  # so it comes as a handle
        self._source = source
        self.execute(2)

    def execute(self, count: int) -> None:
        self._numbers = self._source.numbers(count)

    def fetchone(self) -> tuple[int] | None:
        return next(((number,) for number in self._numbers), None)

    def fetchall(self) -> list[tuple[int]]:
        return [(number,) for number in self._numbers]

    def __iter__(self) -> Iterator[tuple[int]]:
        return iter(self.fetchone, None)

    close = executemany = fetchmany = fetchall


pytestmark = [
    pytest.mark.usefixtures("gate"),
    pytest.mark.pool(Source, max_size=1),
    pytest.mark.bounds(batch=1.0),  # so that also a busy machine gives two items within it
]


@pytest.fixture
def source(gate: Gate, pool: ObjectPool[Any]) -> Iterator[Any]:
    with pool.lease() as source:
        yield source
        gate.open()


def take_two(items: Any, gate: Gate, beside: Beside) -> list[Any]:
    """The two items that are there, while the object waits for the third."""
    came = [beside(next, items).result(PROMPT), beside(next, items).result(PROMPT)]
    gate.wait_for_somebody()
    return came


@pytest.mark.everywhere
def test_what_is_there_comes_while_the_next_one_is_waited_for(
    source: Any, gate: Gate, beside: Beside
) -> None:
    items = source.numbers()
    assert take_two(items, gate, beside) == [0, 1]
    third = beside(next, items)
    assert not third.done()
    gate.open()
    assert third.result(PROMPT) == 2
    assert list(items) == list(range(3, 10))


@pytest.mark.everywhere
def test_the_end_and_an_error_behind_what_was_sent(source: Any, gate: Gate, beside: Beside) -> None:
    ends, fails = source.ends(), source.fails()
    assert take_two(ends, gate, beside) == [0, 1]
    gate.open()
    with pytest.raises(StopIteration) as caught:
        next(ends)
    assert caught.value.value == "over"
    assert list(ends) == []
    assert [next(fails), next(fails)] == [0, 1]
    with pytest.raises(SystemExit, match="failed"):
        next(fails)


@pytest.mark.everywhere
def test_items_that_come_as_handles(source: Any, gate: Gate, beside: Beside) -> None:
    locks = source.locks()
    _, lock = take_two(locks, gate, beside)
    gate.open()
    with lock:
        assert next(locks) == "text"


@pytest.mark.everywhere
def test_another_call_of_the_lease_waits_and_another_pool_does_not(
    manager: PoolManager, source: Any, gate: Gate, beside: Beside
) -> None:
    items = source.numbers()
    take_two(items, gate, beside)
    other = beside(source.echo, 1)
    with promptly():
        assert manager.create_pool(Tool).apply(Tool.echo, 2) == 2
    assert not other.done()
    gate.open()
    assert other.result(PROMPT) == 1
    assert list(items) == list(range(2, 10))


@pytest.mark.everywhere("none", "thread")
@pytest.mark.local
def test_a_lease_that_ends_meanwhile(pool: ObjectPool[Any], gate: Gate) -> None:
    with pool.lease() as source:
        items = source.numbers()
        assert [next(items), next(items)] == [0, 1]
        gate.wait_for_somebody()
    with promptly(), pool.lease() as source:
        assert source.echo(1) == 1
    gate.open()
    wait_until(lambda: all_idle(pool, 1))
    assert pool.stats().built == 2


def test_what_would_miss_the_awaited_item_is_refused_when_it_is_there(source: Any, gate: Gate) -> None:
    items = source.numbers()
    assert [next(items), next(items)] == [0, 1]
    gate.wait_for_somebody()
    gate.open()
    with pytest.raises(RuntimeError, match=r"1 items ahead, which send\(\) would miss"):
        items.send(None)
    assert next(items) == 2
    assert items.send(None) == 3


def test_a_method_that_reads_on_begins_with_the_awaited_item(source: Any, gate: Gate) -> None:
    rows = source.rows()
    cursor = iter(rows)
    assert [next(cursor), next(cursor)] == [(0,), (1,)]
    gate.wait_for_somebody()
    gate.open()
    assert rows.fetchone() == (2,)
    assert rows.fetchall() == [(number,) for number in range(3, 10)]


def test_a_method_that_reads_on_finds_the_end_behind_what_was_sent(source: Any, gate: Gate) -> None:
    rows = source.rows()
    rows.execute(10)
    cursor = iter(rows)
    assert [next(cursor) for _ in range(10)][-1] == (9,)
    gate.open()
    assert rows.fetchone() is None


def test_the_awaited_item_is_forgotten_where_iteration_begins_anew(source: Any, gate: Gate) -> None:
    rows = source.rows()
    assert [next(rows), next(rows)] == [(0,), (1,)]
    gate.wait_for_somebody()
    gate.open()
    rows.execute(5)
    assert [row for (row,) in rows] == list(range(10))


@pytest.mark.bounds(batch=0.1)
@pytest.mark.pool(Source, max_size=1, call_timeout=2.5)
def test_no_call_runs_out_of_time_over_what_is_there(pool: ObjectPool[Any]) -> None:
    with pool.lease() as source:
        items = source.numbers()
        assert [next(items), next(items)] == [0, 1]
        with pytest.raises(CallTimeout):
            next(items)
