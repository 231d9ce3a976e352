"""What a handle offers: all that a worker is told of an object, to build a handle from it."""

from __future__ import annotations

import functools
from types import BuiltinFunctionType, MethodWrapperType
from typing import Any, NamedTuple


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

AWAITED = {f"__{name}__": f"__a{name}__" for name in ("iter", "next", "enter", "exit")}
"""What an object with an event loop offers under the names that have no "a"."""
OF_GENERATORS = {"send": "asend", "throw": "athrow", "close": "aclose"}
"""The same for methods of asynchronous generators."""

SELF_DESCRIPTION = dunders("doc name qualname signature")
"""What tools ask of an object to describe it, and get though it is not public."""

OWN = dunders(
    "class new init del reduce reduce_ex getattribute getattr setattr delattr dir"
    " slots weakref module annotations annotate_func init_subclass subclasshook abstractmethods"
    # Has marks that are known by identity: of a copy, a dataclass seems to have no fields.
    " dataclass_fields"
    # What lies in the memory of another process.
    " array_interface array_struct cuda_array_interface dlpack dlpack_device buffer release_buffer"
    " arrow_c_schema arrow_c_array arrow_c_stream"
)
"""What is never the object's on a handle: how the handle itself is made, and what is of use at home only."""

SEQUENCE, MAPPING = "sequence", "mapping"
"""The patterns of `match` that look at the type: see `Interface.matches`."""

STREAM, CURSOR, ITEMS = "stream", "cursor", "items"
"""The kinds of iterators whose items can be fetched ahead: see `Interface.iterator`."""

ABSENT = object()
_NOT_CALLABLE_ITSELF = (classmethod, functools.partialmethod, functools.singledispatchmethod)


class Interface(NamedTuple):
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
    matches: str
    """Which patterns of `match` it is for: `SEQUENCE`, `MAPPING`, or else empty."""
    hashes_by_value: bool
    """Whether its hash is that of a value other than a number: it may differ from process to process."""
    insides: bool
    """Whether private names are offered, too."""
    methods: frozenset[str]
    """Methods that are called by their names."""
    protocols: frozenset[str]
    """Protocol methods: some of `PROTOCOLS`."""
    blocked: frozenset[str]
    """Protocol methods that the type declares as None, such as `__hash__` of a list."""
    attributes: frozenset[str]
    """Names known on the type, or in the object's `__dict__`, that are no methods."""
    openers: frozenset[str]
    """Methods that are no coroutine functions, of an object with an event loop: its users do not await them,
    and may use at once in `async for` or `async with` what they give."""

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
    return tuple(" ".join(sorted(each)) if isinstance(each, frozenset) else each for each in interface)


@functools.lru_cache(maxsize=1024)
def _unpack(
    module: str, qualname: str, iterator: str, matches: str, by_value: bool, insides: bool, *names: str
) -> Interface:
    """The interface that was packed; the very same object if it came before."""
    sets = (frozenset(each.split()) for each in names)
    return Interface(module, qualname, iterator, matches, by_value, insides, *sets)


def find(cls: type, name: str) -> Any:
    """What a type has under a name, or `ABSENT`: not bound, not evaluated, and not of the metaclass."""
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return ABSENT


def is_method(found: Any) -> bool:
    """Whether what a type has under a name is called by it. A cached_property is not, nor a nested class."""
    # As `inspect.isroutine` decides it, without a module that takes longer to import than all that a worker
    # needs of this package.
    if isinstance(found, (BuiltinFunctionType, MethodWrapperType)):
        return True
    kind = type(found)
    binds = hasattr(kind, "__get__") and not (hasattr(kind, "__set__") or hasattr(kind, "__delete__"))
    can_be_called = callable(found) or isinstance(found, _NOT_CALLABLE_ITSELF)
    return binds and can_be_called and not isinstance(found, type)
