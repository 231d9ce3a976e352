"""Asynchronous handles against the objects they stand for, and what is special about them."""

from __future__ import annotations

import asyncio
import copy
import csv
import inspect
import math
import operator
import os
import pickle
import sqlite3
import tempfile
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from decimal import Decimal
from functools import partial
from types import GenericAlias
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest
from actors import Gate, Tool, manager_in
from helpers import PROMPT, RunPython

from mppool import AsyncHandle, LeaseError, LeaseLost, ObjectPool, PoolManager
from mppool._remote.interface import ASYNCHRONOUS, PROTOCOLS

Use = Callable[[Any], Any]
Lend = Callable[..., Any]

if TYPE_CHECKING:
    from typing_extensions import Self


@pytest.fixture(scope="module")
def shared_manager() -> Iterator[PoolManager]:
    """One manager for all tests of this module: what lies ahead lies there on a busy machine, too."""
    with patch("mppool._remote.items.BATCH_SECONDS", 1.0), manager_in() as manager:
        yield manager


@pytest.fixture
def lend(shared_manager: PoolManager) -> Iterator[Lend]:
    """Lends an object, which a factory makes, to a coroutine function in an event loop of its own."""
    pools: list[ObjectPool[Any]] = []

    def lend(use: Callable[[Any], Awaitable[Any]], factory: Callable[[], Any], **options: Any) -> Any:
        pool = shared_manager.create_pool(factory, max_size=1, **options)
        pools.append(pool)

        async def main() -> Any:
            async with pool.aio.lease() as handle:
                return await use(handle)

        return asyncio.run(main())

    yield lend
    for pool in pools:
        pool.close()


def places(function: Any) -> Any:
    """Run a test with objects in the manager's process, and in one of their own."""
    return pytest.mark.everywhere("none", "process")(function)


# -- operators and protocols ----------------------------------------------------------------------------

BINARY = "add sub mul matmul truediv floordiv mod pow lshift rshift and xor or".split()


def by_name(name: str, x: Any, *, reflected: bool = False) -> Any:
    operate = getattr(operator, f"__{name}__")
    return operate(1, x) if reflected else operate(x, 1)


AWAITED: dict[str, Use] = {
    **{f"__{name}__": partial(by_name, name) for name in [*BINARY, "lt", "le", "gt", "ge"]},
    **{f"__r{name}__": partial(by_name, name, reflected=True) for name in BINARY},
    **{f"__{name}__": getattr(operator, name) for name in ("abs", "neg", "pos", "invert")},
    **{f"__{name}__": getattr(math, name) for name in ("trunc", "floor", "ceil")},
    "__round__": lambda x: round(x, 1),
    "__divmod__": lambda x: divmod(x, 1),
    "__rdivmod__": lambda x: divmod(1, x),
    "__getitem__": lambda x: x[1],
    "__missing__": lambda x: x.__missing__(1),
    "__call__": lambda x: x(1),
}


def augmented(name: str, x: Any) -> Any:
    return getattr(operator, f"__{name}__")(x, 1)  # what `x += 1` does


def enter(x: Any) -> None:
    with x:
        pass


def delete(x: Any) -> None:
    del x[1]


REFUSED: dict[str, tuple[Use, str]] = {
    "__len__": (len, r"await pool.aio.apply\(len\)"),
    "__contains__": (lambda x: 1 in x, r"apply\(operator.contains, key\)"),
    "__setitem__": (lambda x: operator.setitem(x, 1, 2), r"apply\(operator.setitem, key, value\)"),
    "__delitem__": (delete, r"apply\(operator.delitem, key\)"),
    "__iter__": (iter, "async for item in handle"),
    "__next__": (next, "await anext"),
    "__reversed__": (reversed, "apply"),
    "__enter__": (enter, "async with handle"),
    "__exit__": (lambda x: x.__exit__(None, None, None), "async with handle"),
    "__int__": (int, r"apply\(int\)"),
    "__float__": (float, r"apply\(float\)"),
    "__complex__": (complex, r"apply\(complex\)"),
    "__bytes__": (bytes, r"apply\(bytes\)"),
    "__index__": (operator.index, r"apply\(operator.index\)"),
    "__format__": (lambda x: f"{x:>9}", r"apply\(format, '>9'\)"),
    "__fspath__": (os.fspath, r"apply\(os.fspath\)"),
    "__array__": (np.asarray, r"apply\(numpy.asarray\)"),
    **{f"__i{name}__": (partial(augmented, f"i{name}"), r"apply\(function\)") for name in BINARY},
}

