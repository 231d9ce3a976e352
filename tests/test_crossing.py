"""What crosses between a worker and an object: data is copied, what belongs to the object stays with it."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import multiprocessing
import os
import pickle
import socket
import sys
import threading
import weakref
import xmlrpc.client
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xmlrpc.server import SimpleXMLRPCServer

import numpy as np
import pytest
from actors import START_METHODS, Gate
from backends import Backend
from helpers import Beside, RunPython

from mppool import FactoryError, LeaseError, ObjectPool, PoolManager

pytestmark = pytest.mark.everywhere


class Client:
    """As clients of web services are: its parts refer back to it, and all requests go through it."""

    def __init__(self) -> None:
        self.requests = self.copies = 0
        self.projects = Projects(self)
        self.step = Step()
        self.cycle: list[Any] = [self.projects]
        self.cycle.append(self.cycle)

    def __getstate__(self) -> dict[str, Any]:
        self.copies += 1
        return vars(self)

    def request(self) -> int:
        self.requests += 1
        return os.getpid()

    def give(self, what: str) -> Any:
        return GIVEN[what](self)

    def give_all(self, *names: str) -> Iterator[Any]:
        return (self.give(name) for name in names)

    def is_mine(self, part: Any) -> bool:
        return part is self.projects

    def __eq__(self, other: object) -> bool:
        raise AssertionError("it is compared")

    __hash__ = object.__hash__


class Projects:
    def __init__(self, client: Client) -> None:
        self.client = client

    def list(self) -> list[Project]:
        return [Project(self, number) for number in range(3)]

    def request(self) -> int:
        return self.client.request()


@dataclass
class Project:
    projects: Projects
    number: int

    def request(self) -> int:
        return self.projects.client.request()


class Step:
    """A part that does not refer back."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data

    pid = property(lambda _: os.getpid())


class Page(NamedTuple):
    number: int
    project: Any


GIVEN: dict[str, Callable[[Client], Any]] = {
    "itself": lambda client: client,
    "its part": lambda client: client.projects,
    "a new part": lambda client: Project(client.projects, 7),
    "a method": lambda client: client.request,
    "a method of a part": lambda client: client.projects.request,
    "a partial": lambda client: partial(Client.request, client),
    "a partial of a method": lambda client: partial(client.projects.request),
    "a closure": lambda client: lambda: client.request(),  # noqa: PLW0108
    "a step": lambda client: client.step,
    "data": lambda _: {"a": [1, (2.5, None)]},
}


def call_it(part: Any) -> int:
    return part() if callable(part) else part.request()


@pytest.fixture
def pool(manager: PoolManager) -> ObjectPool[Any]:
    return manager.create_pool(Client, max_size=1)


def test_parts_of_a_client_stay_with_it(pool: ObjectPool[Any]) -> None:
    with pool.lease() as client:
        home = client.request()
        assert {project.request() for project in client.projects.list()} == {home}
        assert (client.requests, client.copies) == (4, 0)


@pytest.mark.parametrize("what", [what for what in GIVEN if what not in ("data", "a step")])
def test_what_is_bound_to_the_object_acts_on_it(pool: ObjectPool[Any], what: str) -> None:
    with pool.lease() as client:
        home = client.request()
        part = client.give(what)
        assert [call_it(part), call_it(part)] == [home, home]
        assert (client.requests, client.copies) == (3, 0)


@pytest.mark.parametrize("what", ["its part", "a method", "a partial of a method", "itself"])
def test_apply_brings_no_copy_of_what_stays(pool: ObjectPool[Any], what: str) -> None:
    with pytest.raises(TypeError, match=r"stays with the object.*its handle"):
        pool.apply(Client.give, what)
    assert pool.apply(Client.give, "data") == {"a": [1, (2.5, None)]}


