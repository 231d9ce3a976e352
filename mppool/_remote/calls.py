"""Performing calls on a leased object. All of it runs where the object lives.

A call names its target by number: 0 is the pooled object, the others are results that stay here. What it can
ask for and answer stands in `opcodes.py`.
"""

from __future__ import annotations

import builtins
import inspect
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, Protocol, TypeVar

from mppool._wire.connection import Reducers, encode, is_large
from mppool.errors import LeaseError
from mppool.options import ALL, Exposed, refuse_awaitable

from .awaiting import ENTRANCES, Invoke, awaited_method, items_of
from .errors import cannot_unpickle, error_answer, failure, pack_error
from .inspection import data_names, goes_on_as, interface_for, interface_of
from .interface import (
    COMPARISONS,
    INPLACE,
    OF_GENERATORS,
    OPERATORS,
    OWN,
    REFLECTED,
    SELF_DESCRIPTION,
    Interface,
    dunders,
)
from .items import Batch, iterator_over
from .opcodes import (
    APPLY,
    AWAITED,
    BATCH,
    COPY,
    DEL,
    DIR,
    ECHO,
    FORGET,
    GET,
    KEEP,
    METHOD,
    MIXED,
    NEXT,
    PACKED,
    PARTS,
    RAISE,
    RAISED,
    REF,
    SET,
    TARGET,
    VALUE,
    Answer,
)
from .references import RequestLost, dump, load
from .results import Judge, Stays, has_parts, is_plain, is_value

R = TypeVar("R")


class Encode(Protocol):
    """Makes a frame for one connection. Raises what pickle raises."""

    def __call__(self, answer: Answer, reducers: Reducers | None = None, /) -> bytes: ...


Send = Callable[[bytes], object]
"""Answers the call that is running."""


class AnsweredBefore(Exception):
    """The call was answered while it went on."""


_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]


def _call(obj: Any, /, *args: Any, **kwargs: Any) -> Any:
    return obj(*args, **kwargs)


def _exit(obj: Any, kind: Any, error: Any, trace: None) -> Any:
    return type(obj).__exit__(obj, kind if error is None else type(error), error, trace)


