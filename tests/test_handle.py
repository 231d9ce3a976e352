"""Handles against the objects they stand for, and what is special about them."""

from __future__ import annotations

import asyncio
import codecs
import collections
import copy
import csv
import decimal
import functools
import gc
import io
import itertools
import json
import math
import multiprocessing
import numbers
import operator
import os
import pickle
import sqlite3
import tempfile
import threading
import time
import types
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from actors import START_METHODS

from mppool import PoolManager, RemoteError
from mppool._remote.calls import ObjectTable, perform
from mppool._remote.errors import unpack_error
from mppool._remote.family import HandleRef, lease_of
from mppool._remote.handle import class_for, make_handle
from mppool._remote.inspection import interface_for, interface_of
from mppool._remote.interface import CURSOR, ITEMS, STREAM
from mppool._remote.opcodes import ERROR
from mppool._remote.references import DoesNotPickle
from mppool._wire.connection import encode
from mppool.errors import LeaseError, LeaseLost

if TYPE_CHECKING:
    from typing_extensions import Self


class FakeLease:
    """A lease whose manager is in this process. Everything that crosses is pickled, as it would be."""

    same_hashes = True
    has_loop = False

    def __init__(self, obj: Any, expose: frozenset[str] | None = None) -> None:
        self.object = obj
        self.leftovers = ObjectTable(obj, expose)
        self.ended = False
        self.lost = False
        self.trips: list[str] = []

    def call(
        self, target: int, op: str, args: tuple[Any, ...], kwargs: dict[str, Any], beside: Any = ()
    ) -> tuple[int, Any]:
        if self.ended or self.lost:
            raise LeaseLost("the lease was taken back")
        assert not beside
        try:
            request = pickle.dumps((target, op, args, kwargs), 5)
        except Exception as error:
            raise DoesNotPickle from error
        self.trips.append(op)
        frame = perform(encode, None, *pickle.loads(request), self)
        status, payload = pickle.loads(frame[8:])
        if status == ERROR:
            raise unpack_error(payload)
        return status, payload

    def why_apart(self, other: Any) -> str:
        return "they cannot meet"


def borrow(obj: Any, expose: set[str] | None = None) -> tuple[Any, FakeLease]:
    exposed = None if expose is None else frozenset(expose)
    lease = FakeLease(obj, exposed)
    interface = interface_for(obj, exposed)
    return make_handle(class_for(pickle.loads(pickle.dumps(interface, 5))), lease), lease


Lend = Callable[..., Any]


def close(obj: Any) -> None:
    with suppress(AttributeError):
        obj.close()


def lent_by(manager: PoolManager, stack: ExitStack, factory: Callable[..., Any], *args: Any) -> Any:
    """A handle of what a factory makes for a manager."""
    pool = manager.create_pool(partial(factory, *args), max_size=1, close=close)
    stack.callback(pool.close)
    return stack.enter_context(pool.lease())


@pytest.fixture(autouse=True)
def _time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many items come at a time depends on how long they take, and here on how busy the machine is."""
    monkeypatch.setattr("mppool._remote.items.time", types.SimpleNamespace(monotonic=lambda: 0.0))


@pytest.fixture(scope="module")
def managers() -> Iterator[Callable[[str], PoolManager]]:
    """Managers by start method, each started when it is first asked for."""
    with ExitStack() as stack:

        @functools.cache
        def started_by(start_method: str) -> PoolManager:
            manager = PoolManager(ctx=multiprocessing.get_context(start_method))
            return stack.enter_context(manager)

        yield started_by


@pytest.fixture(params=["direct", "handle", *START_METHODS])
def lend(request: pytest.FixtureRequest) -> Iterator[Lend]:
    """Build an object, and give it to the test: itself, or a handle of some kind."""
    with ExitStack() as stack:

        def lend(factory: Callable[..., Any], *args: Any) -> Any:
            if request.param in START_METHODS:
                manager = request.getfixturevalue("managers")(request.param)
                return lent_by(manager, stack, factory, *args)
            obj = factory(*args)
            stack.callback(close, obj)
            return obj if request.param == "direct" else borrow(obj)[0]

        yield lend


def assert_fails_alike(attempt: Callable[[Any], Any], x: Any, plain: Any) -> None:
    """What is lent raises what a plain object raises, in the words of this Python."""
    with pytest.raises(Exception) as expected:  # noqa: PT011 - whatever it is
        attempt(plain)
    with pytest.raises(expected.type) as caught:
        attempt(x)
    assert str(caught.value) == str(expected.value)


@pytest.fixture
def same_hashes(request: pytest.FixtureRequest) -> bool:
    """Whether strings hash here as they do where what is lent to this test lives."""
    seeded = os.environ.get("PYTHONHASHSEED", "random") != "random"
    return seeded or request.node.callspec.params["lend"] in ("direct", "handle", "fork")


# --- the objects ---------------------------------------------------------------------------------


class Oops(Exception):
    """Has two arguments, and pickles only because it hands both on."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


@functools.total_ordering
class Shelf:
    """A bit of everything."""

    limit = 10
    kinds = ("book", "box")

    class Label:
        pass

    def __init__(self, *things: str) -> None:
        self.things = list(things)
        self.log: list[Any] = []
        self.lock = threading.Lock()
        self._secret = "secret"

    @property
    def count(self) -> int:
        return len(self.things)

    @property
    def first(self) -> str:
        return self.things[0]

    @first.setter
    def first(self, value: str) -> None:
        self.things[0] = value

    @first.deleter
    def first(self) -> None:
        del self.things[0]

    @property
    def me(self) -> Shelf:
        return self

    @property
    def broken(self) -> int:
        raise ValueError("broken")

    @functools.cached_property
    def cached(self) -> int:
        self.log.append("cached")
        return 42

    @classmethod
    def name(cls) -> str:
        return cls.__name__

    @staticmethod
    def twice(x: int) -> int:
        return 2 * x

    def add(self, thing: str, *, front: bool = False) -> Shelf:
        self.things.insert(0 if front else len(self.things), thing)
        return self

    def find(self, thing: str, default: Any = None) -> Any:
        return thing if thing in self.things else default

    def fail(self) -> None:
        raise Oops(7, "seven")

    def is_me(self, other: object, *, also: object = None) -> tuple[bool, bool]:
        return other is self, also is self

    def __len__(self) -> int:
        return len(self.things)

    def __getitem__(self, index: Any) -> Any:
        return self.things[index]

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return args, kwargs

    def __enter__(self) -> Self:
        self.log.append("enter")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        self.log.append((kind, str(error)))
        return isinstance(error, KeyError)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Shelf):
            return self.things == other.things
        return self.things == other if isinstance(other, list) else NotImplemented

    def __lt__(self, other: object) -> bool:
        return self.things < other if isinstance(other, list) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.things))

    def __iadd__(self, thing: str) -> Self:
        self.things.append(thing)
        return self

    def __repr__(self) -> str:
        return f"Shelf({', '.join(self.things)})"

    def __str__(self) -> str:
        return "a shelf"

    def __format__(self, spec: str) -> str:
        return f"{spec}{len(self)}"

    def __bool__(self) -> bool:
        return "no" not in self.things