def test_what_does_not_refer_back_is_copied(pool: ObjectPool[Any]) -> None:
    with pool.lease() as client:
        assert client.step.pid == client.give("a step").pid == os.getpid()
        data = client.give("data")
        assert type(data) is dict
        assert data == {"a": [1, (2.5, None)]}


def make_row(fields: Any) -> Any:
    return namedtuple("Made", fields)  # noqa: PYI024  # as drivers of databases do


HIDDEN = make_row("part step")  # under another name than its own


CONTAINERS: list[Callable[[Any, Any], Any]] = [
    lambda part, step: [part, step],
    lambda part, step: (part, step),
    lambda part, step: {"part": part, "step": step},
    lambda part, step: {(1, part): step},
    lambda part, step: [[[{"part": part}]], step, list(range(100))],
    lambda part, step: Page(step, part),
    lambda part, step: [HIDDEN(part, step)],
]


def give_in(client: Client, number: int) -> Any:
    return CONTAINERS[number](client.projects, client.step)


Client.give_in = give_in  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", range(len(CONTAINERS)))
def test_containers_are_copied_and_judged_element_by_element(pool: ObjectPool[Any], number: int) -> None:
    with pool.lease() as client:
        got = client.give_in(number)
        part, step = client.projects, client.give("a step")
        expected = CONTAINERS[number](part, step)
        assert type(got) is type(expected) or number == 5
        assert [type(each) for each in leaves(got)] == [type(each) for each in leaves(expected)]
        (found,) = (each for each in leaves(got) if type(each) is type(part))
        assert found is part
        assert client.is_mine(found)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from leaves(each)
    else:
        yield value


def test_a_container_that_holds_itself(pool: ObjectPool[Any]) -> None:
    with pool.lease() as client:
        part, cycle = client.cycle
        assert part is client.projects
        assert cycle[1] is cycle


def test_items_that_stay_come_among_copies(pool: ObjectPool[Any]) -> None:
    with pool.lease() as client:
        home = client.request()
        names = ["data", "its part", "a step", *["data"] * 20, "a method"]
        items = [*client.give_all(*names)]
        assert items[1] is client.projects
        assert items[2].pid == os.getpid()
        assert items[-2] == items[0] == {"a": [1, (2.5, None)]}
        assert items[-1]() == home


def make_list() -> list[Any]:
    made: list[Any] = [1]
    made.append(made)
    made.append([made])
    made.append(made.append)
    return made


def test_a_builtin_container_is_known_among_what_it_gives(manager: PoolManager) -> None:
    with manager.create_pool(make_list, max_size=1).lease() as items:
        me, (also_me,), append = items[1:]
        append(4)
        assert me is also_me is items
        assert items[-1] == 4
        assert items[0:1] == [1]


# -- the option `keep` -------------------------------------------------------------------------------------


class Response:
    """As that of `requests`: to pickle it is to read it to its end."""

    def __init__(self, chunks: Any = ()) -> None:
        self.chunks = iter(chunks)

    def __getstate__(self) -> Any:
        return {"chunks": iter([*self.chunks])}

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.chunks = iter(())

    def iter_content(self) -> Iterator[Any]:
        yield from self.chunks


class Chunked(Response):
    """A kind of response."""


class Session:
    def __init__(self) -> None:
        self.last = Chunked([1, 2])

    def get(self) -> Response:
        return Response(itertools.count())

    def get_many(self) -> dict[str, Any]:
        return {"a": self.last, "b": [self.last, (1,)], "c": {"words": [1]}}

    def get_each(self) -> Iterator[Any]:
        yield from (1, self.last, {"words": [1]})

    def is_last(self, response: Response) -> bool:
        return response is self.last


@pytest.mark.parametrize("keep", [[Response], [f"{__name__}:Response", "io:BytesIO"]])
def test_a_response_that_is_kept_streams(manager: PoolManager, keep: Any) -> None:
    with manager.create_pool(Session, keep=keep).lease() as session, session.get() as response:
        assert list(itertools.islice(response.iter_content(), 3)) == [0, 1, 2]


