"""The options of a pool: their defaults and their validation, in one place."""

import functools
import inspect
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from inspect import CO_ITERABLE_COROUTINE
from types import CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, cast, get_args, get_origin

from ._validation import expect, in_short, seconds

if TYPE_CHECKING:
    from typing_extensions import TypedDict

Hook = Callable[[Any], object]

HOOK_BOUND = 10.0
"""Seconds after which a check, reset or close that has not returned no longer counts for the size."""


ALL: Final = "all"
"""For `expose`: private names, too."""
Exposed = frozenset[str] | Literal["all"] | None
"""What `PoolOptions.exposed` gives."""


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """The options of a pool, as `create_pool` takes them by keyword; each is checked when it is given.

    `check`, `reset` and `close` are called where the object lives (see `isolation`), never beside a call on
    it. One that takes longer than 10 seconds keeps only those waiting who wait for its object, which is then
    replaced. When one raises, its object is closed and replaced, and the logger `mppool` has the error.
    What becomes due without a caller (`max_idle`, `max_lifetime`, `max_hold`, `warn_hold`) is done within the
    manager's `watch_interval`. `timeout=0` makes a pool that fails at once when it is exhausted,
    `timeout=None` one that waits for ever, `min_size` equal to `max_size` one of fixed size.

    Args:
        min_size: objects (default 0) built ahead, in the background. A pool builds at most four at a time.
        max_size: objects (default: the number of CPUs; with `each` that of the items, and never more) at
            most. Between the two the pool grows on demand. An object whose lease ended under a running call
            does not count until that call ends.
        timeout: seconds (default 30.0) that `acquire` waits when the call says nothing; None waits for ever,
            0 does not wait for another holder: only for an object that is built, checked or reset just then,
            and not longer than the pool's `timeout`, or 30 seconds if that is 0.
        max_waiting: acquires (default None: any number) that may wait; the next one is `TooManyWaiting` at
            once. A batch of `apply_batch` counts as one.
        max_batch_size: calls (default 32) of `apply_batch` in one batch at most.
        batch_wait: seconds (default 0.002) from its first call on that a batch waits for further ones, though
            its object is there; 0: it takes what is there when an object comes free.
        max_idle: seconds (default 600.0) that an object above `min_size` may lie idle; None: for ever.
        max_lifetime: seconds (default None: no end) after which an object is replaced when it is not held, up
            to 5 % earlier, at random, so that objects built together do not go together.
        max_uses: leases (default None: any number) after which an object is replaced.
        check: called with an object (default None: not at all) before it is lent. When it raises or returns
            False the object is closed and the next one tried.
        reset: called with an object (default None: not at all) after it comes home. When it raises the object
            is closed and replaced.
        close: called with an object (default None: not at all) when it leaves the pool, for whatever reason
            but the end of its process.
        on_reclaim: "close" or "reset" (default "close"): what becomes of an object whose holder died. One
            that this holder never called just goes back.
        max_hold: seconds (default None: no end) after which a lease is taken back from a living holder, whose
            next call is `LeaseLost`. The backstop for holders that forget to release.
        warn_hold: seconds (default None: never) after which a warning names the holder and the line that
            acquired, and another one its late return.
        order: "lifo" or "fifo" (default "lifo"): which idle object goes first. "lifo" keeps few of them warm,
            "fifo" uses all in turn.
        expose: names (default None: all public ones) of the attributes that callers may use, `__len__`,
            `__enter__` and the like included. "all": private and dunder names, too, of the object and of what
            its calls return, for libraries that look at the insides of what they are given. `__class__`,
            `__init__`, `__del__` and how it pickles stay the handle's, and its `__dict__` is a copy.
        keep: types (default (): none), or import strings of types, which are resolved where the object lives.
            Their instances stay beside the object when a call returns them, also as elements, attributes and
            items: the caller gets a further handle. From `apply` and `map` they are a `TypeError`.
        isolation: "none", "thread" or "process" (default "none"): where an object is made, called, reset and
            closed. "none": in the manager's process, in whichever thread serves the holder; Python code of
            two objects does not run at the same time, and an extension that crashes takes the manager with
            it. "thread": there, in one thread of its own. "process": in the main thread of a process of its
            own; when it crashes only its holder sees it. A factory that is a coroutine function needs one of
            these two: its objects run on an event loop each, in a thread there, and so do their hooks, which
            may be coroutine functions, too.
        call_timeout: seconds (default None: no end) that one call on an object may take, opening the way and
            sending included, the turns of other threads not. Then its caller gets `CallTimeout`, and the pool
            a new object at once. The late one is closed when its call ends; one in a process of its own is
            killed, with all processes that it started.
        build_timeout: seconds (default 300.0; None: no end) that a build may take, from the start of the
            factory or of its process, imports and `initializer` there included. Then its acquire gets
            `FactoryError`, and its place is free for the next build. One in a process of its own is killed,
            with all processes that it started; elsewhere its thread runs on, and what it makes in the end is
            closed. While `max_size` such threads (two at least) run on, acquires that need a build get
            `FactoryError` at once.
        max_memory: bytes (default None: any number), with `isolation="process"`: an object that holds more is
            replaced when it comes home or lies idle. That is what its process has in memory, with all that
            descend from it or are of its process group, which die with it; a process that has left both is
            not counted. Of a page that several processes share each has a part (PSS) on Linux, as far as the
            kernel tells; else all of it (RSS). It is measured every `watch_interval` seconds, or so much more
            rarely that this takes 1.5 % of a core at most. Where the platform does not let it be measured a
            warning says so, and there is no bound.
        max_memory_hard: bytes (default None: any number), likewise: an object that holds more is killed at
            once, in use or not, and its `close` not called. Its holder gets `LeaseLost`, which says how much
            it was; an acquire for which it was being built `FactoryError`.

    Raises:
        TypeError: a value of the wrong type, or a name that is no option.
        ValueError: a value out of range, `min_size` above `max_size`, `max_memory` above `max_memory_hard`;
            one of the latter two with another isolation.
    """

    __module__ = "mppool"  # where users find it

    min_size: int = 0
    max_size: int = field(default_factory=lambda: os.cpu_count() or 1)
    timeout: float | None = 30.0
    max_waiting: int | None = None
    max_batch_size: int = 32
    batch_wait: float = 0.002
    max_idle: float | None = 600.0
    max_lifetime: float | None = None
    max_uses: int | None = None
    check: Hook | None = None
    reset: Hook | None = None
    close: Hook | None = None
    on_reclaim: Literal["close", "reset"] = "close"
    max_hold: float | None = None
    warn_hold: float | None = None
    order: Literal["lifo", "fifo"] = "lifo"
    expose: Collection[str] | Literal["all"] | None = None
    keep: Collection[type | str] = ()
    isolation: Literal["none", "thread", "process"] = "none"
    call_timeout: float | None = None
    build_timeout: float | None = 300.0
    max_memory: int | None = None
    max_memory_hard: int | None = None

    def __post_init__(self) -> None:
        _whole("min_size", self.min_size, at_least=0)
        _whole("max_size", self.max_size, at_least=1)
        if self.min_size > self.max_size:
            text = f"min_size={self.min_size} is more than max_size={self.max_size}"
            raise ValueError(f"{text} (left out, max_size is the number of CPUs, or that of the items)")
        _whole("max_waiting", self.max_waiting, at_least=0, none=True)
        _whole("max_batch_size", self.max_batch_size, at_least=1)
        seconds("batch_wait", self.batch_wait, zero=True, none=False)
        for name in ("max_uses", "max_memory", "max_memory_hard"):
            _whole(name, getattr(self, name), at_least=1, none=True)
        zero = ("timeout", "max_idle")
        for name in (*zero, "max_lifetime", "max_hold", "warn_hold", "call_timeout", "build_timeout"):
            seconds(name, getattr(self, name), zero=name in zero)
        for name in ("check", "reset", "close"):
            hook = getattr(self, name)
            expect(hook is None or callable(hook), name, "callable with the object, or None", hook)
        for each in fields(self):
            value, allowed = getattr(self, each.name), get_args(each.type)
            if get_origin(each.type) is Literal and value not in allowed:
                raise ValueError(f"{each.name} must be one of {', '.join(map(repr, allowed))}: {value!r}")
        self._check_memory()
        fine = self.expose is None or self.expose == ALL or _are_names(self.expose)
        expect(fine, "expose", 'a collection of attribute names, "all" or None', self.expose)
        fine = _is_collection_of((type, str), self.keep)
        expect(fine, "keep", "a collection of types and import strings of types", self.keep)

    def _check_memory(self) -> None:
        """After the isolation."""
        if not self.bounds_memory:
            return
        if self.isolation != "process":
            raise ValueError(
                f"max_memory and max_memory_hard need isolation='process', not {self.isolation!r}: what an "
                "object holds that shares the manager's process cannot be told from what the others hold"
            )
        soft, hard = self.max_memory, self.max_memory_hard
        if soft is not None and hard is not None and soft > hard:
            raise ValueError(f"max_memory={soft} is more than max_memory_hard={hard}")

    @property
    def bounds_memory(self) -> bool:
        """Whether what objects hold has to be measured."""
        return self.max_memory is not None or self.max_memory_hard is not None

    @functools.cached_property
    def exposed(self) -> Exposed:
        """`expose`, to look names up in; None: all public ones."""
        return self.expose if self.expose is None or self.expose == ALL else frozenset(self.expose)

    @property
    def records_caller(self) -> bool:
        """Whether a lease records the file and line that acquired it."""
        return self.warn_hold is not None or self.max_hold is not None


