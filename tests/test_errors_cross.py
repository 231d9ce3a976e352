"""Errors that cross: each keeps its type, arguments and attributes, and what builtin types keep."""

from __future__ import annotations

import builtins
import functools
import importlib
import os
import re
import sys
import threading
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytest

from mppool import FactoryError, ObjectPool, PoolManager, RemoteError, RemoteTraceback

if TYPE_CHECKING:
    from typing_extensions import Self

Group: Any = getattr(builtins, "ExceptionGroup", None)
GROUPS = pytest.mark.skipif(sys.version_info < (3, 11), reason="groups came with Python 3.11")


class Failing:
    """What the pools here hold."""

    def fail(self, name: str) -> NoReturn:
        error = MADE[name]()
        raise error

    def fail_with_itself(self) -> NoReturn:
        raise Coded(7, self)

    def fail_with_parts(self) -> NoReturn:
        raise Coded([Decimal(1)], SimpleNamespace(owner=self))  # type: ignore[arg-type]


def make_none() -> NoReturn:
    raise Locked


pytestmark = pytest.mark.pool(Failing, max_size=1)


def raised_by(pool: ObjectPool[Any], name: str) -> Any:
    """What a call raises that raises this error; `apply` raises the same."""
    with pytest.raises(BaseException) as caught, pool.lease() as failing:  # noqa: PT011 - whatever it is
        failing.fail(name)
    with pytest.raises(type(caught.value)) as of_apply:
        pool.apply(Failing.fail, name)
    assert shown(of_apply.value) == shown(caught.value)
    return caught.value


def shown(error: BaseException) -> list[str]:
    """Arguments and attributes of an error, reprs in the place of what only they are left of."""
    values = [*error.args, *(each for name in sorted(vars(error)) for each in (name, vars(error)[name]))]
    return [plain(each if isinstance(each, str) else repr(each)) for each in values]


def plain(text: str) -> str:
    """A text without addresses, and without the quotes of reprs."""
    return re.sub("""["']?(<[^<>]*) at 0x[0-9a-f]+>["']?""", r"\1>", text)


# -- errors -------------------------------------------------------------------------------------------


class Coded(Exception):
    """Its `__init__` takes other arguments than it leaves in `args`."""

    made = 0

    def __init__(self, code: int, detail: Any) -> None:
        super().__init__(f"code {code}")
        Coded.made += 1
        self.code = code
        self.detail = detail


class Prefixed(KeyError):
    """Would have its text twice if it were made of its `args`."""

    def __init__(self, text: str) -> None:
        super().__init__(f"prefix: {text}")


class Locked(Exception):
    """Has a lock among its arguments."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, threading.Lock())


class Slotted(OSError):
    """Keeps what it has in slots, one of them private, one empty."""

    __slots__ = ("__hidden", "code", "empty")

    def __init__(self, code: int) -> None:
        super().__init__(2, "No such file", "a/path")
        self.code = code
        self.__hidden = code + 1

    def hidden(self) -> int:
        return self.__hidden


class Choosy(Exception):
    """Says itself how to pickle it, which leads back to its type, and not to its text and reason."""

    def __init__(self, text: str, reason: Any) -> None:
        super().__init__(f"Choosy: {text}")
        self.lock = threading.Lock()
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ("", None)


class Reducing(Exception):
    """Says itself how to pickle what does not."""

    def __init__(self, detail: Any) -> None:
        super().__init__("text")
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ({"lines": 3},)


class Homebody(Exception):
    """Says itself how to pickle it, which leads back to it only where it was pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return come_home, (os.getpid(), self.args)


def come_home(pid: int, args: tuple[Any, ...]) -> Homebody:
    if os.getpid() != pid:
        raise LookupError("far from home")
    return Homebody(*args)


class Refusing(Exception):
    """Fails wherever it can."""

    def __reduce__(self) -> NoReturn:
        raise RuntimeError("refused")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("refused")

    __hash__ = None  # type: ignore[assignment]
    __str__ = __repr__ = __reduce__  # type: ignore[assignment]


class Lying(Exception):
    """Says to be something else."""

    @property
    def __class__(self) -> Any:
        return int

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise RuntimeError("nothing changes me")