def test_what_is_kept_stays_also_as_attribute_element_and_item(manager: PoolManager) -> None:
    pool = manager.create_pool(Session, keep=[Response], max_size=1)
    with pool.lease() as session:
        assert session.is_last(session.last)
        last = session.last
        assert session.get_many() == {"a": last, "b": [last, (1,)], "c": {"words": [1]}}
        assert [*session.get_each()] == [1, last, {"words": [1]}]
    with pytest.raises(TypeError, match="stays with the object"):
        pool.apply(Session.get)


@pytest.mark.parametrize("kind", [dict, "collections.abc:Mapping"])
def test_builtin_containers_can_be_kept(manager: PoolManager, kind: Any) -> None:
    pool = manager.create_pool(Session, keep=[kind, Response], max_size=1)
    with pool.lease() as session:
        got = session.get_many()
        assert got["a"] is session.last
        got["c"]["words"] = [3]
        assert got["c"]["words"] == [3]
        assert [*session.get_each()][2]["words"] == [1]
    with pytest.raises(TypeError, match="stays with the object"):
        pool.apply(Session.get_many)


def test_tuples_can_be_kept_though_interfaces_are_some(manager: PoolManager) -> None:
    with manager.create_pool(Session, keep=[tuple, Response]).lease() as session:
        got = session.get_many()
        assert type(got) is dict
        assert got["a"] is session.last
        assert type(got["b"][1]) is not tuple
        assert got["b"][1] == (1,)


@pytest.mark.parametrize("keep", ["nowhere:Response", "io:Nothing", "io:DEFAULT_BUFFER_SIZE", "io"])
def test_what_is_to_be_kept_must_be_there(manager: PoolManager, keep: str) -> None:
    with pytest.raises((FactoryError, TypeError, ValueError), match=r"nowhere|Nothing|keep must|'io'"):
        manager.create_pool(Session, keep=[keep]).acquire()


# -- handles in arguments --------------------------------------------------------------------------------


class Refused(Exception):
    part = property(lambda self: self.args[1])


@dataclass
class Box:
    part: Any
    label: str = "box"


class Desk:
    """Tells whether what it is handed is its own."""

    def __init__(self) -> None:
        self.part = threading.Lock()
        self.items: list[Any] = []

    def finds(self, place: Any, *, also: Any = None) -> list[bool]:
        found = [leaf for leaf in leaves(place) if leaf is self.part or leaf is self]
        return [*map(self.owns, found), *([self.owns(also)] if also is not None else [])]

    def owns(self, part: Any) -> bool:
        part = getattr(part, "part", part) if isinstance(part, (Box, Refused)) else part
        return part is self.part or part is self

    def take(self, other: Any) -> Any:
        self.items.append(other)
        return len(self.items)


WRAPPINGS: list[Callable[[Any], Any]] = [
    lambda part: part,
    lambda part: [part],
    lambda part: (1, {"deep": [part]}),
    lambda part: {part: "key"}.popitem() if type(part).__hash__ else [part],
    lambda part: Page(1, part),
    lambda part: [bytes(1_000_000), part],
]


@pytest.mark.parametrize("wrapped", WRAPPINGS)
def test_a_handle_goes_back_as_what_it_stands_for(manager: PoolManager, wrapped: Any) -> None:
    with manager.create_pool(Desk).lease() as desk:
        part = desk.part
        assert desk.finds(wrapped(part)) == [True]
        assert desk.finds(wrapped(desk), also=part) == [True, True]
        assert desk.finds([part, part, desk]) == [True, True, True]
        assert desk.owns(Box(part))
        assert desk.owns(Refused("refused", part))
        assert not desk.owns(Box(None))
        with pytest.raises(TypeError, match=r"belongs to the process.*Pass the pool"):
            pickle.dumps([part])


