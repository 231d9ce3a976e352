"""What a call on a remote object can ask for, and what it answers: known to both ends."""

from __future__ import annotations

from typing import Any

# Statuses of an answer.
GRANT = -1
"""Payload: the lease, and what its object offers: see `Session.grant`. To an acquire."""
ERROR = -2
"""The call or request raised. Payload: the packed error."""
VALUE = 0
"""Payload: the result itself, to be copied."""
TARGET = 1
"""The result is the target itself. Payload: its number."""
REF = 2
"""Payload: number and interface of a result that stays beside the object, new or known."""
BATCH = 3
"""Payload: the next items of an iterator, its `End`, and the packed error that it raised behind them."""
MIXED = 4
"""Payload: as `BATCH`, each item an answer of its own (`VALUE`, `REF`, `PARTS` or `COPY`)."""
METHOD = 5
"""The attribute that was asked for is to be called where it is, under its name."""
ECHO = 6
"""The result is the last argument: a sentinel such as `object()`, which no copy can stand for."""
PARTS = 7
"""Payload: a container, pickled with references (number and interface) to what of it stays."""
COPY = 8
"""Payload: the pickle of a result, and its number and interface, if that cannot be rebuilt."""
LEAVE_NOTHING = (VALUE, TARGET, ECHO)
"""Those after which there is nothing more beside the object than before."""
FOLLOWS = 10
"""To an event loop: a large answer with this number comes next. No payload."""
RAISED = 9
"""The call raised one of its arguments, as a generator does that catches nothing. Payload: which one."""

# What a call can ask for besides methods. No identifier has a "#".
GET = "#get"
SET = "#set"
DEL = "#del"
DIR = "#dir"
"""The names in the object's `__dict__`."""
NEXT = "#next"
"""The next items: how many at most, and whether iteration begins anew."""
APPLY = "#apply"
"""A function to be called with the object: (func, args, kwargs). Its result is copied, or an error."""
FORGET = "#forget"
"""Another call and news: (numbers no longer used, op, args, kwargs)."""
PACKED = "#packed"
"""Another call, with handles in its arguments: (op, pickle with references of both, its buffers)."""
RAISE = "#raise"
"""Another call, with an error among its arguments that it may raise again: (op, args, kwargs)."""
KEEP = "#keep"
"""The answer before this one on the same connection could not be rebuilt: what it was is to stay here."""

Answer = tuple[int, Any]
"""A status and its payload."""

AWAITED = True
End = tuple[Any, ...] | bool | None
"""Behind the last item: the arguments of `StopIteration`. None: the iterator has not ended yet. `AWAITED`:
the object waits for the next one, or the end, and keeps it for the next batch."""


def is_apply(op: str, args: tuple[Any, ...]) -> bool:
    """Whether a call is `APPLY`, with news or packed arguments, too."""
    if op == FORGET:
        op, args = args[1:3]
    return APPLY in (op, args[0] if op == PACKED else None)


def goes_on(status: int, payload: Any) -> bool:
    """Whether an answer is that of a call which waits for the next item still."""
    return status in (BATCH, MIXED) and payload[1] is AWAITED
