"""Handles for the tasks of an event loop: what is asked of the object is awaited.

A call begins when it is awaited. What Python itself calls and cannot await is refused, with a word on what
to write instead; what needs no answer from the object, such as `==`, is the handle's own.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Generator, Iterable
from types import GenericAlias, MethodType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

from .family import (
    THROWS,
    AnyHandle,
    AnyIteratorHandle,
    AnyLease,
    LeaseHandles,
    make_class,
    needs_packing,
    refuse_await,
)
from .interface import ASYNCHRONOUS, COMPARISONS, INPLACE, OPERATORS, REFLECTED, Interface, dunders
from .iteration import ReadAhead
from .opcodes import APPLY, GET, VALUE, Answer
from .references import DoesNotPickle, RequestLost
from .steps import Steps, drive_async, raise_async_stop

T_co = TypeVar("T_co", covariant=True)

Awaited = Coroutine[Any, Any, Any]


class AsyncLeaseLike(AnyLease, Protocol):
    """A lease whose calls are awaited."""

    async def call(
        self,
        target: int,
        op: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        beside: Collection[AnyLease] = (),
    ) -> Answer: ...


def make_async_handle(kind: type[AnyHandle], lease: AsyncLeaseLike) -> AsyncHandle[Any]:
    """A handle, of a class of `async_class_for`, for the object of a lease. It keeps the lease alive."""
    handle: Any = LeaseHandles(lease, async_class_for).first(kind)
    return handle  # type: ignore[no-any-return]


async def apply_to_async(
    handle: AsyncHandle[Any], func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """`func(object, *args, **kwargs)` beside the object of a handle."""
    return await drive_async(AnyHandle._mppool_steps(handle, APPLY, (func, args, kwargs), {}))


if TYPE_CHECKING:

    class _Typed(Generic[T_co]):
        """What can be awaited of a handle. Which of it there is depends on the object."""

        def __getattr__(self, name: str) -> Any: ...
        def __call__(self, *args: Any, **kwargs: Any) -> Awaited: ...
        def __getitem__(self, key: Any, /) -> Awaited: ...
        def __aiter__(self) -> AsyncIterator[Any]: ...
        async def __anext__(self) -> Any: ...
        async def __aenter__(self) -> Any: ...
        async def __aexit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
            /,
        ) -> bool | None: ...
        def __lt__(self, other: Any, /) -> Awaited: ...
        def __le__(self, other: Any, /) -> Awaited: ...
        def __gt__(self, other: Any, /) -> Awaited: ...
        def __ge__(self, other: Any, /) -> Awaited: ...
        def __add__(self, other: Any, /) -> Awaited: ...
        def __sub__(self, other: Any, /) -> Awaited: ...
        def __mul__(self, other: Any, /) -> Awaited: ...
        def __matmul__(self, other: Any, /) -> Awaited: ...
        def __truediv__(self, other: Any, /) -> Awaited: ...
        def __floordiv__(self, other: Any, /) -> Awaited: ...
        def __mod__(self, other: Any, /) -> Awaited: ...
        def __divmod__(self, other: Any, /) -> Awaited: ...
        def __lshift__(self, other: Any, /) -> Awaited: ...
        def __rshift__(self, other: Any, /) -> Awaited: ...
        def __and__(self, other: Any, /) -> Awaited: ...
        def __xor__(self, other: Any, /) -> Awaited: ...
        def __or__(self, other: Any, /) -> Awaited: ...
        def __radd__(self, other: Any, /) -> Awaited: ...
        def __rsub__(self, other: Any, /) -> Awaited: ...
        def __rmul__(self, other: Any, /) -> Awaited: ...
        def __rmatmul__(self, other: Any, /) -> Awaited: ...
        def __rtruediv__(self, other: Any, /) -> Awaited: ...
        def __rfloordiv__(self, other: Any, /) -> Awaited: ...
        def __rmod__(self, other: Any, /) -> Awaited: ...
        def __rdivmod__(self, other: Any, /) -> Awaited: ...
        def __rlshift__(self, other: Any, /) -> Awaited: ...
        def __rrshift__(self, other: Any, /) -> Awaited: ...
        def __rand__(self, other: Any, /) -> Awaited: ...
        def __rxor__(self, other: Any, /) -> Awaited: ...
        def __ror__(self, other: Any, /) -> Awaited: ...
        def __neg__(self) -> Awaited: ...
        def __pos__(self) -> Awaited: ...
        def __invert__(self) -> Awaited: ...
        def __abs__(self) -> Awaited: ...
        def __trunc__(self) -> Awaited: ...
        def __floor__(self) -> Awaited: ...
        def __ceil__(self) -> Awaited: ...
        def __pow__(self, other: Any, modulus: Any = None, /) -> Awaited: ...
        def __rpow__(self, other: Any, modulus: Any = None, /) -> Awaited: ...
        def __round__(self, digits: Any = None, /) -> Awaited: ...

else:  # `typing.Generic` would have names on every handle

    class _Typed:
        __slots__ = ()
        __class_getitem__ = classmethod(GenericAlias)


class AsyncHandle(AnyHandle, _Typed[T_co]):
    """What `pool.aio` lends: it stands in an event loop for an object of type `T`.

    A method gives an awaitable, to be awaited once, and begins when it is: `await session.get(url)`. An
    attribute is read by `await session.timeout`; what it holds, or a method that the object makes up at run
    time, is called by `await session.hook(1)`. `await handle[key]`, `await (handle + 1)`,
    `await (handle < other)`, `await handle(...)`, `async for` and `async with` are the object's own; the last
    always runs the object's `__exit__`. Further handles are asynchronous, too.

    Of the object of a coroutine factory, methods that are no coroutine functions are awaited, too: `cursor =
    await connection.cursor()`. `async with connection.transaction()` and `async for item in client.items()`
    do that themselves.

    `==`, `hash`, `bool`, `repr` and `dir` are the handle's and ask nothing. What Python cannot await, such as
    `len(handle)`, `key in handle` and `handle[key] = value`, is a `TypeError` that says what to write: often
    `pool.aio.apply`, which takes a lease of its own, so not under the last one that the pool has.

    Tasks that share a handle take turns. Items of an iterator are for one task at a time: `RuntimeError`
    where another one waits for them. A fetch that is cancelled may have taken items from the iterator, which
    are lost: what comes next in their place is a `RuntimeError`, once, and after that the items behind them.
    What had been fetched before is still given. A `StopIteration` of the object comes as
    `StopAsyncIteration`.
    """

    __slots__ = ()

    _mppool_kind = "asynchronous handle"

    async def _mppool_call(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the object: what every method of a handle does."""
        family = self._mppool_family
        family.batch_size = 1
        try:
            if family.unused or needs_packing(args, kwargs):
                status, payload = await drive_async(family.ask(self._mppool_target, op, args, kwargs))
            else:
                status, payload = await family.lease.call(self._mppool_target, op, args, kwargs)
        except (DoesNotPickle, RequestLost) as problem:
            packed = family.call_packed(self._mppool_target, op, args, kwargs, problem)
            status, payload = await drive_async(packed)
        except RuntimeError as error:
            raise_async_stop(error)
            raise
        return payload if status == VALUE else self._mppool_result(status, payload, args)

    def _mppool_method(self, name: str) -> Callable[..., Any]:
        return MethodType(_method(name), self)

    def __getattr__(self, name: str) -> Any:
        self._mppool_refuse(name)
        return _Attribute(self, name)

    def __bool__(self) -> bool:
        return True

    def __dir__(self) -> Iterable[str]:
        interface = self._mppool_interface
        return sorted(interface.methods | interface.attributes | interface.protocols)

    if not TYPE_CHECKING:  # for type checkers there is nothing to set

        def __setattr__(self, name: str, value: object) -> NoReturn:
            raise _cannot_wait(
                self, f"handle.{name} = value", f"await pool.aio.apply(setattr, {name!r}, value)"
            )

        def __delattr__(self, name: str) -> NoReturn:
            raise _cannot_wait(self, f"del handle.{name}", f"await pool.aio.apply(delattr, {name!r})")