OWN: dict[str, Callable[[Any], bool]] = {
    "__eq__": lambda x: x == x and (x == 1) is False,  # noqa: PLR0124
    "__ne__": lambda x: x != 1,
    "__hash__": lambda x: {x: 1}[x] == 1,
    "__bool__": bool,
    "__repr__": lambda x: repr(x) == f"<released asynchronous handle of '{__name__}.Everything'>",
    "__str__": lambda x: str(x) == f"{x}" == repr(x),
    "__length_hint__": lambda x: operator.length_hint(x, 7) == 7,
}


class Everything:
    """Has every protocol method that there is, and tells which one was called."""

    __hash__ = None  # type: ignore[assignment]

    def __aiter__(self) -> Any:
        raise AssertionError("not from here")


def _telling(name: str) -> Callable[..., Any]:
    return lambda _, *args: (name, *args)


for _name in PROTOCOLS - ASYNCHRONOUS - {"__hash__"}:
    setattr(Everything, _name, _telling(_name))


def test_every_protocol_method_has_its_row() -> None:
    rows = [*AWAITED, *REFUSED, *OWN, *ASYNCHRONOUS]
    assert sorted(rows) == sorted(PROTOCOLS)


def test_what_python_lets_be_awaited(lend: Lend) -> None:
    async def use(x: Any) -> dict[str, Any]:
        return {name: await row(x) for name, row in AWAITED.items()}

    rest = {name: () if name in ("__abs__", "__neg__", "__pos__", "__invert__") else (1,) for name in AWAITED}
    rest |= {"__round__": (1,), "__trunc__": (), "__floor__": (), "__ceil__": ()}
    assert lend(use, Everything) == {name: (name, *args) for name, args in rest.items()}


@pytest.mark.parametrize("name", REFUSED)
def test_what_python_does_not_says_what_to_write(lend: Lend, name: str) -> None:
    attempt, advice = REFUSED[name]

    async def use(x: Any) -> None:
        with pytest.raises(TypeError, match=rf"asynchronous: write `.*{advice}"):
            attempt(x)

    lend(use, Everything)


def test_what_needs_no_answer_asks_nothing(lend: Lend) -> None:
    async def use(x: Any) -> Any:
        return x

    after = lend(use, Everything)
    assert {name: row(after) for name, row in OWN.items()} == dict.fromkeys(OWN, True)
    assert {"__len__", "__add__"} <= {*dir(after)}


class Getter:
    """Python would get items from it one after the other, without end."""

    def __getitem__(self, key: Any) -> Any:
        return key

    def __add__(self, other: Any) -> Any:
        return other


@pytest.mark.parametrize("options", [{}, {"expose": ["__getitem__", "__add__"]}])
def test_python_does_not_do_without_a_method_what_it_cannot_await(
    lend: Lend, options: dict[str, Any]
) -> None:
    async def use(x: Any) -> None:
        for attempt in (list, reversed, lambda x: 3 in x, partial(augmented, "iadd")):
            with pytest.raises(TypeError, match="asynchronous: write"):
                attempt(x)
        assert await x[3] == 3

    lend(use, Getter, **options)


def test_what_an_object_does_not_offer_its_handle_has_not(lend: Lend) -> None:
    async def use(x: Any) -> None:
        for attempt in (len, iter, lambda x: x[0], lambda x: x + 1, lambda x: x < 1, float):
            with pytest.raises(TypeError, match="Handle"):
                attempt(x)
        assert not callable(x)
        assert not hasattr(x, "__aiter__")
        for name in ("_secret", "__deepcopy__", "__signature__"):
            assert not hasattr(x, name)

    lend(use, Tool)