class Outer:
    """Knows its methods only at run time, as many a wrapper does."""

    def __init__(self) -> None:
        self.inner: list[int] = [1]
        self.square = lambda x: x * x

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Plain:
    """Has nothing of its own."""


class Blocked:
    """Would be a sequence if it did not say no."""

    __iter__ = None
    __reversed__ = None
    __contains__ = None

    def __getitem__(self, i: int) -> int:
        return 1

    def __len__(self) -> int:
        return 1


def make_connection() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute("create table numbers (n integer primary key, word text)")
    connection.executemany("insert into numbers values (?, ?)", [(n, str(n)) for n in range(2000)])
    connection.commit()
    return connection


def filled(make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    file = make(*args, **kwargs)
    file.writelines(f"line {n}\n" for n in range(100))
    file.seek(0)
    return file


make_file = partial(filled, tempfile.TemporaryFile, "w+", encoding="utf-8")


def make_generator() -> Iterator[Any]:
    def count() -> Iterator[Any]:
        total = 0
        for n in range(20):
            got = yield n
            total += got or 0
        return total

    return count()


# --- a list, a dict, a deque ----------------------------------------------------------------------


def test_list_reading(lend):
    x = lend(list, [3, 1, 2])
    assert x == [3, 1, 2]
    assert [3, 1, 2] == x  # noqa: SIM300 - the handle on the right
    assert x != [3]
    assert x < [4]
    assert [4] > x  # noqa: SIM300
    assert len(x) == 3
    assert x[0] == 3
    assert x[-2:] == [1, 2]
    assert 1 in x
    assert 7 not in x
    assert list(x) == [3, 1, 2]
    assert list(reversed(x)) == [2, 1, 3]
    assert sorted(x) == [1, 2, 3]
    assert [*x] == [3, 1, 2]
    assert (max(x), sum(x), x.index(2), x.count(9)) == (3, 6, 2, 0)
    assert repr(x) == str(x) == f"{x}" == "[3, 1, 2]"
    assert bool(x)
    assert isinstance(x, list)


def test_list_writing(lend):
    x = lend(list, [3, 1, 2])
    x.append(5)
    x[0] = 30
    x[1:2] = [10, 11]
    del x[2]
    x.extend((7, 8))
    x.sort(reverse=True)
    assert x == [30, 10, 8, 7, 5, 2]
    assert x.pop() == 2
    x.clear()
    assert not x


def test_list_arithmetic(lend):
    x = lend(list, [3, 1, 2])
    assert x + [4] == [3, 1, 2, 4]  # noqa: RUF005 - addition is the subject
    assert [4] + x == [4, 3, 1, 2]  # noqa: RUF005
    assert x * 2 == 2 * x == [3, 1, 2, 3, 1, 2]
    assert x + x == [3, 1, 2, 3, 1, 2]
    before = x
    x += [4]
    x *= 2
    assert x is before
    assert x == [3, 1, 2, 4] * 2


def test_list_errors(lend):
    x = lend(list, [3, 1, 2])
    for attempt in (lambda x: x[9], lambda x: x.index(7), lambda x: x.remove(7), lambda x: x < 3):
        assert_fails_alike(attempt, x, [3, 1, 2])
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)
    with pytest.raises(AttributeError):
        x.nothing  # noqa: B018
    assert not hasattr(x, "keys")
    assert not callable(x)


def test_dict(lend):
    x = lend(dict, {"a": 1, "b": [2]})
    assert x["a"] == x.get("a") == 1
    assert "a" in x
    x["c"] = 3
    del x["a"]
    assert x == {"b": [2], "c": 3}
    assert list(x) == ["b", "c"]
    assert list(reversed(x)) == ["c", "b"]
    assert dict(x) == {**x} == {"b": [2], "c": 3}
    assert x | {"d": 4} == {"b": [2], "c": 3, "d": 4}
    assert {"d": 4} | x == {"b": [2], "c": 3, "d": 4}
    assert x.setdefault("e", 5) == 5
    assert x.pop("e", None) == 5
    same = x
    x |= {"f": 6}
    assert x is same
    with pytest.raises(KeyError) as caught:
        x["missing"]
    assert caught.value.args == ("missing",)
    missing = object()
    assert x.get("missing", missing) is missing


def test_dict_views(lend):
    x = lend(dict, {"a": 1, "b": [2]})
    keys, items = x.keys(), x.items()
    assert len(keys) == 2
    assert "a" in keys
    assert sorted(keys) == ["a", "b"]
    assert list(items) == [("a", 1), ("b", [2])]
    assert keys & {"a", "z"} == {"a"}
    x["c"] = 3
    assert len(keys) == 3
    assert list(x.values()) == [1, [2], 3]


def change_while_iterating(x):
    iterator = iter(x)
    next(iterator)
    x["new"] = 1
    next(iterator)


def test_dict_that_changes_while_iterated(lend):
    assert_fails_alike(change_while_iterating, lend(dict, {"a": 1, "b": [2]}), {"a": 1, "b": [2]})


def deque_pop_all(x):
    while True:
        x.pop()


def test_deque(lend):
    x = lend(deque, [1, 2, 3], 4)
    x.appendleft(0)
    x.append(4)
    assert x == deque([1, 2, 3, 4])
    assert x.maxlen == 4
    x.rotate(1)
    assert (x.popleft(), x.pop()) == (4, 3)
    assert list(x) == [1, 2]
    assert list(reversed(x)) == [2, 1]
    assert x + deque([9]) == deque([1, 2, 9])
    assert x[0] == 1
    assert deque(x) == x
    same = x
    x += [5]
    assert x is same
    with pytest.raises(TypeError):
        hash(x)
    assert_fails_alike(deque_pop_all, x, deque([1, 2, 3], 4))


# --- sqlite3 --------------------------------------------------------------------------------------


