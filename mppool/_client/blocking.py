"""Requests that make an event loop wait are named in asyncio's debug mode, and who asks in any."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_DEBUG = sys.flags.dev_mode or bool(not sys.flags.ignore_environment and os.environ.get("PYTHONASYNCIODEBUG"))
"""As asyncio decides on it."""

_MPPOOL = os.path.dirname(os.path.dirname(__file__))

_named: set[str] = set()


def caller() -> str:
    """File and line of the code outside of mppool that is calling."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_MPPOOL):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def named_if_blocking(ask: F) -> F:
    """Have a function, which waits, name its callers in event loops, each line once. Only in debug mode."""
    if not _DEBUG:
        return ask

    @wraps(ask)
    def named(*args: Any, **kwargs: Any) -> Any:
        if _loop_runs_here() and (where := caller()) not in _named:
            _named.add(where)
            _warn(
                "%s makes the event loop wait for a pool: use pool.aio, or asyncio.to_thread for the rest",
                where,
            )
        return ask(*args, **kwargs)

    return named  # type: ignore[return-value]


def _loop_runs_here() -> bool:
    asyncio = sys.modules.get("asyncio")  # else there is no loop
    try:
        return asyncio is not None and asyncio.get_running_loop() is not None
    except RuntimeError:
        return False


def _warn(text: str, *args: object) -> None:
    import logging  # noqa: PLC0415  # which most workers do without

    logging.getLogger("mppool").warning(text, *args)