# Each is done with the object itself, and with its handle: with that it is awaited.
ALIKE: dict[str, tuple[Callable[[], Any], Use]] = {
    "an item": (partial(list, [3, 1, 2]), lambda x: x[-2:]),
    "a sum": (partial(list, [3, 1, 2]), lambda x: x + [4]),  # noqa: RUF005
    "a sum from the right": (partial(list, [3, 1, 2]), lambda x: [4] + x),  # noqa: RUF005
    "with itself": (partial(list, [3, 1, 2]), lambda x: x + x),
    "a comparison": (partial(list, [3, 1, 2]), lambda x: x < [4]),
    "with the other first": (partial(list, [3, 1, 2]), lambda x: [4] > x),  # noqa: SIM300
    "a power": (partial(Decimal, 7), lambda x: pow(x, 2, 10)),
    "a Decimal": (partial(Decimal, "12.345"), lambda x: 100 // x),
    "rounded": (partial(Decimal, "12.345"), lambda x: round(x, 1)),
    "a union": (partial(dict, a=1), lambda x: {"b": 2} | x),
}


@pytest.mark.parametrize("row", ALIKE)
def test_operators_do_what_those_of_the_object_do(lend: Lend, row: str) -> None:
    make, use = ALIKE[row]

    async def awaited(x: Any) -> Any:
        return await use(x)

    assert lend(awaited, make) == use(make())


def test_operators_fail_as_those_of_the_object(lend: Lend) -> None:
    async def use(x: Any) -> None:
        for attempt in (lambda x: x + 1, lambda x: x < 1, lambda x: x[9], lambda x: x.index(7)):
            with pytest.raises(Exception) as expected:  # noqa: PT011  # whatever it is
                attempt([3, 1, 2])
            with pytest.raises(expected.type) as caught:
                await attempt(x)
            assert str(caught.value) == str(expected.value)

    lend(use, partial(list, [3, 1, 2]))


# -- names ----------------------------------------------------------------------------------------------


class Shelf:
    """A bit of everything."""

    limit = 10

    def __init__(self) -> None:
        self.things = ["a", "b"]
        self.log: list[Any] = []
        self.square = lambda x: x * x
        self.lock = threading.Lock()

    @property
    def count(self) -> int:
        return len(self.things)

    @property
    def me(self) -> Shelf:
        return self

    def add(self, thing: str, *, front: bool = False) -> Shelf:
        """Put it there."""
        self.things.insert(0 if front else len(self.things), thing)
        return self

    def find(self, thing: Any, default: Any = None) -> Any:
        return thing if thing in self.things else default

    def is_me(self, other: object) -> bool:
        return other is self

    def run(self, function: Callable[[int], int]) -> int:
        return function(2)

    def locks(self) -> list[Any]:
        return [self.lock, 1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["things"], name)

    def __enter__(self) -> Self:
        self.log.append("enter")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        self.log.append(None if kind is None else (kind.__name__, str(error)))
        return isinstance(error, KeyError)


@places
def test_methods_and_attributes(lend: Lend) -> None:
    async def use(x: Any) -> None:
        assert await x.add("d") is await x.add("0", front=True) is await x.me is x
        assert (await x.count, await x.limit, await x.things) == (4, 10, ["0", "a", "b", "d"])
        assert await x.find("a") == "a"
        missing = object()
        assert await x.find("z", missing) is missing
        assert await x.is_me(x)
        with pytest.raises(TypeError, match="missing 1 required positional"):
            await x.find()
        assert isinstance(x, Shelf)
        assert isinstance(x, AsyncHandle)
        assert x.add.__doc__ == Shelf.add.__doc__
        assert inspect.iscoroutinefunction(x.add)

    lend(use, Shelf)


@places
def test_a_name_of_which_the_type_does_not_tell_can_be_awaited_and_called(lend: Lend) -> None:
    async def use(x: Any) -> None:
        await x.append("c")  # one of the list that it passes calls on to
        append = await x.append
        await append("d")
        assert await x.things == ["a", "b", "c", "d"]
        assert (await x.square(4), await (await x.square)(4)) == (16, 16)
        with pytest.raises(AttributeError):
            await x.nothing
        with pytest.raises(AttributeError):
            await x.nothing()
        for attempt in (bool, pickle.dumps):
            with pytest.raises(TypeError, match=r"'count' of <asynchronous handle .* await it, or call it"):
                attempt(x.count)

    lend(use, Shelf)


def test_nothing_is_set(lend: Lend) -> None:
    async def use(x: Any) -> None:
        with pytest.raises(TypeError, match=r"apply\(setattr, 'limit', value\)"):
            x.limit = 3
        with pytest.raises(TypeError, match=r"apply\(delattr, 'things'\)"):
            del x.things

    lend(use, Shelf)


def test_a_call_begins_when_it_is_awaited_and_once(lend: Lend) -> None:
    async def use(x: Any) -> None:
        call = x.append(4)
        assert await x[:] == [3]
        await call
        assert await x[:] == [3, 4]
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            await call
        with pytest.warns(RuntimeWarning, match=r"coroutine 'list.append' was never awaited"):
            x.append(5)
        assert await x[:] == [3, 4]

    lend(use, partial(list, [3]))


def test_only_what_is_exposed_is_offered(lend: Lend) -> None:
    async def use(x: Any) -> None:
        assert await x.add("c") is x
        for name in ("limit", "find"):
            with pytest.raises(AttributeError, match="offers no"):
                await getattr(x, name)
        with pytest.raises(AttributeError, match="offers no"):
            await x.find("a")
        assert [name for name in dir(x) if name[0] != "_"] == ["add"]

    lend(use, Shelf, expose={"add"})


def test_private_names_are_the_objects(lend: Lend) -> None:
    class Inside:
        _shade = "dark"

        def _mix(self) -> str:
            return "mixed"

    async def use(x: Any) -> None:
        shade, mix = (getattr(x, f"_{name}") for name in ("shade", "mix"))
        assert (await shade, await mix()) == ("dark", "mixed")
        taken = {name for base in type(x).__mro__ for name in vars(base)} - {*dir(Inside())}
        assert [name for name in taken if not name.startswith(("_mppool_", "__"))] == []

    lend(use, Inside, expose="all")


def test_a_handle_does_not_travel(lend: Lend) -> None:
    async def use(x: Any) -> None:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy, lambda x: pickle.dumps({"x": [x]})):
            with pytest.raises(TypeError, match="Pass the pool"):
                attempt(x)

    lend(use, list)


