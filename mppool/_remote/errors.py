"""An error on its way to another process: from an object to its caller, and into a remote `with` block.

It travels as plain data, which can be read whatever the other side knows: its type and the bases of that by
name, then its arguments, attributes and the state of builtin types, each value by itself. So what cannot be
rebuilt over there costs itself alone. No `__init__` is called: the arguments it wants are not known.
"""

from __future__ import annotations

import builtins
import copyreg
import functools
import importlib
import pickle
import re
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import BuiltinFunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, NamedTuple, TypeVar

from mppool._wire.connection import encode
from mppool.errors import PoolError, RemoteError, RemoteTraceback

from .opcodes import ERROR, Answer

UNPICKLING_ERRORS = (pickle.UnpicklingError, AttributeError, ImportError, LookupError, TypeError, ValueError)
"""What a pickle that cannot be rebuilt raises. Anything else may be a signal handler's: it must pass."""

_T = TypeVar("_T")

_MAX_DEPTH = 8  # of containers that are packed element by element
_MOST_ELEMENTS = 1000  # of those containers together: with more of them a container travels as a whole
_LONGEST_REPR = 10_000  # characters
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray})
_GROUP: Any = getattr(builtins, "BaseExceptionGroup", None)  # Python 3.10 has none

_MEMBERS = (MemberDescriptorType, GetSetDescriptorType)
# Members of types that travel otherwise, or not at all: what lacks an attribute is mostly the leased object.
_LEFT_OUT = frozenset(
    "__dict__ __weakref__ __traceback__ __context__ __cause__ __suppress_context__ args obj".split()
)
_REDUCERS = frozenset({"__reduce__", "__reduce_ex__"})
_lent: weakref.WeakValueDictionary[tuple[str, str], type] = weakref.WeakValueDictionary()
# Also where a type has a property of that name, or fails at every name.
_args: Any = vars(BaseException)["args"]
_attributes: Any = vars(BaseException)["__dict__"]
_cause: Any = vars(BaseException)["__cause__"]
_suppress_context: Any = vars(BaseException)["__suppress_context__"]


class _Raised(NamedTuple):
    """One error. Its values are packed, as `_Packing.value` does it."""

    kinds: list[tuple[str, str] | None]
    """Modules and names of its type and the bases, nearest first; None: the name leads to another one."""
    summary: str
    """Its type and its text."""
    own: bytes | None
    """Its pickle, where its type says how to make it."""
    args: tuple[Any, ...]
    members: dict[str, Any]
    """What builtin types and `__slots__` keep."""
    attributes: dict[str, Any]
    cause: Any
    suppress_context: bool
    trace: str | None
    """The traceback as text, if it is to be told."""


PackedError = list[_Raised]
"""An error and those that it refers to, each by its number."""


class _Error(NamedTuple):
    """Stands for an error in a value of another one."""

    number: int


class _Copy(NamedTuple):
    """A value's pickle, and its repr for a process that cannot rebuild it."""

    pickled: bytes
    text: str


class AsIs(NamedTuple):
    """A value that the message itself brings: a handle, which is the object there."""

    value: Any


class _Text(NamedTuple):
    """The repr of what cannot travel."""

    text: str


def _itself(value: Any) -> Any:
    return value


def _always(_: Any) -> bool:
    return True


def pack_error(
    error: BaseException, refer: Callable[[Any], Any] = _itself, crosses: Callable[[Any], bool] = _always
) -> PackedError:
    """An error in a form that always travels.

    `refer` returns what is to be sent instead of a value, or the value itself; of what does not cross, the
    repr is told.
    """
    return _Packing(error, refer, crosses).packed()


def unpack_error(packed: PackedError) -> BaseException:
    """The error, on this side, that `pack_error` packed on the other."""
    return _Unpacking(packed).error(0)


class ErrorCopy:
    """In the place of an error among arguments: there it is that error again, as far as it is known."""

    def __init__(self, error: BaseException, refer: Callable[[Any], Any]) -> None:
        self._packed = pack_error(error, refer)

    def __reduce__(self) -> tuple[Any, ...]:
        return unpack_error, (self._packed,)


