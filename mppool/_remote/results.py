"""Which results are copied, and which stay beside the object. All of it runs where the object lives.

A result belongs to the object if its pickle reaches that, or anything else that stays. This is seen while it
is pickled: of whatever is no builtin value or container the pickler asks here how it is to be pickled.
"""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Callable, Iterable, KeysView, Mapping
from operator import methodcaller
from types import BuiltinMethodType, MethodDescriptorType, MethodType, NoneType
from typing import Any, NoReturn, cast
from weakref import ProxyTypes

from mppool._validation import resolve

from .forms import Reduce, RowType, form_of, is_named_tuple
from .interface import Interface

PLAIN = frozenset({NoneType, bool, int, float, complex, str, bytes})
"""Exact types of values that refer to nothing."""

_SHORT = 16
"""Elements of a row that are looked at one by one: with more of them the pickler takes less time for it."""

_ELEMENTS: dict[type, Callable[[Any], Iterable[Any]]] = {
    **dict.fromkeys((list, tuple, set, frozenset), iter),
    dict: lambda each: (*each, *each.values()),
}
"""Of the containers that are copied whatever is in them."""

_MUTABLE = frozenset({list, dict, set, bytearray})
"""Builtin types of objects to lend, of which picklers do not ask how they are pickled."""

_BUILTIN = frozenset({bytearray, *_ELEMENTS})
"""Of which picklers do not ask, either, and which can be kept."""

_LEAVES = frozenset(
    "decimal.Decimal datetime.date datetime.datetime datetime.time datetime.timedelta numpy.ndarray".split()
)
"""Further types of values, most of them: their modules are not imported for this."""

_MOST_TYPES = 1000
"""Which a judge remembers: some are made at run time, again and again."""

_as_it_says = methodcaller("__reduce_ex__", 5)


class Stays(Exception):
    """Raised while a result is pickled that is to stay: it is, or refers to, this."""


def kept_types(keep: Iterable[type | str]) -> tuple[type, ...]:
    """The types of the option `keep`, of which some may be import strings.

    Raises `TypeError` for what is no type, `ValueError`, and what an import raises.
    """
    found = [resolve(each) for each in keep]
    for each in found:
        if not isinstance(each, type):
            raise TypeError(f"keep must name types: {each!r}")
    return tuple(cast("list[type]", found))


def is_value(result: Any) -> bool:
    """Whether this is a value that refers to nothing."""
    return _type(result) in PLAIN


def is_plain(result: Any) -> bool:
    """Whether this is a value, or a row of values: nearly always."""
    kind = type(result)
    try:
        if kind is not tuple and kind is not list:
            return kind in PLAIN
        if len(result) > _SHORT:
            return False
        for each in result:
            if type(each) not in PLAIN:
                return False
    except TypeError:  # a class whose metaclass has __eq__ and no __hash__
        return False
    return True


def has_parts(result: Any) -> bool:
    """Whether a part of a result may cross while another stays."""
    kind = _type(result)
    return kind in _ELEMENTS or is_named_tuple(kind)


def _type(obj: Any) -> type:
    """The type of an object, by which it can be looked up: what does not hash is in no table."""
    kind = type(obj)
    try:
        hash(kind)
    except TypeError:
        return _Unhashable
    return kind


class _Unhashable:
    """Stands for types that do not hash."""


