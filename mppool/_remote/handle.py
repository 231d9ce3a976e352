"""Handles: what stands in a worker process for an object in the manager process.

A handle is only the object: every public name, operator and protocol on it is the object's own, and with
`expose="all"` every private one. So what the pool needs bears names that no object has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from types import MethodType
from typing import Any, Protocol, cast

from mppool.errors import PoolError, RemoteError

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
from .interface import (
    ASYNCHRONOUS,
    COMPARISONS,
    INPLACE,
    OPERATORS,
    PROTOCOLS,
    REFLECTED,
    SELF_DESCRIPTION,
    SEQUENCE,
    Interface,
)
from .opcodes import APPLY, DEL, DIR, GET, SET, VALUE, Answer
from .references import DoesNotPickle, RequestLost
from .steps import drive


class LeaseLike(AnyLease, Protocol):
    """A lease whose calls are waited for in the thread that calls."""

    @property
    def same_hashes(self) -> bool:
        """Whether strings hash here as they do where the object lives."""

    def call(
        self,
        target: int,
        op: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        beside: Collection[AnyLease] = (),
    ) -> Answer: ...


def make_handle(kind: type[AnyHandle], lease: LeaseLike) -> Any:
    """A handle, of a class of `class_for`, for the object of a lease. It keeps the lease alive."""
    return LeaseHandles(lease, class_for).first(kind)


def apply_to(handle: Any, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func(object, *args, **kwargs)` beside the object of a handle."""
    return Handle._mppool_call(handle, APPLY, (func, args, kwargs), {})


def _method(name: str) -> Callable[..., Any]:
    def method(self: Handle, /, *args: Any, **kwargs: Any) -> Any:
        return self._mppool_call(name, args, kwargs)

    method.__name__ = name
    return method


class Handle(AnyHandle):
    """A handle that waits for each answer in the thread that calls."""

    __slots__ = ()

    def _mppool_method(self, name: str) -> Callable[..., Any]:
        return MethodType(_method(name), self)

    def _mppool_call(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the object: what every method of a handle does."""
        family = self._mppool_family
        family.batch_size = 1
        try:
            if family.unused or needs_packing(args, kwargs):
                status, payload = drive(family.ask(self._mppool_target, op, args, kwargs))
            else:
                status, payload = family.lease.call(self._mppool_target, op, args, kwargs)
        except (DoesNotPickle, RequestLost) as problem:
            status, payload = drive(family.call_packed(self._mppool_target, op, args, kwargs, problem))
        return payload if status == VALUE else self._mppool_result(status, payload, args)

    def __getattr__(self, name: str) -> Any:
        return self._mppool_attribute(GET, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._mppool_attribute(SET, name, value)

    def __delattr__(self, name: str) -> None:
        self._mppool_attribute(DEL, name)

    def __dir__(self) -> Iterable[str]:
        interface = self._mppool_interface
        names = interface.methods | interface.attributes | interface.protocols
        with suppress(PoolError):  # as for a repr
            names = names.union(Handle._mppool_call(self, DIR, (), {}))
        return sorted(names)

    def _mppool_attribute(self, op: str, name: str, *value: Any) -> Any:
        self._mppool_refuse(name, SELF_DESCRIPTION)
        return self._mppool_call(op, (name, *value), {})


class _IteratorHandle(AnyIteratorHandle, Handle):
    """A handle of an iterator: `next` and every `for` share what is ahead."""

    __slots__ = ()

    def __next__(self) -> Any:
        ahead = self._mppool_ahead
        while True:
            try:
                return ahead.items.popleft()
            except IndexError:
                end = drive(ahead.more())
            if end is not None:
                raise StopIteration(*end)

    def _mppool_call(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._mppool_ahead.is_idle:  # nearly always, and these steps take longer
            return super()._mppool_call(op, args, kwargs)
        return drive(self._mppool_steps(op, args, kwargs))


@Sequence.register
class _SequenceHandle(Handle):
    """A handle for the sequence patterns of `match`, which look at nothing but a flag that is inherited."""

    __slots__ = ()


@Mapping.register
class _MappingHandle(Handle):
    """The same for mapping patterns."""

    __slots__ = ()


_EQUALITY = frozenset({"__eq__", "__ne__"})


def _cannot_meet(one: Handle, other: Any) -> bool:
    """Whether the objects of two leases cannot be compared: then they are not the same."""
    if not isinstance(other, Handle) or other._mppool_family is one._mppool_family:
        return False
    return one._mppool_family.lease.why_apart(other._mppool_family.lease) is not None


def _operator(name: str) -> Callable[..., Any]:
    def operator(self: Handle, /, *others: Any) -> Any:
        if name in _EQUALITY and any(_cannot_meet(self, other) for other in others):
            return NotImplemented
        return self._mppool_call(name, others, {})

    return operator


def _textual(name: str) -> Callable[..., Any]:
    def textual(self: Handle, /) -> Any:
        try:
            return self._mppool_call(name, (), {})
        except RemoteError:  # the object's own
            raise
        except PoolError:  # the lease is over, or another process's: a repr must not fail for that
            return Handle.__repr__(self)

    return textual


def _hash(self: Handle, /) -> Any:
    lease = cast(LeaseLike, self._mppool_family.lease)
    if self._mppool_interface.hashes_by_value and not lease.same_hashes:
        raise TypeError(
            f"unhashable handle of {self._mppool_interface.name!r}: it compares by value, and this process "
            "hashes strings differently from the process where it lives (PYTHONHASHSEED)"
        )
    return self._mppool_call("__hash__", (), {})


def _exit(self: Handle, kind: Any, error: Any, _: object, /) -> Any:
    return drive(self._mppool_exit(kind, error))


def _named_method(name: str) -> Callable[..., Any]:
    if name not in THROWS:
        return _method(name)

    def throw(self: Handle, /, *args: Any, **kwargs: Any) -> Any:
        return drive(self._mppool_throw(name, args, kwargs))

    return throw


# Those that the handles of all interfaces share.
_PROTOCOL_METHODS: dict[str, Callable[..., Any]] = {
    **{name: _method(name) for name in PROTOCOLS},
    **{name: _operator(name) for name in COMPARISONS | OPERATORS | REFLECTED | INPLACE},
    **{name: _textual(name) for name in ("__repr__", "__str__")},
    **dict.fromkeys(ASYNCHRONOUS, refuse_await),
    "__hash__": _hash,
    "__exit__": _exit,
}


@functools.lru_cache(maxsize=1024)
def class_for(interface: Interface) -> type[AnyHandle]:
    """The class of the handles for objects that offer this."""
    bases: list[type[Handle]] = [_IteratorHandle] if interface.iterator else []
    if interface.matches:
        bases.append(_SequenceHandle if interface.matches == SEQUENCE else _MappingHandle)
    own = {"__next__"} if interface.iterator else set()
    protocols = {name: _PROTOCOL_METHODS[name] for name in interface.protocols - own}
    blocked = dict.fromkeys(interface.blocked)
    return make_class(interface, bases or [Handle], _named_method, {**blocked, **protocols})