class _Attribute:
    """An attribute of an object: awaited it is read, and it can be called as a method."""

    __slots__ = ("_handle", "_name")

    def __init__(self, handle: AsyncHandle[Any], name: str) -> None:
        self._handle = handle
        self._name = name

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._handle._mppool_call(GET, (self._name,), {}).__await__()

    def __call__(self, *args: Any, **kwargs: Any) -> Awaited:
        return _named_method(self._name)(self._handle, *args, **kwargs)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<{self._name!r} of {self._handle!r}: await it, or call it and await that>"

    def __bool__(self) -> NoReturn:
        raise TypeError(f"{self!r} has no truth")

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} does not travel")


# -- items --------------------------------------------------------------------------------------------


class _ReadAheadOfTasks(ReadAhead):
    """Items for one task at a time: a second fetch would overtake what the first one brings."""

    __slots__ = ("_is_fetching",)

    def __init__(self, *args: Any) -> None:
        self._is_fetching = False
        super().__init__(*args)

    def _fetch_batch(self) -> Steps[None]:
        if self._is_fetching:
            raise RuntimeError("another task is waiting for items of this iterator already")
        self._is_fetching = True
        try:
            yield from super()._fetch_batch()
        finally:
            self._is_fetching = False


class _AsyncIteratorHandle(AnyIteratorHandle, AsyncHandle[Any]):
    """A handle of an iterator: `anext` and every `async for` share what is ahead."""

    __slots__ = ()

    _mppool_reader = _ReadAheadOfTasks

    async def _mppool_call(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return await drive_async(self._mppool_steps(op, args, kwargs))

    async def __anext__(self) -> Any:
        ahead = self._mppool_ahead
        while True:
            try:
                return ahead.items.popleft()
            except IndexError:
                end = await drive_async(ahead.more())
            if end is not None:
                raise StopAsyncIteration(*end)


class _AsyncItems:
    """What `async for` takes items from: the object is asked for an iterator with the first one."""

    __slots__ = ("_handle", "_iterator")

    def __init__(self, handle: AsyncHandle[Any]) -> None:
        self._handle = handle
        self._iterator: Any = None

    def __aiter__(self) -> _AsyncItems:
        return self

    async def __anext__(self) -> Any:
        if self._iterator is None:
            self._iterator = await self._handle._mppool_call("__iter__", (), {})
        return await anext(self._iterator)


class _Opening(Coroutine[Any, Any, Any]):
    """A call whose result may be meant for `async with` or `async for`, which then await the call."""

    __slots__ = ("_call", "_items", "_opened")

    def __init__(self, call: Awaited) -> None:
        self._call = call
        self._opened: Any = None
        self._items: Any = None

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._call.__await__()

    def send(self, value: Any) -> Any:
        return self._call.send(value)

    def throw(self, *error: Any) -> Any:
        return self._call.throw(*error)

    def close(self) -> None:
        self._call.close()

    async def __aenter__(self) -> Any:
        self._opened = await self._call
        return await _protocol(self._opened, "__aenter__")()

    async def __aexit__(self, *error: object) -> Any:
        return await _protocol(self._opened, "__aexit__")(*error)

    def __aiter__(self) -> _Opening:
        return self

    async def __anext__(self) -> Any:
        if self._items is None:
            self._opened = await self._call
            self._items = aiter(self._opened)
        return await anext(self._items)

    async def aclose(self) -> None:
        """End an asynchronous generator: what `contextlib.aclosing` calls."""
        if self._opened is None:
            self._call.close()
        else:
            await self._opened.aclose()


def _protocol(opened: Any, name: str) -> Any:
    found = getattr(type(opened), name, None)
    if found is None:
        raise TypeError(f"{opened!r} is not for `async with`: await the call")
    return MethodType(found, opened)


# -- protocols ----------------------------------------------------------------------------------------


def _method(name: str) -> Callable[..., Any]:
    async def method(self: AsyncHandle[Any], /, *args: Any, **kwargs: Any) -> Any:
        return await self._mppool_call(name, args, kwargs)

    method.__name__ = method.__qualname__ = name
    return method


def _named_method(name: str) -> Callable[..., Any]:
    if name not in THROWS:
        return _method(name)

    async def throw(self: AsyncHandle[Any], /, *args: Any, **kwargs: Any) -> Any:
        return await drive_async(self._mppool_throw(name, args, kwargs))

    return throw


def _opener(name: str) -> Callable[..., Any]:
    method = _method(name)

    def opening(self: AsyncHandle[Any], /, *args: Any, **kwargs: Any) -> _Opening:
        return _Opening(method(self, *args, **kwargs))

    opening.__name__ = opening.__qualname__ = name
    return opening


async def _exit(self: AsyncHandle[Any], kind: Any, error: Any, _: object, /) -> Any:
    return await drive_async(self._mppool_exit(kind, error))


def _items(self: AsyncHandle[Any], /) -> _AsyncItems:
    return _AsyncItems(self)


def _cannot_wait(handle: AnyHandle, what: str, instead: str) -> TypeError:
    name = handle._mppool_interface.name
    text = f"{what} cannot wait for an answer of the {name!r} object, and this handle is asynchronous"
    leases = ", which acquires an object itself: not under this lease" if "apply(" in instead else ""
    return TypeError(f"{text}: write `{instead}`{leases}")


def _refusing(what: str, instead: str) -> Callable[..., NoReturn]:
    def refuse(self: AnyHandle, /, *_: Any) -> NoReturn:
        raise _cannot_wait(self, what, instead)

    return refuse


def _applying(what: str, *arguments: str) -> Callable[..., NoReturn]:
    return _refusing(what, f"await pool.aio.apply({', '.join(arguments)})")


def _format(self: AnyHandle, spec: str, /) -> str:
    if spec:
        raise _cannot_wait(self, f"format(handle, {spec!r})", f"await pool.aio.apply(format, {spec!r})")
    return str(self)


_REFUSED: dict[str, Callable[..., Any]] = {
    "__len__": _applying("len(handle)", "len"),
    "__contains__": _applying("key in handle", "operator.contains", "key"),
    "__setitem__": _applying("handle[key] = value", "operator.setitem", "key", "value"),
    "__delitem__": _applying("del handle[key]", "operator.delitem", "key"),
    "__iter__": _refusing("iter(handle)", "async for item in handle"),
    "__next__": _refusing("next(handle)", "await anext(handle)"),
    "__reversed__": _applying("reversed(handle)", "function"),
    **dict.fromkeys(("__enter__", "__exit__"), _refusing("with handle", "async with handle")),
    **{f"__{each}__": _applying(f"{each}(handle)", each) for each in ("int", "float", "complex", "bytes")},
    "__index__": _applying("operator.index(handle)", "operator.index"),
    "__format__": _format,
    "__fspath__": _applying("os.fspath(handle)", "os.fspath"),
    "__array__": _applying("numpy.asarray(handle)", "numpy.asarray"),
    **dict.fromkeys(INPLACE, _applying("augmented assignment to a handle", "function")),
}
"""What Python calls for something that it needs at once."""

_FALLBACKS: dict[str, frozenset[str]] = {
    "__getitem__": dunders("iter contains reversed"),
    "__iter__": dunders("contains"),
    "__trunc__": dunders("int"),
    **{f"__{name[3:]}": frozenset({name}) for name in INPLACE},
}
"""What Python does by a method that can be awaited, but not then."""

_OWN = dunders("eq ne hash bool repr str length_hint")
"""What is the handle's own, and asks nothing."""

_AWAITED = COMPARISONS | OPERATORS | REFLECTED | dunders("missing getitem call abs neg pos invert")
_AWAITED |= dunders("round trunc floor ceil")

_PROTOCOL_METHODS: dict[str, Callable[..., Any]] = {
    **{name: _method(name) for name in _AWAITED - _OWN},
    **_REFUSED,
    **dict.fromkeys(ASYNCHRONOUS, refuse_await),
}
_ASYNCHRONOUS: dict[str, tuple[str, Callable[..., Any]]] = {
    "__iter__": ("__aiter__", _items),
    "__next__": ("__anext__", _method("__next__")),
    "__enter__": ("__aenter__", _method("__enter__")),
    "__exit__": ("__aexit__", _exit),
}
"""By what an object offers, what its handle has besides."""

_OF_GENERATORS = {"asend": "send", "athrow": "throw", "aclose": "close"}
"""Names by which code knows the methods of an asynchronous generator."""


@functools.lru_cache(maxsize=1024)
def async_class_for(interface: Interface) -> type[AnyHandle]:
    offered = interface.protocols
    refused = frozenset().union(*(_FALLBACKS.get(name, ()) for name in offered))
    protocols: dict[str, Any] = {name: _REFUSED[name] for name in refused}
    protocols |= dict.fromkeys(interface.blocked - _OWN)
    protocols |= {name: _PROTOCOL_METHODS[name] for name in offered - _OWN}
    protocols |= dict(_ASYNCHRONOUS[name] for name in offered & _ASYNCHRONOUS.keys())
    if interface.iterator:
        del protocols["__anext__"]  # it has its own
    if interface.methods >= {*_OF_GENERATORS.values()}:
        others = _OF_GENERATORS.keys() - interface.methods
        protocols |= {name: _named_method(_OF_GENERATORS[name]) for name in others}
    bases = [_AsyncIteratorHandle if interface.iterator else AsyncHandle]

    def method(name: str) -> Callable[..., Any]:
        return _opener(name) if name in interface.openers - THROWS else _named_method(name)

    return make_class(interface, bases, method, protocols)