# -- arguments and results ------------------------------------------------------------------------------


@places
def test_further_handles_are_asynchronous_too(lend: Lend) -> None:
    async def use(x: Any) -> None:
        lock, number = await x.locks()
        assert (number, lock, type(lock).__mro__[1]) == (1, await x.lock, AsyncHandle)
        async with lock:
            assert await lock.locked()
        assert not await lock.locked()

    lend(use, Shelf)


class Source:
    """Knows how many of its parts live."""

    def __init__(self) -> None:
        self.parts: weakref.WeakSet[Any] = weakref.WeakSet()

    def part(self) -> Any:
        part = Part()
        self.parts.add(part)
        return part

    def living(self) -> int:
        return len(self.parts)


class Part:
    def __init__(self) -> None:
        self.lock = threading.Lock()  # so it stays


def test_what_lost_its_handle_is_told_with_the_next_call(lend: Lend) -> None:
    async def use(x: Any) -> list[int]:
        part = await x.part()
        living = [await x.living()]
        del part
        with pytest.raises(TypeError, match="does not pickle"):
            await x.living(threading.Lock())  # it tells nothing
        return [*living, await x.living()]

    assert lend(use, Source) == [1, 0]


@places
def test_arguments_travel_as_those_of_other_handles(lend: Lend) -> None:
    pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")

    async def use(x: Any) -> None:
        two = 2
        assert await x.run(lambda number: number + two) == 4
        assert await x.is_me(other=x)
        with pytest.raises(TypeError, match=r"argument 1, of type 'lock'.* with apply"):
            await x.find(threading.Lock())
        for premature in (x.add("c"), x.count):
            with pytest.raises(TypeError, match="Await it first"):
                await x.find(premature)
            if asyncio.iscoroutine(premature):
                premature.close()

    lend(use, Shelf)