def test_connection(lend):
    db = lend(make_connection)
    assert db.execute("select count(*) from numbers").fetchone() == (2000,)
    assert db.in_transaction is False
    assert db.total_changes == 2000
    db.row_factory = sqlite3.Row
    assert db.row_factory is sqlite3.Row
    with pytest.raises(sqlite3.OperationalError, match="no such table: nowhere"):
        db.execute("select * from nowhere")
    assert isinstance(db, sqlite3.Connection)
    assert isinstance(db, collections.abc.Hashable)
    assert {db: 1}[db] == 1


def test_connection_as_context(lend):
    db = lend(make_connection)
    with db as inner:
        assert inner is db
        db.execute("delete from numbers where n < 10")
    with pytest.raises(ZeroDivisionError), db:  # noqa: PT012 - the block is the subject
        db.execute("delete from numbers")
        _ = 1 / 0
    assert db.execute("select count(*) from numbers").fetchone() == (1990,)


def test_cursor(lend):
    db = lend(make_connection)
    cursor = db.cursor()
    assert cursor.execute("select n from numbers order by n") is cursor
    assert cursor.connection is db
    assert cursor.description[0][0] == "n"
    assert cursor.fetchone() == (0,)
    assert next(cursor) == (1,)
    assert cursor.fetchmany(2) == [(2,), (3,)]
    assert [row[0] for row in itertools.islice(cursor, 5)] == [4, 5, 6, 7, 8]
    assert cursor.fetchone() == (9,)
    assert cursor.fetchmany() == [(10,)]
    cursor.arraysize = 3
    assert cursor.fetchmany() == [(11,), (12,), (13,)]
    assert len(cursor.fetchall()) == 2000 - 14
    assert cursor.fetchone() is None
    assert list(cursor) == []
    cursor.close()
    with pytest.raises(sqlite3.ProgrammingError):
        cursor.fetchone()


def test_cursor_that_starts_anew_in_the_middle(lend):
    cursor = lend(make_connection).cursor()
    cursor.execute("select n from numbers order by n")
    assert [next(cursor) for _ in range(9)][-1] == (8,)
    cursor.execute("select n from numbers order by n desc")
    assert next(cursor) == (1999,)


def test_cursor_forgotten_before_the_table_goes(lend):
    db = lend(make_connection)
    assert db.execute("select n from numbers order by n").fetchone() == (0,)
    gc.collect()  # for Pythons that do not count references
    db.execute("drop table numbers")


def test_two_thousand_rows_cost_tens_of_round_trips():
    db = make_connection()
    handle, lease = borrow(db)
    cursor = handle.execute("select n from numbers order by n")
    assert [n for (n,) in cursor] == list(range(2000))
    assert len(lease.trips) < 20
    lease.trips.clear()
    cursor.execute("select n from numbers order by n")
    assert sum(1 for _ in iter(lambda: next(cursor, None), None)) == 2000
    assert len(lease.trips) < 20
    db.close()


# --- a file, a generator --------------------------------------------------------------------------


def test_file_reading(lend):
    file = lend(make_file)
    assert file.readline() == "line 0\n"
    assert next(file) == "line 1\n"
    assert iter(file) is file
    for line in file:
        if line == "line 6\n":
            break
    assert file.readline() == "line 7\n"
    assert next(file) == "line 8\n"
    assert len(file.readlines()) == 91
    assert file.read() == ""
    file.seek(0)
    assert list(file) == [f"line {n}\n" for n in range(100)]
    file.seek(0)
    assert [next(file) for _ in range(5)][-1] == "line 4\n"
    file.seek(0)
    assert next(file) == "line 0\n"
    rest = file.read()
    assert rest.startswith("line 1\n")
    assert rest.endswith("line 99\n")
    assert file.readable()
    assert file.closed is False
    assert file.encoding == "utf-8"


def test_file_writing_and_closing(lend):
    file = lend(make_file)
    with file as inner:
        assert inner is file
        file.seek(0)
        file.truncate()
        assert file.write("new\n") == 4
        print("printed", file=file)
        file.seek(0)
        assert file.read() == "new\nprinted\n"
    assert file.closed
    plain = make_file()
    plain.close()
    assert_fails_alike(next, file, plain)


def test_generator(lend):
    generator = lend(make_generator)
    assert iter(generator) is generator
    assert next(generator) == 0
    assert generator.send(100) == 1
    assert list(itertools.islice(generator, 3)) == [2, 3, 4]
    assert next(generator) == 5
    for n in generator:
        if n == 10:
            break
    assert next(generator) == 11
    assert list(generator) == list(range(12, 20))
    assert next(generator, "end") == "end"
    assert isinstance(generator, collections.abc.Generator)


def test_generator_return_value(lend):
    generator = lend(make_generator)
    assert next(generator) == 0
    generator.send(5)

    def outer():
        return (yield from generator)

    running = outer()
    with pytest.raises(StopIteration) as stop:  # noqa: PT012 - whichever step it is
        for _ in itertools.repeat(None):
            next(running)
    assert stop.value.value == 5


def test_generator_throw_and_close(lend):
    generator = lend(make_generator)
    next(generator)
    with pytest.raises(Oops) as caught:
        generator.throw(Oops(1, "one"))
    assert caught.value.args == (1, "one")
    assert next(generator, None) is None
    other = lend(make_generator)
    assert [next(other) for _ in range(5)] == [0, 1, 2, 3, 4]
    other.close()
    assert list(other) == []


# --- a Decimal ------------------------------------------------------------------------------------


def test_decimal_arithmetic(lend):
    x = lend(Decimal, "12.345")
    assert x == Decimal("12.345") == x
    assert x + 1 == 1 + x == Decimal("13.345")
    assert x - x == 0
    assert 2 * x == Decimal("24.690")
    assert x / 5 == Decimal("2.469")
    assert x // 5 == 2
    assert x % 5 == Decimal("2.345")
    assert divmod(x, 5) == (2, Decimal("2.345"))
    assert 100 // x == 8
    assert x**2 == Decimal("152.399025")
    assert round(2**x) == 5203
    assert -x == Decimal("-12.345")
    assert +x == abs(-x) == x
    assert 12 < x < 13
    assert sum([x, x]) == Decimal("24.690")
    with pytest.raises(decimal.DivisionByZero):
        x / 0
    for attempt in (lambda x: x + "text", lambda x: "text" - x):
        assert_fails_alike(attempt, x, Decimal("12.345"))


