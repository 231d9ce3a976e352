"""An error on its way from the manager's process to the caller's. Both sides use it."""

from __future__ import annotations

import pickle
import traceback
from typing import Any

from .errors import PoolError, RemoteError, RemoteTraceback

__all__ = ["UNPICKLING_ERRORS", "PackedError", "pack_error", "raise_error"]

UNPICKLING_ERRORS = (pickle.UnpicklingError, AttributeError, ImportError, LookupError, TypeError, ValueError)
"""What a pickle that cannot be rebuilt raises. Anything else may be a signal handler's: it must pass."""

PackedError = tuple[bytes | None, str, str, Any]


def pack_error(error: BaseException) -> PackedError:
    """An error in a form that always travels: itself if it pickles both ways, and its texts."""
    text = "".join(traceback.format_exception(error))
    summary = "".join(traceback.format_exception_only(error)).strip()  # also where `str(error)` raises
    cause = error.__cause__ if isinstance(error, PoolError) else None
    return _pickled(error), summary, text, None if cause is None else pack_error(cause)


def raise_error(packed: PackedError) -> None:
    """Raise, on this side, what `pack_error` packed on the other."""
    raise _unpacked(packed)


def _pickled(error: BaseException) -> bytes | None:
    try:
        data = pickle.dumps(error, 5)
        return data if type(pickle.loads(data)) is type(error) else None
    except Exception:
        return None


def _unpacked(packed: PackedError) -> BaseException:
    data, summary, text, cause = packed
    try:
        error: BaseException = RemoteError(summary) if data is None else pickle.loads(data)
    except UNPICKLING_ERRORS:  # it is known over there, but not here
        error = RemoteError(summary)
    if cause is not None:
        error.__cause__ = _unpacked(cause)
    elif not isinstance(error, PoolError) or isinstance(error, RemoteError):
        error.__cause__ = RemoteTraceback(text)
    return error