class Silent(Exception):
    """Has no attributes, whichever are asked for, once it is raised."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise RuntimeError("refused")


class Unhashable(type):
    def __eq__(cls, other: object) -> bool:
        raise RuntimeError("refused")

    __hash__ = None  # type: ignore[assignment]


class OfUnhashable(Exception, metaclass=Unhashable):
    """Its type cannot be looked up in a dict."""


def noted() -> BaseException:
    error = ValueError("text")
    error.__notes__ = ["see line 3"]  # as `add_note` does, since Python 3.11
    return error


def with_notes(error: BaseException, notes: Any) -> BaseException:
    error.__notes__ = notes
    return error


def in_a_cycle() -> BaseException:
    error, other = Locked("outer"), Locked("inner")
    error.other, other.other, error.me = other, [error], error  # type: ignore[attr-defined]
    error.__cause__, other.__cause__ = other, error
    return error


def long_chain() -> BaseException:
    error = ValueError(0)
    for n in range(1, 1000):
        error, error.__cause__ = ValueError(n), error
    return error


def group() -> BaseException:
    shared = Locked("shared")
    shared.add_note("note")
    return Group("outer", [shared, Group("inner", [Coded(7, 1), shared])])


def suppressed() -> BaseException:
    try:
        raise ValueError from None
    except ValueError as error:
        return error


def made_at_run_time() -> BaseException:
    return type("NoSuchKey", (Coded,), {"__slots__": ("bucket",)})(404, "gone")


def says_nothing() -> BaseException:
    return type("Local", (Exception,), {"__str__": lambda _: "text"})(1)


def error_of_urllib3() -> BaseException:
    urllib3 = pytest.importorskip("urllib3")
    pool = urllib3.HTTPConnectionPool("localhost", 1)
    refused = urllib3.exceptions.NewConnectionError(urllib3.connection.HTTPConnection("localhost"), "refused")
    return urllib3.exceptions.MaxRetryError(pool, "/path", refused)


def error_of_requests() -> BaseException:
    requests = pytest.importorskip("requests")
    request = requests.Request("GET", "http://localhost/path").prepare()
    return requests.ConnectionError(error_of_urllib3(), request=request)


def error_of_pydantic() -> BaseException:
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Model", number=(int, ...))
    with pytest.raises(pydantic.ValidationError) as caught:
        model(number=SimpleNamespace())
    return caught.value


def error_of_botocore() -> BaseException:
    factory = pytest.importorskip("botocore.errorfactory")
    kind = type("NoSuchKey", (factory.ClientError,), {"__module__": factory.__name__})
    return kind({"Error": {"Code": "NoSuchKey", "Message": "gone"}}, "GetObject")


def error_of_psycopg() -> BaseException:
    psycopg = pytest.importorskip("psycopg", exc_type=ImportError)  # it needs libpq
    return psycopg.errors.UniqueViolation("duplicate key", info={"x": b"y"})


MADE: dict[str, Callable[[], BaseException]] = {
    "other arguments": lambda: Coded(7, "detail"),
    "text twice": lambda: Prefixed("once"),
    "a lock": lambda: Locked("text"),
    "an attribute": lambda: Coded(7, threading.Lock()),
    "not a number": lambda: ValueError(float("nan")),
    "an array": lambda: ValueError(np.arange(3)),
    "a plain object": lambda: ValueError(SimpleNamespace(a=1)),
    "errors": lambda: Coded(1, {"errors": [Locked("inner"), (Slotted(4),)]}),
    "urllib": lambda: urllib.error.URLError(ConnectionRefusedError(111, "refused")),
    "notes": noted,
    "reduce": lambda: Choosy("text", Locked("inner")),
    "home": lambda: Homebody("text", threading.Lock()),
    "away from home": lambda: Homebody("text"),
    "requests": error_of_requests,
    "pydantic": error_of_pydantic,
    "psycopg": error_of_psycopg,
    # Those of which more is to be said below.
    **{
        each.__name__: each
        for each in (in_a_cycle, long_chain, group, suppressed, made_at_run_time, says_nothing)
    },
    "urllib3": error_of_urllib3,
    "botocore": error_of_botocore,
    "reduces a lock": lambda: Reducing(threading.Lock()),
    **{each.__name__: each for each in (Refusing, Lying, Silent, OfUnhashable)},
    "odd notes": lambda: with_notes(made_at_run_time(), 5),
    # Those that keep something elsewhere.
    "slots": lambda: Slotted(4),
    "filename": lambda: OSError(2, "No such file", "a/path", None, "another"),
    "written": lambda: BlockingIOError(11, "would block", 7),
    "import": lambda: ImportError("no such module", name="module", path="a/path"),
    "exit": lambda: SystemExit(3),
    "stop": lambda: StopIteration(5),
    "decode": lambda: UnicodeDecodeError("utf-8", b"abc", 1, 2, "why"),
    "syntax": lambda: SyntaxError("wrong", ("file", 1, 3, "a b", 1, 4)),
    "attribute": lambda: AttributeError("no x", name="x", obj=threading.Lock()),
}
KEPT = list(MADE)[: list(MADE).index("in_a_cycle")]


@pytest.mark.everywhere
@pytest.mark.parametrize("name", KEPT)
def test_type_arguments_and_attributes_are_kept(pool: ObjectPool[Any], name: str) -> None:
    made, raised = MADE[name](), raised_by(pool, name)
    assert (type(raised), plain(str(raised))) == (type(made), plain(str(made)))
    assert shown(raised) == shown(made)
    assert isinstance(raised.__cause__, RemoteTraceback)
    assert "in fail" in str(raised.__cause__)


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("slots", {"code": 4, "filename": "a/path", "errno": 2}),
        ("filename", {"filename": "a/path", "filename2": "another", "errno": 2, "strerror": "No such file"}),
        ("written", {"characters_written": 7}),
        ("import", {"name": "module", "path": "a/path", "msg": "no such module"}),
        ("exit", {"code": 3}),
        ("stop", {"value": 5}),
        ("decode", {"encoding": "utf-8", "object": b"abc", "start": 1, "end": 2, "reason": "why"}),
        ("syntax", {"filename": "file", "lineno": 1, "end_offset": 4, "text": "a b"}),
        ("attribute", {"name": "x", "obj": None}),
    ],
)
def test_what_builtin_types_and_slots_keep(pool: ObjectPool[Any], name: str, state: dict[str, Any]) -> None:
    made, raised = MADE[name](), raised_by(pool, name)
    assert (type(raised), raised.args, str(raised)) == (type(made), made.args, str(made))
    assert {each: getattr(raised, each) for each in state} == state


def test_a_private_slot_and_an_empty_one(pool: ObjectPool[Any]) -> None:
    raised = raised_by(pool, "slots")
    assert raised.hidden() == 5
    assert not hasattr(raised, "empty")


def test_no_init_is_called(pool: ObjectPool[Any]) -> None:
    before = Coded.made
    assert raised_by(pool, "other arguments").code == 7
    assert Coded.made == before


def test_what_reduces_itself_brings_what_it_says(pool: ObjectPool[Any]) -> None:
    assert raised_by(pool, "reduces a lock").detail == {"lines": 3}


def test_errors_in_a_cycle(pool: ObjectPool[Any]) -> None:
    raised = raised_by(pool, "in_a_cycle")
    assert raised.me is raised
    assert raised.other.other[0] is raised
    assert raised.__cause__.__cause__ is raised.other
    assert raised.other.__cause__ is raised
    assert raised.args[1].startswith("<unlocked _thread.lock")


def test_a_long_chain_of_causes(pool: ObjectPool[Any]) -> None:
    error, length = raised_by(pool, "long_chain"), 0
    while error is not None:
        error, length = error.__cause__, length + 1
    assert length == 1001, "with the remote traceback"


@GROUPS
def test_a_group_and_its_parts(pool: ObjectPool[Any]) -> None:
    raised = raised_by(pool, "group")
    shared, inner = raised.exceptions
    coded, again = inner.exceptions
    assert (raised.message, inner.message, coded.code) == ("outer", "inner", 7)
    assert again is shared
    assert shared.__notes__ == ["note"]
    assert raised.args == ("outer", [shared, inner])
    assert raised.split(Coded)[0].exceptions[0].exceptions == (coded,)


def test_suppressed_context(pool: ObjectPool[Any]) -> None:
    assert raised_by(pool, "suppressed").__suppress_context__
    assert not raised_by(pool, "other arguments").__suppress_context__


@pytest.mark.everywhere
@pytest.mark.parametrize("kind", [Refusing, Lying, OfUnhashable])
def test_errors_that_fail_wherever_they_can(pool: ObjectPool[Any], kind: type) -> None:
    raised = raised_by(pool, kind.__name__)
    assert type(raised) is kind
    assert kind.__name__ in str(raised.__cause__)


@pytest.mark.everywhere
def test_an_error_that_tells_nothing(pool: ObjectPool[Any]) -> None:
    with pool.lease() as failing:
        try:
            failing.fail("Silent")
        except Exception as error:
            raised: Any = error
        assert type(raised) is Silent
    assert pool.stats().retired == {}


def test_what_an_error_holds_of_the_object_is_told_and_not_copied(pool: ObjectPool[Any]) -> None:
    with pool.lease() as failing, pytest.raises(Coded) as caught:
        failing.fail_with_itself()
    assert isinstance(caught.value.detail, str)
    assert "Failing object" in caught.value.detail


@pytest.mark.pool(Failing, max_size=1, keep=[Decimal])
def test_what_stays_beside_the_object_does_so_in_errors(pool: ObjectPool[Any]) -> None:
    with pool.lease() as failing, pytest.raises(Coded) as caught:
        failing.fail_with_parts()
    assert caught.value.code == ["Decimal('1')"]
    assert isinstance(caught.value.detail, str)
    assert caught.value.detail.startswith("namespace(owner=<")


def test_the_cause_of_a_failed_build(manager: PoolManager) -> None:
    with pytest.raises(FactoryError) as caught:
        manager.create_pool(make_none).acquire()
    cause = caught.value.__cause__
    assert type(cause) is Locked
    assert isinstance(cause.__cause__, RemoteTraceback)
    assert "in make_none" in str(cause.__cause__)


# -- types that are not known here ------------------------------------------------------------------------


def test_a_type_made_at_run_time_comes_as_its_nearest_base(pool: ObjectPool[Any]) -> None:
    raised = raised_by(pool, "made_at_run_time")
    assert (type(raised), raised.args, raised.code, raised.detail) == (Coded, ("code 404",), 404, "gone")
    assert raised.__notes__ == ["It was raised as test_errors_cross.NoSuchKey: code 404"]


def test_notes_that_are_no_list(pool: ObjectPool[Any]) -> None:
    raised = raised_by(pool, "odd notes")
    assert type(raised) is Coded
    assert raised.__notes__ == 5


def test_an_error_of_urllib3(pool: ObjectPool[Any]) -> None:
    raised = raised_by(pool, "urllib3")
    assert (str(raised), raised.url) == (plain(str(error_of_urllib3())), "/path")
    assert type(raised.reason) is type(error_of_urllib3().reason)
    assert str(raised.reason) == str(error_of_urllib3().reason)


def test_an_error_of_pydantic(pool: ObjectPool[Any]) -> None:
    error = error_of_pydantic()
    raised = raised_by(pool, "pydantic")
    assert (raised.title, raised.error_count()) == ("Model", 1)
    assert raised.errors() == error.errors()  # type: ignore[attr-defined]


def test_an_error_of_botocore(pool: ObjectPool[Any]) -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    raised = raised_by(pool, "botocore")
    assert type(raised) is exceptions.ClientError
    assert raised.response["Error"]["Code"] == "NoSuchKey"
    assert "(NoSuchKey)" in str(raised)


def test_where_only_exception_is_known_the_text_tells_the_type(pool: ObjectPool[Any]) -> None:
    assert str(raised_by(pool, "says_nothing")) == "test_errors_cross.Local: text"
    assert type(raised_by(pool, "says_nothing")) is RemoteError


def import_from(directory: Path) -> Failing:
    sys.path.insert(0, str(directory))
    return Failing()


def fail_abroad(_: object, name: str) -> NoReturn:
    import abroad

    raise abroad.make(name)


ABROAD = """
class Far(ConnectionError):
    __slots__ = ("lines",)