def test_a_handle_goes_back_with_large_data(manager: PoolManager) -> None:
    array = np.arange(100_000)
    with manager.create_pool(Keeper, max_size=1).lease() as keeper:
        same, total = keeper.total([keeper, array])
        assert (same, total) == (True, array.sum())


class Keeper:
    def total(self, both: list[Any]) -> tuple[bool, int]:
        return both[0] is self, int(both[1].sum())


@pytest.fixture
def isolation(backend: Backend) -> str:
    return str(backend.isolation)


def test_objects_of_two_leases_meet_where_they_live_together(manager: PoolManager, isolation: str) -> None:
    pool = manager.create_pool(list, max_size=3)
    with pool.lease() as one, pool.lease() as two:
        one.append(1)
        two.extend([2, 3])
        if isolation != "none":
            for meet in (lambda: one.extend(two), lambda: one + two, lambda: one.append([two])):
                with pytest.raises(TypeError, match=rf"cannot meet.*live in a {isolation} of their own"):
                    meet()
            assert one != two
            assert not one == two  # noqa: SIM201
            return
        one.extend(two)
        assert one == [1, 2, 3]
        assert one + two == [1, 2, 3, 2, 3]
        assert one != two
        assert two == [2, 3]
        one[:] = two
        assert one == two
        one.append({"other": two})
        two.append(4)
        assert one[2]["other"] == [2, 3, 4]
        assert pool.apply(extended, [two, one]) == 6
        two.clear()
        one.clear()


def extended(new: list[Any], others: list[list[Any]]) -> int:
    for other in others:
        new += other
    return len(new)


def test_objects_of_two_managers_do_not_meet(manager: PoolManager) -> None:
    with PoolManager() as other_manager:
        pools = manager.create_pool(list), other_manager.create_pool(list)
        with pools[0].lease() as one, pools[1].lease() as two:
            assert one != two
            with pytest.raises(TypeError, match="two managers"):
                one.extend(two)


def test_a_handle_that_was_released_is_refused_as_argument(manager: PoolManager) -> None:
    pool = manager.create_pool(list, max_size=2, isolation="none")
    with pool.lease() as one:
        with pool.lease() as two:
            pass
        for use in (one.extend, one.__eq__, lambda two: one.append([two])):
            with pytest.raises(LeaseError, match="released"):
                use(two)
        assert one == []


def test_two_calls_on_the_same_two_objects_wait_for_each_other(manager: PoolManager, beside: Beside) -> None:
    pool = manager.create_pool(list, max_size=2, isolation="none")
    with pool.lease() as one, pool.lease() as two:
        one.append(1)
        two.append(1)

        def compare(left: Any, right: Any) -> int:
            return sum(left == right for _ in range(100))

        running = [beside(compare, *pair) for pair in ((one, two), (two, one)) * 2]
        assert [each.result(timeout=30) for each in running] == [100] * 4


class Waiting(list[Any]):
    def meet(self, other: Any) -> int:
        assert Gate.present is not None
        Gate.present.pass_through()
        other.append(1)
        return len(other)


def test_neither_lease_ends_under_a_call_of_both(gate: Gate, manager: PoolManager, beside: Beside) -> None:
    pool = manager.create_pool(Waiting, max_size=2, isolation="none")
    one, two = pool.acquire(), pool.acquire()
    meeting = beside(one.meet, two)
    gate.wait_for_somebody()
    pool.release(two)
    with pool.lease(timeout=10) as other:
        assert len(other) == 0, "an object of which a call is running is not lent"
        gate.open()
        assert meeting.result(timeout=10) == 1
        assert len(other) == 0
    pool.release(one)


# -- functions -------------------------------------------------------------------------------------------


def local_class(start: int) -> Any:
    class Local:
        def __init__(self) -> None:
            self.value = start

        def add(self, add: Any) -> int:
            self.value = add(self.value)
            return self.value

        def hold(self, other: Any) -> bool:
            return type(other).__name__ == "Local"

    return Local


