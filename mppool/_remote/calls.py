"""Performing calls on a leased object. All of it runs where the object lives.

A call names its target by number: 0 is the pooled object, the others are results that could not
travel and stay here. What it answers is a status and a payload.
"""

from __future__ import annotations

import inspect
import math
import operator
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mppool.errors import LeaseError

from .interface import COMPARISONS, INPLACE, OPERATORS, REFLECTED, Interface, interface_of

VALUE = 0
"""Payload: the result itself, to be copied."""
SAME = 1
"""The result is the target itself. Payload: its number."""
FURTHER = 2
"""Payload: number and shape of a result that stays in the manager, new or known."""
BATCH = 3
"""Payload: the next items of an iterator; then None, or the arguments of its `StopIteration`."""
MIXED = 4
"""Payload: as `BATCH`, each item an answer of its own (`VALUE` or `FURTHER`)."""
METHOD = 5
"""The attribute that was asked for is to be called where it is, under its name."""
ECHO = 6
"""The result is the last argument: a sentinel such as `object()`, which no copy can stand for."""

# What a call can ask for besides methods. No identifier has a "#".
GET = "#get"
SET = "#set"
DELETE = "#del"
NEXT = "#next"
"""The next items: how many at most, and whether the iterator was set anew since the last ones."""
APPLY = "#apply"
"""A function to be called with the object: (func, args, kwargs). Its result is copied, or an error."""
WITH = "#with"
"""Another call that comes with news: (numbers no longer used, op, args, kwargs), both with `ObjectRef`s."""

BATCH_SECONDS = 0.005
"""A batch takes no new item after this time: the first ones have waited long enough."""

Answer = tuple[int, Any]
_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """Stands in the arguments of a call for an object that is kept here."""

    number: int


def _call(obj: Any, /, *args: Any, **kwargs: Any) -> Any:
    return obj(*args, **kwargs)


def _reflected(name: str) -> Callable[[Any, Any], Any]:
    function = _BY_NAME["__" + name[3:]]
    return lambda obj, *others: function(others[0], obj, *others[1:])


# Operators are performed by Python's own functions, not by calling the method: so they look methods
# up on the type, try the other operand's, and fail with the words they always fail with.
_BY_NAME: dict[str, Callable[..., Any]] = {
    "__bool__": bool,
    "__bytes__": bytes,
    "__call__": _call,
    "__ceil__": math.ceil,
    "__complex__": complex,
    "__divmod__": divmod,
    "__float__": float,
    "__floor__": math.floor,
    "__format__": format,
    "__fspath__": os.fspath,
    "__hash__": hash,
    "__int__": int,
    "__iter__": iter,
    "__len__": len,
    "__length_hint__": operator.length_hint,
    "__pow__": pow,
    "__repr__": repr,
    "__reversed__": reversed,
    "__round__": round,
    "__str__": str,
    "__trunc__": math.trunc,
}
for _name in {
    *COMPARISONS,
    *OPERATORS.difference(_BY_NAME),
    *INPLACE,
    *("__contains__", "__getitem__", "__setitem__", "__delitem__"),
    *("__abs__", "__neg__", "__pos__", "__invert__", "__index__"),
}:
    _BY_NAME[_name] = getattr(operator, _name)
for _name in REFLECTED:
    _BY_NAME[_name] = _reflected(_name)
del _name

# Python insists on a plain str, int and so on from these, even where they return the object itself.
_COPIED = frozenset(
    f"__{name}__"
    for name in (
        "abs array bool bytes ceil complex float floor format fspath hash index int len length_hint"
        " pos repr round str trunc"
    ).split()
)
_ITERATIONS = frozenset({"__iter__", "__reversed__"})


class _Objects(dict[int, Any]):
    def __missing__(self, number: int) -> Any:
        raise LeaseError("what this handle stood for is not kept any more")