def test_objects_of_all_handles_meet_where_they_live_together(shared_manager: PoolManager) -> None:
    async def main() -> None:
        async with pool.aio.lease() as one, pool.aio.lease() as other:
            with pool.lease() as of_threads:
                await other.append(1)
                of_threads.append(2)
                await one.append([other, {"threads": of_threads}])
                await one.extend(of_threads)
                assert await one[:] == [[[1], {"threads": [2]}], 2]
                await other.append(3)
                assert await one[0] == [[1, 3], {"threads": [2]}]
                of_threads.extend(other)
                assert of_threads == [2, 1, 3]

    pool = shared_manager.create_pool(list, max_size=3)
    asyncio.run(main())
    pool.close()


def test_objects_apart_do_not_meet(shared_manager: PoolManager) -> None:
    async def main() -> None:
        async with pool.aio.lease() as one, pool.aio.lease() as other:
            with pytest.raises(TypeError, match="cannot meet in one call"):
                await one.append(other)
            assert one != other

    pool = shared_manager.create_pool(list, max_size=2, isolation="thread")
    asyncio.run(main())
    pool.close()


# -- items ----------------------------------------------------------------------------------------------


def make_connection() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute("create table numbers (n integer primary key)")
    connection.executemany("insert into numbers values (?)", [(n,) for n in range(2000)])
    connection.commit()
    return connection


def make_file() -> Any:
    file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
    file.writelines(f"line {n}\n" for n in range(100))
    file.seek(0)
    return file


def count() -> Iterator[Any]:
    total = 0
    for n in range(20):
        total += (yield n) or 0
    return total


async def first(items: Any, most: int) -> list[Any]:
    """As `async for` takes them."""
    taken: list[Any] = []
    async for item in items:
        taken.append(item)
        if len(taken) == most:
            break
    return taken


@places
@pytest.mark.parametrize(
    ("make", "items"),
    [
        (partial(list, [3, 1, 2]), [3, 1, 2]),
        (partial(dict, a=1, b=2), ["a", "b"]),
        (count, list(range(20))),
        (partial(iter, range(1000)), list(range(1000))),
        (make_file, [f"line {n}\n" for n in range(100)]),
        (partial(csv.reader, ["a,b", "c"]), [["a", "b"], ["c"]]),  # asked for each item alone
    ],
)
def test_all_items_come(lend: Lend, make: Callable[[], Any], items: list[Any]) -> None:
    async def use(x: Any) -> Any:
        return [item async for item in x]

    assert lend(use, make) == items


@places
def test_a_cursor(lend: Lend) -> None:
    async def use(db: Any) -> None:
        cursor = await db.cursor()
        assert await cursor.execute("select n from numbers order by n") is cursor
        assert await cursor.connection is db
        assert await cursor.fetchone() == (0,)
        assert await anext(cursor) == (1,)
        assert await cursor.fetchmany(2) == [(2,), (3,)]
        assert await first(cursor, 5) == [(4,), (5,), (6,), (7,), (8,)]
        assert await cursor.fetchone() == (9,)
        assert await cursor.fetchmany() == [(10,)]
        assert len(await cursor.fetchall()) == 2000 - 11
        assert await cursor.fetchone() is None
        assert await anext(cursor, None) is None
        await cursor.execute("select n from numbers order by n desc")
        assert await anext(cursor) == (1999,)

    lend(use, make_connection)


def test_a_file(lend: Lend) -> None:
    async def use(file: Any) -> None:
        assert await first(file, 7) == [f"line {n}\n" for n in range(7)]
        assert await file.readline() == "line 7\n"
        assert await anext(file) == "line 8\n"
        with pytest.raises(RuntimeError, match=r"items ahead, which tell\(\) would miss"):
            await file.tell()
        rest = await file.read()
        assert (rest[:7], rest[-8:]) == ("line 9\n", "line 99\n")
        await file.seek(0)
        assert await file.readlines() == [f"line {n}\n" for n in range(100)]
        assert await file.closed is False

    lend(use, make_file)


