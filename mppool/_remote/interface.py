"""What of an object is offered to its callers, read from its type alone.

Worked out where the object lives, and sent to the worker, which builds a handle from it. No attribute
of the object itself is evaluated, so no property runs before a caller asks for it.
"""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from types import ClassMethodDescriptorType, GeneratorType
from typing import Any


def dunders(names: str, before: str = "") -> frozenset[str]:
    """The full names of protocol methods, given as one text without their underscores."""
    return frozenset(f"__{before}{name}__" for name in names.split())


_IN_PLACE = "add sub mul matmul truediv floordiv mod pow lshift rshift and xor or"

COMPARISONS = dunders("lt le eq ne gt ge")
"""The six rich comparisons."""
OPERATORS = dunders(_IN_PLACE + " divmod")
"""Arithmetic with the object on the left."""
REFLECTED = dunders(_IN_PLACE + " divmod", before="r")
"""Arithmetic with the object on the right."""
INPLACE = dunders(_IN_PLACE, before="i")
"""Arithmetic in place: `+=` and its like."""

ASYNCHRONOUS = dunders("await aiter anext aenter aexit")
"""What needs the event loop of the caller. Handles have them to say so."""

PROTOCOLS = COMPARISONS.union(
    *(OPERATORS, REFLECTED, INPLACE, ASYNCHRONOUS),
    dunders("len length_hint contains getitem setitem delitem missing"),
    dunders("iter next reversed hash bool call enter exit"),
    dunders("index int float complex round trunc floor ceil"),
    dunders("abs neg pos invert repr str format bytes fspath array"),
)
"""Every protocol method a handle can offer."""

STREAM, CURSOR, ITEMS = "stream", "cursor", "items"
"""The kinds of iterators whose items can be fetched ahead: see `Interface.iterator`."""

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
_NOT_CALLABLE_ITSELF = (classmethod, functools.partialmethod, functools.singledispatchmethod)
_ABSENT = object()

_STREAMS = frozenset(
    "_io._IOBase codecs.StreamReader codecs.StreamReaderWriter codecs.StreamRecoder"
    " tempfile.SpooledTemporaryFile tempfile._TemporaryFileWrapper".split()
)
_CURSOR_METHODS = frozenset("close execute executemany fetchone fetchmany fetchall".split())
"""What PEP 249 demands of every cursor. The attributes it demands may be the instance's: not seen here."""
_GENERATOR_METHODS = frozenset({"send", "throw"})
_GENERATOR_NAMES = frozenset(name for name in dir(GeneratorType) if name[0] != "_")
"""All that a generator offers: newer Pythons add to it."""
_ITEMS_PROTOCOLS = _ALWAYS | {"__iter__", "__next__", "__length_hint__", "__enter__", "__exit__"}


@dataclass(frozen=True, slots=True)
class Interface:
    """What a handle offers. Equal interfaces make handles of one class."""

    module: str
    """The type's module and qualified name."""
    qualname: str
    iterator: str
    """What the object is, if its items can be fetched ahead; else empty.

    `STREAM`: an `io` stream, or what `codecs` and `tempfile` wrap one in. `CURSOR`: a cursor of the DB
    API, which is any iterable with all of the methods that PEP 249 demands. Their methods say in which
    order they and iteration take from one source. `ITEMS`: a generator, or an iterator that offers nothing
    else. Any other object that is its own iterator is asked for each item alone, since its other methods
    may depend on how many were taken.
    """
    hashes_by_value: bool
    """Whether its hash is that of a value other than a number: it may differ from process to process."""
    methods: frozenset[str]
    """Public methods."""
    protocols: frozenset[str]
    """Protocol methods: some of `PROTOCOLS`."""
    blocked: frozenset[str]
    """Protocol methods that the type declares as None, such as `__hash__` of a list."""
    attributes: frozenset[str]
    """Public names known on the type that are no methods."""

    @property
    def name(self) -> str:
        """The type's name, for people."""
        return self.qualname if self.module == "builtins" else f"{self.module}.{self.qualname}"

    def __hash__(self) -> int:
        # Nearly as telling as all the names together, and computed for each handle that is made.
        return hash(self.qualname)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, _packed(self)


