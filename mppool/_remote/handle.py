"""Handles: what stands in a worker process for an object in the manager process.

A handle is only the object: every public name, operator and protocol on it is the object's own. What
the pool needs lies in slots that begin with an underscore.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, ClassVar, NoReturn, Protocol, SupportsIndex
from weakref import KeyedRef

from mppool.errors import LeaseLost, PoolError

from .calls import (
    DELETE,
    ECHO,
    GET,
    METHOD,
    MIXED,
    NEXT,
    REF,
    SET,
    TARGET,
    VALUE,
    WITH_REFS,
    Answer,
    ObjectRef,
)
from .errors import travels
from .interface import COMPARISONS, INPLACE, OPERATORS, REFLECTED, Interface
from .iteration import End, ReadAhead


class LeaseLike(Protocol):
    """A lease as a handle sees it."""

    @property
    def ended(self) -> bool:
        """Whether it was released here, or known to be lost."""

    @property
    def same_hashes(self) -> bool:
        """Whether strings hash here as they do where the object lives."""

    def call(self, target: int, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer:
        """Have `ObjectTable.call` run where the object lives. Raises what it raises, or `PoolError`."""


def make_handle(interface: Interface, lease: LeaseLike, target: int = 0) -> Any:
    """A handle for an object with this interface. It keeps the lease alive."""
    return LeaseHandles(lease).handle(target, interface)


def lease_of(handle: object) -> LeaseLike:
    """The lease that a handle lives by. `TypeError` if it is no handle."""
    if not isinstance(handle, Handle):
        raise TypeError(f"not a handle of a pool: {handle!r}")
    return handle._family.lease


class LeaseHandles:
    """The handles of one lease: one for each object that lives by it."""

    __slots__ = ("_handles", "_unused", "lease")

    def __init__(self, lease: LeaseLike) -> None:
        self.lease = lease
        self._handles: dict[int, KeyedRef[int, Handle]] = {}
        self._unused: set[int] = set()  # of handles that were collected; told with the next call

    def handle(self, number: int, interface: Interface) -> Handle:
        """The handle for a target, if it lives, or a new one."""
        known = self._handles.get(number)
        handle = None if known is None else known()
        if handle is None:
            handle = _class_for(interface)(self, number)
            self._handles[number] = KeyedRef(handle, self._forget, number)
            self._unused.discard(number)
        return handle

    def _forget(self, ref: KeyedRef[int, Handle]) -> None:
        # Runs wherever the last reference goes, a garbage collection included: no I/O, no lock.
        if self._handles.get(ref.key) is ref:
            del self._handles[ref.key]
            if ref.key:
                self._unused.add(ref.key)

    def call(self, handle: Handle, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the object behind a handle: what every method of a handle does."""
        if self._unused or _mentions_handle(args, kwargs):
            status, payload = self._call_with_refs(handle._target, op, args, kwargs)
        else:
            status, payload = self.lease.call(handle._target, op, args, kwargs)
        if status == VALUE:
            return payload
        if status == TARGET:
            return handle
        if status == REF:
            return self.handle(*payload)
        if status == ECHO:
            return args[-1]
        assert status == METHOD
        return MethodType(handle._make_method(args[0]), handle)

    def fetch(self, target: int, anew: bool) -> tuple[list[Any], End]:
        """The next items of an iterator."""
        call = self._call_with_refs if self._unused else self.lease.call
        status, (items, end) = call(target, NEXT, (anew,), {})
        if status == MIXED:
            items = [item if status == VALUE else self.handle(*item) for status, item in items]
        return items, end

    def _call_with_refs(self, target: int, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer:
        args = tuple(map(self._as_ref, args))
        kwargs = {key: self._as_ref(value) for key, value in kwargs.items()}
        unused, self._unused = self._unused, set()
        try:
            return self.lease.call(target, WITH_REFS, (list(unused), op, args, kwargs), {})
        except BaseException:  # perhaps it never left; to tell it twice does no harm
            self._unused.update(unused.difference(self._handles))
            raise

    def _as_ref(self, arg: Any) -> Any:
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
    _interface: ClassVar[Interface]
    _make_method = staticmethod(_method)

    def __init__(self, family: LeaseHandles, target: int) -> None:
        object.__setattr__(self, "_family", family)
        object.__setattr__(self, "_target", target)

    def __getattr__(self, name: str) -> Any:
        return self._attribute(GET, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._attribute(SET, name, value)

    def __delattr__(self, name: str) -> None:
        self._attribute(DELETE, name)

    def __dir__(self) -> Iterable[str]:
        interface = self._interface
        return sorted(interface.methods | interface.attributes | interface.protocols)

    def __repr__(self) -> str:
        return f"<{'released ' if self._family.lease.ended else ''}handle of {self._interface.name!r}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"a handle of {self._interface.name!r} belongs to the process that acquired it, and is neither "
            "pickled nor copied: pass the pool instead, and acquire where the object is needed"
        )

    def _attribute(self, op: str, name: str, *value: Any) -> Any:
        # Refused here and not where the object lives: many a tool looks for its own names on every object.
        if name.startswith("_"):
            raise AttributeError(f"{self._interface.qualname!r} object offers no {name!r} through its pool")
        return self._family.call(self, op, (name, *value), {})


def _iterator_method(name: str) -> Callable[..., Any]:
    plain = _method(name)

    def method(self: _IteratorHandle, /, *args: Any, **kwargs: Any) -> Any:
        perform = self._ahead.on_method(name, args, kwargs) or plain
        return perform(self, *args, **kwargs)

    method.__name__ = name
    return method


class _IteratorHandle(Handle):
    """A handle of an iterator: `next` and every `for` share what is ahead."""

    __slots__ = ("_ahead",)

    _ahead: ReadAhead
    _make_method = staticmethod(_iterator_method)

    def __init__(self, family: LeaseHandles, target: int) -> None:
        super().__init__(family, target)
        ahead = ReadAhead(self._interface.iterator, functools.partial(family.fetch, target))
        object.__setattr__(self, "_ahead", ahead)

    def _attribute(self, op: str, name: str, *value: Any) -> Any:
        if op != GET:
            self._ahead.on_attribute(name)
        result = super()._attribute(op, name, *value)
        self._ahead.on_attribute(name)  # only now: a name that is not there would miss nothing
        return result


def _operator(name: str) -> Callable[..., Any]:
    plain = _method(name)

    def operator(self: Handle, /, *others: Any) -> Any:
        for other in others:
            if isinstance(other, Handle) and other._family is not self._family:
                return NotImplemented  # no process has both objects at hand
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


def _hash(self: Handle, /) -> Any:
    if self._interface.hashes_by_value and not self._family.lease.same_hashes:
        raise TypeError(
            f"unhashable handle of {self._interface.name!r}: it compares by value, and this process hashes "
            "strings differently from the process where it lives (PYTHONHASHSEED)"
        )
    return self._family.call(self, "__hash__", (), {})


def _next(self: _IteratorHandle, /) -> Any:
    return self._ahead.next()


def _length_hint(self: _IteratorHandle, /) -> Any:
    return self._family.call(self, "__length_hint__", (), {}) + len(self._ahead.items)


def _exit(self: Handle, kind: Any, error: Any, _: object, /) -> Any:
    if error is not None and not travels(error):
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


_MAKERS: dict[str, Callable[[str], Callable[..., Any]]] = {
    **dict.fromkeys(COMPARISONS | OPERATORS | REFLECTED | INPLACE, _operator),
    **dict.fromkeys(("__repr__", "__str__"), _textual),
    "__hash__": lambda _: _hash,
    "__exit__": lambda _: _exit,
}
_ITERATOR_MAKERS: dict[str, Callable[[str], Callable[..., Any]]] = {
    **_MAKERS,
    "__next__": lambda _: _next,
    "__length_hint__": lambda _: _length_hint,
}


def _class_of(interface: Interface) -> Callable[[Handle], type]:
    """Makes `isinstance(handle, Session)` true where Session is known: in code that asks, it is."""

    def get(self: Handle) -> type:
        found: Any = sys.modules.get(interface.module)
        for part in interface.qualname.split("."):
            found = getattr(found, part, None)
        return found if isinstance(found, type) else type(self)

    return get


@functools.lru_cache(maxsize=1024)
def _class_for(interface: Interface) -> type[Handle]:
    """The class of all handles with an interface; its methods are plain functions, so a call is short."""
    base, makers = (_IteratorHandle, _ITERATOR_MAKERS) if interface.iterator else (Handle, _MAKERS)
    namespace = {
        **{name: base._make_method(name) for name in interface.methods},
        **dict.fromkeys(interface.blocked),
        **{name: makers.get(name, _method)(name) for name in interface.protocols},
        "__slots__": (),
        "__module__": __name__,
        "__class__": property(_class_of(interface)),
        "_interface": interface,
    }
    return type(f"Handle[{interface.name}]", (base,), namespace)
