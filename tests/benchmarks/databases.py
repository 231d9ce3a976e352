"""Rows with a real PostgreSQL: a pooled connection, beside one of the client's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from tests.cluster import find_programs, private_cluster

from . import ours
from .bench import LIMIT, MPPOOL, Bench
from .clients import orderly
from .measure import Row, interleave
from .things import Operation, Step

__all__ = ["DATABASE_ROWS", "databases", "lacking"]

ROWS = 1000
QUERIES = 5


def lacking() -> dict[str, str]:
    """What is missing here, and why."""
    try:
        importlib.import_module("psycopg")
    except ImportError:  # of psycopg, or of the libpq that it needs
        return {"psycopg": "cannot be imported: pip install 'psycopg[binary]'"}
    if find_programs() is None:
        return {"PostgreSQL": "no server is installed, the system's package is called postgresql"}
    return {}


def databases(bench: Bench) -> Iterator[Row]:
    """The same statements in a pool and without one, which no pool can beat."""
    programs = find_programs()
    assert programs is not None
    with orderly() as stack:
        connect = partial(_connect, stack.enter_context(private_cluster(programs)))
        pool = stack.enter_context(ours.serve(1, connect, close=_close))
        bench.add(_POOLED, partial(_lend, pool))
        bench.add(_OWN, partial(_open_own, connect))
        for name, title, operation in _OPERATIONS:
            blocks = {MPPOOL: bench.block(_POOLED, operation), LIMIT: bench.block(_OWN, operation)}
            yield Row(name, title, "time", interleave(blocks, bench.pace.rounds))


_POOLED, _OWN = "a connection in a pool", "a connection of one's own"


def _connect(conninfo: str) -> Any:
    return importlib.import_module("psycopg").connect(conninfo, autocommit=True)


def _close(connection: Any) -> None:
    connection.close()


@contextmanager
def _lend(pool: Any) -> Iterator[Any]:
    yield pool


class Own:
    """A connection in the client's process, used as if it were lent."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def acquire(self) -> Any:
        return self._connection

    def release(self, connection: Any) -> None:
        pass

    def apply(self, function: Callable[[Any], Any]) -> Any:
        return function(self._connection)


@contextmanager
def _open_own(connect: Callable[[], Any]) -> Iterator[Own]:
    with closing(connect()) as connection:
        yield Own(connection)


# -- operations -------------------------------------------------------------------------------------------


@contextmanager
def _select_one(pool: Any) -> Iterator[Step]:
    connection = pool.acquire()
    yield lambda: connection.execute("SELECT 1").fetchone()
    pool.release(connection)


@contextmanager
def _dict_rows(pool: Any) -> Iterator[Step]:
    as_dict = importlib.import_module("psycopg.rows").dict_row
    query = f"SELECT n AS number, 'row ' || n AS name, n / 7.0 AS value FROM generate_series(1, {ROWS}) n"
    connection = pool.acquire()

    def step() -> None:
        with connection.cursor(row_factory=as_dict) as cursor:
            if sum(row["number"] for row in cursor.execute(query)) != ROWS * (ROWS + 1) // 2:
                raise AssertionError("these were other rows")

    yield step
    pool.release(connection)


def _five(connection: Any) -> list[Any]:
    return [connection.execute("SELECT %s + 1", [number]).fetchone() for number in range(QUERIES)]


@contextmanager
def _apply_five(pool: Any) -> Iterator[Step]:
    yield lambda: pool.apply(_five)


_OPERATIONS: tuple[tuple[str, str, Operation], ...] = (
    ("database-select", "PostgreSQL: select 1", _select_one),
    ("database-rows", f"PostgreSQL: a loop over {ROWS} rows as dicts", _dict_rows),
    ("database-apply", f"PostgreSQL: apply of {QUERIES} queries", _apply_five),
)

DATABASE_ROWS = tuple(name for name, _, _ in _OPERATIONS)
