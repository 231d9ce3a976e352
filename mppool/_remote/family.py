"""What handles have in common, whether threads use them or the tasks of an event loop.

What a call comes to is decided here, in steps; each kind of handle drives them in its own way.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol, SupportsIndex, cast

from mppool._wire.signals import is_handlers
from mppool.errors import LeaseLost, PoolError

from .arguments import has_no_file, send_packed
from .errors import AsIs, ErrorCopy, PackedError
from .interface import OWN, Interface, find, is_method
from .iteration import LARGEST_BATCH, ReadAhead
from .opcodes import (
    AWAITED,
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
    End,
)
from .references import DoesNotPickle, RequestLost, fails_again, load
from .steps import Steps


class AnyLease(Protocol):
    """A lease as a handle sees it, whatever waits for the answers of its calls."""

    @property
    def ended(self) -> bool:
        """Whether it was released here, or known to be lost."""

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
        beside: Collection[AnyLease] = (),
    ) -> Any:
        """Have `perform` run where the object lives, and those of other leases. Raises what it answers.

        Its answer, or what is awaited for that. `DoesNotPickle` before anything was sent, `RequestLost` if it
        could not be rebuilt there.
        """

    def why_apart(self, other: AnyLease) -> str | None:
        """Why the object of another lease cannot be used in a call on this one; None if it can.

        `LeaseError` if that lease is over.
        """

    def leave_call(self) -> None:
        """The last call is answered and goes on: what is asked next must not wait behind it."""


class HandleRef(weakref.ref["AnyHandle"]):
    """Knows the number of its handle. `weakref.KeyedRef` would take a microsecond more of each acquire."""

    __slots__ = ("number",)

    number: int


class LeaseHandles:
    """The handles of one lease, a family: one for each object that lives by it."""

    __slots__ = ("_class_for", "_fetched_from", "_handles", "batch_size", "lease", "unused")

    def __init__(self, lease: AnyLease, class_for: Callable[[Interface], type[AnyHandle]]) -> None:
        self.lease: AnyLease = lease
        self._class_for = class_for
        self.batch_size: int = 1
        """Of the next items that are fetched: it grows until the lease is used for something else."""
        self._fetched_from = -1
        self.unused: set[int] = set()
        """Of handles that were collected; told with the next call."""
        self._handles: dict[int, HandleRef] = {}

    def first(self, kind: type[AnyHandle]) -> AnyHandle:
        """The handle, of this class, for the object of the lease, which has none yet."""
        handle = kind(self, 0)
        ref = self._handles[0] = HandleRef(handle, self._forget)
        ref.number = 0
        return handle

    def handle(self, number: int, interface: Interface) -> AnyHandle:
        """The handle for a target, if it lives, or a new one."""
        while True:
            known = self._handles.get(number)
            if known is not None:
                handle = known()
                if handle is not None:
                    return handle
                self._forget(known)
            handle = self._class_for(interface)(self, number)
            ref = HandleRef(handle, self._forget)
            ref.number = number
            self.unused.discard(number)
            # Of two threads that get one object at the same time, the second takes the first one's handle.
            if self._handles.setdefault(number, ref) is ref:
                return handle

    def _forget(self, ref: weakref.ref[AnyHandle]) -> None:
        # Runs wherever the last reference goes, a garbage collection included: no I/O, no lock.
        number = cast(HandleRef, ref).number
        if self._handles.get(number) is ref:
            self._handles.pop(number, None)
            if number:
                self.unused.add(number)

    def fetch(self, target: int, first: bool) -> Steps[tuple[list[Any], End, PackedError | None]]:
        """The next items of an iterator, and what is behind them."""
        # For an iterator the use of another one is something else, too.
        size = 1 if first or target != self._fetched_from else self.batch_size
        self._fetched_from = target
        status, (items, end, error) = yield from self.call(target, NEXT, (size, first), {})
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

        def resolve(reference: tuple[int, Interface]) -> AnyHandle:
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

    def ask(self, target: int, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps[Answer]:
        """A call as it comes: plain, if that does, else with packed arguments."""
        self.batch_size = 1
        problem = None
        if not needs_packing(args, kwargs):
            try:
                return (yield from self.call(target, op, args, kwargs))
            except (DoesNotPickle, RequestLost) as error:
                problem = error
        return (yield from self.call_packed(target, op, args, kwargs, problem))

    def call(
        self,
        target: int,
        op: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        beside: Collection[AnyLease] = (),
    ) -> Steps[Answer]:
        """A call that tells of unused numbers, too."""
        call = self.lease.call
        if not self.unused:
            answer: Answer = yield functools.partial(call, target, op, args, kwargs, beside)
            return answer
        unused, self.unused = self.unused, set()
        try:
            with_news = (list(unused), op, args, kwargs)
            answer = yield functools.partial(call, target, FORGET, with_news, {}, beside)
        except BaseException:  # perhaps it never left; to tell it twice does no harm
            self.unused.update(unused.difference(self._handles))
            raise
        return answer

    def call_packed(
        self,
        target: int,
        op: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        problem: Exception | None = None,
    ) -> Steps[Answer]:
        """A call with handles in its arguments, or of which a plain pickle would not do."""
        beside: set[AnyLease] = set()
        iterators: set[ReadAhead] = set()

        def reference_to(obj: Any) -> object:
            return self._reference_to(obj, beside, iterators) if is_handle(obj) else None

        def send(packed: str, arguments: tuple[Any, ...]) -> Steps[Answer]:
            for ahead in iterators:
                yield from ahead.interrupt("the called function")
            return (yield from self.call(target, packed, arguments, {}, beside))

        return (yield from send_packed(send, op, args, kwargs, reference_to, problem))

    def for_errors(self, value: Any) -> Any:
        """A value of an error that goes to an object: handles that can go there do so."""
        if is_handle(value):
            iterators: set[ReadAhead] = set()
            try:
                self._reference_to(value, set(), iterators)
            except Exception as error:
                if is_handlers(error):
                    raise
            else:
                return value if any(each.holds_back for each in iterators) else AsIs(value)
        return value

    def _reference_to(self, handle: AnyHandle, beside: set[AnyLease], iterators: set[ReadAhead]) -> object:
        family = handle._mppool_family
        if isinstance(handle, AnyIteratorHandle):
            if family._class_for is not self._class_for and handle._mppool_ahead.is_awaited:
                text = "waits for its next item in its own way: take that before it is an argument here"
                raise RuntimeError(f"{handle!r} {text}")
            iterators.add(handle._mppool_ahead)
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
        if issubclass(type(arg), AnyHandle) or has_no_file():  # `isinstance` would ask it for its class
            return True
    return bool(kwargs) and needs_packing(tuple(kwargs.values()), {})


class AnyHandle:
    """What all handles have in common; `make_class` adds what the object offers."""

    __slots__ = ("__weakref__", "_mppool_elsewhere", "_mppool_family", "_mppool_target")

    if TYPE_CHECKING:  # else it would have `__annotations__` of its own
        _mppool_elsewhere: Any  # stays empty
        _mppool_family: LeaseHandles
        _mppool_target: int
        _mppool_interface: ClassVar[Interface]

    _mppool_kind = "handle"

    def __init__(self, family: LeaseHandles, target: int) -> None:
        object.__setattr__(self, "_mppool_family", family)
        object.__setattr__(self, "_mppool_target", target)

    def _mppool_method(self, name: str) -> Callable[..., Any]:
        """The method of the object that has this name."""
        raise NotImplementedError

    def _mppool_steps(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps[Any]:
        """Call the object: what every method of a handle does."""
        answer = yield from self._mppool_family.ask(self._mppool_target, op, args, kwargs)
        return self._mppool_result(*answer, args)

    def _mppool_raise_there(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps[Answer]:
        """Call the object with an error among the arguments, whatever that is."""
        family = self._mppool_family
        family.batch_size = 1
        sent = [
            ErrorCopy(each, family.for_errors) if isinstance(each, BaseException) else each for each in args
        ]
        return (yield from family.call_packed(self._mppool_target, RAISE, (op, sent, kwargs), {}))

    def _mppool_exit(self, kind: Any, error: Any) -> Steps[Any]:
        """Leave a `with` block on the object."""
        args = (kind if error is None else None, error, None)
        try:
            answer = yield from self._mppool_raise_there("__exit__", args, {})
        except LeaseLost:
            if isinstance(error, PoolError):  # which tells more of the same
                return False
            raise
        return False if answer[0] == RAISED else self._mppool_result(*answer, args)

    def _mppool_throw(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps[Any]:
        """Call a method that raises what it is given: `throw`."""
        error = next((each for each in args if isinstance(each, BaseException)), None)
        if error is None:
            return (yield from self._mppool_steps(op, args, kwargs))
        if self._mppool_interface.iterator:  # a generator, which was given a type or a traceback, too
            args = (error,)
        answer = yield from self._mppool_raise_there(op, args, kwargs)
        return self._mppool_result(*answer, args)

    def _mppool_result(self, status: int, payload: Any, args: tuple[Any, ...]) -> Any:
        if status == VALUE:
            return payload
        if status == TARGET:
            return self
        if status == ECHO:
            return args[-1]
        if status == METHOD:
            return self._mppool_method(args[0])
        if status == RAISED:
            raise args[payload]
        return self._mppool_family.rebuilt(status, payload)

    def _mppool_refuse(self, name: str, also: Collection[str] = ()) -> None:
        """Raise `AttributeError` for a name that no handle of the object offers, but for these.

        Here and not where the object lives: many a tool looks for its own names on every object.
        """
        interface = self._mppool_interface
        if name[:1] == "_" and (name in OWN if interface.insides else name not in also):
            raise AttributeError(f"{interface.qualname!r} object offers no {name!r} through its pool")

    def __repr__(self) -> str:
        ended = "released " if self._mppool_family.lease.ended else ""
        return f"<{ended}{self._mppool_kind} of {self._mppool_interface.name!r}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"a handle of {self._mppool_interface.name!r} belongs to the process that acquired it: it "
            "travels only in arguments of its object's calls, and is not copied. Pass the pool, and acquire "
            "where it is needed"
        )


class AnyIteratorHandle(AnyHandle):
    """A handle of an iterator: all that take items share what is ahead."""

    __slots__ = ("_mppool_ahead",)

    if TYPE_CHECKING:
        _mppool_ahead: ReadAhead
        _mppool_reader: ClassVar[type[ReadAhead]]

    _mppool_reader = ReadAhead

    def __init__(self, family: LeaseHandles, target: int) -> None:
        super().__init__(family, target)
        fetch = functools.partial(family.fetch, target)
        ahead = self._mppool_reader(self._mppool_interface.iterator, fetch)
        object.__setattr__(self, "_mppool_ahead", ahead)

    def _mppool_steps(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps[Any]:
        ahead = self._mppool_ahead
        if op in (GET, SET, DEL):
            if op != GET:
                yield from ahead.on_attribute(args[0])
            result = yield from super()._mppool_steps(op, args, kwargs)
            yield from ahead.on_attribute(args[0])  # only now: a name that is not there would miss nothing
            return result
        go_on = yield from ahead.before_call(op, args, kwargs)
        if go_on is not None:
            return (yield from go_on(ahead, functools.partial(self._mppool_steps, GET), *args, **kwargs))
        result = yield from super()._mppool_steps(op, args, kwargs)
        return result + len(ahead.items) if op == "__length_hint__" else result

    def _mppool_raise_there(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps[Answer]:
        yield from self._mppool_ahead.before_call(op, args, kwargs)
        return (yield from super()._mppool_raise_there(op, args, kwargs))


def lease_of(handle: object) -> AnyLease:
    """The lease that a handle lives by. `TypeError` if it is no handle."""
    if not isinstance(handle, AnyHandle):
        raise TypeError(f"not a handle of a pool: {handle!r}")
    return handle._mppool_family.lease


def is_handle(obj: object) -> bool:
    """Whether this is a handle. Asks nothing of the object itself."""
    return issubclass(type(obj), AnyHandle)


def refuse_await(self: AnyHandle, /, *_: Any) -> NoReturn:
    """What is asynchronous, on a handle of an object that is not."""
    raise TypeError(
        f"a handle of {self._mppool_interface.name!r} cannot be awaited: its object has no event loop. Make "
        "the factory a coroutine function (`async def`), and it gets one, with isolation='thread' or "
        "'process'; or let a function run it there, with asyncio.run(): pool.apply(function)"
    )


# -- classes ------------------------------------------------------------------------------------------


def make_class(
    interface: Interface,
    bases: Iterable[type[AnyHandle]],
    method: Callable[[str], Callable[..., Any]],
    protocols: dict[str, Any],
) -> type[AnyHandle]:
    """The class of all handles of a kind with an interface; its methods are plain functions: a call is short.

    `method` makes those that the interface names, `protocols` are there besides.
    """
    known = _known_class(interface)
    elsewhere = vars(AnyHandle)["_mppool_elsewhere"]
    namespace = {
        # Found by tools that evaluate nothing (`inspect.getattr_static`), and empty where one is evaluated:
        # then Python goes on to `__getattr__`, which asks the object.
        **dict.fromkeys({"__doc__", *interface.attributes} - {"__qualname__"}, elsewhere),
        **{name: _described(method(name), name, known) for name in interface.methods},
        **protocols,
        "__slots__": (),
        "__module__": interface.module,
        "__class__": property(_class_of_object),
        "_mppool_interface": interface,
    }
    name = interface.qualname if interface.insides else f"Handle[{interface.name}]"
    return type(name, tuple(bases), namespace)


def _known_class(interface: Interface) -> type | None:
    """The class of the object, if it is known in this process."""
    found: Any = sys.modules.get(interface.module)
    for part in interface.qualname.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None


def _class_of_object(self: AnyHandle) -> type:
    """Makes `isinstance(handle, Session)` true where Session is known: in code that asks, it is."""
    return _known_class(self._mppool_interface) or type(self)


THROWS = frozenset({"throw", "athrow"})
"""Methods of generators that raise what they are given."""


def _described(method: Callable[..., Any], name: str, known: type | None) -> Callable[..., Any]:
    """A method whose `__doc__` and signature are what the class says, if that is known here."""
    found: Any = None if known is None else find(known, name)
    if known is None or name in THROWS or not is_method(found):
        return method
    if isinstance(found, (functools.partialmethod, functools.singledispatchmethod)):
        found = found.__get__(None, known)
    function = getattr(found, "__func__", found)
    # All that this copies by default takes four times as long, half a millisecond for some types.
    functools.update_wrapper(method, function, ("__doc__", "__qualname__"), ())
    method.__module__ = getattr(function, "__module__", known.__module__)
    if isinstance(found, staticmethod):
        import inspect  # noqa: PLC0415  # takes long, and few classes have static methods

        with suppress(TypeError, ValueError):  # C code may not tell
            signature = inspect.signature(found)
            bound = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
            described: Any = method
            described.__signature__ = signature.replace(parameters=[bound, *signature.parameters.values()])
    return method