def test_decimal_conversions(lend):
    x = lend(Decimal, "12.345")
    assert (int(x), float(x), complex(x)) == (12, 12.345, 12.345 + 0j)
    assert (math.floor(x), math.ceil(x), math.trunc(x), round(x)) == (12, 13, 12, 12)
    assert round(x, 1) == Decimal("12.3")
    assert math.isclose(math.sqrt(x), math.sqrt(12.345))
    assert hash(x) == hash(Decimal("12.345"))
    assert {x: 1}[Decimal("12.345")] == 1
    assert (str(x), repr(x), f"{x:.1f}") == ("12.345", "Decimal('12.345')", "12.3")
    assert x.quantize(Decimal("0.1")) == Decimal("12.3")
    assert x.as_tuple().exponent == -3
    assert x.real == x
    assert bool(x)
    before = x
    x += 1
    assert x == Decimal("13.345")
    assert before == Decimal("12.345")


# --- a class of the user's ------------------------------------------------------------------------


def test_attributes(lend):
    x = lend(Shelf, "a", "b", "c")
    assert (x.count, x.limit, x.kinds, x.things) == (3, 10, ("book", "box"), ["a", "b", "c"])
    assert x.Label is Shelf.Label
    x.limit = 20
    assert (x.limit, Shelf.limit) == (20, 10)
    x.color = "red"
    assert x.color == "red"
    del x.color
    assert not hasattr(x, "color")
    assert getattr(x, "color", "none") == "none"
    x.first = "z"
    assert x.first == "z"
    del x.first
    assert x.first == "b"
    with pytest.raises(AttributeError):
        x.count = 3
    with pytest.raises(ValueError, match="broken"):
        x.broken  # noqa: B018
    assert (x.cached, x.cached, x.log) == (42, 42, ["cached"])
    assert x.me is x
    assert {"count", "add", "limit", "__len__"} <= set(dir(x))


def test_methods(lend):
    x = lend(Shelf, "a", "b", "c")
    assert x.add("d").add("0", front=True) is x
    assert list(x) == ["0", "a", "b", "c", "d"]
    assert (x.name(), x.twice(4)) == ("Shelf", 8)
    add = x.add
    assert add("e") is x
    assert list(map(x.find, "az")) == ["a", None]
    missing = object()
    assert x.find("z", missing) is missing
    assert x.is_me(x, also=x) == (True, True)
    assert x.is_me(None) == (False, False)
    assert_fails_alike(lambda x: x.find(), x, Shelf("a", "b", "c"))


def test_error_with_two_arguments(lend):
    x = lend(Shelf, "a", "b", "c")
    with pytest.raises(Oops) as caught:
        x.fail()
    assert caught.value.args == (7, "seven")
    assert (caught.value.code, caught.value.text) == (7, "seven")
    assert list(x) == ["a", "b", "c"]


def test_protocols(lend, same_hashes):
    x = lend(Shelf, "a", "b", "c")
    assert x[0] == "a"
    assert x[1:] == ["b", "c"]
    assert "b" in x
    assert list(reversed(x)) == ["c", "b", "a"]
    assert x(1, k=2) == ((1,), {"k": 2})
    assert callable(x)
    assert x == ["a", "b", "c"]
    assert x == x  # noqa: PLR0124
    assert x != ["a"]
    assert x != 5
    assert not x == 5  # noqa: SIM201
    assert x < ["b"]
    assert x >= ["a"]
    if same_hashes:
        assert hash(x) == hash(("a", "b", "c"))
        assert len({x, x}) == 1
    assert (repr(x), str(x), f"{x:>}", f"{x!r}") == ("Shelf(a, b, c)", "a shelf", ">3", "Shelf(a, b, c)")
    assert bool(x)
    before = x
    x += "no"
    assert x is before
    assert not x
    assert isinstance(x, Shelf)
    with pytest.raises(IndexError):
        x[9]


def test_context(lend):
    x = lend(Shelf, "a", "b", "c")
    with x as inner:
        assert inner is x
    with x:
        raise KeyError("swallowed")
    with pytest.raises(Oops), x:
        raise Oops(1, "one")
    assert x.log == [
        "enter",
        (None, "None"),
        "enter",
        (KeyError, "'swallowed'"),
        "enter",
        (Oops, "(1, 'one')"),
    ]


def test_methods_known_at_run_time(lend):
    x = lend(Outer)
    x.append(2)
    append = x.append
    append(3)
    assert x.inner == [1, 2, 3]
    assert x.square(4) == 16


def test_nothing_of_its_own(lend):
    x, y = lend(Plain), lend(Plain)
    assert x == x  # noqa: PLR0124
    assert x != y
    assert hash(x) == hash(x)
    assert len({x, y}) == 2
    assert repr(x).startswith("<")
    assert not callable(x)
    assert bool(x)
    for attempt in (len, iter, lambda o: o + 1, lambda o: o[0], lambda o: o < 1, float):
        with pytest.raises(TypeError):
            attempt(x)


def test_blocked_protocols(lend):
    x = lend(Blocked)
    for attempt in (iter, reversed, lambda o: 1 in o):
        with pytest.raises(TypeError):
            attempt(x)


def test_array(lend):
    x = lend(np.arange, 4)
    assert np.asarray(x).tolist() == [0, 1, 2, 3]
    assert (x + 1).tolist() == (1 + x).tolist() == [1, 2, 3, 4]
    assert (np.ones(4) + x).tolist() == [1, 2, 3, 4]
    assert x.sum() == 6
    assert x.shape == (4,)
    assert x[1:3].tolist() == [1, 2]
    x[0] = 9
    assert x.max() == 9


def test_text_and_numbers_that_return_themselves(lend):
    text, number = lend(str, "plain text"), lend(int, 12345)
    assert (str(text), f"{text}", text.strip(), text + "!") == (*["plain text"] * 3, "plain text!")
    assert type(str(text)) is str
    assert (int(number), list(range(10**5))[number], round(number)) == (12345,) * 3
    assert type(int(number)) is int


# --- iterators with methods that look like those of files and cursors -----------------------------------


class Once:
    """Fails once in the middle, and goes on after it."""

    def __init__(self):
        self.n = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.n += 1
        if self.n == 5:
            raise Oops(5, "five")
        if self.n > 8:
            raise StopIteration
        return self.n


class OnceInAStream(Once, io.TextIOBase):
    """Starts anew with `seek`."""

    def seek(self, n):
        self.n = n


class OnceAndMore(Once):
    """Has another method, too, whose answer depends on how many items were taken."""

    def peek(self):
        return self.n + 1


class Countdown:
    """Its own iterator. Methods of its are called as those of files and cursors are, and say other things."""

    arraysize = 2

    def __init__(self) -> None:
        self._left = 9

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> int:
        if not self._left:
            raise StopIteration
        self._left -= 1
        return self._left

    def fetchone(self) -> str:
        return f"{self._left} left"

    fetchall = fetchmany = read = readline = readlines = execute = seek = fetchone

    @property
    def rownumber(self) -> int:
        return 9 - self._left


