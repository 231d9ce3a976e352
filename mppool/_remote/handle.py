"""Handles: what stands in a worker process for an object in the manager process.

A handle is only the object: every public name, operator and protocol on it is the object's own. What
the pool needs lies in slots that begin with an underscore.
"""

from __future__ import annotations

import functools
import pickle
import sys
import weakref
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, ClassVar, NoReturn, Protocol, SupportsIndex

from mppool.errors import LeaseLost, PoolError

from .calls import (
    DELETE,
    ECHO,
    FURTHER,
    GET,
    METHOD,
    MIXED,
    SAME,
    SET,
    VALUE,
    WITH,
    Answer,
    ObjectRef,
)
from .interface import COMPARISONS, INPLACE, OPERATORS, REFLECTED, Interface
from .iteration import LIKE_ITERATION, STARTS_ANEW, ReadAhead, fetchmany


class LeaseLike(Protocol):
    """A lease as a handle sees it."""

    @property
    def ended(self) -> bool:
        """Whether it was released here, or known to be lost."""

    def call(self, target: int, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer:
        """Have `ObjectTable.call` run in the manager. Raises what it raises, or `PoolError`."""


def make_handle(shape: Interface, lease: LeaseLike, target: int = 0) -> Any:
    """A handle for an object of this shape. It keeps the lease alive."""
    return LeaseHandles(lease).handle(target, shape)


def is_handle(thing: object) -> bool:
    """Whether this is a handle, of whatever pool."""
    return issubclass(type(thing), Handle)


def lease_of(handle: object) -> LeaseLike:
    """The lease that a handle lives by. `TypeError` if it is no handle."""
    if not isinstance(handle, Handle):
        raise TypeError(f"not a handle of a pool: {handle!r}")
    return handle._family.lease


class _Ref(weakref.ref["Handle"]):
    __slots__ = ("number",)

    number: int


class LeaseHandles:
    """The handles of one lease: one for each object of the manager's that lives by it."""

    __slots__ = ("_handles", "_unused", "lease")

    def __init__(self, lease: LeaseLike) -> None:
        self.lease = lease
        self._handles: dict[int, _Ref] = {}
        self._unused: set[int] = set()  # of handles that were collected; told with the next call

    def handle(self, number: int, shape: Interface) -> Handle:
        """The handle for a target, if it lives, or a new one."""
        known = self._handles.get(number)
        handle = None if known is None else known()
        if handle is None:
            handle = _class_for(shape)(self, number)
            self._handles[number] = ref = _Ref(handle, self._forget)
            ref.number = number
            self._unused.discard(number)
        return handle

    def _forget(self, ref: weakref.ref[Handle]) -> None:
        # Runs wherever the last reference goes, a garbage collection included: no I/O, no lock.
        assert isinstance(ref, _Ref)
        if self._handles.get(ref.number) is ref:
            del self._handles[ref.number]
            if ref.number:
                self._unused.add(ref.number)

    def call(self, handle: Handle, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the object behind a handle: what every method of a handle does."""
        if self._unused or _mentions_handle(args, kwargs):
            status, payload = self._call_with_news(handle, op, args, kwargs)
        else:
            status, payload = self.lease.call(handle._target, op, args, kwargs)
        return payload if status == VALUE else self._result(handle, status, payload, args)

    def _result(self, handle: Handle, status: int, payload: Any, args: tuple[Any, ...]) -> Any:
        """What an answer that is no plain value stands for here."""
        if status == SAME:
            return handle
        if status == FURTHER:
            return self.handle(*payload)
        if status == ECHO:
            return args[-1]
        if status == METHOD:
            return MethodType(handle._make_method(args[0]), handle)
        if status == MIXED:
            items, end = payload
            return [item if status == VALUE else self.handle(*item) for status, item in items], end
        return payload  # BATCH

    def _call_with_news(
        self, handle: Handle, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Answer:
        args = tuple(map(self._ref, args))
        kwargs = {key: self._ref(value) for key, value in kwargs.items()}
        unused, self._unused = self._unused, set()
        try:
            return self.lease.call(handle._target, WITH, (list(unused), op, args, kwargs), {})
        except BaseException:  # perhaps it never left; to tell it twice does no harm
            self._unused.update(unused.difference(self._handles))
            raise

    def _ref(self, arg: Any) -> Any:
        if not isinstance(arg, Handle) or arg._family is not self:
            return arg
        if isinstance(arg, _IteratorHandle):
            arg._ahead.interrupt("the called function")
        return ObjectRef(arg._target)


def _mentions_handle(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    for arg in args:
        if isinstance(arg, Handle):
            return True
    return bool(kwargs) and any(isinstance(arg, Handle) for arg in kwargs.values())


def _method(name: str) -> Callable[..., Any]:
    def method(self: Handle, /, *args: Any, **kwargs: Any) -> Any:
        return self._family.call(self, name, args, kwargs)

    method.__name__ = name
    return method


class Handle:
    """What all handles have in common; `_class_for` adds what the object offers."""

    __slots__ = ("__weakref__", "_family", "_target")

    _family: LeaseHandles
    _target: int
    _shape: ClassVar[Interface]
    _make_method = staticmethod(_method)

    def __init__(self, family: LeaseHandles, target: int) -> None:
        object.__setattr__(self, "_family", family)
        object.__setattr__(self, "_target", target)

    def __getattr__(self, name: str) -> Any:
        self._check_public(name)
        return self._family.call(self, GET, (name,), {})

    def __setattr__(self, name: str, value: Any) -> None:
        self._check_public(name)
        self._family.call(self, SET, (name, value), {})

    def __delattr__(self, name: str) -> None:
        self._check_public(name)
        self._family.call(self, DELETE, (name,), {})

    def __dir__(self) -> Iterable[str]:
        shape = self._shape
        return sorted(shape.methods | shape.attributes | shape.specials)

    def __repr__(self) -> str:
        return f"<{'released ' if self._family.lease.ended else ''}handle of {self._shape.name!r}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"a handle of {self._shape.name!r} belongs to the process that acquired it, and is neither "
            "pickled nor copied: pass the pool instead, and acquire where the object is needed"
        )

    def _check_public(self, name: str) -> None:
        # Asked here and not in the manager: many a tool looks for names of its own on every object.
        if name.startswith("_"):
            raise AttributeError(f"{self._shape.qualname!r} object offers no {name!r} through its pool")


def _iterator_method(name: str) -> Callable[..., Any]:
    """A method of an object that is its own iterator."""
    plain, like_iteration = _method(name), LIKE_ITERATION.get(name)

    def method(self: _IteratorHandle, /, *args: Any, **kwargs: Any) -> Any:
        ahead = self._ahead
        if name in STARTS_ANEW:
            ahead.forget()
        elif ahead.items and name == "fetchmany":
            return fetchmany(self, *args, **kwargs)
        elif ahead.items and like_iteration is not None and not args and not kwargs:
            return like_iteration(self)
        ahead.interrupt(f"{name}()")
        return plain(self, *args, **kwargs)

    method.__name__ = name
    return method


class _IteratorHandle(Handle):
    """A handle of an object that is its own iterator: `next` and every `for` share what is ahead."""

    __slots__ = ("_ahead",)

    _ahead: ReadAhead
    _make_method = staticmethod(_iterator_method)

    def __init__(self, family: LeaseHandles, target: int) -> None:
        super().__init__(family, target)
        object.__setattr__(self, "_ahead", ReadAhead())


def _operator(name: str) -> Callable[..., Any]:
    plain = _method(name)

    def operator(self: Handle, /, *others: Any) -> Any:
        for other in others:
            if isinstance(other, Handle) and other._family is not self._family:
                return NotImplemented  # two objects that nobody has in one place
        return plain(self, *others)

    return operator


def _textual(name: str) -> Callable[..., Any]:
    plain = _method(name)

    def textual(self: Handle, /) -> Any:
        if not self._family.lease.ended:
            try:
                return plain(self)
            except PoolError:
                pass  # the lease is lost, or another process's: a repr must not fail for that
        return Handle.__repr__(self)

    return textual


def _next(self: _IteratorHandle, /) -> Any:
    return self._ahead.next(self)


def _length_hint(self: _IteratorHandle, /) -> Any:
    return self._family.call(self, "__length_hint__", (), {}) + len(self._ahead.items)


def _exit(self: Handle, kind: Any, error: Any, _: object, /) -> Any:
    if error is not None and not _travels(error):
        error = RuntimeError(f"{kind.__qualname__}: {error}")
        kind = RuntimeError
    if isinstance(self, _IteratorHandle):
        self._ahead.forget()
    try:
        return self._family.call(self, "__exit__", (kind, error, None), {})
    except LeaseLost:
        if isinstance(error, PoolError):  # which tells more of the same
            return False
        raise


def _travels(error: BaseException) -> bool:
    try:
        pickle.loads(pickle.dumps(error, 5))  # one with an __init__ of its own often fails to load
    except Exception:
        return False
    return True


_SPECIAL_MAKERS: dict[str, Callable[[str], Callable[..., Any]]] = {
    **dict.fromkeys(COMPARISONS | OPERATORS | REFLECTED | INPLACE, _operator),
    **dict.fromkeys(("__repr__", "__str__"), _textual),
    "__next__": lambda _: _next,
    "__exit__": lambda _: _exit,
}


def _specials(shape: Interface) -> dict[str, Any]:
    made: dict[str, Any] = dict.fromkeys(shape.blocked)
    made.update((name, _SPECIAL_MAKERS.get(name, _method)(name)) for name in shape.specials)
    if {"__next__", "__length_hint__"} <= shape.specials:
        made["__length_hint__"] = _length_hint
    return made


def _class_of(shape: Interface) -> Callable[[Handle], type]:
    """Makes `isinstance(handle, Session)` true where Session is known: in code that asks, it is."""

    def get(self: Handle) -> type:
        found: Any = sys.modules.get(shape.module)
        for part in shape.qualname.split("."):
            found = getattr(found, part, None)
        return found if isinstance(found, type) else type(self)

    return get


@functools.lru_cache(maxsize=1024)
def _class_for(shape: Interface) -> type[Handle]:
    """The class of the handles of a shape; its methods are plain functions, so a call is short."""
    base = _IteratorHandle if "__next__" in shape.specials else Handle
    namespace = {
        **{name: base._make_method(name) for name in shape.methods},
        **_specials(shape),
        "__slots__": (),
        "__module__": __name__,
        "__class__": property(_class_of(shape)),
        "_shape": shape,
    }
    return type(f"Handle[{shape.name}]", (base,), namespace)