class Thing:
    pass
def make(name):
    if name == "value":
        return ValueError(Thing(), 1)
    error = Far(111, "refused", "a/path")
    error.lines = 3
    return error
"""


def test_types_of_a_module_that_is_not_known_here(manager: PoolManager, tmp_path: Path) -> None:
    (tmp_path / "abroad.py").write_text(ABROAD)
    pool = manager.create_pool(functools.partial(import_from, tmp_path))
    with pytest.raises(ConnectionError) as caught:
        pool.apply(fail_abroad, "error")
    assert type(caught.value) is ConnectionError
    assert (caught.value.errno, caught.value.filename, caught.value.lines) == (111, "a/path", 3)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"<abroad.Thing object at .*1") as value:
        pool.apply(fail_abroad, "value")
    assert value.value.args[1] == 1


# -- into a remote `with` block -----------------------------------------------------------------------------


class Block:
    """Knows how it was left. Swallows an error that names it, as transactions of psycopg do."""

    def __init__(self) -> None:
        self.left: list[tuple[type, str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, _: object) -> bool:  # noqa: PYI036
        self.left.append((kind, str(error), getattr(error, "code", None)))
        if isinstance(error, KeyError):
            raise error
        return getattr(error, "block", None) is self

    def inner(self) -> Any:
        inner = Block()
        inner.lock = threading.Lock()  # type: ignore[attr-defined]  # so it comes as a handle
        return inner

    def steps(self) -> Iterator[int]:
        for step in range(10):
            try:
                yield step
            except ValueError as error:
                self.left.append((type(error), str(error), None))


class Leave(Exception):
    def __init__(self, block: Any) -> None:
        super().__init__("leave", block)
        self.block = block


of_blocks = pytest.mark.pool(Block, max_size=1)


@pytest.fixture
def block(pool: ObjectPool[Any]) -> Iterator[Any]:
    with pool.lease() as block:
        yield block


NEARBY = """
class Near(ValueError):
    code = None