def test_methods_that_only_look_like_those_of_files_and_cursors(lend):
    x = lend(Countdown)
    assert [next(x) for _ in range(5)] == [8, 7, 6, 5, 4]
    for method in (x.fetchone, x.fetchall, x.fetchmany, x.read, x.readline, x.readlines, x.execute, x.seek):
        assert method() == "4 left"
    assert x.rownumber == 5
    assert list(x) == [3, 2, 1, 0]
    assert x.fetchone() == "0 left"


class Rows:
    """A cursor of the DB API."""

    arraysize = 3

    def __init__(self) -> None:
        self.rownumber = 0

    def execute(self, query: str) -> None:
        self.rownumber = 0

    executemany = execute

    def close(self) -> None:
        pass

    def fetchone(self) -> tuple[int] | None:
        if self.rownumber == 100:
            return None
        self.rownumber += 1
        return (self.rownumber,)

    def fetchmany(self, size: int = 1) -> list[tuple[int]]:
        return list(itertools.islice(iter(self.fetchone, None), size))

    def fetchall(self) -> list[tuple[int]]:
        return self.fetchmany(100)


class RowsOfAGenerator(Rows):
    """Its iterators go on where the ones before them stopped, as those of some drivers do."""

    def __iter__(self) -> Iterator[tuple[int]]:
        yield from iter(self.fetchone, None)


