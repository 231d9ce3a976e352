"""Where an object lives, and what becomes of a call that takes too long there."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from actors import (
    Diary,
    Gate,
    Interrupted,
    Tool,
    Witness,
    Worker,
    acquire,
    interrupt,
    process_of,
    stopped,
    wait_at_gate,
)
from backends import Backend
from helpers import Beside, promptly, wait_until
from standins import side_by_side

from mppool import CallTimeout, LeaseError, LeaseLost, ObjectPool, PoolError, PoolManager


class Keepsake(Witness):
    """Stays where it is, and tells when it is gone."""

    def __getstate__(self) -> Any:
        raise TypeError("stays where it is")

    def __del__(self) -> None:
        self._note("gone")


class Bound(Keepsake):
    """Complains of every thread but the one that made it, which it wants to be alone with."""

    def __init__(self, diary: Path) -> None:
        self._thread = threading.get_ident()
        super().__init__(diary)

    def _note(self, what: str) -> None:
        super()._note(what if threading.get_ident() == self._thread else "betrayed")

    def thread(self) -> int:
        self._note("called")
        return self._thread

    def is_fine(self) -> bool:
        self._note("checked")
        return True

    def clean(self) -> None:
        self._note("cleaned")

    def items(self) -> Iterator[int]:
        for number in range(40):
            self._note("asked")
            yield number

    def fail(self) -> None:
        self._note("failed")
        raise LookupError("as it should")


def in_thread(bound: Bound) -> int:
    return bound.thread()


# -- a thread of its own --------------------------------------------------------------------------


def test_an_object_is_touched_by_no_other_thread(manager: PoolManager, diary: Diary) -> None:
    hooks: Any = {"check": Bound.is_fine, "reset": Bound.clean, "close": Bound.close}
    pool = manager.create_pool(partial(Bound, diary.path), isolation="thread", max_size=2, **hooks)
    threads = set()
    for _ in range(3):
        with pool.lease() as one, pool.lease() as other:
            threads |= {one.thread(), other.thread()}
            assert list(one.items()) == list(range(40))
            left = iter(other.items())
            assert next(left) == 0
            with pytest.raises(LookupError, match="as it should"):
                one.fail()
        threads.add(pool.apply(in_thread))
    assert len(threads) == 2
    pool.release(pool.acquire(), discard=True)
    pool.close()
    wait_until(lambda: len(diary.names("gone")) == 2)
    assert diary.names("betrayed") == []
    assert diary.all_closed_once()
    assert len(diary.names("checked")) >= 7
    assert len(diary.names("cleaned")) >= 7


def test_without_one_whoever_serves_the_holder_touches_it(manager: PoolManager, diary: Diary) -> None:
    pool = manager.create_pool(partial(Bound, diary.path), max_size=1, close=Bound.close)
    with pool.lease() as bound:
        bound.thread()
    assert diary.names("betrayed")


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path)  # which allows no other thread


def test_sqlite_connections(manager: PoolManager, tmp_path: Path) -> None:
    pool = manager.create_pool(
        partial(connect, tmp_path / "data"),
        isolation="thread",
        max_size=2,
        reset=sqlite3.Connection.rollback,
        close=sqlite3.Connection.close,
    )
    with pool.lease() as database:
        database.execute("CREATE TABLE number (value INTEGER)")
        with database:
            database.executemany("INSERT INTO number VALUES (?)", [(n,) for n in range(1000)])
    with pool.lease() as one, pool.lease() as other:
        cursor = one.execute("SELECT value FROM number ORDER BY value")
        assert [value for (value,) in cursor] == list(range(1000))
        assert other.execute("SELECT sum(value) FROM number").fetchone() == (499500,)
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            one.execute("SELECT * FROM nowhere")
    assert pool.stats().retired == {}


@pytest.mark.pool(Tool, isolation="thread", max_size=8, min_size=8)
def test_the_thread_ends_with_its_object(manager: PoolManager, pool: ObjectPool[Any]) -> None:
    process = process_of(manager)
    wait_until(lambda: pool.stats().idle == 8)
    pool.resize(min_size=0, max_size=1)
    wait_until(lambda: pool.stats().size == 1)
    before = process.num_threads()
    for _ in range(40):
        pool.release(pool.acquire(), discard=True)
    wait_until(lambda: process.num_threads() <= before)


def refuse() -> None:
    raise OSError("refused")


@pytest.mark.pool(refuse, isolation="thread", max_size=1)
def test_a_factory_that_fails_leaves_no_thread(manager: PoolManager, pool: ObjectPool[Any]) -> None:
    process = process_of(manager)
    for turn in range(20):
        with pytest.raises(PoolError, match="refused"):
            pool.acquire()
        if turn == 2:
            before = process.num_threads()
    wait_until(lambda: process.num_threads() <= before + 1)


def test_an_object_whose_holder_died_in_a_call_is_closed_in_its_thread(
    gate: Gate, manager: PoolManager, worker: Worker, diary: Diary
) -> None:
    factory = partial(Bound, diary.path)
    pool = manager.create_pool(factory, isolation="thread", max_size=1, close=Bound.close)
    worker.do(acquire, pool)
    worker.begin(wait_at_gate)
    gate.wait_for_somebody()
    worker.kill()
    with pool.lease(timeout=10) as another:
        assert another.thread()
    assert diary.closed() == []
    gate.open()
    wait_until(lambda: len(diary.closed()) == 1)
    pool.close()
    assert diary.all_closed_once()
    assert diary.names("betrayed") == []


# -- a call that takes too long -------------------------------------------------------------------


@pytest.mark.far
@pytest.mark.everywhere
def test_a_call_that_takes_too_long_is_given_up(
    backend: Backend, gate: Gate, manager: PoolManager, diary: Diary
) -> None:
    options: Any = {"call_timeout": 1, "max_size": 1, "close": Witness.close}
    pool = manager.create_pool(partial(Witness, diary.path), **options)
    handle = pool.acquire()
    assert handle.echo(1) == 1
    began = time.monotonic()
    with pytest.raises(CallTimeout, match=rf"'{pool.name}'.*call_timeout=1 s"):
        handle.wait_at_gate()
    assert time.monotonic() - began >= 1
    for _ in range(2):
        with pytest.raises(LeaseLost):
            handle.echo(2)
    pool.release(handle)
    with pool.lease(timeout=5) as another:  # at once, and by the same thread
        assert another.echo(3) == 3
    now = pool.stats()
    assert (now.size, now.retired, len(diary.made()), diary.closed()) == (1, {"call": 1}, 2, [])
    gate.open()
    wait_until(lambda: backend.kills or len(diary.closed()) == 1)
    pool.close()
    wait_until(lambda: len(diary.closed()) == (1 if backend.kills else 2))
    assert diary.all_closed_at_most_once()


@pytest.mark.everywhere
@pytest.mark.pool(Tool, call_timeout=1, max_size=1)
def test_an_apply_that_takes_too_long_is_given_up(gate: Gate, pool: ObjectPool[Any]) -> None:
    assert pool.apply(Tool.echo, 1) == 1
    with pytest.raises(ZeroDivisionError):
        pool.apply(divide, 0)
    with pytest.raises(TypeError, match="does not pickle, so apply"):
        pool.apply(open_file)
    with pytest.raises(CallTimeout):
        pool.apply(Tool.wait_at_gate)
    assert pool.apply(Tool.echo, 2) == 2
    gate.open()
    wait_until(lambda: pool.stats().size == 1)


@pytest.mark.everywhere("none", "thread")
@pytest.mark.local
@pytest.mark.manager(watch_interval=0.05)
@pytest.mark.pool(Tool, max_size=1, max_hold=0.1)
def test_an_apply_whose_lease_is_taken_back_meanwhile_is_lost(
    gate: Gate, pool: ObjectPool[Any], beside: Beside
) -> None:
    applied = beside(pool.apply, Tool.wait_at_gate)
    wait_until(lambda: pool.stats().retired == {"expired": 1})
    gate.open()
    with pytest.raises(LeaseLost, match="held longer than max_hold"):
        applied.result(10)
    assert pool.stats().late_releases == 0, "it was no fault of the holder's"


def divide(_: Tool, number: int) -> float:
    return 1 / number


def open_file(_: Tool) -> Any:
    return open(os.devnull)  # which does not travel


@pytest.mark.everywhere
@pytest.mark.pool(Tool, call_timeout=1, max_size=1)
def test_the_time_in_the_queue_is_no_call(pool: ObjectPool[Any], beside: Beside) -> None:
    with pool.lease() as held:
        applied = beside(pool.apply, Tool.echo, 1)
        wait_until(lambda: pool.stats().waiting == 1)
        for _ in range(12):
            held.nap(0.1)
    assert applied.result(10) == 1
    assert pool.stats().retired == {}


@pytest.mark.everywhere
@pytest.mark.pool(Tool, call_timeout=1, max_size=1)
def test_the_turns_of_other_threads_are_no_part_of_a_call(pool: ObjectPool[Any]) -> None:
    with pool.lease() as tool:
        side_by_side(8, lambda _: tool.nap(0.2))  # the last one waits for longer than a call may take
    assert pool.stats().retired == {}


@pytest.mark.everywhere
@pytest.mark.pool(Tool, call_timeout=1, max_size=1)
def test_a_call_after_an_interrupted_one_has_its_time_too(gate: Gate, pool: ObjectPool[Any]) -> None:
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pool.lease() as tool:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Interrupted):
                tool.wait_at_gate()
            with promptly(), pytest.raises(CallTimeout):
                tool.echo(1)
            with pytest.raises(LeaseLost, match="took longer than call_timeout"):
                tool.echo(2)
        gate.open()
        assert pool.apply(Tool.echo, 3) == 3
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.everywhere
@pytest.mark.pool(Tool, call_timeout=0.5, max_size=1, warn_hold=60)  # so the manager is told of each release
def test_the_time_of_a_call_is_not_that_of_a_release(
    backend: Backend, manager: PoolManager, pool: ObjectPool[Any]
) -> None:
    handle = pool.acquire()
    assert handle.echo(1) == 1
    with stopped(backend.process_of(manager)):
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + 0.6)
        pool.release(handle)
    assert pool.apply(Tool.echo, 2) == 2
    # Seen from outside only by a release that waits for a full socket.
    assert pool._channel.connection().wire._deadline is None


@pytest.mark.far
@pytest.mark.everywhere
@pytest.mark.manager(watch_interval=0.05)
@pytest.mark.pool(Tool, max_size=1, max_hold=0.1)
def test_a_lost_lease_says_why(pool: ObjectPool[Any]) -> None:
    handle = pool.acquire()
    wait_until(lambda: not pool.leases())
    with pytest.raises(LeaseLost, match="it was held longer than max_hold"):
        handle.echo(1)
    pool.release(handle)


class Slow(Tool):
    def numbers(self) -> Iterator[int]:
        yield 1
        self.wait_at_gate()


@pytest.mark.everywhere
@pytest.mark.pool(Slow, call_timeout=1, max_size=1)
def test_an_iteration_that_takes_too_long_is_given_up(gate: Gate, pool: ObjectPool[Any]) -> None:
    handle = pool.acquire()
    numbers = iter(handle.numbers())
    assert next(numbers) == 1
    with pytest.raises(CallTimeout):
        next(numbers)
    pool.release(handle)
    assert pool.apply(Tool.echo, 1) == 1
    gate.open()


@pytest.mark.everywhere
@pytest.mark.pool(Tool, call_timeout=1, max_size=2)
def test_what_is_asked_elsewhere_goes_on_meanwhile(gate: Gate, pool: ObjectPool[Any], beside: Beside) -> None:
    def hang() -> None:
        with pool.lease() as tool:
            tool.wait_at_gate()

    hanging = beside(hang)
    gate.wait_for_somebody()
    with pool.lease() as other:
        for number in range(100):
            assert other.echo(number) == number
    assert isinstance(hanging.exception(10), CallTimeout)
    gate.open()


# -- all that a handle can do ---------------------------------------------------------------------


class Rich(Tool):
    def __init__(self) -> None:
        self.colour = "red"
        self.numbers = {"one": 1}

    def __len__(self) -> int:
        return 3

    def __enter__(self) -> Rich:  # noqa: PYI034  # `Self` came with Python 3.11
        self.colour = "entered"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.colour = "left"

    def part(self) -> Part:
        return Part(self)

    def colour_of(self, part: Part) -> str:
        return part.whole.colour

    def count(self) -> Iterator[int]:
        yield from range(300)
        raise LookupError("that was all")

    def fail(self) -> None:
        raise Unusual(3, 4)

    def itself(self) -> Rich:
        return self


class Part:
    def __init__(self, whole: Rich) -> None:
        self.whole = whole
        self._here = threading.Lock()  # so that it does not pickle

    def paint(self, colour: str) -> None:
        self.whole.colour = colour


class Unusual(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


@pytest.mark.everywhere
@pytest.mark.pool(Rich, max_size=1)
def test_handles_are_the_same_everywhere(pool: ObjectPool[Any]) -> None:
    with pool.lease() as rich:
        assert len(rich) == 3
        assert rich.itself() is rich
        with rich as entered:
            assert entered.colour == "entered"
        assert rich.colour == "left"
        part = rich.part()
        part.paint("green")
        assert (rich.colour, rich.colour_of(part)) == ("green", "green")
        rich.colour = "blue"
        assert part.whole.colour == "blue"
        seen = []
        with pytest.raises(LookupError, match="that was all"):
            seen.extend(rich.count())
        assert seen == list(range(300))
        with pytest.raises(Exception, match="3 and 4") as caught:
            rich.fail()
        assert "in fail" in str(caught.value.__cause__), "where it failed over there"
        with pytest.raises(AttributeError, match="shade"):
            rich.shade  # noqa: B018
        with pytest.raises(TypeError, match="does not pickle"):
            rich.echo(threading.Lock())
        kept = part
    with pytest.raises(LeaseError):
        kept.paint("black")
    assert pool.apply(len) == 3
    with pytest.raises(LookupError):
        pool.apply(list_all)


def list_all(rich: Rich) -> list[int]:
    return list(rich.count())


@pytest.mark.everywhere
@pytest.mark.pool(Rich, call_timeout=0.5, max_size=1)
def test_with_a_handle_shows_the_error_of_the_call(gate: Gate, pool: ObjectPool[Any]) -> None:
    with pool.lease() as rich:
        with pytest.raises(CallTimeout), rich:
            rich.wait_at_gate()
        with pytest.raises(LeaseLost), rich:
            pass
    gate.open()


class Supervisor(Tool):
    def __init__(self, diary: Path) -> None:
        self._diary = diary

    def keepsake(self) -> Keepsake:
        return Keepsake(self._diary)


@pytest.mark.far
@pytest.mark.everywhere
def test_what_a_lease_kept_is_let_go_of_when_it_ends(manager: PoolManager, diary: Diary) -> None:
    pool = manager.create_pool(partial(Supervisor, diary.path), max_size=1)
    with pool.lease() as keeper:
        mine = keeper.keepsake()
        assert mine.name()
    wait_until(lambda: len(diary.names("gone")) == 1)
    assert pool.stats().retired == {}


@pytest.mark.everywhere
@pytest.mark.pool(Tool, expose=["echo"])
def test_only_what_is_exposed_is_offered(pool: ObjectPool[Any]) -> None:
    with pool.lease() as tool:
        assert tool.echo(1) == 1
        with pytest.raises(AttributeError):
            tool.pid()
