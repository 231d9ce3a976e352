"""Handles: what stands in a worker process for an object in the manager process.

A handle is only the object: every public name, operator and protocol on it is the object's own. What
the pool needs lies in slots that begin with an underscore.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import MethodType
from typing import Any, ClassVar, NoReturn, Protocol, SupportsIndex, cast

from mppool.errors import LeaseLost, PoolError

from .calls import (
    COPY,
    DEL,
    ECHO,
    GET,
    METHOD,
    MIXED,
    NEXT,
    PARTS,
    REF,
    SET,
    TARGET,
    VALUE,
    WITH_REFS,
    Answer,
    ObjectRef,
)
from .errors import PackedError, travels
from .interface import COMPARISONS, INPLACE, OPERATORS, PROTOCOLS, REFLECTED, Interface
from .iteration import LARGEST_BATCH, End, ReadAhead
from .references import load


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


def make_handle(interface: Interface, lease: LeaseLike) -> Any:
    """A handle for the object of a lease. It keeps the lease alive."""
    return LeaseHandles(lease).handle(0, interface)


def lease_of(handle: object) -> LeaseLike:
    """The lease that a handle lives by. `TypeError` if it is no handle."""
    if not isinstance(handle, Handle):
        raise TypeError(f"not a handle of a pool: {handle!r}")
    return handle._family.lease


class HandleRef(weakref.ref["Handle"]):
    """Knows the number of its handle. `weakref.KeyedRef` would take a microsecond more of each acquire."""

    __slots__ = ("number",)

    number: int


class LeaseHandles:
    """The handles of one lease: one for each object that lives by it."""

    __slots__ = ("_handles", "batch_size", "lease", "unused")

    def __init__(self, lease: LeaseLike) -> None:
        self.lease = lease
        self.batch_size = 1
        """Of the next items that are fetched: it grows until the lease is used for something else."""
        self.unused: set[int] = set()
        """Of handles that were collected; told with the next call."""
        self._handles: dict[int, HandleRef] = {}

    def handle(self, number: int, interface: Interface) -> Handle:
        """The handle for a target, if it lives, or a new one."""
        while True:
            known = self._handles.get(number)
            if known is not None:
                handle = known()
                if handle is not None:
                    return handle
                self._forget(known)
            handle = _class_for(interface)(self, number)
            ref = HandleRef(handle, self._forget)
            ref.number = number
            self.unused.discard(number)
            # Of two threads that get one object at the same time, the second takes the first one's handle.
            if self._handles.setdefault(number, ref) is ref:
                return handle

    def _forget(self, ref: weakref.ref[Handle]) -> None:
        # Runs wherever the last reference goes, a garbage collection included: no I/O, no lock.
        number = cast(HandleRef, ref).number
        if self._handles.get(number) is ref:
            self._handles.pop(number, None)
            if number:
                self.unused.add(number)

    def fetch(self, target: int, first: bool) -> tuple[list[Any], End, PackedError | None]:
        """The next items of an iterator, and what is behind them."""
        size = 1 if first else self.batch_size
        call = self.call_with_refs if self.unused else self.lease.call
        status, (items, end, error) = call(target, NEXT, (size,), {})
        # Fewer than asked for: the iterator is slow, and the first items must not wait for the others.
        self.batch_size = 1 if len(items) < size else min(2 * size, LARGEST_BATCH)
        if status == MIXED:
            items = [self.rebuilt(*answer) for answer in items]
        return items, end, error

    def rebuilt(self, status: int, payload: Any) -> Any:
        """What an answer brings: a copy, a handle, or a container with both."""
        if status == VALUE:
            return payload
        if status == REF:
            return self.handle(*payload)
        if status == PARTS:
            return load(payload, lambda reference: self.handle(*reference))
        assert status == COPY
        copy, number, interface = payload
        try:
            value = load(copy, self.handle)
        except Exception:  # that is why it is there, too
            return self.handle(number, interface)
        self.unused.add(number)
        return value

    def call_with_refs(self, target: int, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer:
        """A call that tells of unused numbers, and has references in place of handles."""
        args = tuple(map(self._as_ref, args))
        kwargs = {key: self._as_ref(value) for key, value in kwargs.items()}
        unused, self.unused = self.unused, set()
        try:
            return self.lease.call(target, WITH_REFS, (list(unused), op, args, kwargs), {})
        except BaseException:  # perhaps it never left; to tell it twice does no harm
            self.unused.update(unused.difference(self._handles))
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
        return self._call(name, args, kwargs)

    method.__name__ = name
    return method


class Handle:
    """What all handles have in common; `_class_for` adds what the object offers."""

    __slots__ = ("__weakref__", "_family", "_target")

    _family: LeaseHandles
    _target: int
    _interface: ClassVar[Interface]

    def __init__(self, family: LeaseHandles, target: int) -> None:
        object.__setattr__(self, "_family", family)
        object.__setattr__(self, "_target", target)

    def _call(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the object: what every method of a handle does."""
        family = self._family
        family.batch_size = 1
        if family.unused or _mentions_handle(args, kwargs):
            status, payload = family.call_with_refs(self._target, op, args, kwargs)
        else:
            status, payload = family.lease.call(self._target, op, args, kwargs)
        if status == VALUE:
            return payload
        if status == TARGET:
            return self
        if status == ECHO:
            return args[-1]
        if status == METHOD:
            return MethodType(_method(args[0]), self)
        return family.rebuilt(status, payload)

    def __getattr__(self, name: str) -> Any:
        return self._attribute(GET, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._attribute(SET, name, value)

    def __delattr__(self, name: str) -> None:
        self._attribute(DEL, name)

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
        return self._call(op, (name, *value), {})


class _IteratorHandle(Handle):
    """A handle of an iterator: `next` and every `for` share what is ahead."""

    __slots__ = ("_ahead",)

    _ahead: ReadAhead

    def __init__(self, family: LeaseHandles, target: int) -> None:
        super().__init__(family, target)
        ahead = ReadAhead(self._interface.iterator, functools.partial(family.fetch, target))
        object.__setattr__(self, "_ahead", ahead)

    def __next__(self) -> Any:
        return self._ahead.next()

    def _call(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ahead = self._ahead
        if op in (GET, SET, DEL):
            if op != GET:
                ahead.on_attribute(args[0])
            result = super()._call(op, args, kwargs)
            ahead.on_attribute(args[0])  # only now: a name that is not there would miss nothing
            return result
        go_on = ahead.before_call(op, args, kwargs)
        if go_on is not None:
            return go_on(self, *args, **kwargs)
        result = super()._call(op, args, kwargs)
        return result + len(ahead.items) if op == "__length_hint__" else result


def _operator(name: str) -> Callable[..., Any]:
    def operator(self: Handle, /, *others: Any) -> Any:
        for other in others:
            if isinstance(other, Handle) and other._family is not self._family:
                return NotImplemented  # no process has both objects at hand
        return self._call(name, others, {})

    return operator


def _textual(name: str) -> Callable[..., Any]:
    def textual(self: Handle, /) -> Any:
        with suppress(PoolError):  # the lease is over, or another process's: a repr must not fail for that
            return self._call(name, (), {})
        return Handle.__repr__(self)

    return textual


def _hash(self: Handle, /) -> Any:
    if self._interface.hashes_by_value and not self._family.lease.same_hashes:
        raise TypeError(
            f"unhashable handle of {self._interface.name!r}: it compares by value, and this process hashes "
            "strings differently from the process where it lives (PYTHONHASHSEED)"
        )
    return self._call("__hash__", (), {})


def _exit(self: Handle, kind: Any, error: Any, _: object, /) -> Any:
    if error is not None and not travels(error):
        error = RuntimeError(f"{kind.__qualname__}: {error}")
        kind = RuntimeError
    try:
        return self._call("__exit__", (kind, error, None), {})
    except LeaseLost:
        if isinstance(error, PoolError):  # which tells more of the same
            return False
        raise


# Those that the handles of all interfaces share.
_PROTOCOL_METHODS: dict[str, Callable[..., Any]] = {
    **{name: _method(name) for name in PROTOCOLS},
    **{name: _operator(name) for name in COMPARISONS | OPERATORS | REFLECTED | INPLACE},
    **{name: _textual(name) for name in ("__repr__", "__str__")},
    "__hash__": _hash,
    "__exit__": _exit,
}


def _known_class(self: Handle) -> type:
    """Makes `isinstance(handle, Session)` true where Session is known: in code that asks, it is."""
    found: Any = sys.modules.get(self._interface.module)
    for part in self._interface.qualname.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else type(self)


@functools.lru_cache(maxsize=1024)
def _class_for(interface: Interface) -> type[Handle]:
    """The class of all handles with an interface; its methods are plain functions, so a call is short."""
    base, own = (_IteratorHandle, {"__next__"}) if interface.iterator else (Handle, set())
    namespace = {
        **{name: _method(name) for name in interface.methods},
        **dict.fromkeys(interface.blocked),
        **{name: _PROTOCOL_METHODS[name] for name in interface.protocols - own},
        "__slots__": (),
        "__module__": __name__,
        "__class__": property(_known_class),
        "_interface": interface,
    }
    return type(f"Handle[{interface.name}]", (base,), namespace)