def test_functions_and_classes_that_pickle_refuses_travel_by_value(manager: PoolManager) -> None:
    step, local = 5, local_class(100)
    pool = manager.create_pool(lambda: local(), reset=lambda obj: obj.add(lambda _: step), max_size=1)  # noqa: PLW0108
    with pool.lease() as obj:
        assert obj.add(lambda value: value + step) == 105
        assert obj.hold(local())
        assert obj.add(add=lambda _: obj.value) == 105, "with a handle in it"
    assert pool.apply(lambda obj, more: obj.value + more[0](), [lambda: step]) == 10
    assert pool.apply(local.add, lambda value: value * 2) == 10


def test_without_cloudpickle_the_error_says_so(manager: PoolManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(TypeError, match=r"factory .* does not pickle.*install cloudpickle"):
        manager.create_pool(lambda: 1)
    pool = manager.create_pool(Desk, max_size=1)
    with pool.lease() as desk:
        for refused in (lambda: 1, local_class(1), local_class(1)()):
            with pytest.raises(TypeError, match=r"argument 1, of type.*top level.*install cloudpickle"):
                desk.take(refused)
    with pytest.raises(TypeError, match=r"the function, of type 'function'.*install cloudpickle"):
        pool.apply(lambda _: 1)


REFUSED: dict[str, Callable[[], Any]] = {
    "Pass a list of its items": lambda: (number for number in range(3)),
    "Pass its path, or its content as bytes": Path(__file__).open,
    "It works where it was made: make one beside the object": threading.Lock,
    "It works where it was made: .*with apply": multiprocessing.Lock,
    "Pass data, or make it beside the object, with apply": socket.socket,
}


@pytest.mark.parametrize("advice", REFUSED)
def test_what_cannot_travel_is_refused_by_its_name(manager: PoolManager, advice: str) -> None:
    pool = manager.create_pool(Desk, max_size=1)
    with contextlib.ExitStack() as stack:
        bad = REFUSED[advice]()
        if hasattr(bad, "close"):
            stack.callback(bad.close)
        with pool.lease() as desk:
            for ask, name in [
                (lambda: desk.finds(1, bad), "argument 2"),
                (lambda: desk.finds(1, also=[bad]), "argument 'also'"),
            ]:
                with pytest.raises(TypeError, match=f"an argument does not pickle.*{name}, of type"):
                    ask()
            with pytest.raises(TypeError, match=rf"argument 1, of type '\w+': .*\. {advice}"):
                desk.take(bad)
            assert desk.take(1) == 1
        with pytest.raises(TypeError, match=rf"argument 1, of type '\w+': .*\. {advice}"):
            pool.apply(Desk.take, bad)


PROGRAM = """\
import multiprocessing, os, sys
from mppool import PoolManager

class R:
    factor = 3
    def work(self, number):
        return self.factor * number

class Argument:
    number = 5

def number_of(r, argument):
    return r.work(argument.number)

def task(pool):
    with pool.lease() as r:
        return pool.apply(R.work, 2), pool.apply(number_of, Argument()), r.work(4)
"""

LOKY = """
if __name__ == "__main__":
    from loky import ProcessPoolExecutor
    with PoolManager(ctx=multiprocessing.get_context("spawn")) as manager, ProcessPoolExecutor(1) as executor:
        for isolation in ("none", "thread", "process"):
            pool = manager.create_pool(R, max_size=2, isolation=isolation)
            print(executor.submit(task, pool).result())
"""

NOTEBOOK = """
at_first = number_of, Argument
with PoolManager(ctx=multiprocessing.get_context(sys.argv[1])) as manager:
    for isolation in ("none", "thread", "process"):
        number_of, Argument = at_first
        pool = manager.create_pool(R, max_size=2, isolation=isolation)
        print(task(pool))
        def number_of(r, argument):  # as a cell that is run again
            return -r.work(argument.number)
        class Argument:
            number = 7
        print(task(pool))
"""

PLAIN = """
if __name__ == "__main__":
    with PoolManager() as manager:
        for isolation in ("none", "thread", "process"):
            pool = manager.create_pool(R, max_size=2, isolation=isolation)
            print(task(pool), pool.apply(number_of, argument=Argument()))
            with pool.lease() as r:
                r.factor = [r, r]
    print("cloudpickle" in sys.modules)
"""


# The programs themselves go through the places where objects live.
ONCE = pytest.mark.everywhere("none")


@ONCE
def test_what_a_main_script_defines_travels_from_workers_of_loky(
    run_python: RunPython, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM + LOKY)
    assert run_python("program.py").stdout == "(6, 15, 12)\n" * 3


@ONCE
@pytest.mark.parametrize("start_method", START_METHODS)
def test_what_a_notebook_defines_travels_as_it_is_now(run_python: RunPython, start_method: str) -> None:
    printed = run_python("-c", PROGRAM + NOTEBOOK, start_method).stdout
    assert printed == "(6, 15, 12)\n(6, -21, 12)\n" * 3


@ONCE
def test_what_pickles_travels_without_cloudpickle(run_python: RunPython, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM + PLAIN)
    assert run_python("program.py").stdout == "(6, 15, 12) 15\n" * 3 + "False\n"


# -- rows and buffers --------------------------------------------------------------------------------------


class Cursor:
    """As those of database drivers: the class of its rows is made of the names of the columns."""

    def fetchall(self, *columns: str, rows: int = 3) -> list[Any]:
        make = make_row(columns)
        return [make(*(row * column for column, _ in enumerate(columns))) for row in range(rows)]

    def rows(self, *columns: str) -> Iterator[Any]:
        yield from self.fetchall(*columns, rows=100)

    def copy(self) -> Iterator[memoryview]:
        yield from (memoryview(b"one"), memoryview(bytearray(b"two")), memoryview(bytes(1_000_000)))

    def view(self) -> memoryview:
        return memoryview(b"all of it")[::-1]

    def values(self, rows: list[Any]) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in rows]


