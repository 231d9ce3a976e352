"""Handles: what stands in a worker process for an object in the manager process.

A handle is only the object: every public name, operator and protocol on it is the object's own, and with
`expose="all"` every private one. So what the pool needs bears names that no object has.
"""

from __future__ import annotations

import functools
import inspect
import sys
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol, SupportsIndex, cast

from mppool._wire.signals import is_handlers
from mppool.errors import LeaseLost, PoolError, RemoteError

from .arguments import has_no_file, send_packed
from .errors import AsIs, ErrorCopy, PackedError
from .interface import (
    ASYNCHRONOUS,
    COMPARISONS,
    INPLACE,
    OPERATORS,
    OWN,
    PROTOCOLS,
    REFLECTED,
    SELF_DESCRIPTION,
    SEQUENCE,
    Interface,
    find,
    is_method,
)
from .iteration import AWAITED, LARGEST_BATCH, End, ReadAhead
from .opcodes import (
    APPLY,
    COPY,
    DEL,
    DIR,
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
    return handle._mppool_family.lease


def is_handle(obj: object) -> bool:
    """Whether this is a handle. Asks nothing of the object itself."""
    return issubclass(type(obj), Handle)


class HandleRef(weakref.ref["Handle"]):
    """Knows the number of its handle. `weakref.KeyedRef` would take a microsecond more of each acquire."""

    __slots__ = ("number",)

    number: int


class LeaseHandles:
    """The handles of one lease, a family: one for each object that lives by it."""

    __slots__ = ("_fetched_from", "_handles", "batch_size", "lease", "unused")

    def __init__(self, lease: LeaseLike) -> None:
        self.lease = lease
        self.batch_size = 1
        """Of the next items that are fetched: it grows until the lease is used for something else."""
        self._fetched_from = -1
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
        # For an iterator the use of another one is something else, too.
        size = 1 if first or target != self._fetched_from else self.batch_size
        self._fetched_from = target
        status, (items, end, error) = self.call(target, NEXT, (size, first), {})
        if end is AWAITED:
            self.lease.leave_call()
        # Fewer than asked for: the iterator is slow, and the first items must not wait for the others.
        self.batch_size = 1 if len(items) < size else min(4 * size, LARGEST_BATCH)
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
            handle._mppool_ahead.interrupt("the called function")
        family = handle._mppool_family
        if family is self:
            return handle._mppool_target
        why = self.lease.why_apart(family.lease)
        if why is not None:
            raise TypeError(why)
        beside.add(family.lease)
        return family.lease.id, handle._mppool_target


def needs_packing(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a plain pickle of arguments is not to be tried. Handles inside them are found by trying."""
    for arg in args:
        if arg is None or type(arg) is str or type(arg) is int:  # nearly always
            continue
        if issubclass(type(arg), Handle) or has_no_file():  # `isinstance` would ask it for its class
            return True
    return bool(kwargs) and needs_packing(tuple(kwargs.values()), {})


def apply_to(handle: Any, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func(object, *args, **kwargs)` beside the object of a handle."""
    return Handle._mppool_call(handle, APPLY, (func, args, kwargs), {})


def _method(name: str) -> Callable[..., Any]:
    def method(self: Handle, /, *args: Any, **kwargs: Any) -> Any:
        return self._mppool_call(name, args, kwargs)

    method.__name__ = name
    return method


class Handle:
    """What all handles have in common; `_class_for` adds what the object offers."""

    __slots__ = ("__weakref__", "_mppool_elsewhere", "_mppool_family", "_mppool_target")

    if TYPE_CHECKING:  # else it would have `__annotations__` of its own
        _mppool_elsewhere: Any  # stays empty
        _mppool_family: LeaseHandles
        _mppool_target: int
        _mppool_interface: ClassVar[Interface]

    def __init__(self, family: LeaseHandles, target: int) -> None:
        object.__setattr__(self, "_mppool_family", family)
        object.__setattr__(self, "_mppool_target", target)

    def _mppool_call(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the object: what every method of a handle does."""
        family = self._mppool_family
        family.batch_size = 1
        try:
            if needs_packing(args, kwargs):
                status, payload = family.call_packed(self._mppool_target, op, args, kwargs)
            elif family.unused:
                status, payload = family.call(self._mppool_target, op, args, kwargs)
            else:
                status, payload = family.lease.call(self._mppool_target, op, args, kwargs)
        except (DoesNotPickle, RequestLost) as problem:
            status, payload = family.call_packed(self._mppool_target, op, args, kwargs, problem)
        return payload if status == VALUE else self._mppool_result(status, payload, args)

    def _mppool_raise_there(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the object with an error among the arguments, whatever that is."""
        family = self._mppool_family
        family.batch_size = 1
        sent = [
            ErrorCopy(each, family.for_errors) if isinstance(each, BaseException) else each for each in args
        ]
        answer = family.call_packed(self._mppool_target, RAISE, (op, sent, kwargs), {})
        return self._mppool_result(*answer, args)

    def _mppool_result(self, status: int, payload: Any, args: tuple[Any, ...]) -> Any:
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
        return self._mppool_family.rebuilt(status, payload)

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

    def __repr__(self) -> str:
        ended = "released " if self._mppool_family.lease.ended else ""
        return f"<{ended}handle of {self._mppool_interface.name!r}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"a handle of {self._mppool_interface.name!r} belongs to the process that acquired it: it "
            "travels only in arguments of its object's calls, and is not copied. Pass the pool, and acquire "
            "where it is needed"
        )

    def _mppool_attribute(self, op: str, name: str, *value: Any) -> Any:
        # Refused here and not where the object lives: many a tool looks for its own names on every object.
        interface = self._mppool_interface
        if name[:1] == "_" and (name in OWN if interface.insides else name not in SELF_DESCRIPTION):
            raise AttributeError(f"{interface.qualname!r} object offers no {name!r} through its pool")
        return self._mppool_call(op, (name, *value), {})


class _IteratorHandle(Handle):
    """A handle of an iterator: `next` and every `for` share what is ahead."""

    __slots__ = ("_mppool_ahead",)

    if TYPE_CHECKING:
        _mppool_ahead: ReadAhead

    def __init__(self, family: LeaseHandles, target: int) -> None:
        super().__init__(family, target)
        ahead = ReadAhead(self._mppool_interface.iterator, functools.partial(family.fetch, target))
        object.__setattr__(self, "_mppool_ahead", ahead)

    def __next__(self) -> Any:
        return self._mppool_ahead.next()

    def _mppool_call(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ahead = self._mppool_ahead
        if op in (GET, SET, DEL):
            if op != GET:
                ahead.on_attribute(args[0])
            result = super()._mppool_call(op, args, kwargs)
            ahead.on_attribute(args[0])  # only now: a name that is not there would miss nothing
            return result
        go_on = ahead.before_call(op, args, kwargs)
        if go_on is not None:
            return go_on(self, *args, **kwargs)
        result = super()._mppool_call(op, args, kwargs)
        return result + len(ahead.items) if op == "__length_hint__" else result

    def _mppool_raise_there(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._mppool_ahead.before_call(op, args, kwargs)
        return super()._mppool_raise_there(op, args, kwargs)


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
    if self._mppool_interface.hashes_by_value and not self._mppool_family.lease.same_hashes:
        raise TypeError(
            f"unhashable handle of {self._mppool_interface.name!r}: it compares by value, and this process "
            "hashes strings differently from the process where it lives (PYTHONHASHSEED)"
        )
    return self._mppool_call("__hash__", (), {})


def _exit(self: Handle, kind: Any, error: Any, _: object, /) -> Any:
    try:
        return self._mppool_raise_there("__exit__", (kind if error is None else None, error, None), {})
    except LeaseLost:
        if isinstance(error, PoolError):  # which tells more of the same
            return False
        raise


def _refuse_await(self: Handle, /, *_: Any) -> NoReturn:
    raise TypeError(
        f"a handle of {self._mppool_interface.name!r} cannot be awaited: it runs where its object lives, "
        "which has no event loop. Let a function run it there, with asyncio.run(): pool.apply(function)"
    )


def _throw(self: Handle, /, *args: Any, **kwargs: Any) -> Any:
    error = next((each for each in args if isinstance(each, BaseException)), None)
    if error is None:
        return self._mppool_call("throw", args, kwargs)
    if self._mppool_interface.iterator:  # a generator, which was given a type or a traceback, too
        args = (error,)
    return self._mppool_raise_there("throw", args, kwargs)


# Those that the handles of all interfaces share.
_PROTOCOL_METHODS: dict[str, Callable[..., Any]] = {
    **{name: _method(name) for name in PROTOCOLS},
    **{name: _operator(name) for name in COMPARISONS | OPERATORS | REFLECTED | INPLACE},
    **{name: _textual(name) for name in ("__repr__", "__str__")},
    **dict.fromkeys(ASYNCHRONOUS, _refuse_await),
    "__hash__": _hash,
    "__exit__": _exit,
}


def _known_class(interface: Interface) -> type | None:
    """The class of the object, if it is known in this process."""
    found: Any = sys.modules.get(interface.module)
    for part in interface.qualname.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None


def _class_of_object(self: Handle) -> type:
    """Makes `isinstance(handle, Session)` true where Session is known: in code that asks, it is."""
    return _known_class(self._mppool_interface) or type(self)


def _named_method(name: str, known: type | None) -> Callable[..., Any]:
    """A method whose `__doc__` and signature are what the class says, if that is known here."""
    method: Any = _throw if name == "throw" else _method(name)
    found: Any = None if known is None else find(known, name)
    if known is None or method is _throw or not is_method(found):
        return cast("Callable[..., Any]", method)
    if isinstance(found, (functools.partialmethod, functools.singledispatchmethod)):
        found = found.__get__(None, known)
    function = getattr(found, "__func__", found)
    # All that this copies by default takes four times as long, half a millisecond for some types.
    functools.update_wrapper(method, function, ("__doc__", "__qualname__"), ())
    method.__module__ = getattr(function, "__module__", known.__module__)
    if isinstance(found, staticmethod):
        with suppress(TypeError, ValueError):  # C code may not tell
            signature = inspect.signature(found)
            bound = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
            method.__signature__ = signature.replace(parameters=[bound, *signature.parameters.values()])
    return cast("Callable[..., Any]", method)


@functools.lru_cache(maxsize=1024)
def _class_for(interface: Interface) -> type[Handle]:
    """The class of all handles with an interface; its methods are plain functions, so a call is short."""
    bases: list[type[Handle]] = [_IteratorHandle] if interface.iterator else []
    if interface.matches:
        bases.append(_SequenceHandle if interface.matches == SEQUENCE else _MappingHandle)
    known = _known_class(interface)
    own = {"__next__"} if interface.iterator else set()
    elsewhere = vars(Handle)["_mppool_elsewhere"]
    namespace = {
        # Found by tools that evaluate nothing (`inspect.getattr_static`), and empty where one is evaluated:
        # then Python goes on to `__getattr__`, which asks the object.
        **dict.fromkeys({"__doc__", *interface.attributes} - {"__qualname__"}, elsewhere),
        **{name: _named_method(name, known) for name in interface.methods},
        **dict.fromkeys(interface.blocked),
        **{name: _PROTOCOL_METHODS[name] for name in interface.protocols - own},
        "__slots__": (),
        "__module__": interface.module,
        "__class__": property(_class_of_object),
        "_mppool_interface": interface,
    }
    name = interface.qualname if interface.insides else f"Handle[{interface.name}]"
    return type(name, tuple(bases) or (Handle,), namespace)