class RowsOfTheirOwn(Rows):
    """A cursor that is its own iterator, as those of other drivers are."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[int]:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row


@pytest.mark.parametrize("kind", [RowsOfAGenerator, RowsOfTheirOwn])
def test_a_cursor_of_any_driver(lend, kind):
    cursor = lend(kind)
    assert [n for (n,) in itertools.islice(cursor, 5)] == [1, 2, 3, 4, 5]
    assert cursor.fetchone() == (6,)
    assert cursor.fetchmany(3) == [(7,), (8,), (9,)]
    assert [n for (n,) in itertools.islice(cursor, 5)] == [10, 11, 12, 13, 14]
    assert cursor.fetchall() == [(n,) for n in range(15, 101)]
    assert list(cursor) == []
    cursor.execute("again")
    assert [n for (n,) in cursor] == list(range(1, 101))


@pytest.mark.bounds(batch=1.0)
@pytest.mark.parametrize("kind", [RowsOfAGenerator, RowsOfTheirOwn])
def test_the_rows_of_a_cursor_of_any_driver_come_in_batches(kind):
    cursor, lease = borrow(kind())
    assert len(list(cursor)) == 100
    assert len(lease.trips) < 10
    cursor.execute("again")
    assert [next(cursor), next(cursor)] == [(1,), (2,)]
    with pytest.raises(RuntimeError, match="3 items ahead, which rownumber would miss"):
        cursor.rownumber  # noqa: B018
    assert cursor.arraysize == 3


def make_encoded_file() -> Any:
    return codecs.getreader("utf-8")(filled(codecs.getwriter("utf-8"), io.BytesIO()).stream)


def make_encoded_file_to_write() -> Any:
    stream = io.BytesIO()
    return filled(codecs.StreamReaderWriter, stream, codecs.getreader("utf-8"), codecs.getwriter("utf-8"))


@pytest.mark.parametrize(
    "make",
    [
        partial(filled, tempfile.NamedTemporaryFile, "w+", encoding="utf-8"),
        partial(filled, tempfile.SpooledTemporaryFile, mode="w+", encoding="utf-8"),
        *(partial(filled, io.StringIO), make_encoded_file, make_encoded_file_to_write),
    ],
)
def test_a_file_of_any_kind(lend, make):
    file = lend(make)
    assert list(itertools.islice(file, 5))[-1] == "line 4\n"
    assert file.readline() == "line 5\n"
    for line in file:
        if line == "line 10\n":
            break
    rest = file.read()
    assert rest.startswith("line 11\n")
    assert rest.endswith("line 99\n")
    file.seek(0)
    assert list(file) == [f"line {n}\n" for n in range(100)]


def test_a_position_relative_to_items_ahead_is_refused():
    file, _ = borrow(io.BytesIO(b"1\n2\n3\n4\n5\n"))
    assert [next(file), next(file)] == [b"1\n", b"2\n"]
    for attempt in (lambda: file.seek(2, 1), lambda: file.seek(2, os.SEEK_CUR), file.tell):
        with pytest.raises(RuntimeError, match="3 items ahead"):
            attempt()
    assert [next(file) for _ in range(3)] == [b"3\n", b"4\n", b"5\n"]
    assert file.seek(-2, 1) == 8
    assert next(file) == b"5\n"
    assert file.seek(-2, 2) == 8
    assert next(file) == b"5\n"


class Wrapped:
    """Passes on whatever it is asked for."""

    def __init__(self) -> None:
        self._wrapped = Countdown()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> int:
        return next(self._wrapped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


def test_an_iterator_that_passes_calls_on(lend):
    x = lend(Wrapped)
    assert [next(x) for _ in range(5)] == [8, 7, 6, 5, 4]
    assert x.fetchone() == "4 left"
    assert list(x) == [3, 2, 1, 0]


def type_of_scandir() -> type:
    with os.scandir() as entries:
        return type(entries)


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        (STREAM, [io.BytesIO, io.FileIO, io.TextIOWrapper, io.IOBase, codecs.StreamRecoder, OnceInAStream]),
        (CURSOR, [sqlite3.Cursor, RowsOfAGenerator, RowsOfTheirOwn]),
        (
            ITEMS,
            [types.GeneratorType, map, enumerate, itertools.chain, itertools.count, type(iter([])), Once],
        ),
        (ITEMS, [type_of_scandir()]),
        ("", [Countdown, OnceAndMore, Wrapped, Rows, type(csv.reader([])), list, sqlite3.Connection, int]),
    ],
)
def test_kinds_of_iterators(kind, types):
    assert {each.__name__: interface_of(each).iterator for each in types} == {
        each.__name__: kind for each in types
    }


def test_a_strict_list_decides_what_an_iterator_offers():
    assert interface_of(OnceAndMore, frozenset({"__iter__", "__next__"})).iterator == ITEMS
    assert interface_of(OnceAndMore, frozenset({"__iter__", "__next__", "peek"})).iterator == ""
    assert interface_of(io.BytesIO, frozenset({"__iter__", "read"})).protocols == {"__iter__"}


# --- hashes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        partial(int, 12345),
        partial(Decimal, "12.345"),
        *(make_connection, threading.Lock, Plain, Countdown),
    ],
)
def test_numbers_and_what_compares_by_identity_can_be_keys(lend, make):
    x = lend(make)
    assert {x: 1}[x] == 1
    if isinstance(x, numbers.Number):
        assert {x: 1}[make()] == {make(): 1}[x] == 1


@pytest.mark.parametrize("make", [partial(tuple, ["a"]), partial(str, "text")])
def test_a_value_is_found_among_its_like_or_not_hashable(lend, same_hashes, make):
    x = lend(make)
    assert x == make()
    if same_hashes:
        assert {x: 1}[make()] == {make(): 1}[x] == 1
    else:
        with pytest.raises(TypeError, match=r"compares by value, .* hashes strings differently .*PYTHONHASH"):
            hash(x)


def test_a_value_that_hashes_differently_elsewhere_is_not_hashable():
    for value in (("a",), "a", frozenset({"a"}), b"a", Shelf("a", "b", "c")):
        handle, lease = borrow(value)
        assert hash(handle) == hash(value)
        lease.same_hashes = False
        with pytest.raises(TypeError, match=r"unhashable handle of .*: it compares by value"):
            hash(handle)
    for value in (1, 1.5, Decimal(1), np.arange(4)[0], Plain()):
        handle, lease = borrow(value)
        lease.same_hashes = False
        assert {handle: 1}[handle] == 1


# --- what is offered ------------------------------------------------------------------------------


def test_no_property_is_evaluated_to_build_a_handle():
    class Slow:
        @property
        def slow(self) -> int:
            time.sleep(60)
            return 1

        @property
        def broken(self) -> int:
            raise AssertionError("evaluated")

    handle, lease = borrow(Slow())
    assert lease.trips == []
    assert {"slow", "broken"} <= set(dir(handle))
    with pytest.raises(AssertionError, match="evaluated"):
        handle.broken  # noqa: B018


def test_names_with_an_underscore_are_not_offered():
    handle, lease = borrow(Shelf("a", "b", "c"))
    secret = "_secret"
    for attempt in (
        lambda: getattr(handle, secret),
        lambda: setattr(handle, secret, 1),
        lambda: delattr(handle, secret),
        lambda: handle.__deepcopy__,
    ):
        with pytest.raises(AttributeError, match="offers no"):
            attempt()
    assert lease.trips == []  # asked of every object by some tool or other: it must cost nothing
    for op, args in [
        ("_secret", ()),
        ("__init__", ()),
        ("__dict__", ()),
        ("__class__", ()),
        ("__add__", (1,)),
    ]:
        with pytest.raises(AttributeError, match="offers no"):
            lease.leftovers.call(0, op, args, {})
    for args in [("_secret",), ("__dict__",)]:
        with pytest.raises(AttributeError, match="offers no"):
            lease.leftovers.call(0, "#get", args, {})


def test_nothing_public_of_the_pools_is_on_a_handle():
    handle, _ = borrow(Plain())
    assert [name for name in dir(handle) if not name.startswith("_")] == []
    assert [name for base in type(handle).__mro__ for name in vars(base) if not name.startswith("_")] == []


def test_expose_is_a_strict_list():
    handle, lease = borrow(Shelf("a", "b", "c"), {"add", "count", "extra", "__len__", "__iter__", "_secret"})
    assert handle.add("d") is handle
    assert handle.count == len(handle) == 4
    handle.extra = 1
    assert handle.extra == 1
    secret = "_secret"
    for attempt in (
        lambda: handle.find("a"),
        lambda: handle.things,
        lambda: setattr(handle, "limit", 1),
        lambda: getattr(handle, secret),
        lambda: lease.leftovers.call(0, "find", ("a",), {}),
        lambda: lease.leftovers.call(0, "__call__", (), {}),
        lambda: lease.leftovers.call(0, "#next", (1,), {}),
    ):
        with pytest.raises(AttributeError, match="offers no"):
            attempt()
    assert not callable(handle)
    assert handle != ["a", "b", "c", "d"]
    assert repr(handle) == str(handle) == f"<handle of '{Shelf.__module__}.Shelf'>"
    assert [name for name in dir(handle) if name[0] != "_"] == ["add", "count", "extra"]


def test_expose_does_not_narrow_results():
    db = make_connection()
    handle, _ = borrow(db, {"cursor"})
    cursor = handle.cursor()
    assert cursor.execute("select 1").fetchone() == (1,)
    with pytest.raises(AttributeError):
        cursor.connection.execute("select 1")
    db.close()


def test_what_could_not_be_hashed_cannot_be_through_a_strict_list():
    handle, _ = borrow([1], {"append"})
    with pytest.raises(TypeError, match="unhashable"):
        hash(handle)


def test_interfaces_are_small_equal_and_cached():
    interface = interface_of(Shelf, None)
    copied = pickle.loads(pickle.dumps(interface, 5))
    assert copied == interface
    assert hash(copied) == hash(interface)
    assert pickle.loads(pickle.dumps(interface, 5)) is copied
    assert interface_of(Shelf, None) is interface
    assert interface_of(Shelf, frozenset({"add"})) != interface
    assert len(pickle.dumps(interface_of(sqlite3.Connection), 5)) < 2000
    one, _ = borrow(Shelf())
    two, _ = borrow(Shelf())
    assert type(one) is type(two)


# --- one lease ------------------------------------------------------------------------------------


class Unhashable(type):  # noqa: PLW1641  # that is what it is for
    def __eq__(cls, other):
        return cls is other


def test_the_interface_of_a_class_that_does_not_hash():
    class Thing(metaclass=Unhashable):
        def work(self):
            pass

    with pytest.raises(TypeError, match="unhashable"):
        hash(Thing)
    assert interface_of(Thing) == interface_of(Thing)
    assert interface_of(Thing).methods == {"work"}
    assert interface_of(Thing, expose=frozenset()).methods == frozenset()
    assert pickle.loads(pickle.dumps(interface_of(Thing))) == interface_of(Thing)


def test_a_type_error_about_a_class_is_not_taken_for_one_about_hashing():
    class Odd(type):
        def __getattribute__(cls, name):
            if name == "__mro__":
                raise TypeError("odd")
            return super().__getattribute__(name)

    class Thing(metaclass=Odd):
        pass

    with pytest.raises(TypeError, match="odd"):
        interface_of(Thing)


def test_a_plain_call_is_one_round_trip():
    handle, lease = borrow({"a": 1})
    assert handle.get("a") == 1
    assert lease.trips == ["get"]


def test_handles_know_their_lease():
    handle, lease = borrow([1])
    iterator = iter(handle)
    assert lease_of(handle) is lease_of(iterator) is lease
    with pytest.raises(TypeError, match="not a handle"):
        lease_of([1])


def test_a_handle_does_not_travel():
    handle, _ = borrow([1])
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy, lambda h: pickle.dumps({"h": [h]})):
        with pytest.raises(TypeError, match="Pass the pool"):
            attempt(handle)
    with pytest.raises(TypeError):
        json.dumps(handle)


def test_handles_of_two_leases_do_not_meet():
    one, two = borrow([1])[0], borrow([1])[0]
    assert one != two
    assert [one] != [two]
    with pytest.raises(TypeError):
        one + two
    for argument in (two, [two]):
        with pytest.raises(TypeError, match="cannot meet"):
            one.append(argument)


def test_repr_after_the_end_does_not_raise():
    handle, lease = borrow([1])
    lease.lost = True
    assert repr(handle) == "<handle of 'list'>"
    lease.ended = True
    assert repr(handle) == str(handle) == "<released handle of 'list'>"
    with pytest.raises(LeaseLost):
        len(handle)


def test_the_lease_goes_with_its_last_handle():
    handle, lease = borrow([3, 1, 2])
    iterator = iter(handle)
    alive = weakref.ref(lease)
    del lease, handle
    assert alive() is not None
    gc.disable()
    try:
        del iterator
        assert alive() is None  # no cycle: the finalizer need not wait for the garbage collector
    finally:
        gc.enable()


def test_what_lost_its_handle_is_not_kept():
    handle, lease = borrow({"a": 1, "b": [2]})
    for _ in range(100):
        assert len(handle.items()) == 2
    assert len(lease.leftovers._objects) <= 3  # views of a dict cannot be watched by a weak reference
    assert len(lease.trips) == 200  # told with other calls


@pytest.mark.parametrize(
    "failing", [lambda d: d.get(threading.Lock()), lambda d: d["nothing"], lambda d: d.get(d, other=d)]
)
def test_what_a_call_that_fails_took_along_is_told_by_the_next(failing):
    handle, lease = borrow({"a": 1, "b": [2]})
    handle.items()
    gc.collect()
    with pytest.raises((TypeError, KeyError)):
        failing(handle)
    handle.clear()
    assert not lease.leftovers, "nothing stays there but the object"


def test_what_lives_again_is_not_told_as_unused_after_a_call_that_fails():
    locks = [threading.Lock()]

    class ProcessId:
        def lock(self, *_):
            return locks[0]

    handle, lease = borrow(ProcessId())
    handle.lock()
    alive = []
    original = lease.call

    def meet_it_again(*args):  # as another thread does, while this call is on its way
        lease.call = original
        # Past `lock()`, which would tell what is unused, as the other thread's call has done before.
        alive.append(handle._mppool_family.handle(*original(0, "lock", (), {})[1]))
        raise LeaseLost("on its way")

    lease.call = meet_it_again
    with pytest.raises(LeaseLost):
        handle.lock()
    handle.lock(1)
    assert alive[0].acquire(blocking=False)
    alive[0].release()


def test_one_handle_for_one_object():
    class Pair:
        def __init__(self):
            self.locks = [threading.Lock(), threading.Lock()]

        def lock(self, n):
            return self.locks[n]

    handle, _ = borrow(Pair())
    assert handle.lock(0) is handle.lock(0)
    assert handle.lock(0) is not handle.lock(1)
    with handle.lock(1):
        assert handle.lock(1).locked()
        assert not handle.lock(0).locked()


def test_two_threads_that_get_one_object_at_the_same_time_have_one_handle(monkeypatch):
    class Safe:
        def __init__(self):
            self.inner = threading.Lock()

        def lock(self):
            return self.inner

    handle, lease = borrow(Safe())
    theirs = []

    def meanwhile(*args):  # another thread gets it while this one makes its handle
        if not theirs:
            theirs.append(None)
            theirs[0] = handle.lock()
        return HandleRef(*args)

    monkeypatch.setattr("mppool._remote.family.HandleRef", meanwhile)
    ours = handle.lock()
    assert theirs.pop() is ours
    theirs.append(None)
    gc.collect()
    assert ours.acquire(blocking=False)
    assert ours.locked()
    del ours
    gc.collect()
    handle.lock()
    assert lease.trips[-1] == "#forget"


def test_what_is_asynchronous_says_what_to_do():
    class Asynchronous:
        async def call(self) -> None:
            pass

        async def __aenter__(self) -> None:
            pass

        async def __aexit__(self, *_: object) -> None:
            pass

        async def items(self) -> AsyncIterator[int]:
            yield 1

    async def attempt(use: int) -> None:
        if use == 0:
            await handle.call()
        elif use == 1:
            async with handle:
                pass
        else:
            async for _ in handle.items():
                pass

    handle, _ = borrow(Asynchronous())
    for use in range(3):
        with pytest.raises(
            TypeError, match=r"Make the factory a coroutine .* asyncio.run\(\): pool.apply|make its factory a"
        ):
            asyncio.run(attempt(use))


def test_cleared_at_the_end():
    handle, lease = borrow([1])
    lease.leftovers.clear()
    with pytest.raises(LeaseError):
        handle.append(1)


def test_an_error_that_does_not_travel_into_exit():
    class Local(Exception):
        pass

    shelf = Shelf("a", "b", "c")
    handle, _ = borrow(shelf)
    with pytest.raises(Local), handle:
        raise Local("text")
    kind, text = shelf.log[-1]
    assert kind is RemoteError
    assert text.endswith("Local: text")


# --- the laws of iteration ------------------------------------------------------------------------


class Source:
    """Has iterators, and knows what they gave."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def items(self) -> Iterator[int]:
        return (n for n in range(100) if self.taken.append(n) is None)

    def other(self) -> None:
        pass