if TYPE_CHECKING:
    T = TypeVar("T")

    class ValueOptions(TypedDict, Generic[T], total=False):
        """`PoolOptions` as the keywords of a call, for pools of values: to type checkers and editors."""

        min_size: int
        max_size: int
        timeout: float | None
        max_waiting: int | None
        max_idle: float | None
        max_lifetime: float | None
        max_uses: int | None
        check: Callable[[T], object] | None
        on_reclaim: Literal["close", "reset"]
        max_hold: float | None
        warn_hold: float | None
        order: Literal["lifo", "fifo"]

    class Options(ValueOptions[T], total=False):
        """The same for pools of objects."""

        reset: Callable[[T], object] | None
        close: Callable[[T], object] | None
        expose: Collection[str] | Literal["all"] | None
        keep: Collection[type | str]
        max_batch_size: int
        batch_wait: float
        isolation: Literal["none", "thread", "process"]
        call_timeout: float | None
        build_timeout: float | None
        max_memory: int | None
        max_memory_hard: int | None


def refuse_for_values(given: Collection[str]) -> None:
    """Raise `ValueError` for the first keyword that has no meaning in a pool of values."""
    of_objects = "call_timeout", "build_timeout", "max_memory", "max_memory_hard", "expose", "keep"
    for name in ("isolation", *of_objects, "reset", "close", "max_batch_size", "batch_wait"):
        if name in given:
            raise ValueError(
                f"{name} has no meaning without a factory: the items of each are lent as they are, and their "
                "holders use them"
            )


