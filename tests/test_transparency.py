"""What code that looks at an object sees of it through a handle."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import types
import weakref
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, UserString, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytest

from mppool import LeaseError, PoolManager, RemoteError

Lend = Callable[..., Any]


@pytest.fixture
def lend(shared_manager: PoolManager) -> Iterator[Lend]:
    """Lends an object that a factory makes, for the length of a test."""
    with ExitStack() as stack:

        def lend(factory: Callable[..., Any], *args: Any, **options: Any) -> Any:
            pool = shared_manager.create_pool(partial(factory, *args), max_size=1, **options)
            stack.callback(pool.close)
            return stack.enter_context(pool.lease())

        yield lend


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Paint:
    """Something to look at."""

    layers = 2
    _shade = "dark"
    # What slots and methods of handles could be named.
    _family = _target = _interface = _call = _result = "the object's"

    def __init__(self) -> None:
        self.color = "red"
        self.thinner = None
        self._maker = "Ada"

    def __call__(self, wall: str, /, *, coats: int = 2) -> str:
        """Apply it."""
        return f"{wall}: {coats} coats"

    def mix(self, other: str, *, parts: int = 1) -> tuple[str, int]:
        """Mix it."""
        return other, parts

    @decorated
    def dry(self, hours: float) -> None:
        """Let it dry."""

    @staticmethod
    def names(language: str) -> list[str]:
        """The names of all."""
        return [language]

    @classmethod
    def white(cls, shade: int = 0) -> int:
        """Another one."""
        return shade

    mix_two = functools.partialmethod(mix, parts=2)

    @property
    def price(self) -> float:
        return 9.5

    @property
    def unknown(self) -> float:
        raise AssertionError("evaluated")

    def brush(self) -> Callable[..., Any]:
        return self.mix

    def roller(self) -> Callable[..., Any]:
        return partial(self.mix, parts=3)

    def itself(self) -> Any:
        return Box(self)

    def _secret(self, value: int) -> int:
        return value + 1

    def __custom__(self) -> str:
        return "custom"

    def __copy__(self) -> str:
        return "a copy"


class Box:
    def __init__(self, paint: Paint) -> None:
        self._paint = paint

    def _open(self) -> str:
        return self._paint.color


def paint_of_a_class_unknown_here() -> Any:
    return type("Paint", (Paint,), {"__module__": "made.there", "gloss": property(lambda _: 0.5)})()


# -- match ------------------------------------------------------------------------------------------


class Pair(Sequence[int]):
    def __getitem__(self, index: Any) -> Any:
        return (1, 2)[index]

    def __len__(self) -> int:
        return 2


def seen_by_match(subject: Any) -> Any:
    match subject:
        case [first, *others]:
            return first, others
        case {1: value, **others}:
            return value, others
        case _:
            return None


CONTAINERS = [
    *(partial(each, [1, 2]) for each in (list, tuple, deque, UserList)),
    *(partial(each, {1: 2, 3: 4}) for each in (dict, OrderedDict, Counter, ChainMap, UserDict)),
    *(partial(range, 3), Pair, partial(memoryview, b"ab"), partial(types.MappingProxyType, {1: 2})),
    *(partial(each, [1, 2]) for each in (set, bytes, bytearray, iter)),
    *(partial(str, "ab"), partial(UserString, "ab"), Paint),
]


@pytest.mark.parametrize("make", CONTAINERS, ids=lambda make: getattr(make, "func", make).__name__)
def test_patterns_see_what_they_see_of_the_object(lend: Lend, make: Callable[[], Any]) -> None:
    assert seen_by_match(lend(make)) == seen_by_match(make())


@pytest.mark.everywhere
def test_patterns_see_it_wherever_it_lives(lend: Lend) -> None:
    assert seen_by_match(lend(list, [1, 2, 3])) == (1, [2, 3])
    assert seen_by_match(lend(dict, {1: 2, 3: 4})) == (2, {3: 4})


def test_no_pattern_fails_for_what_a_strict_list_leaves_out(lend: Lend) -> None:
    for offered, seen in ({"append"}, None), ({"__len__", "__getitem__"}, (1, [2])):
        assert seen_by_match(lend(list, [1, 2], expose=offered)) == seen
    assert seen_by_match(lend(dict, {1: 2}, expose={"__len__", "__getitem__", "keys"})) is None


# -- what tools look for ----------------------------------------------------------------------------


@runtime_checkable
class Colored(Protocol):
    color: str
    layers: int

    def mix(self, other: str) -> Any: ...


@runtime_checkable
class Priced(Protocol):
    price: float
    gloss: float


@pytest.mark.everywhere
@pytest.mark.parametrize("make", [Paint, paint_of_a_class_unknown_here])
def test_protocols_with_data_see_it(lend: Lend, make: Callable[[], Any]) -> None:
    paint = lend(make)
    assert isinstance(paint, Colored)
    assert isinstance(paint, Priced) == (make is not Paint)


@pytest.mark.parametrize("name", ["mix", "dry", "names", "white"])
def test_a_method_tells_of_itself(lend: Lend, name: str) -> None:
    here, there = getattr(Paint(), name), getattr(lend(Paint), name)
    assert inspect.signature(there) == inspect.signature(here)
    assert (there.__doc__, there.__module__) == (here.__doc__, here.__module__)
    assert (there.__name__, there.__qualname__) == (here.__name__, here.__qualname__)
    assert inspect.signature(lend(Paint).mix_two) == inspect.signature(Paint().mix_two)
    assert inspect.signature(lend(list).append) == inspect.signature([].append)


def test_an_object_tells_of_itself(lend: Lend) -> None:
    paint, numbers = lend(Paint), lend(list)
    assert (paint.__doc__, paint.__module__) == (Paint.__doc__, Paint.__module__)
    assert (numbers.__doc__, numbers.__module__) == (list.__doc__, "builtins")
    assert inspect.signature(paint) == inspect.signature(Paint())
    for name in ("brush", "roller"):
        assert inspect.signature(getattr(paint, name)()) == inspect.signature(getattr(Paint(), name)())
    assert (paint.brush().__name__, paint.brush().__doc__) == ("mix", "Mix it.")
    assert not hasattr(numbers, "__signature__")


def test_dir_has_its_data_and_evaluates_nothing(lend: Lend) -> None:
    paint = lend(Paint)
    assert {"color", "thinner", "layers", "unknown", "mix"} <= {*dir(paint)}
    assert not {"_maker", "_secret"} & {*dir(paint)}
    paint.size = 3
    assert "size" in dir(paint)
    names = dir(lend(Paint, expose={"mix", "color"}))
    assert [name for name in names if name[0] != "_"] == ["color", "mix"]


def test_dir_does_not_fail_after_the_end(shared_manager: PoolManager) -> None:
    pool = shared_manager.create_pool(Paint)
    with pool.lease() as paint:
        pass
    assert {"color", "mix"} <= {*dir(paint)}


# -- expose="all" -----------------------------------------------------------------------------------


def inside(obj: Any, name: str) -> Any:
    """A private attribute, as a library takes it that looks at the insides."""
    return getattr(obj, name)


@pytest.mark.everywhere
def test_private_names_are_the_objects(lend: Lend) -> None:
    paint = lend(Paint, expose="all")
    maker = "_maker"
    assert (inside(paint, "_shade"), inside(paint, maker)) == ("dark", "Ada")
    assert (inside(paint, "_secret")(1), paint.__custom__()) == (2, "custom")
    setattr(paint, maker, "Grace")
    assert inside(paint, maker) == "Grace"
    delattr(paint, maker)
    for name in (maker, "_missing"):
        assert not hasattr(paint, name)
    assert (paint.color, paint.mix("blue"), paint("wall")) == ("red", ("blue", 1), "wall: 2 coats")
    assert {"_shade", "_secret", "__custom__", "_family"} <= {*dir(paint)}


def test_no_name_is_the_handles(lend: Lend) -> None:
    paint = lend(Paint, expose="all")
    for name in ("_family", "_target", "_interface", "_call", "_result"):
        assert getattr(paint, name) == "the object's"
    taken = {name for base in type(paint).__mro__ for name in vars(base)} - {*dir(Paint())}
    assert [name for name in taken if not name.startswith(("_mppool_", "__"))] == []


def test_what_a_handle_is_stays_its_own(lend: Lend) -> None:
    paint = lend(Paint, expose="all")
    assert isinstance(paint, Paint)
    assert type(paint) is not Paint
    assert type(paint).__name__ == "Paint"
    with pytest.raises(TypeError, match="belongs to the process"):
        pickle.dumps(paint)
    with pytest.raises(AttributeError, match="offers no '__class__'"):
        paint.__class__ = Box
    weakref.ref(paint)
    vars(paint)["color"] = "blue"
    assert vars(paint) == vars(Paint())
    assert copy.copy(paint) == "a copy"


class Dying:
    def __init__(self, told: list[str]) -> None:
        self.told = told

    def __del__(self) -> None:
        self.told.append("ended")


def test_the_end_of_a_handle_is_not_that_of_its_object(shared_manager: PoolManager) -> None:
    pool = shared_manager.create_pool(partial(Dying, []), max_size=1, expose="all")
    with pool.lease() as dying:
        assert not hasattr(dying, "__del__")
    del dying
    with pool.lease() as dying:
        assert dying.told == []


def make_generator() -> Iterator[int]:
    yield from (1, 2)


@pytest.mark.parametrize(
    "make", [make_generator, lambda: Paint, lambda: decorated, lambda: inspect, lambda: Paint().mix, object]
)
def test_all_that_there_is_can_be_lent(lend: Lend, make: Callable[[], Any]) -> None:
    thing, same = lend(make, expose="all"), make()
    for name in ("__doc__", "__name__", "__qualname__"):
        assert getattr(thing, name, None) == getattr(same, name, None)
    if callable(same):
        assert inspect.signature(thing) == inspect.signature(same)


@dataclass
class Point:
    x: int
    _y: int


def test_a_dataclass_is_none_rather_than_one_without_fields(lend: Lend) -> None:
    point = lend(Point, 1, 2, expose="all")
    assert (point.x, inside(point, "_y"), vars(point)) == (1, 2, {"x": 1, "_y": 2})
    with pytest.raises(TypeError, match="dataclass"):
        fields(point)


def test_results_show_their_insides_too(lend: Lend) -> None:
    assert inside(lend(Paint, expose="all").itself(), "_open")() == "red"
    with pytest.raises(AttributeError, match="offers no '_open'"):
        inside(lend(Paint).itself(), "_open")


def test_memory_of_another_process_is_not_offered(lend: Lend) -> None:
    numbers = lend(np.arange, 4, expose="all")
    assert np.asarray(numbers).tolist() == [0, 1, 2, 3]
    assert not hasattr(numbers, "__array_interface__")
    with pytest.raises(TypeError, match="bytes-like"):
        memoryview(numbers)


def test_an_estimator_in_a_pipeline(lend: Lend) -> None:
    pipeline = pytest.importorskip("sklearn.pipeline", reason="scikit-learn is not installed")
    base = pytest.importorskip("sklearn.base")
    linear = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    inputs, outputs = np.array([[0.0], [1.0], [2.0], [3.0]]), [0, 0, 1, 1]
    scaler = lend(preprocessing.StandardScaler, expose="all")
    steps = pipeline.make_pipeline(scaler, linear.LogisticRegression()).fit(inputs, outputs)
    assert steps.predict(inputs).tolist() == outputs
    assert list(steps.named_steps) == ["standardscaler", "logisticregression"]
    assert scaler.mean_.tolist() == [1.5]
    assert type(base.clone(scaler)) is preprocessing.StandardScaler


# -- errors and iteration ---------------------------------------------------------------------------


class Caller:
    def call(self, function: Callable[[], Any]) -> Any:
        return function()

    def __repr__(self) -> str:
        raise type("Unheard", (Exception,), {"__module__": "made.there"})("no text")


def test_an_error_whose_class_went_there_by_value_comes_back_as_itself(lend: Lend) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop(1, [2])

    with pytest.raises(Stop) as caught:
        lend(Caller).call(stop)
    assert (caught.value.args, caught.value.__dict__) == ((1, [2]), {})


def test_a_repr_that_fails_there_fails_here(shared_manager: PoolManager) -> None:
    with shared_manager.create_pool(Caller).lease() as caller, pytest.raises(RemoteError, match="no text"):
        repr(caller)
    assert repr(caller).startswith("<released handle of")
    with pytest.raises(LeaseError):
        caller.call(print)


def test_no_item_is_fetched_before_the_use_of_another_iterator(lend: Lend) -> None:
    numbers = lend(list, [1, 2, 3])
    one, other = iter(numbers), iter(numbers)
    assert [(a, next(other)) for a in one] == [(1, 1), (2, 2), (3, 3)]
    numbers.append(4)
    assert list(other) == [4]