def failure(error: BaseException, stays: object = None, crosses: Callable[[Any], bool] = _always) -> bytes:
    """The reply that raises this error on the client's side. Of what stays here it tells the repr."""
    return encode(error_answer(error, stays, crosses))


def error_answer(
    error: BaseException, stays: object = None, crosses: Callable[[Any], bool] = _always
) -> Answer:
    """The same, to be encoded."""

    def refer(value: Any) -> Any:
        return _Text(_repr(value)) if value is stays else value

    return ERROR, pack_error(error, refer, crosses)


def cannot_unpickle(what: str, error: BaseException) -> str:
    """The text for what a client sent and this process cannot rebuild."""
    text = f"{what}: {type(error).__name__}: {error}"
    if not isinstance(error, (AttributeError, ImportError)) or not re.search("__(mp_)?main__", str(error)):
        return text
    cause = "What the main script defines after the manager was started is not known there"
    if not hasattr(sys.modules["__main__"], "__file__"):
        cause = (
            "Under spawn and forkserver multiprocessing imports no __main__.py again (of `python -m` or a "
            "zipapp), and nothing that was typed in"
        )
    other = "Nor is another program's main file known there"
    return f"{text}. {cause}. {other}: move it to a module of its own"


# -- where it was raised ------------------------------------------------------------------------------