class Base(Exception):
    pass
"""


@pytest.fixture
def nearby(pool: ObjectPool[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that only this process finds."""
    (tmp_path / "nearby.py").write_text(NEARBY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("nearby")
    del sys.modules["nearby"]


@pytest.mark.everywhere
@of_blocks
def test_a_block_is_left_by_an_error_that_is_known_here_only(block: Any, nearby: Any) -> None:
    local = type("Local", (Coded,), {})
    for error in (nearby.Near("one"), nearby.Base("two"), local(3, threading.Lock())):
        with pytest.raises(type(error)) as caught, block:
            raise error
        assert caught.value is error
    seen = [(ValueError, "one", None), (RemoteError, "nearby.Base: two", None), (Coded, "code 3", 3)]
    assert block.left == seen


@of_blocks
def test_what_names_a_handle_is_swallowed_as_it_is_locally(block: Any) -> None:
    with block:
        with block.inner():
            raise Leave(block)
        raise AssertionError("the outer block was not left")
    with block, block.inner() as inner:
        raise Leave(inner)
    assert len(block.left) == 2
    with pytest.raises(Leave), block:
        raise Leave(block.inner())


@of_blocks
def test_an_error_that_comes_back_is_the_one_that_went(block: Any) -> None:
    error = KeyError(threading.Lock())
    with pytest.raises(KeyError) as caught, block:
        raise error
    assert caught.value is error
    assert error.__cause__ is None


@pytest.mark.everywhere
@of_blocks
def test_throw(block: Any, nearby: Any) -> None:
    steps = block.steps()
    assert next(steps) == 0
    assert steps.throw(nearby.Near("text")) == 1
    assert block.left == [(ValueError, "text", None)]
    error = OSError(threading.Lock())
    with pytest.raises(OSError, match="lock") as caught:
        steps.throw(OSError, error, error.__traceback__)
    assert caught.value is error
    assert list(steps) == []


@of_blocks
def test_a_generator_of_the_object_makes_a_context_manager(block: Any) -> None:
    with pytest.raises(Leave), contextmanager(block.steps)():
        raise Leave(threading.Lock())
    with pytest.raises(RuntimeError, match="didn't stop"), contextmanager(block.steps)():
        raise ValueError