class ObjectTable:
    """The objects of one lease; it dies with the lease.

    Calls arrive one at a time: whoever calls holds the object's lock.
    """

    __slots__ = ("_errors", "_expose", "_last", "_numbers", "_objects", "_root", "_shapes")

    def __init__(self, obj: Any, expose: frozenset[str] | None = None) -> None:
        self._root = obj
        self._expose = expose
        self._last = 0
        self._objects = _Objects({0: obj})
        self._shapes = {0: interface_of(type(obj), expose)}
        self._numbers = {id(obj): 0}
        self._errors: dict[int, Exception] = {}  # an iterator's, behind the items before it

    @property
    def shape(self) -> Interface:
        """What is offered of the pooled object."""
        return self._shapes[0]

    def call(self, target: int, op: str, args: _Args, kwargs: _Kwargs) -> Answer:
        """Perform a call. Errors of the object come out as they are.

        Raises `AttributeError` for a name that is not offered.
        """
        if op[0] == "_":
            return self._special(target, op, args, kwargs)
        if op[0] == "#":
            return _PSEUDO[op](self, target, *args)
        obj = self._objects[target]
        if target == 0 and self._expose is not None and op not in self._expose:
            raise _not_offered(obj, op)
        result = getattr(obj, op)(*args, **kwargs)
        if result is obj:
            return SAME, target
        if result is self._root:
            return self._keep(result)
        if type(result) is object and args and result is args[-1]:
            return ECHO, None
        return VALUE, result

    def further(self, answer: Answer) -> Answer:
        """What to answer instead of an answer that does not pickle: what is in it stays here."""
        status, payload = answer
        if status != BATCH:
            return self._keep(payload)
        items, end = payload
        parcels = [(VALUE, item) if _pickles(item) else self._keep(item) for item in items]
        return MIXED, (parcels, end if _pickles(end) else ())

    def __bool__(self) -> bool:
        """Whether anything is kept beyond the pooled object itself."""
        return len(self._objects) > 1

    def clear(self) -> None:
        """Let go of everything: the lease is over."""
        self._root = None
        for kept in (self._errors, self._objects, self._shapes, self._numbers):
            kept.clear()

    def _keep(self, result: Any) -> Answer:
        number = self._numbers.get(id(result))
        if number is None:
            self._last = number = self._last + 1
            self._objects[number] = result
            self._shapes[number] = interface_of(type(result))
            self._numbers[id(result)] = number
        return FURTHER, (number, self._shapes[number])

    def _special(self, target: int, op: str, args: _Args, kwargs: _Kwargs) -> Answer:
        obj = self._objects[target]
        if op not in self._shapes[target].specials:
            raise _not_offered(obj, op)
        perform = _BY_NAME.get(op)
        result = perform(obj, *args, **kwargs) if perform else _by_type(obj, op, args, kwargs)
        if op in _COPIED:
            return VALUE, result
        if op in _ITERATIONS and result is not obj:
            return self._keep(result)  # also where it pickles: its place is beside the object
        return self._answer(target, result)

    def _answer(self, target: int, result: Any) -> Answer:
        if result is self._objects[target]:
            return SAME, target
        return self._keep(result) if result is self._root else (VALUE, result)

    def _public(self, target: int, name: str) -> Any:
        """The object, if it offers this attribute."""
        obj = self._objects[target]
        exposed = target != 0 or self._expose is None or name in self._expose
        if name.startswith("_") or not exposed:
            raise _not_offered(obj, name)
        return obj

    def _get(self, target: int, name: str) -> Answer:
        result = getattr(self._public(target, name), name)
        # A copy of a bound method would bring a copy of its object, and act on that.
        return (METHOD, None) if inspect.isroutine(result) else self._answer(target, result)

    def _set(self, target: int, name: str, value: Any) -> Answer:
        setattr(self._public(target, name), name, value)
        return VALUE, None

    def _delete(self, target: int, name: str) -> Answer:
        delattr(self._public(target, name), name)
        return VALUE, None

    def _next(self, target: int, size: int, anew: bool) -> Answer:
        obj = self._objects[target]
        if "__next__" not in self._shapes[target].specials:
            raise _not_offered(obj, "__next__")
        error = self._errors.pop(target, None)
        if error is not None and not anew:
            raise error
        items: list[Any] = []
        try:
            return BATCH, (items, _take(obj, size, items))
        except Exception as error:
            if not items:
                raise
            self._errors[target] = error
            return BATCH, (items, None)

    def _apply(self, target: int, func: Callable[..., Any], args: _Args, kwargs: _Kwargs) -> Answer:
        return VALUE, func(self._objects[target], *args, **kwargs)

    def _with(self, target: int, unused: list[int], op: str, args: _Args, kwargs: _Kwargs) -> Answer:
        for number in unused:
            self._drop(number)
        args = tuple(map(self._resolve, args))
        return self.call(target, op, args, {k: self._resolve(v) for k, v in kwargs.items()})

    def _drop(self, number: int) -> None:
        if number in self._objects:
            del self._numbers[id(self._objects.pop(number))], self._shapes[number]
            self._errors.pop(number, None)

    def _resolve(self, arg: Any) -> Any:
        return self._objects[arg.number] if type(arg) is ObjectRef else arg


_PSEUDO: dict[str, Callable[..., Answer]] = {
    GET: ObjectTable._get,
    SET: ObjectTable._set,
    DELETE: ObjectTable._delete,
    NEXT: ObjectTable._next,
    APPLY: ObjectTable._apply,
    WITH: ObjectTable._with,
}


def _take(iterator: Any, size: int, items: list[Any]) -> _Args | None:
    """Append the next items; None, or the arguments of `StopIteration` if there are no more."""
    began = time.monotonic()
    while len(items) < size:
        try:
            items.append(next(iterator))
        except StopIteration as stop:
            return stop.args
        if time.monotonic() - began > BATCH_SECONDS:
            break
    return None


def _by_type(obj: Any, op: str, args: _Args, kwargs: _Kwargs) -> Any:
    """Call a protocol method as Python does: the type's, whatever the object has under the name."""
    return getattr(type(obj), op)(obj, *args, **kwargs)


def _pickles(item: Any) -> bool:
    try:
        pickle.dumps(item, 5)
    except Exception:
        return False
    return True


def _not_offered(obj: Any, name: str) -> AttributeError:
    return AttributeError(f"{type(obj).__qualname__!r} object offers no {name!r} through its pool")