class Judge(dict[type, Reduce]):
    """Tells what stays beside an object. As the dispatch table of a pickler it says how the rest is pickled.

    What is known to stay is in `numbers`, by identity. Instances of the types in `keep` stay, too.
    """

    def __init__(self, obj: Any, numbers: Mapping[int, int], keep: Iterable[type | str]) -> None:
        self._numbers = numbers.keys()
        self._keep = kept_types(keep)
        self._judged: set[type] = set()
        self._leaves: set[type] = set()
        self._reduce = _judging(self._numbers, self._judged)
        self._kept = frozenset(kind for kind in _BUILTIN if issubclass(kind, self._keep))
        self._is_unseen = _type(obj) in _MUTABLE
        self._looks = self._is_unseen or bool(self._kept)  # at containers, too
        self.look_at(obj)

    def look_at(self, obj: Any) -> None:
        """From now on this object stays."""
        kind = _type(obj)
        if not issubclass(kind, type) and self[kind] is _as_it_says:
            self[kind] = self._reduce

    def begin(self) -> None:
        """A result is about to be pickled."""
        self._judged.clear()

    @property
    def is_in_doubt(self) -> bool:
        """Whether the last result has objects that are rebuilt by more than C code, which may fail."""
        return bool(self._judged)

    def is_plain(self, result: Any) -> bool:
        """Whether a result crosses without a look at what is in it."""
        if is_plain(result):
            return not self._looks
        kind = _type(result)
        return kind in self._leaves and not getattr(getattr(result, "dtype", None), "hasobject", False)

    def finds(self, result: Any) -> bool:
        """Whether something in a result stays of which the pickler would not ask."""
        if self._kept:
            return bool(self.staying(result))
        elements = _ELEMENTS.get(_type(result)) if self._is_unseen else None
        return elements is not None and not self._numbers.isdisjoint(map(id, elements(result)))

    def staying(self, result: Any) -> dict[int, Any]:
        """What of a result stays, by identity: itself, or elements of containers in it."""
        found: dict[int, Any] = {}
        seen: set[int] = set()
        rest = [result]
        while rest:
            each = rest.pop()
            kind = _type(each)
            if kind in PLAIN or id(each) in seen:
                continue
            seen.add(id(each))
            if kind in self._kept or id(each) in self._numbers:
                found[id(each)] = each
            elif kind in _ELEMENTS:
                rest += _ELEMENTS[kind](each)
            elif is_named_tuple(kind) and self[kind] is not _stay:
                rest += each
            elif not self.crosses(each):
                found[id(each)] = each
        return found

    def crosses(self, value: Any) -> bool:
        """Whether a value pickles, and nothing in it stays."""
        pickler = pickle.Pickler(_Nowhere(), 5, buffer_callback=lambda _: None)
        pickler.dispatch_table = self
        try:
            pickler.dump(value)
        except Exception:  # it is to stay, or does not pickle
            return False
        return True

    def __missing__(self, kind: type) -> Reduce:
        if issubclass(kind, type):
            raise KeyError(kind)  # pickle itself knows how
        if len(self) > _MOST_TYPES:
            for each in [*self][_MOST_TYPES // 2 :]:
                del self[each]
        self[kind] = reduce = self._choose(kind)
        return reduce

    def _choose(self, kind: type) -> Reduce:
        if kind is RowType or kind is Interface:  # ours, and not the object's
            return _as_it_says
        if issubclass(kind, self._keep) or kind in ProxyTypes:  # those pickle as copies of what they are for
            return _stay
        if kind in copyreg.dispatch_table:
            return self._reduce
        if kind in (MethodType, BuiltinMethodType):
            return _judging_methods(self._numbers)
        own = {type(vars(kind).get(name)) for name in ("__reduce__", "__reduce_ex__")}
        if MethodDescriptorType in own:
            if f"{kind.__module__}.{kind.__qualname__}" in _LEAVES:
                self._leaves.add(kind)
            return _as_it_says
        return form_of(kind) or self._reduce


class _Nowhere:
    """A file, to a pickler of which only the errors are wanted."""

    def write(self, _: object) -> None:
        pass


def _stay(obj: Any) -> NoReturn:
    raise Stays(obj)


def _judging(numbers: KeysView[int], judged: set[type]) -> Reduce:
    """How an object pickles of which C code alone cannot tell, if it is not to stay."""

    def reduce(obj: Any) -> Any:
        if id(obj) in numbers:
            raise Stays(obj)
        judged.add(type(obj))
        registered = copyreg.dispatch_table.get(type(obj))
        return obj.__reduce_ex__(5) if registered is None else registered(obj)

    return reduce


def _judging_methods(numbers: KeysView[int]) -> Reduce:
    """The same for methods: what they are bound to may be a builtin container."""

    def reduce(method: Any) -> Any:
        if id(method.__self__) in numbers:
            raise Stays(method)
        return method.__reduce_ex__(5)

    return reduce
