"""What a call comes to, as a frame for the one who called. Runs where the object lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mppool._wire.connection import encode

from .calls import APPLY, VALUE, Answer, ObjectTable
from .errors import failure

Encode = Callable[[Answer], bytes]
"""Makes a frame for one connection. Raises what pickle raises."""


def perform(
    encoded: Encode, kept: ObjectTable, target: int, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bytes:
    """Perform a call on something that is kept. All that it leaves behind, errors too, ends here."""
    try:
        answer = kept.call(target, op, args, kwargs)
        if op == APPLY:
            return _applied(encoded, args[0], answer[1])
        # Pickled before another call can change what the object gave out.
        return _encoded_or_kept(encoded, kept, answer)
    except BaseException as error:
        return failure(error)


def applied(
    encoded: Encode, func: Callable[..., Any], lent: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bytes:
    """Call a function with an object."""
    try:
        return _applied(encoded, func, func(lent, *args, **kwargs))
    except BaseException as error:
        return failure(error)


def _applied(encoded: Encode, func: Callable[..., Any], result: object) -> bytes:
    try:
        return encoded((VALUE, result))
    except Exception as error:
        raise TypeError(
            f"what {func!r} returned does not pickle, so apply() cannot bring it: {error}"
        ) from error


def _encoded_or_kept(encoded: Encode, kept: ObjectTable, answer: Answer) -> bytes:
    try:
        return encoded(answer)
    except Exception:  # it does not pickle: the client gets a handle to it instead
        return encode(kept.as_refs(answer))