def test_rows_of_a_class_made_at_run_time_are_copies(manager: PoolManager) -> None:
    pool = manager.create_pool(Cursor, max_size=1)
    with pool.lease() as cursor:
        for rows in (cursor.fetchall("a", "b"), [*cursor.rows("a", "b")][:3], pool_of_rows(cursor)):
            assert rows == [(0, 0), (0, 1), (0, 2)]
            assert [row.b for row in rows] == [0, 1, 2]
            assert type(rows[0]) is type(rows[2])
            assert type(rows[0]).__name__ == "Made"
            assert repr(rows[1]) == "Made(a=0, b=1)"
            assert rows[0]._replace(a=5)._asdict() == {"a": 5, "b": 0}
            assert pickle.loads(pickle.dumps(rows)) == rows
            assert cursor.values(rows) == rows
    assert pool.apply(Cursor.fetchall, "a", "b")[2].b == 2


def pool_of_rows(cursor: Any) -> list[Any]:
    return [row for _, row in zip(range(3), cursor.rows("a", "b"), strict=False)]


def test_a_view_comes_as_bytes(manager: PoolManager) -> None:
    pool = manager.create_pool(Cursor, max_size=1)
    file = io.BytesIO()
    with pool.lease() as cursor:
        for data in cursor.copy():
            file.write(data)
        assert cursor.view() == b"ti fo lla"
    assert file.getvalue() == b"onetwo" + bytes(1_000_000)
    assert pool.apply(Cursor.view) == b"ti fo lla"


# -- what cannot be rebuilt ------------------------------------------------------------------------------


