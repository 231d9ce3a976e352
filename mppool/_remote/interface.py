"""What of an object is offered to its callers, read from its type alone.

Worked out in the manager process, sent to the worker, which builds a handle from it. No attribute of
the object itself is ever evaluated, so that no property runs before somebody asks for it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

_ARITHMETIC = "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and xor or".split()

COMPARISONS = frozenset(f"__{name}__" for name in "lt le eq ne gt ge".split())
"""The six rich comparisons."""
OPERATORS = frozenset(f"__{name}__" for name in _ARITHMETIC)
"""Arithmetic with the object on the left."""
REFLECTED = frozenset(f"__r{name}__" for name in _ARITHMETIC)
"""Arithmetic with the object on the right."""
INPLACE = frozenset(f"__i{name}__" for name in _ARITHMETIC if name != "divmod")
"""Arithmetic in place: `+=` and its like."""

SPECIALS = COMPARISONS.union(
    OPERATORS,
    REFLECTED,
    INPLACE,
    (f"__{name}__" for name in "len length_hint contains getitem setitem delitem missing".split()),
    (f"__{name}__" for name in "iter next reversed hash bool call enter exit".split()),
    (f"__{name}__" for name in "index int float complex round trunc floor ceil".split()),
    (f"__{name}__" for name in "abs neg pos invert repr str format bytes fspath array".split()),
)
"""Every protocol method a handle can offer. Those of asyncio are not among them."""

# What Python does for a type that lacks the one but has the others. Done beside the object it costs
# one round trip, done by the worker's interpreter one for each item. `[1] + handle` has no other way:
# a list knows how to be added to a list, but has no `__radd__` for it.
_IMPLIED = {
    "__iter__": ("__getitem__",),
    "__reversed__": ("__getitem__", "__len__"),
    "__radd__": ("__add__",),
}
_ALWAYS = frozenset({"__repr__", "__str__"})
_NOT_CALLABLE_ITSELF = (classmethod, functools.partialmethod, functools.singledispatchmethod)
_ABSENT = object()

P = ParamSpec("P")
R = TypeVar("R")


def _remembered(function: Callable[P, R]) -> Callable[P, R]:
    remembered = functools.lru_cache(maxsize=1024)(function)

    @functools.wraps(function)
    def recall(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return remembered(*args, **kwargs)  # type: ignore[arg-type]  # classes, to mypy, do not hash
        except TypeError:  # a class whose metaclass has __eq__ and no __hash__
            return function(*args, **kwargs)

    return recall


@dataclass(frozen=True, slots=True)
class Interface:
    """What a handle offers. Equal shapes make handles of one class."""

    module: str
    """The type's module and qualified name."""
    qualname: str
    methods: frozenset[str]
    """Public methods."""
    specials: frozenset[str]
    """Protocol methods: some of `SPECIALS`."""
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
        names = (self.methods, self.specials, self.blocked, self.attributes)
        return _unpack, (self.module, self.qualname, *(" ".join(sorted(some)) for some in names))


@_remembered
def _unpack(module: str, qualname: str, *names: str) -> Interface:
    """The shape that was pickled; the very same object if it came before."""
    methods, specials, blocked, attributes = (frozenset(some.split()) for some in names)
    return Interface(module, qualname, methods, specials, blocked, attributes)


@_remembered
def interface_of(cls: type, expose: frozenset[str] | None = None) -> Interface:
    """What is offered of the objects of a type. Runs in the manager process.

    `expose` is a strict list of the names that are offered, protocol methods included; None offers
    all public names and all protocol methods. Other names with an underscore in front are never
    offered.
    """
    public = _public(_names(cls) if expose is None else expose)
    methods = frozenset(name for name in public if _is_method(_find(cls, name)))
    specials = frozenset(_specials(cls))
    if expose is None:
        specials |= _implied(cls, specials)
    else:
        specials &= expose
    blocked = frozenset(name for name in SPECIALS if _find(cls, name) is None)
    return Interface(cls.__module__, cls.__qualname__, methods, specials, blocked, public - methods)


def _names(cls: type) -> Iterable[str]:
    """All names known on a type."""
    return {name for base in cls.__mro__ for name in vars(base)}


def _public(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in names if name[:1] != "_" and name.isidentifier())


def _find(cls: type, name: str) -> Any:
    """What a type has under a name: not bound, not evaluated, and not of the metaclass."""
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return _ABSENT


def _is_method(found: Any) -> bool:
    # A cached_property looks like a method to `isroutine`, and a nested class can be called.
    return (callable(found) or isinstance(found, _NOT_CALLABLE_ITSELF)) and inspect.isroutine(found)


def _specials(cls: type) -> Iterable[str]:
    """The protocol methods that a type has of its own, and not from `object`."""
    for name in SPECIALS:
        found = _find(cls, name)
        if found is None or found is _ABSENT:
            continue
        if name in _ALWAYS or found is not vars(object).get(name):
            yield name
        elif name == "__hash__" and _find(cls, "__eq__") is not object.__eq__:
            yield name  # two handles can be equal, then their hashes must be


def _implied(cls: type, specials: frozenset[str]) -> frozenset[str]:
    return frozenset(
        name
        for name, needed in _IMPLIED.items()
        if specials.issuperset(needed) and _find(cls, name) is _ABSENT
    )
