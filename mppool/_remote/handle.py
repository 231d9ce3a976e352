"""Handles: what stands in a worker process for an object in the manager process.

A handle is only the object: every public name, operator and protocol on it is the object's own. What
the pool needs lies in slots that begin with an underscore.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from types import MethodType
from typing import Any, ClassVar, NoReturn, Protocol, SupportsIndex, cast

from mppool._wire.signals import is_handlers
from mppool.errors import LeaseLost, PoolError

from .arguments import has_no_file, send_packed
from .calls import (
    APPLY,
    COPY,
    DEL,
    ECHO,
    FORGET,
    GET,
    METHOD,
    MIXED,
    NEXT,
    PARTS,
    RAISE,
    RAISED,
    REF,
    SET,
    TARGET,
    VALUE,
    Answer,
)
from .errors import AsIs, ErrorCopy, PackedError
from .interface import ASYNCHRONOUS, COMPARISONS, INPLACE, OPERATORS, PROTOCOLS, REFLECTED, Interface
from .iteration import AWAITED, LARGEST_BATCH, End, ReadAhead
from .references import DoesNotPickle, RequestLost, fails_again, load


class LeaseLike(Protocol):
    """A lease as a handle sees it."""

    @property
    def ended(self) -> bool:
        """Whether it was released here, or known to be lost."""

    @property
    def same_hashes(self) -> bool:
        """Whether strings hash here as they do where the object lives."""

    @property
    def pool_id(self) -> int:
        """Of the pool that the object is of."""

    @property
    def id(self) -> int:
        """No other lease of its manager has it."""

    def call(
        self,
        target: int,
        op: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        beside: Collection[LeaseLike] = (),
    ) -> Answer:
        """Have `perform` run where the object lives, and those of other leases. Raises what it answers.

        `DoesNotPickle` before anything was sent, `RequestLost` if it could not be rebuilt there.
        """

    def why_apart(self, other: LeaseLike) -> str | None:
        """Why the object of another lease cannot be used in a call on this one; None if it can.

        `LeaseError` if that lease is over.
        """

    def leave_call(self) -> None:
        """The last call is answered and goes on: what is asked next must not wait behind it."""


def make_handle(interface: Interface, lease: LeaseLike) -> Any:
    """A handle for the object of a lease. It keeps the lease alive."""
    return LeaseHandles(lease).handle(0, interface)


def lease_of(handle: object) -> LeaseLike:
    """The lease that a handle lives by. `TypeError` if it is no handle."""
    if not isinstance(handle, Handle):
        raise TypeError(f"not a handle of a pool: {handle!r}")
    return handle._family.lease


def is_handle(obj: object) -> bool:
    """Whether this is a handle. Asks nothing of the object itself."""
    return issubclass(type(obj), Handle)


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
        status, (items, end, error) = self.call(target, NEXT, (size, first), {})
        if end is AWAITED:
            self.lease.leave_call()
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

        def resolve(reference: tuple[int, Interface]) -> Handle:
            return self.handle(*reference)

        if status == PARTS:
            return load(payload, resolve)
        assert status == COPY
        copy, number, interface = payload
        try:
            value = load(copy, resolve)
        except Exception:
            if not fails_again(functools.partial(load, copy, resolve)):
                raise  # it is a signal handler's
            return self.handle(number, interface)
        self.unused.add(number)
        return value

    def call(
        self,
        target: int,
        op: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        beside: Collection[LeaseLike] = (),
    ) -> Answer:
        """A call that tells of unused numbers, too."""
        if not self.unused:
            return self.lease.call(target, op, args, kwargs, beside)
        unused, self.unused = self.unused, set()
        try:
            return self.lease.call(target, FORGET, (list(unused), op, args, kwargs), {}, beside)
        except BaseException:  # perhaps it never left; to tell it twice does no harm
            self.unused.update(unused.difference(self._handles))
            raise

    def call_packed(
        self,
        target: int,
        op: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        problem: Exception | None = None,
    ) -> Answer:
        """A call with handles in its arguments, or of which a plain pickle would not do."""
        beside: set[LeaseLike] = set()

        def reference_to(obj: Any) -> object:
            return self._reference_to(obj, beside) if is_handle(obj) else None

        def send(packed: str, arguments: tuple[Any, ...]) -> Answer:
            return self.call(target, packed, arguments, {}, beside)

        return send_packed(send, op, args, kwargs, reference_to, problem)

    def for_errors(self, value: Any) -> Any:
        """A value of an error that goes to an object: handles that can go there do so."""
        if is_handle(value):
            try:
                self._reference_to(value, set())
            except Exception as error:
                if is_handlers(error):
                    raise
            else:
                return AsIs(value)
        return value

    def _reference_to(self, handle: Handle, beside: set[LeaseLike]) -> object:
        if isinstance(handle, _IteratorHandle):
            handle._ahead.interrupt("the called function")
        family = handle._family
        if family is self:
            return handle._target
        why = self.lease.why_apart(family.lease)
        if why is not None:
            raise TypeError(why)
        beside.add(family.lease)
        return family.lease.id, handle._target


def needs_packing(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a plain pickle of arguments is not to be tried. Handles inside them are found by trying."""
    for arg in args:
        if arg is None or type(arg) is str or type(arg) is int:  # nearly always
            continue
        if isinstance(arg, Handle) or has_no_file():
            return True
    return bool(kwargs) and needs_packing(tuple(kwargs.values()), {})