@functools.lru_cache(maxsize=1024)
def _packed(interface: Interface) -> tuple[Any, ...]:
    """Its fields in a form that pickles fast: the names of a set are one text."""
    values = astuple(interface)
    return tuple(" ".join(sorted(each)) if isinstance(each, frozenset) else each for each in values)


@functools.lru_cache(maxsize=1024)
def _unpack(module: str, qualname: str, iterator: str, by_value: bool, *names: str) -> Interface:
    """The interface that was packed; the very same object if it came before."""
    return Interface(module, qualname, iterator, by_value, *(frozenset(each.split()) for each in names))


def interface_of(cls: type, expose: frozenset[str] | None = None) -> Interface:
    """What is offered of the objects of a type. Runs where they live.

    `expose` is a strict list of the names that are offered, protocol methods included; None offers
    all public names and all protocol methods. Other names with an underscore in front are never
    offered.
    """
    try:
        return _read(cls, expose)
    except TypeError:  # a class whose metaclass has __eq__ and no __hash__
        return _read.__wrapped__(cls, expose)


@functools.lru_cache(maxsize=1024)
def _read(cls: type, expose: frozenset[str] | None) -> Interface:
    names = {name for base in cls.__mro__ for name in vars(base)} if expose is None else expose
    public = frozenset(name for name in names if name[:1] != "_" and name.isidentifier())
    methods = frozenset(name for name in public if _is_method(_find(cls, name)))
    protocols = frozenset(_protocols(cls))
    if expose is None:
        absent = {name for name in _IMPLIED if _find(cls, name) is _ABSENT}
        protocols |= {name for name in absent if protocols.issuperset(_IMPLIED[name])}
    else:
        protocols &= expose
    iterator = _iterator(cls, public, protocols)
    if iterator:  # some streams and cursors have only an `__iter__`, which goes on where the last one stopped
        protocols |= {"__next__"}
    blocked = frozenset(name for name in PROTOCOLS if _find(cls, name) is None)
    by_value = _hashes_by_value(cls, protocols)
    return Interface(
        cls.__module__, cls.__qualname__, iterator, by_value, methods, protocols, blocked, public - methods
    )


def _find(cls: type, name: str) -> Any:
    """What a type has under a name: not bound, not evaluated, and not of the metaclass."""
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return _ABSENT


def _is_method(found: Any) -> bool:
    # A cached_property looks like a method to `isroutine`, and a nested class can be called.
    return (callable(found) or isinstance(found, _NOT_CALLABLE_ITSELF)) and inspect.isroutine(found)


def _protocols(cls: type) -> Iterable[str]:
    """The protocol methods that a type has of its own, and not from `object`."""
    for name in PROTOCOLS:
        found = _find(cls, name)
        if found is None or found is _ABSENT:
            continue
        if name in _ALWAYS or found is not vars(object).get(name):
            yield name
        elif name == "__hash__" and _find(cls, "__eq__") is not object.__eq__:
            yield name  # two handles can be equal, then their hashes must be


def _iterator(cls: type, public: frozenset[str], protocols: frozenset[str]) -> str:
    """See `Interface.iterator`."""
    if "__next__" in protocols or ("__iter__" in protocols and _find(cls, "__next__") is _ABSENT):
        if not _STREAMS.isdisjoint(f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__):
            return STREAM
        if all(_is_method(_find(cls, name)) for name in _CURSOR_METHODS):
            return CURSOR
    known = protocols - ASYNCHRONOUS <= _ITEMS_PROTOCOLS and _find(cls, "__getattr__") is _ABSENT
    if "__next__" not in protocols or not known:
        return ""
    others = {name for name in public if not isinstance(_find(cls, name), _UNBOUND)} - {"close"}
    return "" if others and not _GENERATOR_METHODS <= others <= _GENERATOR_NAMES else ITEMS


def _hashes_by_value(cls: type, protocols: frozenset[str]) -> bool:
    if not protocols >= {"__eq__", "__hash__"} or _find(cls, "__hash__") is object.__hash__:
        return False
    try:
        return not issubclass(cls, numbers.Number)
    except TypeError:  # a class that does not hash, as in `interface_of`
        return True