def batches(lease: FakeLease) -> int:
    return lease.trips.count("#next")


def test_the_first_item_is_fetched_alone():
    taken = []
    handle, lease = borrow(n for n in range(100) if taken.append(n) is None)
    assert next(handle) == 0
    assert taken == [0]
    assert next(handle) == 1
    assert taken == [0, 1, 2, 3, 4]
    assert batches(lease) == 2


def test_batches_grow_up_to_a_bound():
    handle, lease = borrow(iter(range(10_000)))
    assert list(handle) == list(range(10_000))
    assert batches(lease) == 5 + math.ceil((10_000 - 341) / 512)


def test_a_slow_iterator_is_not_delayed(monkeypatch):
    now = 0.0
    monkeypatch.setattr("mppool._remote.items.time", types.SimpleNamespace(monotonic=lambda: now))
    taken = []

    def slow():
        nonlocal now
        for n in range(100):
            now += 0.0 if n < 40 else 1.0
            taken.append(n)
            yield n

    handle, _ = borrow(slow())
    for n in handle:
        if n > 50:
            assert taken[-1] == n


def test_items_come_before_the_error():
    def failing():
        yield from range(5)
        raise Oops(5, "five")

    handle, _ = borrow(failing())
    got: list[int] = []
    with pytest.raises(Oops) as caught:
        got.extend(handle)
    assert got == [0, 1, 2, 3, 4]
    assert caught.value.args == (5, "five")
    assert list(handle) == []