@places
def test_a_generator(lend: Lend) -> None:
    async def use(generator: Any) -> None:
        assert await anext(generator) == 0
        assert await generator.send(100) == 1
        assert await first(generator, 3) == [2, 3, 4]
        with pytest.raises(RuntimeError, match=r"items ahead, which send\(\) would miss"):
            await generator.send(1)
        assert [n async for n in generator] == list(range(5, 20))
        with pytest.raises(StopAsyncIteration) as caught:
            await generator.send(None)
        assert caught.value.__cause__ is not None

    lend(use, count)


def test_the_result_of_a_generator(lend: Lend) -> None:
    async def use(generator: Any) -> Any:
        await anext(generator)
        await generator.send(5)
        assert await first(generator, 18) == [*range(2, 20)]
        with pytest.raises(StopAsyncIteration) as caught:
            await anext(generator)
        return caught.value.args

    assert lend(use, count) == (5,)


class Oops(Exception):
    pass


@pytest.mark.parametrize(("throw", "close"), [("throw", "close"), ("athrow", "aclose")])
def test_a_generator_that_is_thrown_into_and_closed(lend: Lend, throw: str, close: str) -> None:
    async def use(x: Any) -> None:
        one, other = await x.items(), await x.items()
        assert await anext(one) == 0
        error = Oops()
        with pytest.raises(Oops) as caught:
            await getattr(one, throw)(error)
        assert caught.value is error
        assert await anext(one, "over") == "over"
        assert await first(other, 4) == [0, 1, 2, 3]
        await getattr(other, close)()
        assert await anext(other, "over") == "over"
        async with aclosing(await x.items()) as items:
            assert await anext(items) == 0
        assert await x.ended == 3

    lend(use, Ending)


class Ending:
    """Counts the ends of its generators."""

    def __init__(self) -> None:
        self.ended = 0

    def items(self) -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            self.ended += 1


class Numbers(Tool):
    """Gives some at once, and what is behind them when the gate is open."""

    def numbers(self, count: int = 2) -> Iterator[int]:
        yield from range(count)
        self.wait_at_gate()
        yield from range(count, 10)

    def join(self, numbers: Iterator[int]) -> list[int]:
        return list(numbers)


async def at_the_gate(gate: Gate, items: Any) -> asyncio.Task[Any]:
    """A task that waits for the third item, which is behind the gate."""
    task = asyncio.ensure_future(anext(items))
    await asyncio.to_thread(gate.wait_for_somebody)
    return task


batches_in_time = pytest.mark.bounds(batch=1.0)  # so that also a busy machine gives two items within it


@places
@batches_in_time
@pytest.mark.parametrize("first_batch", [1, 5])
def test_items_that_a_cancelled_fetch_took_are_missed_aloud(
    gate: Gate, manager: PoolManager, first_batch: int
) -> None:
    pool = manager.create_pool(Numbers, max_size=1)

    async def main() -> None:
        async with pool.aio.lease() as source:
            items = await source.numbers(first_batch)
            assert await first(items, first_batch) == [*range(first_batch)]
            task = await at_the_gate(gate, items)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.open()
            assert await asyncio.wait_for(source.echo(1), PROMPT) == 1, "the lease stays"
            with pytest.raises(RuntimeError, match="a fetch of items was interrupted"):
                await anext(items)
            rest = [item async for item in items]
            assert rest == [*range(10)][10 - len(rest) :]
            assert first_batch not in rest
            assert [item async for item in await source.numbers()] == [*range(10)]

    asyncio.run(main())


