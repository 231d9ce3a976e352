"""Values that no pickler copies as they are: each crosses, stays, or is refused at once with the cause."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
from helpers import promptly, stress_times

from mppool import ObjectPool, RemoteError


class Odd:
    """Makes odd things, of which some refer back to it."""

    def __init__(self) -> None:
        self.calls = 0

    def call(self) -> int:
        self.calls += 1
        return self.calls

    def give(self, make: Callable[..., Any], *args: Any) -> Any:
        return make(self, *args)

    def fail(self, make: Callable[..., Any], *args: Any) -> NoReturn:
        raise ValueError(make(self, *args), "its own")

    def take(self, value: Any) -> str:
        return type(value).__name__

    def is_cycle_of(self, value: Any) -> tuple[bool, bool]:
        return value[0] is self, value[1] is value


pytestmark = [pytest.mark.everywhere, pytest.mark.pool(Odd, max_size=2)]


@pytest.fixture
def odd(pool: ObjectPool[Any]) -> Iterator[Any]:
    """A lease, which goes on in the end."""
    with pool.lease() as odd:
        yield odd
        assert odd.take(odd) == "Odd"


# -- cycles, depth and mass --------------------------------------------------------------------------------


class Knot:
    """Refers to itself, and to another."""

    def __init__(self, other: Any) -> None:
        self.me, self.other = self, other


def knot(_: Any, other: Any = 1) -> Knot:
    return Knot(other)


def cycle(first: Any) -> list[Any]:
    made = [first]
    made.append(made)
    return made


def test_cycles(odd: Any, pool: ObjectPool[Any]) -> None:
    for copy in (odd.give(knot), pool.apply(Odd.give, knot)):
        assert copy.me is copy
        assert type(copy) is Knot
    staying, itself = odd.give(cycle)
    assert staying is odd
    assert itself[1] is itself
    assert odd.give(Knot).other is odd
    assert odd.is_cycle_of(cycle(odd)) == (True, True)
    assert odd.is_cycle_of(cycle(Knot(odd))) == (False, True)
    assert odd.take(Knot(1)) == pool.apply(Odd.take, Knot(1)) == "Knot"
    for make in (knot, Knot, cycle):
        with promptly(), pytest.raises(ValueError, match="its own"):
            odd.fail(make)


def deep(_: Any) -> Any:
    made: Any = None
    for _ in range(100_000):
        made = [made]
    return made


def test_what_is_nested_too_deep(odd: Any, pool: ObjectPool[Any]) -> None:
    assert len(odd.give(deep)) == 1, "a handle"
    for refused in (
        lambda: pool.apply(Odd.give, deep),
        lambda: odd.take(deep(0)),
        lambda: odd.take([odd, deep(0)]),
    ):
        with pytest.raises(TypeError, match=r"does not pickle.*(recursion|Stack overflow)"):
            refused()
    with pytest.raises(ValueError, match="its own"):
        odd.fail(deep)


class Small:
    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


def many(_: Any, number: int) -> list[Small]:
    return [*map(Small, range(number))]


@pytest.mark.stress
def test_a_million_small_objects(odd: Any) -> None:
    number = stress_times(1_000_000)
    assert [each.number for each in odd.give(many, number)] == list(range(number))


def test_many_small_objects_in_an_error(odd: Any) -> None:
    with pytest.raises(ValueError, match="its own") as caught:
        odd.fail(many, 20_000)
    assert caught.value.args[0][-1].number == 19_999


# -- classes that fail, or lie -------------------------------------------------------------------------------


class Liar:
    __class__ = property(lambda _: int)  # type: ignore[assignment]


class ListedLiar(dict[Any, Any]):
    __class__ = property(lambda _: list)  # type: ignore[assignment]


class Silent:
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("no class")


class Grumpy:
    """Fails wherever it can."""

    def __reduce__(self) -> NoReturn:
        raise ZeroDivisionError("grumpy")

    __eq__ = __bool__ = __str__ = __repr__ = __len__ = __reduce__  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


class WithUnreadableClass(type):
    def __getattribute__(cls, name: str) -> NoReturn:
        raise RuntimeError(f"not even {name}")


class Unreadable(metaclass=WithUnreadableClass):
    """Has no form as a handle: what it offers cannot be read."""


def instance(_: Any, name: str) -> Any:
    return globals()[name]()


@pytest.mark.parametrize("name", ["Liar", "ListedLiar", "Silent", "Grumpy"])
def test_classes_that_fail_or_lie(odd: Any, pool: ObjectPool[Any], name: str) -> None:
    made = instance(odd, name)
    with promptly():
        for staying in (odd.give(instance, name), odd.give(lambda _, name: [1, instance(_, name)], name)[1]):
            assert type(staying).__name__ == f"Handle[{__name__}.{name}]"
            assert odd.take(staying) == odd.take(staying) == name
        for refused in (
            lambda: odd.take(made),
            lambda: odd.take(value=made),
            lambda: odd.take([odd, made]),
            lambda: pool.apply(Odd.take, made),
            lambda: pool.apply(Odd.give, instance, name),
        ):
            with pytest.raises(TypeError, match=r"does not pickle.*((wrong|no|be <)( )?class|grumpy)"):
                refused()
        with pytest.raises(ValueError, match=r"its own|grumpy") as caught:
            odd.fail(instance, name)
        assert caught.value.args[1] == "its own"


def test_what_has_no_form_as_a_handle(odd: Any) -> None:
    with promptly(), pytest.raises(RuntimeError, match="not even"):
        odd.give(instance, "Unreadable")
    with promptly(), pytest.raises(ValueError, match="its own"):
        odd.fail(instance, "Unreadable")


def proxy_in_a_knot(odd: Any) -> Knot:
    return Knot(weakref.proxy(odd))


def test_weak_proxies_act_on_the_object(odd: Any, pool: ObjectPool[Any]) -> None:
    assert odd.give(weakref.proxy).call() == 1
    assert odd.give(proxy_in_a_knot).other.call() == 2
    assert odd.calls == 2
    with pytest.raises(TypeError, match="stays with the object"):
        pool.apply(Odd.give, weakref.proxy)


# -- pickles that call back ----------------------------------------------------------------------------------


class Calling:
    """Its pickle is the outcome of a call."""

    def __init__(self, call: Callable[[], int]) -> None:
        self._call = call

    def __reduce__(self) -> Any:
        return Counted, (self._call(),)


class Counted:
    def __init__(self, count: int) -> None:
        self.count = count


class CallingThere(Calling):
    """Calls where it is rebuilt."""

    def __reduce__(self) -> Any:
        return call_pool, (self._call,)


def call_pool(call: PoolCall) -> Counted:
    return Counted(call())


class PoolCall:
    """A call by way of the pool, which travels.

    Where something comes free it waits for that: another process may have given it back just before.
    """

    def __init__(self, pool: ObjectPool[Any], timeout: float = 30) -> None:
        self._pool = pool
        self._timeout = timeout

    def __call__(self) -> int:
        return self._pool.apply(Odd.call, timeout=self._timeout)


def calling(_: Any, kind: Any, call: Any) -> Any:
    return kind(call)


def test_pickles_that_call_back(odd: Any, pool: ObjectPool[Any]) -> None:
    with promptly():
        assert odd.take(Calling(odd.call)) == "Counted"
        assert odd.take([odd, Calling(odd.call)]) == "list"
        assert odd.calls >= 2
        assert odd.give(calling, Calling, PoolCall(pool)).count > 0
        assert odd.give(calling, CallingThere, PoolCall(pool)).count > 0
        assert odd.take(CallingThere(PoolCall(pool))) == "Counted"


def test_pickles_that_call_back_where_nothing_is_free(odd: Any, pool: ObjectPool[Any]) -> None:
    call = PoolCall(pool, timeout=0)
    with pool.lease(), promptly():
        for refused in (
            lambda: odd.take(Calling(call)),
            lambda: odd.take(CallingThere(call)),
        ):
            with pytest.raises((TypeError, RemoteError), match="no object came free"):
                refused()
        staying = odd.give(calling, Calling, call)
        assert type(staying).__name__ == f"Handle[{__name__}.Calling]"
        staying = odd.give(calling, CallingThere, call)
        assert type(staying).__name__ == f"Handle[{__name__}.CallingThere]"