class Homebody:
    """Pickles, and is rebuilt only in the process that pickled it; does not refer back to its owner."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error
        self.calls = 0

    def __reduce__(self) -> Any:
        return come_home, (os.getpid(), self.error)

    def call(self) -> int:
        self.calls += 1
        return self.calls


def come_home(pid: int, error: type[Exception]) -> Homebody:
    if os.getpid() != pid:
        raise error("far from home")
    return Homebody(error)


class Owner:
    def __init__(self, error: type[Exception] = RuntimeError) -> None:
        self.homebody = Homebody(error)
        self.latest = weakref.WeakSet[Any]()

    def homebodies(self) -> list[Any]:
        return [1, self.homebody, [self.homebody]]

    def mixed(self) -> list[Any]:
        return [threading.Lock(), Page(1, None), self.homebody]

    def items(self) -> Iterator[Any]:
        for number in range(100):
            yield self.homebody if number == 40 else Page(number, None)

    def new(self) -> Homebody:
        made = Homebody(RuntimeError)
        self.latest.add(made)
        return made

    def copied(self, size: int = 0) -> Step:
        made = Step(bytes(size))
        self.latest.add(made)
        return made

    def alive(self) -> int:
        gc.collect()
        return len(self.latest)


ERRORS = [RuntimeError, RecursionError, OSError, EOFError, ConnectionResetError, LookupError, ImportError]


@pytest.mark.parametrize("error", ERRORS)
def test_what_cannot_be_rebuilt_stays(manager: PoolManager, error: type[Exception]) -> None:
    pool = manager.create_pool(partial(Owner, error), max_size=1)
    with pool.lease() as owner:
        homebody = owner.homebody
        assert [homebody.call(), owner.homebody.call()] == [1, 2]
        assert owner.homebody is homebody
        one, two, (three,) = owner.homebodies()
        assert (one, two, three) == (1, homebody, homebody)
        lock, page, homebody = owner.mixed()  # a handle of the whole
        assert (lock.locked(), page, homebody.call()) == (False, (1, None), 3)
    with pytest.raises(TypeError, match=r"cannot be rebuilt here: .*far from home.*apply"):
        pool.apply(get_homebody)
    assert pool.stats().leased == 0


def get_homebody(owner: Owner) -> Homebody:
    return owner.homebody


def test_an_item_that_cannot_be_rebuilt_costs_itself_alone(manager: PoolManager) -> None:
    with manager.create_pool(Owner, max_size=1).lease() as owner:
        items = [*owner.items()]
        assert items[40].call() == owner.homebody.call() - 1 == 1
        del items[40]
        assert items == [Page(number, None) for number in range(100) if number != 40]


def test_threads_that_share_a_handle_get_each_its_own(manager: PoolManager) -> None:
    with manager.create_pool(Owner, max_size=1).lease() as owner:
        got: dict[int, list[Any]] = {}

        def ask(number: int) -> None:
            ask_for = owner.new if number % 2 else owner.copied
            got[number] = [ask_for() for _ in range(20)]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({id(each) for number in (1, 3) for each in got[number]}) == 40
        assert all(each.call() == 1 for number in (1, 3) for each in got[number])


@pytest.mark.parametrize("size", [0, 1_000_000])
def test_a_copied_result_is_not_kept(manager: PoolManager, size: int) -> None:
    pool = manager.create_pool(Owner, max_size=1)
    with pool.lease() as owner:
        owner.copied(size)
        assert owner.alive() == 0
        owner.copied(size)
    assert pool.apply(Owner.alive) <= (size == 0), "what is large goes with the lease"


def test_methods_of_a_server_proxy(manager: PoolManager) -> None:
    with SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False) as server:
        server.register_function(pow)
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            url = "http://{}:{}".format(*server.server_address)
            with manager.create_pool(partial(xmlrpc.client.ServerProxy, url), max_size=1).lease() as proxy:
                assert proxy.pow(2, 5) == 32
        finally:
            server.shutdown()
            serving.join()
