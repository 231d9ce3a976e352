"""What of an object is offered to its callers, read from its type and the names in its `__dict__`.

Runs where the object lives. No attribute of the object itself is evaluated, so no property runs before a
caller asks for it.
"""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Iterable, Mapping, Sequence
from types import (
    AsyncGeneratorType,
    ClassMethodDescriptorType,
    GeneratorType,
    GetSetDescriptorType,
    MemberDescriptorType,
)
from typing import Any

from mppool.options import ALL, Exposed

from .interface import (
    ABSENT,
    ASYNCHRONOUS,
    AWAITED,
    CURSOR,
    ITEMS,
    MAPPING,
    OF_GENERATORS,
    OWN,
    PROTOCOLS,
    SEQUENCE,
    STREAM,
    Interface,
    find,
    is_method,
)

_NO_PATTERN = (str, bytes, bytearray)  # though they are sequences

# What Python does for a type that lacks the one but has the others. Done beside the object it costs
# one round trip, done by the worker's interpreter one for each item. `[1] + handle` has no other way:
# a list knows how to be added to a list, but has no `__radd__` for it.
_IMPLIED = {
    "__iter__": ("__getitem__",),
    "__reversed__": ("__getitem__", "__len__"),
    "__radd__": ("__add__",),
}
_ALWAYS = frozenset({"__repr__", "__str__"})
_UNBOUND = (classmethod, staticmethod, ClassMethodDescriptorType)
_MOST_DATA = 256
"""Names in a `__dict__`: with more of them it is a store rather than attributes."""

_STREAMS = frozenset(
    "_io._IOBase codecs.StreamReader codecs.StreamReaderWriter codecs.StreamRecoder"
    " tempfile.SpooledTemporaryFile tempfile._TemporaryFileWrapper".split()
)
_CURSOR_METHODS = frozenset("close execute executemany fetchone fetchmany fetchall".split())
"""What PEP 249 demands of every cursor. The attributes it demands may be the instance's: not seen here."""
_GENERATOR_METHODS = (frozenset({"send", "throw"}), frozenset({"asend", "athrow"}))
_GENERATOR_NAMES = frozenset(
    name for name in (*dir(GeneratorType), *dir(AsyncGeneratorType)) if name[0] != "_"
)
"""All that a generator offers: newer Pythons add to it."""
_ITEMS_PROTOCOLS = _ALWAYS | {"__iter__", "__next__", "__length_hint__", "__enter__", "__exit__"}


def interface_for(obj: object, expose: Exposed = None, has_loop: bool = False) -> Interface:
    """What is offered of an object."""
    data = data_names(obj)
    return interface_of(type(obj), expose, data if len(data) <= _MOST_DATA else (), has_loop)


def interface_of(
    cls: type, expose: Exposed = None, data: tuple[str, ...] = (), has_loop: bool = False
) -> Interface:
    """What is offered of the objects of a type that have these names in their `__dict__`.

    `expose` is a strict list of the names that are offered, protocol methods included; None offers
    all public names and all protocol methods, `ALL` other names with an underscore in front, too. Where the
    object `has_loop`, an event loop, asynchronous protocols are offered under the names of the others.
    """
    try:
        return _read(cls, expose, data, has_loop)
    except TypeError:  # a class whose metaclass has __eq__ and no __hash__
        return _read.__wrapped__(cls, expose, data, has_loop)


def data_names(obj: object) -> tuple[str, ...]:
    """The names in an object's `__dict__`, unless that is one of its own making."""
    cls: Any = type(obj)
    try:
        found = _dict_of(cls)
    except TypeError:  # as above
        found = _dict_of.__wrapped__(cls)
    return () if found is None else tuple(found.__get__(obj))


@functools.lru_cache(maxsize=1024)
def _dict_of(cls: type) -> Any:
    found = find(cls, "__dict__")
    return found if isinstance(found, (GetSetDescriptorType, MemberDescriptorType)) else None