def refuse_unknown(given: Collection[str]) -> None:
    """Raise `TypeError` for the first keyword that `create_pool` does not know; its text has the nearest."""
    known = ["name", "each", "exist_ok", *(each.name for each in fields(PoolOptions))]
    for name in given:
        if name not in known:
            import difflib  # noqa: PLC0415  # for a mistake only

            (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise TypeError(f"{name!r} is no option of a pool: did you mean {nearest!r}?")


def with_options(function: Callable[..., Any], *, without: str = "") -> inspect.Signature:
    """The signature of a function whose `**options` are those of a pool, each with its type and default.

    `without`: the one that it does not take.
    """
    signature, defaults = inspect.signature(function, eval_str=True), PoolOptions()
    *own, _ = signature.parameters.values()
    options = inspect.signature(PoolOptions).parameters.values()
    taken = [each for each in options if each.name != without]
    shown = [each.replace(default=getattr(defaults, each.name)) for each in taken]
    return signature.replace(parameters=[*own, *shown])


def options_for(items: int, given: dict[str, Any]) -> PoolOptions:
    """The options of a pool as they were given. Of so many items it has that many places; 0: it has none."""
    return PoolOptions(**({"max_size": items} if items else {}) | given)


def is_coroutine_function(function: Any) -> bool:
    """Whether what a call of this gives has to be awaited: of partials and callable objects, too."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(function):
        return True
    return callable(function) and inspect.iscoroutinefunction(type(function).__call__)


def is_awaitable(value: object) -> bool:
    """Whether `await` takes this, which may lie about its class, or be of one that cannot be hashed."""
    # `inspect.isawaitable` asks for both.
    if type(value) is GeneratorType:
        return bool(value.gi_code.co_flags & CO_ITERABLE_COROUTINE)
    found = (vars(base)["__await__"] for base in _bases(type(value)) if "__await__" in vars(base))
    return next(found, None) is not None


def _bases(kind: type) -> tuple[type, ...]:
    """A class and its bases. Its metaclass is not asked; a builtin type may not know them before it is."""
    return cast("tuple[type, ...]", type.__getattribute__(kind, "__mro__"))


def refuse_awaitable(value: object, what: str) -> None:
    """Raise `TypeError` for what is of no use but to be awaited, where no event loop runs."""
    # The kinds that asyncio makes, which is not imported for this; others have uses besides. An object may
    # lie about its class, which `isinstance` asks for, and a class about its bases.
    kind = type(value)
    if kind is CoroutineType:
        cast("CoroutineType[Any, Any, Any]", value).close()  # else Python warns that it was never awaited
    elif not any("_asyncio_future_blocking" in vars(base) for base in _bases(kind)):
        return
    raise TypeError(
        f"{what} an awaitable, {in_short(value)}, but the object has no event loop: make its factory a "
        "coroutine function (`async def`), and it gets one, with isolation='thread' or 'process'"
    )


def _whole(name: str, value: object, *, at_least: int, none: bool = False) -> None:
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number{' or None' if none else ''}: {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}: {value!r}")


def _are_names(value: Any) -> bool:
    return _is_collection_of(str, value) and all(each.isidentifier() for each in value)


def _is_collection_of(kind: type | tuple[type, ...], value: Any) -> bool:
    return (
        isinstance(value, Collection)
        and not isinstance(value, str)
        and all(isinstance(each, kind) for each in value)
    )
