"""Errors of signal handlers, which interrupt this process while it waits for another one.

The program means them for itself: an alarm's `TimeoutError` is no silence of the other side, and a
`ConnectionError` that a handler raises is no end of it.
"""

from __future__ import annotations

_PASSED_THROUGH = frozenset({"contextlib", "mppool", "selectors", "socket"})
"""Packages that a system call's error comes through, on its way to where it is caught here."""


def is_handlers(error: BaseException) -> bool:
    """Whether a signal handler raised an error that was caught just now, and nothing that was called there.

    A system call has no frame. A handler has its own, below that of what it interrupted.
    """
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] not in _PASSED_THROUGH:
            return True
        trace = trace.tb_next
    return False
