"""What only looks as if it did not pickle: rows of a class made at run time, and views of memory."""

from __future__ import annotations

import functools
import operator
import sys
from collections import namedtuple
from collections.abc import Callable
from typing import Any, NoReturn, cast

Reduce = Callable[[Any], Any]
"""What a pickler calls to learn how an object is pickled, in place of its own `__reduce_ex__`."""


def is_named_tuple(kind: type) -> bool:
    """Whether this is a class of named tuples."""
    return issubclass(kind, tuple) and isinstance(getattr(kind, "_fields", None), tuple)


def form_of(kind: type) -> Reduce | None:
    """How the instances of a type are pickled that do not pickle by themselves; None: there is no form."""
    if kind is memoryview:
        return _as_bytes
    if is_named_tuple(kind) and not _is_importable(kind):
        return _row_form(kind.__module__, kind.__name__, kind._fields)  # type: ignore[attr-defined]
    return None


def _as_bytes(view: memoryview) -> Any:
    return bytes, (view.tobytes(),)


def _is_importable(kind: type) -> bool:
    try:
        return operator.attrgetter(kind.__qualname__)(sys.modules[kind.__module__]) is kind
    except (KeyError, AttributeError):
        return False


class RowType:
    """A class of named tuples by its names. It pickles once for all rows, and is rebuilt as the class."""

    def __init__(self, *names: Any) -> None:
        self._names = names

    def __reduce__(self) -> Any:
        return _row_class, self._names

    def __call__(self) -> NoReturn:
        raise AssertionError("what this is rebuilt as makes the rows")


def _row_form(*names: Any) -> Reduce:
    kind = RowType(*names)
    return lambda row: (kind, tuple(row))


@functools.lru_cache(maxsize=256)
def _row_class(module: str, name: str, fields: tuple[str, ...]) -> type:
    make: Any = namedtuple  # noqa: PYI024  # its arguments are known now, and not to type checkers
    made = make(name, fields, module=module)
    made.__reduce__ = _row_form(module, name, fields)
    return cast(type, made)