def test_an_error_in_the_middle_is_raised_once_and_in_its_place():
    handle, _ = borrow(Once())
    assert [next(handle) for _ in range(4)] == [1, 2, 3, 4]
    assert handle.n == 5  # the error is behind the last item, and still to come
    assert handle.n == 5  # however often one looks
    with pytest.raises(Oops):
        next(handle)
    assert list(handle) == [6, 7, 8]


def test_an_error_is_forgotten_when_the_iterator_starts_anew():
    handle, lease = borrow(OnceInAStream())
    assert [next(handle) for _ in range(4)] == [1, 2, 3, 4]
    assert batches(lease) == 2
    handle.seek(0)
    assert next(handle) == 1


def test_what_an_interrupted_fetch_took_is_missed_aloud_and_once():
    handle, lease = borrow(iter(range(30)))
    assert [next(handle) for _ in range(5)] == [0, 1, 2, 3, 4]
    original = lease.call

    def interrupted(*args):
        lease.call = original
        original(*args)
        raise TimeoutError("an alarm's")

    lease.call = interrupted
    with pytest.raises(TimeoutError):
        next(handle)
    with pytest.raises(RuntimeError, match="interrupted: what it took from the iterator is lost"):
        next(handle)
    assert list(handle) == list(range(21, 30))


def test_an_error_behind_what_is_ahead_comes_also_from_a_method_that_reads_on():
    class Failing(io.StringIO):
        def __next__(self):
            line = super().__next__()
            if line == "5\n":
                raise Oops(5, "five")
            return line

    handle, _ = borrow(Failing("1\n2\n3\n4\n5\n6\n"))
    assert [next(handle) for _ in range(4)] == ["1\n", "2\n", "3\n", "4\n"]
    with pytest.raises(Oops):
        handle.read()
    assert handle.read() == "6\n"


def test_an_attribute_before_each_item_keeps_iteration_in_step():
    handle, _ = borrow(Once())
    got: list[tuple[int, int]] = []
    with pytest.raises(Oops):
        got.extend((n, handle.n) for n in handle)
    assert got == [(1, 1), (2, 2), (3, 3), (4, 4)]


@pytest.mark.bounds(batch=1.0)
def test_an_attribute_that_tells_more_than_was_taken_is_refused():
    handle, _ = borrow(Once())
    assert [next(handle), next(handle)] == [1, 2]
    for attempt in (lambda: handle.n, lambda: setattr(handle, "n", 0), lambda: delattr(handle, "n")):
        with pytest.raises(RuntimeError, match="2 items ahead, which n would miss"):
            attempt()
    assert not hasattr(handle, "close")  # what is not there would miss nothing
    assert [next(handle), next(handle)] == [3, 4]
    with pytest.raises(Oops):
        next(handle)
    handle.n = 6
    assert list(handle) == [7, 8]


def test_an_iterator_with_other_methods_is_asked_for_each_item():
    handle, lease = borrow(OnceAndMore())
    assert [(n, handle.peek()) for n in itertools.islice(handle, 3)] == [(1, 2), (2, 3), (3, 4)]
    with pytest.raises(Oops):
        list(handle)
    assert list(handle) == [6, 7, 8]
    assert batches(lease) == 0


def test_any_other_call_of_the_lease_sets_batches_back_to_one_item():
    source, _ = borrow(here := Source())
    taken, items = here.taken, source.items()
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(taken) == 5
    source.other()
    seen = [(next(items), len(taken)) for _ in range(5)]
    assert seen == [(5, 6), (6, 10), (7, 10), (8, 10), (9, 10)]
    for n in items:
        source.other()
        assert taken[-1] == n


def test_each_of_two_iterators_of_a_lease_begins_with_one_item():
    source, _ = borrow(here := Source())
    one, other = source.items(), source.items()
    assert [next(one) for _ in range(7)] == [0, 1, 2, 3, 4, 5, 6]
    here.taken.clear()
    assert next(other) == 0
    assert here.taken == [0]
    assert list(zip(one, other, strict=False)) == [(n, n - 6) for n in range(7, 100)]


@pytest.mark.bounds(batch=1.0)
def test_a_method_that_would_miss_items_is_refused():
    handle, _ = borrow(make_generator())
    assert [next(handle), next(handle)] == [0, 1]
    with pytest.raises(RuntimeError, match=r"3 items ahead, which send\(\) would miss"):
        handle.send(1)
    assert [next(handle) for _ in range(3)] == [2, 3, 4]
    assert handle.send(1) == 5


def test_an_iterator_as_argument_has_all_its_items():
    class Joiner:
        def words(self):
            return (str(n) for n in range(10))

        def join(self, words):
            return "".join(words)

    handle, _ = borrow(Joiner())
    words = handle.words()
    assert next(words) == "0"
    assert handle.join(words) == "123456789"
    words = handle.words()
    next(words), next(words)
    with pytest.raises(RuntimeError, match="3 items ahead"):
        handle.join(words)


def test_items_that_do_not_pickle_are_handles_among_copies():
    locks = [threading.Lock() for _ in range(3)]
    handle, _ = borrow([1, *locks, "text"])
    first, _, lock, _, last = handle
    assert (first, last) == (1, "text")
    with lock:
        assert locks[1].locked()
    assert handle[2] is lock


def test_an_exhausted_iterator_is_asked_again():
    handle, _ = borrow(make_file())
    assert len(list(handle)) == 100
    handle.write("more\n")
    assert list(handle) == []
    handle.seek(0)
    assert list(handle)[-1] == "more\n"
    handle.close()


def test_nested_loops_over_one_object():
    handle, _ = borrow([1, 2, 3])
    assert [(a, b) for a in handle for b in handle] == [(a, b) for a in (1, 2, 3) for b in (1, 2, 3)]


def test_length_hint_counts_what_is_ahead():
    handle, _ = borrow(iter(range(10)))
    next(handle), next(handle)
    assert operator.length_hint(handle) == 8