def _reflected(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda obj, other, *more: function(other, obj, *more)


# Python's own functions perform operators, not calls of the method: so they look methods up on the
# type, try the other operand's, and fail with the words they always fail with.
_FUNCTIONS: dict[ModuleType, str] = {
    builtins: "bool bytes complex divmod float format hash int iter len next pow repr reversed round str",
    math: "ceil floor trunc",
    operator: "abs contains delitem getitem index invert length_hint neg pos setitem",
    os: "fspath",
}
_BY_NAME: dict[str, Callable[..., Any]] = {
    f"__{name}__": getattr(module, name) for module, names in _FUNCTIONS.items() for name in names.split()
}
_BY_NAME |= {name: getattr(operator, name) for name in COMPARISONS | INPLACE | OPERATORS - _BY_NAME.keys()}
_BY_NAME |= {name: _reflected(_BY_NAME["__" + name[3:]]) for name in REFLECTED}
_BY_NAME |= {"__call__": _call, "__exit__": _exit}
_AWAITED_BY_NAME = _BY_NAME | ENTRANCES

# Python insists on a plain str, int and so on from these, even where they return the object itself.
_COPIED = dunders(
    "abs array bool bytes ceil complex float floor format fspath hash index int len length_hint"
    " pos repr round str trunc"
)
_ATTRIBUTE_FUNCTIONS: dict[str, Callable[..., Any]] = {GET: getattr, SET: setattr, DEL: delattr}


class _Objects(dict[int, Any]):
    def __missing__(self, number: int) -> Any:
        raise LeaseError("what this handle stood for is not there any more")


class ObjectTable:
    """The objects of one lease; it dies with the lease.

    Calls arrive one at a time: their caller holds the object's lock.
    """

    __slots__ = (
        "_awaited",
        "_expose",
        "_has_returned_much",
        "_insides",
        "_interfaces",
        "_invoke",
        "_judge",
        "_last",
        "_numbers",
        "_objects",
        "_strict",
        "returned",
    )

    def __init__(
        self,
        obj: Any,
        expose: Exposed = None,
        keep: Iterable[type | str] = (),
        invoke: Invoke | None = None,
    ) -> None:
        """`invoke` runs what is called on the event loop of an object that has one."""
        self._expose = expose
        self._invoke = invoke
        self._strict = expose if isinstance(expose, frozenset) else None  # only these, of the pooled object
        self._insides = expose == ALL  # of results, too
        self._last = 0
        self._objects = _Objects({0: obj})
        self._interfaces = {0: interface_of(type(obj), expose, (), invoke is not None)}
        self._numbers = {id(obj): 0}
        self._awaited: dict[int, Answer] = {}  # what came of iterators behind a batch that was sent
        self._judge = Judge(obj, self._numbers, keep)
        self.returned: dict[Encode, Answer] = {}
        """By connection, the latest answer on it, if it may fail to be rebuilt there.

        Until the object is used again: to drop it at the end of the lease takes as long as a lease.
        """
        self._has_returned_much = False  # then it is dropped there

    @property
    def interface(self) -> Interface:
        """What is offered of the pooled object."""
        return interface_for(self._objects[0], self._expose, self._invoke is not None)

    def call(
        self,
        target: int,
        op: str,
        args: _Args,
        kwargs: _Kwargs,
        encode_for: Encode = encode,
        send: Send | None = None,
    ) -> Answer:
        """Perform a call. Errors of the object come out as they are.

        Raises `AttributeError` for a name that is not offered, and `AnsweredBefore` if it had to `send` the
        frame of an answer while it went on.
        """
        if op[0] not in "_#" or (self._insides and self._is_private(target, op)):
            obj = self._objects[target]
            if self._strict is not None and target == 0 and op not in self._strict:
                raise _not_offered(obj, op)
            if self._invoke is None:
                result = getattr(obj, op)(*args, **kwargs)
            else:
                result = self._await(op, awaited_method(obj, op), args, kwargs)
            if type(result) is object and args and result is args[-1]:
                return ECHO, None
            return self._answer(target, obj, result)
        if op[0] == "_":
            return self._protocol(target, op, args, kwargs)
        if op == NEXT:
            return self._next(target, encode_for, send, *args)
        if op == RAISE:
            return self._raise(target, *args)
        return self._attribute(target, op, args)

    def frame(self, encode_for: Encode, op: str, answer: Answer) -> bytes:
        """The frame of an answer, before another call can change what the object gave out."""
        status, payload = answer
        if payload is None or type(payload) is str or type(payload) is int:  # nearly always
            return encode_for(answer)
        if status == VALUE:
            can_stay = not self._judge.is_plain(payload) and op not in _COPIED
        else:
            can_stay = status == BATCH
        if not can_stay:
            return encode_for(answer)
        try:
            frame = self.copy(encode_for, answer)
        except Exception:  # something in it is to stay, or does not pickle
            return encode_for(self._without_copy(answer))
        if self._judge.is_in_doubt:
            self.returned[encode_for] = answer
            self._has_returned_much |= is_large(frame)
        return frame

    def forget_returned(self, encode_for: Encode) -> None:
        """A further call came on this connection: the answer before it could be rebuilt."""
        self.returned.pop(encode_for, None)
        self._has_returned_much &= bool(self.returned)

    def copy(self, encode_for: Callable[[Answer, Reducers], R], answer: Answer) -> R:
        """The frame of an answer that is copied as a whole. Raises what pickle raises, and `Stays`."""
        status, payload = answer
        result = payload if status == VALUE else payload[0]
        if id(result) in self._numbers or self._judge.finds(result):
            raise Stays(result)
        self._judge.begin()
        return encode_for(answer, self._judge)

    def keep(self, encode_for: Encode) -> Answer:
        """What to answer instead of the last answer on this connection, which cannot be rebuilt there."""
        if encode_for not in self.returned:
            raise LeaseError("this result is not there any more")
        status, payload = self.returned.pop(encode_for)
        if status == VALUE:
            return self._ref(payload)
        items, end, error = payload
        return MIXED, ([self._copy_or_ref(item) for item in items], end, error)

    def _copy_or_ref(self, item: Any) -> Answer:
        if is_value(item):
            return VALUE, item
        return COPY, (dump(item, lambda _: None, self._judge), *self._ref(item)[1])

    def _without_copy(self, answer: Answer) -> Answer:
        """What to answer instead of an answer of which something stays here, or does not pickle."""
        status, payload = answer
        if status == VALUE:  # which was tried as a whole
            return self._part(payload) if has_parts(payload) else self._ref(payload)
        items, end, error = payload
        return MIXED, ([self._part(item) for item in items], end if self._judge.crosses(end) else (), error)

    def _part(self, value: Any) -> Answer:
        if is_value(value):
            return VALUE, value
        staying = self._judge.staying(value)
        if id(value) in staying:
            return self._ref(value)

        def reference_to(obj: Any) -> object:
            return self._ref(obj)[1] if id(obj) in staying else None

        self._judge.begin()
        try:
            packed = dump(value, reference_to, self._judge)
        except Exception:  # too deep, say
            return self._ref(value)
        return (COPY, (packed, *self._ref(value)[1])) if self._judge.is_in_doubt else (PARTS, packed)

    def crosses(self, value: Any) -> bool:
        """Whether an error may bring a copy of this: nothing in it is to stay here, and it pickles."""
        return not self._judge.staying(value)

    def __bool__(self) -> bool:
        """Whether there is anything beyond the pooled object itself that is not to outlive the lease."""
        return len(self._objects) > 1 or bool(self._awaited) or self._has_returned_much

    def clear(self) -> None:
        """Let go of everything: the lease is over."""
        self._objects.clear()
        self._awaited.clear()
        self.returned.clear()

    def _ref(self, result: Any) -> Answer:
        number = self._numbers.get(id(result))
        if number is None:
            refuse_awaitable(result, "this gives")
            self._last = number = self._last + 1
            self._objects[number] = result
            insides: Exposed = ALL if self._insides else None
            self._interfaces[number] = interface_for(result, insides, self._invoke is not None)
            self._numbers[id(result)] = number
            self._judge.look_at(result)
        return REF, (number, self._interfaces[number])

    def _is_private(self, target: int, op: str) -> bool:
        """Whether this is a method that Python itself never calls, though its name begins with "_"."""
        return op[0] == "_" and op not in self._interfaces[target].protocols

    def _protocol(self, target: int, op: str, args: _Args, kwargs: _Kwargs) -> Answer:
        obj = self._offering(target, op)
        # Called as Python does: the type's method, whatever the object has under the name.
        if self._invoke is None:
            perform = _BY_NAME.get(op) or getattr(type(obj), op)
            result = perform(obj, *args, **kwargs)
        else:
            perform = _AWAITED_BY_NAME.get(op) or getattr(type(obj), op)
            result = self._await(op, perform, (obj, *args), kwargs)
        if op in _COPIED:
            return VALUE, result
        if op == "__iter__" and goes_on_as(result, obj, self._interfaces[target].iterator):
            return TARGET, target
        if op in ("__iter__", "__reversed__") and result is not obj:
            return self._ref(result)  # also where it pickles: its place is beside the object
        return self._answer(target, obj, result)

    def _await(self, op: str, function: Callable[..., Any], args: _Args, kwargs: _Kwargs) -> Any:
        """Call a function on the object's event loop, which awaits what it gives."""
        assert self._invoke is not None
        try:
            return self._invoke(function, *args, **kwargs)
        except StopAsyncIteration as stop:
            if op == "__next__" or op in OF_GENERATORS:
                raise StopIteration(*stop.args) from None
            raise

    def _offering(self, target: int, op: str) -> Any:
        """The object, if it offers this protocol method."""
        obj = self._objects[target]
        if op not in self._interfaces[target].protocols:
            raise _not_offered(obj, op)
        return obj

    def _answer(self, target: int, obj: Any, result: Any) -> Answer:
        if result is obj:
            return TARGET, target
        return self._ref(result) if id(result) in self._numbers else (VALUE, result)

    def _attribute(self, target: int, op: str, args: _Args) -> Answer:
        obj = self._objects[target]
        if op == DIR:
            names = [name for name in data_names(obj) if type(name) is str]
            return VALUE, [name for name in names if self._offers(target, name)]
        name = args[0]
        if not self._offers(target, name):
            raise _not_offered(obj, name)
        result: Any
        if name == "__signature__":
            result = _signature(obj)
        elif self._invoke is None:
            result = _ATTRIBUTE_FUNCTIONS[op](obj, *args)
        else:
            result = self._await(op, _ATTRIBUTE_FUNCTIONS[op], (obj, *args), {})
        # A copy of a bound method would bring a copy of its object, and act on that.
        return (METHOD, None) if inspect.isroutine(result) else self._answer(target, obj, result)

    def _offers(self, target: int, name: str) -> bool:
        """Whether an attribute may be used."""
        if name[:1] == "_" and (name in OWN if self._insides else name not in SELF_DESCRIPTION):
            return False
        return self._strict is None or target != 0 or name in self._strict

    def _next(
        self, target: int, encode_for: Encode, send: Send | None, size: int, anew: bool = False
    ) -> Answer:
        obj = self._offering(target, "__next__")
        came = self._awaited.pop(target, None)
        if came is not None and not anew:
            return came

        def send_now(items: list[Any]) -> None:
            assert send is not None
            try:
                reply = self.frame(encode_for, NEXT, (BATCH, (items, AWAITED, None)))
            except BaseException as error:  # of an item's own code
                reply = failure(error)
            send(reply)

        batch = Batch(None if send is None else send_now)
        kind = self._interfaces[target].iterator
        batch.take(
            iterator_over(obj, kind) if self._invoke is None else items_of(obj, kind, self._invoke), size
        )
        error = None if batch.error is None else pack_error(batch.error)
        answer = BATCH, (batch.items[batch.sent :], batch.end, error)
        if batch.sent:
            self._awaited[target] = answer
            raise AnsweredBefore
        return answer

    def _raise(self, target: int, op: str, args: _Args, kwargs: _Kwargs) -> Answer:
        try:
            return self.call(target, op, args, kwargs)
        except BaseException as error:
            for place, arg in enumerate(args):
                if arg is error:
                    return RAISED, place
            raise

    def forget(self, numbers: list[int]) -> None:
        """Let go of what has no handle any more."""
        for number in numbers:
            self._awaited.pop(number, None)
            if number in self._objects:
                del self._numbers[id(self._objects.pop(number))], self._interfaces[number]

    def object(self, number: int) -> Any:
        """What a handle stands for. `LeaseError` if it is not there any more."""
        return self._objects[number]


def _not_offered(obj: Any, name: str) -> AttributeError:
    return AttributeError(f"{type(obj).__qualname__!r} object offers no {name!r} through its pool")


def _signature(obj: Any) -> inspect.Signature:
    """What `inspect.signature` looks for: without it, it would see that of the handle's own `__call__`."""
    try:
        return inspect.signature(obj)
    except (TypeError, ValueError) as error:
        raise AttributeError(str(error)) from None


# What a call comes to, as a frame for its caller.


class Place(Protocol):
    """Where an object can be touched, during a call."""

    object: Any
    has_loop: bool

    def invoke(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function on the object's event loop, if it has one, and await what it gives."""

    @property
    def leftovers(self) -> ObjectTable:
        """What the calls of its lease left."""


def perform(
    encode_for: Encode,
    send: Send | None,
    target: int,
    op: str,
    args: _Args,
    kwargs: _Kwargs,
    place: Place,
    beside: Mapping[int, Place] = MappingProxyType({}),
) -> bytes | None:
    """Perform a call, and make the frame of its answer. All that it raises ends here.

    None: it had to `send` its answer while it went on.
    `beside` has the places of other leases, by their ids, of which objects are among the arguments.
    """
    try:
        if op[0] == "#":
            if op == FORGET:
                numbers, op, args, kwargs = args
                place.leftovers.forget(numbers)
            if op == PACKED:
                op, args, kwargs = _unpack(place, beside, *args)
            if op == APPLY:
                return _apply(encode_for, place, *args)
            if op == KEEP:
                return encode_for(place.leftovers.keep(encode_for))
        table = place.leftovers
        if table.returned:
            table.forget_returned(encode_for)
        return table.frame(encode_for, op, table.call(target, op, args, kwargs, encode_for, send))
    except AnsweredBefore:
        return None
    except BaseException as error:
        return encode(error_of(error, place))


def error_of(error: BaseException, place: Place) -> Answer:
    """The answer that raises what a call raised: of what belongs to the object it tells the repr."""
    try:
        crosses = place.leftovers.crosses
    except BaseException:  # the type of the object is beyond us
        return error_answer(error, place.object)
    return error_answer(error, place.object, crosses)


def _unpack(place: Place, beside: Mapping[int, Place], op: str, *packed: Any) -> tuple[str, _Args, _Kwargs]:
    def resolve(reference: Any) -> Any:
        if type(reference) is int:
            return place.leftovers.object(reference)
        lease_id, number = reference
        return beside[lease_id].leftovers.object(number)

    try:
        args, kwargs = load(packed, resolve)
    except LeaseError:
        raise
    except BaseException as error:  # as for any request
        text = cannot_unpickle("the request cannot be rebuilt where the object lives", error)
        raise RequestLost(text) from error
    return op, args, kwargs


def _apply(encode_for: Encode, place: Place, func: Callable[..., Any], args: _Args, kwargs: _Kwargs) -> bytes:
    return brought(encode_for, place, func, called(place, func, *args, **kwargs))


def called(place: Place, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a function returns that is called beside the object; on the event loop of that, if it has one."""
    if place.has_loop:
        return place.invoke(func, place.object, *args, **kwargs)
    return func(place.object, *args, **kwargs)


def brought(encode_for: Callable[..., R], place: Place, func: Callable[..., Any], result: object) -> R:
    """A result of a function that was called beside the object, encoded. `TypeError` if it is to stay."""
    if is_plain(result) and (result is not place.object or is_value(result)):
        return encode_for((VALUE, result))
    refuse_awaitable(result, f"{func!r} returned")
    try:
        return place.leftovers.copy(encode_for, (VALUE, result))
    except Stays:
        text = "is, or refers to, what stays with the object, so apply() cannot bring it"
        advice = "return plain data, or acquire the object and have it called through its handle"
        raise TypeError(f"what {func!r} returned {text}: {advice}") from None
    except Exception as error:
        text = f"what {func!r} returned does not pickle, so apply() cannot bring it: {error}"
        raise TypeError(text) from error