@functools.lru_cache(maxsize=1024)
def _read(cls: type, expose: Exposed, data: tuple[str, ...], has_loop: bool) -> Interface:
    def offered(name: str) -> bool:
        private = name[:1] == "_"
        return name.isidentifier() and (not private or (expose == ALL and name not in OWN | PROTOCOLS))

    strict = expose if isinstance(expose, frozenset) else None
    of_type = {name for base in cls.__mro__ for name in vars(base)} if strict is None else strict
    of_object = {name for name in data if type(name) is str} if strict is None else ()
    named = frozenset(filter(offered, of_type))
    methods = frozenset(name for name in named if is_method(find(cls, name)))
    protocols = frozenset(_protocols(cls))
    if has_loop:
        protocols = _as_synchronous(protocols) - ASYNCHRONOUS
        if cls is AsyncGeneratorType:
            methods = methods.union(OF_GENERATORS)
    if strict is None:
        absent = {name for name in _IMPLIED if find(cls, name) is ABSENT}
        protocols |= {name for name in absent if protocols.issuperset(_IMPLIED[name])}
    else:
        protocols &= _as_synchronous(strict) if has_loop else strict
    public = frozenset(name for name in named if name[:1] != "_")
    iterator = _iterator(cls, public, protocols)
    if iterator:  # some streams and cursors have only an `__iter__`, which goes on where the last one stopped
        protocols |= {"__next__"}
    return Interface(
        cls.__module__,
        cls.__qualname__,
        iterator,
        _matches(cls, named, protocols),
        _hashes_by_value(cls, protocols),
        expose == ALL,
        methods,
        protocols,
        blocked=frozenset(name for name in PROTOCOLS if find(cls, name) is None),
        attributes=named.union(filter(offered, of_object)) - methods,
        openers=frozenset(name for name in methods if has_loop and not _is_awaited(find(cls, name))),
    )


def _is_awaited(found: Any) -> bool:
    return inspect.iscoroutinefunction(getattr(found, "__func__", found))


def _protocols(cls: type) -> Iterable[str]:
    """The protocol methods that a type has of its own, and not from `object`."""
    for name in PROTOCOLS:
        found = find(cls, name)
        if found is None or found is ABSENT:
            continue
        if name in _ALWAYS or found is not vars(object).get(name):
            yield name
        elif name == "__hash__" and find(cls, "__eq__") is not object.__eq__:
            yield name  # two handles can be equal, then their hashes must be


def _as_synchronous(protocols: frozenset[str]) -> frozenset[str]:
    return protocols.union(name for name, awaited in AWAITED.items() if awaited in protocols)


def _iterator(cls: type, public: frozenset[str], protocols: frozenset[str]) -> str:
    """See `Interface.iterator`."""
    if "__next__" in protocols or ("__iter__" in protocols and find(cls, "__next__") is ABSENT):
        if not _STREAMS.isdisjoint(f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__):
            return STREAM
        if all(is_method(find(cls, name)) for name in _CURSOR_METHODS):
            return CURSOR
    known = protocols - ASYNCHRONOUS <= _ITEMS_PROTOCOLS and find(cls, "__getattr__") is ABSENT
    if "__next__" not in protocols or not known:
        return ""
    others = {name for name in public if not isinstance(find(cls, name), _UNBOUND)} - {"close", "aclose"}
    is_generator = others <= _GENERATOR_NAMES and any(each <= others for each in _GENERATOR_METHODS)
    return "" if others and not is_generator else ITEMS


def goes_on_as(iterator: Any, obj: Any, kind: str) -> bool:
    """Whether an iterator over a stream or cursor goes on where that stops, and the other way round."""
    if not hasattr(type(obj), "__next__"):
        return kind in (STREAM, CURSOR)
    return kind == STREAM == interface_of(type(iterator)).iterator  # a `SpooledTemporaryFile` gives its file


def _matches(cls: type, named: frozenset[str], protocols: frozenset[str]) -> str:
    """See `Interface.matches`. Through a strict list not all that a pattern asks for may be offered."""
    if not protocols >= {"__len__", "__getitem__"} or _is_a(cls, _NO_PATTERN):
        return ""
    if _is_a(cls, Mapping):
        return MAPPING if "get" in named else ""
    return SEQUENCE if _is_a(cls, Sequence) else ""


def _hashes_by_value(cls: type, protocols: frozenset[str]) -> bool:
    if not protocols >= {"__eq__", "__hash__"} or find(cls, "__hash__") is object.__hash__:
        return False
    return not _is_a(cls, numbers.Number)


def _is_a(cls: type, kind: Any) -> bool:
    try:
        return issubclass(cls, kind)
    except TypeError:  # a class that does not hash, as in `interface_of`
        return False
