"""An error on its way from the manager's process to the caller's. Both sides use it."""

from __future__ import annotations

import pickle
import traceback
from contextlib import suppress
from types import FunctionType
from typing import Any

from mppool._wire.connection import ERROR, encode
from mppool.errors import PoolError, RemoteError, RemoteTraceback

UNPICKLING_ERRORS = (pickle.UnpicklingError, AttributeError, ImportError, LookupError, TypeError, ValueError)
"""What a pickle that cannot be rebuilt raises. Anything else may be a signal handler's: it must pass."""

PackedError = tuple[bytes | None, str, str, Any]


def pack_error(error: BaseException) -> PackedError:
    """An error in a form that always travels: itself if it pickles both ways, and its texts."""
    text = "".join(traceback.format_exception(error))
    summary = "".join(traceback.format_exception_only(error)).strip()  # also where `str(error)` raises
    cause = error.__cause__ if isinstance(error, PoolError) else None
    return _pickled(error), summary, text, None if cause is None else pack_error(cause)


def failure(error: BaseException) -> bytes:
    """The reply that raises this error on the client's side."""
    return encode((ERROR, pack_error(error)))


def cannot_unpickle(what: str, error: BaseException) -> str:
    """The text for what a client sent and this process cannot rebuild."""
    return (
        f"{what}: {type(error).__name__}: {error}. What the main script defines after the manager was "
        "started is not known there: move it to a module of its own"
    )


def travels(value: object) -> bool:
    """Whether a value pickles both ways: an error with an `__init__` of its own often fails to load."""
    try:
        pickle.loads(pickle.dumps(value, 5))
    except BaseException:  # a SystemExit of the value's own, too: it must not end where the object lives
        return False
    return True


def _pickled(error: BaseException) -> bytes | None:
    """The error as it pickles by itself, or by its parts where that fails; None if it does not travel."""
    knows_best = isinstance(type(error).__reduce__, FunctionType)
    for form in (error,) if knows_best else (error, _ByParts(error)):
        with suppress(BaseException):  # as in `travels`
            data = pickle.dumps(form, 5)
            copy = pickle.loads(data)
            if type(copy) is type(error) and copy.args == error.args:
                return data
    return None


class _ByParts:
    """Pickles as an error whose own `__init__` takes other arguments than it leaves in `args`."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        error = self._error
        attributes = {name: each for name, each in vars(error).items() if travels(each)}
        return _rebuilt, (type(error), error.args, attributes)


def _rebuilt(kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    known: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    known.__init__(error, *args)
    vars(error).update(attributes)
    return error


def unpack_error(packed: PackedError) -> BaseException:
    """The error, on this side, that `pack_error` packed on the other."""
    data, summary, text, cause = packed
    try:
        error: BaseException = RemoteError(summary) if data is None else pickle.loads(data)
    except UNPICKLING_ERRORS:  # it is known over there, but not here
        error = RemoteError(summary)
    if cause is not None:
        error.__cause__ = unpack_error(cause)
    elif not isinstance(error, PoolError) or isinstance(error, RemoteError):
        error.__cause__ = RemoteTraceback(text)
    return error