class _Packing:
    """Numbers an error and those that it refers to, in cycles, too."""

    def __init__(
        self, error: BaseException, refer: Callable[[Any], Any], crosses: Callable[[Any], bool]
    ) -> None:
        self._refer = refer
        self._crosses = crosses
        self._elements_left = _MOST_ELEMENTS
        self._errors: list[BaseException] = []
        self._numbers: dict[int, _Error] = {}
        self._number(error)
        self._told = _cause_for_pool(error)

    def packed(self) -> PackedError:
        return [self._raised(each) for each in self._errors]  # which grows meanwhile

    def _number(self, error: BaseException) -> _Error:
        if id(error) not in self._numbers:
            self._numbers[id(error)] = _Error(len(self._errors))
            self._errors.append(error)
        return self._numbers[id(error)]

    def _raised(self, error: BaseException) -> _Raised:
        kind: type = type(error)
        cause = _cause.__get__(error)
        try:
            shape = _shape(kind)
        except TypeError:  # a class whose metaclass has __eq__ and no __hash__
            shape = _shape.__wrapped__(kind)
        return _Raised(
            shape.kinds,
            _summary(error),
            _own_pickle(error, self._crosses) if shape.has_own_pickle else None,
            tuple(map(self.value, _args.__get__(error))),
            {name: self.value(value) for name, value in shape.values_of(error)},
            {name: self.value(value) for name, value in list(_attributes.__get__(error).items())},
            None if cause is None else self._number(cause),
            _suppress_context.__get__(error),
            _trace(error) if error is self._told else None,
        )

    def value(self, value: Any, depth: int = 0) -> Any:
        """A value of an error. What may refer to other errors is packed element by element."""
        return _tried(lambda: self._value(value, depth), lambda: _Text(_repr(value)))

    def _value(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if issubclass(kind, BaseException):
            return self._number(value)
        reference = value if kind in _PLAIN else self._refer(value)
        if kind in _PLAIN or reference is not value:
            return reference
        if depth < _MAX_DEPTH and kind in (list, tuple, dict) and len(value) <= self._elements_left:
            self._elements_left -= len(value)
            if kind is not dict:
                return kind([self.value(each, depth + 1) for each in value])
            if _PLAIN.issuperset(map(type, value)):
                return {key: self.value(each, depth + 1) for key, each in value.items()}
        if not self._crosses(value):
            return _Text(_repr(value))
        data = pickle.dumps(value, 5)
        pickle.loads(data)
        return _Copy(data, _repr(value))


def _cause_for_pool(error: BaseException) -> BaseException | None:
    """The error whose traceback is told: the pool's own ones need none, but what they were raised from."""
    seen = set()
    while issubclass(type(error), PoolError) and type(error) is not RemoteError and id(error) not in seen:
        seen.add(id(error))
        cause: BaseException | None = _cause.__get__(error)
        if cause is None:
            return None
        error = cause
    return error


class _Shape(NamedTuple):
    """What a type says of its errors."""

    kinds: list[tuple[str, str] | None]
    """See `_Raised.kinds`."""
    members: list[tuple[str, Any]]
    """Names and descriptors of what builtin types and `__slots__` keep."""
    has_own_pickle: bool
    """Whether it says itself how to pickle them. The usual way would call `__init__`."""

    def values_of(self, error: BaseException) -> Iterator[tuple[str, Any]]:
        for name, member in self.members:
            with suppress(AttributeError):  # it was never set, as a builtin type says by None
                value = member.__get__(error)
                if value is not None or not _is_builtin(member.__objclass__):
                    yield name, value


@functools.lru_cache(maxsize=256)
def _shape(kind: type) -> _Shape:
    bases = kind.__mro__
    members: dict[str, Any] = {}
    for base in reversed(bases):
        wanted = _MEMBERS if _is_builtin(base) else MemberDescriptorType
        members |= {name: found for name, found in vars(base).items() if isinstance(found, wanted)}
    return _Shape(
        [_name_of(each) for each in bases if issubclass(each, BaseException)],
        [(name, found) for name, found in members.items() if name not in _LEFT_OUT],
        any(each is kind for each in copyreg.dispatch_table)
        or not _is_builtin(next(each for each in bases if not _REDUCERS.isdisjoint(vars(each)))),
    )


def _name_of(kind: type) -> tuple[str, str] | None:
    """A class by its name; None if that leads to another one here.

    If it leads to none here, it may to this one there: in a notebook, whose classes travel by value.
    """
    name = kind.__module__, kind.__qualname__
    known = _known(*name)
    return name if known is None or known is kind else None


def _is_builtin(kind: type) -> bool:
    return vars(builtins).get(kind.__name__) is kind


def _own_pickle(error: BaseException, crosses: Callable[[Any], bool]) -> bytes | None:
    """The pickle of an error, as its type makes it, if that leads back to the type."""

    def attempt() -> bytes | None:
        if not crosses(error):
            return None
        data = pickle.dumps(error, 5)
        return data if type(pickle.loads(data)) is type(error) else None

    return _tried(attempt, lambda: None)


def _repr(value: object) -> str:
    text = _tried(lambda: repr(value), lambda: object.__repr__(value))
    return text if len(text) <= _LONGEST_REPR else f"{text[:_LONGEST_REPR]}..."


def _summary(error: BaseException) -> str:
    """Its type and its text, as the last line of a traceback has them."""
    kind: type = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ in ("builtins", "__main__")
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    text = _tried(lambda: str(error), lambda: "<exception str() failed>")
    return f"{name}: {text}" if text else name


def _trace(error: BaseException) -> str:
    import traceback  # noqa: PLC0415  # takes long, and is loaded where objects live

    return _tried(lambda: "".join(traceback.format_exception(error)), lambda: _summary(error))


def _tried(attempt: Callable[[], _T], instead: Callable[[], _T]) -> _T:
    """What an error's own code gives, or `instead` where that fails, or something changes meanwhile.

    A SystemExit that comes again is its own, too; else it is a signal handler's, and passes, as Ctrl-C does.
    """
    try:
        return attempt()
    except Exception:
        return instead()
    except BaseException:
        try:
            attempt()
        except BaseException:
            return instead()
        raise


# -- where it is raised again -------------------------------------------------------------------------


class _Unpacking:
    """Makes copies of packed errors."""

    def __init__(self, packed: PackedError) -> None:
        self._packed = packed
        self._errors: dict[int, BaseException] = {}
        self._own: set[int] = set()  # which are rebuilt of their own pickles
        for number in reversed(range(len(packed))):  # the parts of a group first: it is made of them
            self.error(number)
        for number in range(len(packed)):
            self._fill(number)

    def error(self, number: int) -> BaseException:
        if number not in self._errors:
            self._errors[number] = RemoteError(self._packed[number].summary)  # for a group within its parts
            self._errors[number] = self._new(number)
        return self._errors[number]

    def _new(self, number: int) -> BaseException:
        """An error without its state, of the nearest type that is known; RemoteError if that says nothing."""
        raised = self._packed[number]
        for name in raised.kinds:
            kind = None if name is None else _known(*name)
            exact = name == raised.kinds[0]
            if kind is None:
                continue
            if not exact and (kind is Exception or kind is RemoteError):  # which would say nothing
                break
            if raised.own is not None and exact:
                with suppress(*UNPICKLING_ERRORS):
                    error = pickle.loads(raised.own)
                    self._own.add(number)
                    return error  # type: ignore[no-any-return]
            error = _blank(kind, self._parts(raised))
            if error is not None:
                return error
        return RemoteError(raised.summary)

    def _parts(self, raised: _Raised) -> tuple[Any, ...]:
        """The message and the parts of a group."""
        members = raised.members
        return tuple(self.value(members[each]) for each in ("message", "exceptions") if each in members)

    def _fill(self, number: int) -> None:
        error, raised = self._errors[number], self._packed[number]
        kind = type(error)
        exact = raised.kinds[0] is not None and _known(*raised.kinds[0]) is kind
        attributes = _attributes.__get__(error)
        for name, value in raised.members.items():
            member = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
            if not isinstance(member, _MEMBERS):
                attributes[name] = self.value(value)
            elif not self._is_in_own(number, value):
                with suppress(AttributeError, TypeError, ValueError):  # a group has its parts already
                    member.__set__(error, self.value(value))
        attributes |= {
            name: self.value(value)
            for name, value in raised.attributes.items()
            if not self._is_in_own(number, value)
        }
        if exact or kind is not RemoteError:
            _args.__set__(error, self.value(raised.args))
        if not exact and kind is not RemoteError:
            notes = attributes.setdefault("__notes__", [])
            if type(notes) is list:  # as `add_note` asks, too
                notes.append(f"It was raised as {raised.summary}")
        self._chain(error, raised)

    def _is_in_own(self, number: int, value: Any) -> bool:
        """Whether an error's own pickle says more of a value than its repr."""
        return type(value) is _Text and number in self._own

    def _chain(self, error: BaseException, raised: _Raised) -> None:
        cause = None if raised.cause is None else self.value(raised.cause)
        if raised.trace is not None:
            trace = RemoteTraceback(raised.trace)
            trace.__cause__, cause = cause, trace
        BaseException.__setattr__(error, "__cause__", cause)
        BaseException.__setattr__(error, "__suppress_context__", raised.suppress_context)

    def value(self, packed: Any) -> Any:
        """The value that was packed, or its repr."""
        kind = type(packed)
        if kind is _Error:
            return self.error(packed.number)
        if kind is _Copy:
            with suppress(*UNPICKLING_ERRORS):
                return pickle.loads(packed.pickled)
        if kind in (_Copy, _Text):
            return packed.text
        if kind is list or kind is tuple:
            return kind(map(self.value, packed))
        if kind is dict:
            return {key: self.value(value) for key, value in packed.items()}
        return packed.value if kind is AsIs else packed


def lend_type(kind: type) -> None:
    """A class of this process goes by value, perhaps because no name leads to it: its errors may come back.

    A copy that cloudpickle makes knows its name without that of the function around it. Of several with
    one name, as a function makes them that is called again, the last one is meant.
    """
    _lent[kind.__module__, kind.__name__] = kind


def _known(module: str, qualname: str) -> Any:
    """The error type of this name, if there is one here."""
    found: Any
    try:
        found = sys.modules.get(module) or importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except UNPICKLING_ERRORS:
        found = _lent.get((module, qualname.rpartition(".")[2]))
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _blank(kind: type[BaseException], parts: tuple[Any, ...]) -> BaseException | None:
    """An instance as the C code of a type or of its bases makes it; None if that wants to know more."""
    for base in kind.__mro__:
        new = vars(base).get("__new__")
        if isinstance(new, BuiltinFunctionType):
            with suppress(TypeError, ValueError):  # the type has the layout of another base
                return new(kind, *(parts if base is _GROUP else ()))  # type: ignore[no-any-return]
    return None
