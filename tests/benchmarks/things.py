"""What is lent, and what a client does with it, whoever lends it.

An operation opens on a pool, which has `acquire` and `release` (and perhaps `apply`), and yields the step
that is timed. It runs in a client process; `Thing` lives wherever its pool keeps it.
"""

from __future__ import annotations

import functools
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

__all__ = [
    "KIB",
    "MIB",
    "Operation",
    "Step",
    "Thing",
    "acquire_release",
    "apply",
    "compute",
    "cursor_fetched",
    "cursor_iterated",
    "cycle",
    "cycle_of_many",
    "pid",
    "plain_call",
    "receive",
    "sample",
    "send",
]

KIB = 2**10
MIB = 2**20

Step = Callable[[], object]
Operation = Callable[[Any], AbstractContextManager[Step]]
Kind = Literal["array", "bytes"]


@functools.cache
def sample(kind: Kind, size: int) -> Any:
    """So many bytes, warm; one of each kind and size in a process."""
    data = bytes(range(256)) * (size // 256)
    if kind == "bytes":
        return data
    import numpy as np

    return np.frombuffer(bytearray(data), dtype=np.uint8)


class Thing:
    """The pooled object."""

    def __init__(self) -> None:
        self._table: sqlite3.Connection | None = None

    def echo(self, value: Any) -> Any:
        return value

    def take(self, value: Any) -> int:
        return len(value)

    def give(self, kind: Kind, size: int) -> Any:
        return sample(kind, size)

    def compute(self) -> int:
        """Python code that leaves the interpreter to nobody, for a millisecond or so."""
        return sum(number * number for number in range(20_000))

    def select(self, rows: int) -> sqlite3.Cursor:
        if self._table is None:
            self._table = _table(rows)
        return self._table.execute("SELECT number, name, value FROM things LIMIT ?", (rows,))


def _table(rows: int) -> sqlite3.Connection:
    table = sqlite3.connect(":memory:", check_same_thread=False)
    table.execute("CREATE TABLE things (number INTEGER, name TEXT, value REAL)")
    values = ((number, f"thing number {number}", number / 7) for number in range(rows))
    table.executemany("INSERT INTO things VALUES (?, ?, ?)", values)
    return table


def pid(thing: Thing) -> int:
    """For `apply`: the process where the objects are."""
    return os.getpid()


def _echo(thing: Thing, value: int) -> Any:
    return thing.echo(value)


@contextmanager
def _held(pool: Any) -> Iterator[Any]:
    handle = pool.acquire()
    try:
        yield handle
    finally:
        pool.release(handle)


@contextmanager
def plain_call(pool: Any) -> Iterator[Step]:
    with _held(pool) as handle:
        yield lambda: handle.echo(1)


@contextmanager
def compute(pool: Any) -> Iterator[Step]:
    with _held(pool) as handle:
        yield handle.compute


@contextmanager
def acquire_release(pool: Any) -> Iterator[Step]:
    yield lambda: pool.release(pool.acquire())


@contextmanager
def cycle(pool: Any) -> Iterator[Step]:
    def step() -> None:
        handle = pool.acquire()
        handle.echo(1)
        pool.release(handle)

    yield step


@contextmanager
def apply(pool: Any) -> Iterator[Step]:
    yield lambda: pool.apply(_echo, 1)


@contextmanager
def cycle_of_many(pool: Any, objects: int) -> Iterator[Step]:
    """`cycle` while this client holds half of so many objects, and the others lie idle."""
    held = [pool.acquire() for _ in range(objects // 2)]
    try:
        with cycle(pool) as step:
            yield step
    finally:
        for handle in held:
            pool.release(handle)


@contextmanager
def send(pool: Any, kind: Kind, size: int) -> Iterator[Step]:
    """A large argument."""
    value = sample(kind, size)
    with _held(pool) as handle:
        yield lambda: handle.take(value)


@contextmanager
def receive(pool: Any, kind: Kind, size: int) -> Iterator[Step]:
    """A large result, dropped before the next one."""
    with _held(pool) as handle:
        yield lambda: len(handle.give(kind, size))


@contextmanager
def cursor_iterated(pool: Any, rows: int) -> Iterator[Step]:
    with _held(pool) as handle:
        yield lambda: _count(handle.select(rows), rows)


@contextmanager
def cursor_fetched(pool: Any, rows: int) -> Iterator[Step]:
    with _held(pool) as handle:
        yield lambda: _count(handle.select(rows).fetchall(), rows)


def _count(rows: Any, expected: int) -> None:
    if sum(1 for _ in rows) != expected:
        raise AssertionError(f"these were not {expected} rows")
