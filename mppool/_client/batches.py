"""`apply_batch`, as both faces of a pool ask for it: function and item apart, and what an answer brings."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

from mppool._remote.arguments import send_apart
from mppool._remote.errors import unpack_error
from mppool._remote.family import is_handle
from mppool._remote.opcodes import ERROR
from mppool._remote.references import WithReferences
from mppool._remote.steps import Steps

from .channel import instead_of


def steps_of_batch(
    ask: Callable[[WithReferences, WithReferences], Any], func: Callable[..., Any], item: object
) -> Steps[Any]:
    """Have `ask` send a call. The manager knows a function by its pickle; the result is that of this item."""

    def send(*call: WithReferences) -> Steps[Any]:
        answer = yield partial(ask, *call)
        return _result_of(answer)

    return (yield from send_apart(send, func, item, _refuse_handle))


def _refuse_handle(obj: object) -> None:
    if is_handle(obj):
        raise TypeError(
            "a handle cannot be an item of a batch: its object is lent, and another one is called"
        )


def _result_of(packed: WithReferences) -> Any:
    """What an answer brings; an error is raised."""
    data, buffers = packed
    try:
        status, payload = pickle.loads(data, buffers=buffers)
    except Exception as error:
        lost, _ = instead_of(("apply",), packed, error)
        raise lost from error
    if status == ERROR:
        raise unpack_error(payload)
    return payload