@batches_in_time
def test_items_that_were_fetched_before_are_still_given(gate: Gate, manager: PoolManager) -> None:
    pool = manager.create_pool(Numbers, max_size=1)

    async def main() -> None:
        async with pool.aio.lease() as source:
            items = await source.numbers(5)
            assert await first(items, 2) == [0, 1]
            calls = [asyncio.ensure_future(source.echo(1)) for _ in range(2)]
            calls[0].cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert await first(items, 3) == [2, 3, 4]
            gate.open()
            assert [item async for item in items] == [5, 6, 7, 8, 9]

    asyncio.run(main())


@places
@batches_in_time
def test_one_task_at_a_time_waits_for_items(gate: Gate, manager: PoolManager) -> None:
    pool = manager.create_pool(Numbers, max_size=1)

    async def main() -> None:
        async with pool.aio.lease() as source:
            items = await source.numbers()
            assert await first(items, 2) == [0, 1]
            task = await at_the_gate(gate, items)
            with pytest.raises(RuntimeError, match="another task is waiting"):
                await anext(items)
            gate.open()
            assert await task == 2
            assert [item async for item in items] == [*range(3, 10)]

    asyncio.run(main())


@batches_in_time
def test_an_iterator_as_argument_has_all_its_items(gate: Gate, manager: PoolManager) -> None:
    pool = manager.create_pool(Numbers, max_size=2)

    async def main() -> None:
        async with pool.aio.lease() as source:
            items = await source.numbers(1)
            assert await anext(items) == 0
            gate.open()
            assert await source.join(items) == [*range(1, 10)]
            items = await source.numbers(5)
            assert await first(items, 2) == [0, 1]
            with pytest.raises(RuntimeError, match="3 items ahead, which the called function would miss"):
                await source.join(items)

    asyncio.run(main())


# -- `async with` ---------------------------------------------------------------------------------------


async def leave_by(x: Any, error: BaseException | None) -> None:
    async with x as inner:
        assert inner is x
        if error is not None:
            raise error


class Local(Exception):
    """Is not known where the object lives."""

    __module__ = "nowhere"


@places
def test_the_objects_exit_is_called_whatever_the_error(lend: Lend) -> None:
    passing = [Oops("one"), StopAsyncIteration("two"), LeaseError("three"), SystemExit(4), Local("five")]
    passing += [asyncio.CancelledError("six")]

    async def use(x: Any) -> list[Any]:
        await leave_by(x, None)
        await leave_by(x, KeyError("swallowed"))
        for error in passing:
            with pytest.raises(type(error)) as caught:
                await leave_by(x, error)
            assert caught.value is error
        return [each for each in await x.log if each != "enter"]

    log = lend(use, Shelf)
    assert log[:3] == [None, ("KeyError", "'swallowed'"), ("Oops", "one")]
    assert log[3:-2] == [("StopAsyncIteration", "two"), ("LeaseError", "three"), ("SystemExit", "4")]
    assert len(log) == 2 + len(passing)


def test_the_objects_exit_may_raise_the_error_again(lend: Lend) -> None:
    async def use(x: Any) -> None:
        for error in (Oops(), StopAsyncIteration(), LeaseLost()):
            with pytest.raises(type(error)) as caught:
                async with x:
                    raise error
            assert caught.value is error

    lend(use, Raising)


class Raising:
    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            raise error


def test_a_cancelled_block_is_left_in_order(manager: PoolManager) -> None:
    pool = manager.create_pool(Shelf, max_size=1)

    async def main() -> list[Any]:
        async with pool.aio.lease() as x:
            entered = asyncio.Event()

            async def block() -> None:
                async with x:
                    entered.set()
                    await asyncio.Event().wait()

            task = asyncio.ensure_future(block())
            await entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            log: list[Any] = await x.log
            return log

    assert [each[0] if each else each for each in asyncio.run(main())] == ["e", "CancelledError"]


# -- the class ------------------------------------------------------------------------------------------


def test_it_is_generic() -> None:
    assert isinstance(AsyncHandle[Shelf], GenericAlias)


def test_it_needs_no_asyncio(run_python: RunPython) -> None:
    code = "import sys, mppool._remote.async_handle; print('asyncio' in sys.modules)"
    assert run_python("-c", code).stdout == "False\n"