def apply_to(handle: Any, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func(object, *args, **kwargs)` beside the object of a handle."""
    return Handle._call(handle, APPLY, (func, args, kwargs), {})


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
        try:
            if needs_packing(args, kwargs):
                status, payload = family.call_packed(self._target, op, args, kwargs)
            elif family.unused:
                status, payload = family.call(self._target, op, args, kwargs)
            else:
                status, payload = family.lease.call(self._target, op, args, kwargs)
        except (DoesNotPickle, RequestLost) as problem:
            status, payload = family.call_packed(self._target, op, args, kwargs, problem)
        return payload if status == VALUE else self._result(status, payload, args)

    def _raise_there(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the object with an error among the arguments, whatever that is."""
        family = self._family
        family.batch_size = 1
        sent = [
            ErrorCopy(each, family.for_errors) if isinstance(each, BaseException) else each for each in args
        ]
        answer = family.call_packed(self._target, RAISE, (op, sent, kwargs), {})
        return self._result(*answer, args)

    def _result(self, status: int, payload: Any, args: tuple[Any, ...]) -> Any:
        if status == VALUE:
            return payload
        if status == TARGET:
            return self
        if status == ECHO:
            return args[-1]
        if status == METHOD:
            return MethodType(_method(args[0]), self)
        if status == RAISED:
            raise args[payload]
        return self._family.rebuilt(status, payload)

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
            f"a handle of {self._interface.name!r} belongs to the process that acquired it: it travels only "
            "in arguments of its object's calls, and is not copied. Pass the pool, and acquire "
            "where it is needed"
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

    def _raise_there(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._ahead.before_call(op, args, kwargs)
        return super()._raise_there(op, args, kwargs)


_EQUALITY = frozenset({"__eq__", "__ne__"})


def _cannot_meet(one: Handle, other: Any) -> bool:
    """Whether the objects of two leases cannot be compared: then they are not the same."""
    if not isinstance(other, Handle) or other._family is one._family:
        return False
    return one._family.lease.why_apart(other._family.lease) is not None


def _operator(name: str) -> Callable[..., Any]:
    def operator(self: Handle, /, *others: Any) -> Any:
        if name in _EQUALITY and any(_cannot_meet(self, other) for other in others):
            return NotImplemented
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
    try:
        return self._raise_there("__exit__", (kind if error is None else None, error, None), {})
    except LeaseLost:
        if isinstance(error, PoolError):  # which tells more of the same
            return False
        raise


def _refuse_await(self: Handle, /, *_: Any) -> NoReturn:
    raise TypeError(
        f"a handle of {self._interface.name!r} cannot be awaited: it runs where its object lives, which has "
        "no event loop. Let a function run it there, with asyncio.run(): pool.apply(function)"
    )


def _throw(self: Handle, /, *args: Any, **kwargs: Any) -> Any:
    error = next((each for each in args if isinstance(each, BaseException)), None)
    if error is None:
        return self._call("throw", args, kwargs)
    if self._interface.iterator:  # a generator, which was given a type or a traceback, too
        args = (error,)
    return self._raise_there("throw", args, kwargs)


# Those that the handles of all interfaces share.
_PROTOCOL_METHODS: dict[str, Callable[..., Any]] = {
    **{name: _method(name) for name in PROTOCOLS},
    **{name: _operator(name) for name in COMPARISONS | OPERATORS | REFLECTED | INPLACE},
    **{name: _textual(name) for name in ("__repr__", "__str__")},
    **dict.fromkeys(ASYNCHRONOUS, _refuse_await),
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
        **{name: _throw if name == "throw" else _method(name) for name in interface.methods},
        **dict.fromkeys(interface.blocked),
        **{name: _PROTOCOL_METHODS[name] for name in interface.protocols - own},
        "__slots__": (),
        "__module__": __name__,
        "__class__": property(_known_class),
        "_interface": interface,
    }
    return type(f"Handle[{interface.name}]", (base,), namespace)
