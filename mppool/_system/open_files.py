"""How many files a process may have open."""

from __future__ import annotations

import contextlib
import resource

_OPEN_MAX = 10240
"""What macOS grants where it calls the limit infinite, which it then does not let be set."""


def open_files() -> int:
    """How many this process may have open: its soft limit."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def allow_open_files(number: int | None = None) -> None:
    """Let this process have so many files open; None: as many as it may allow itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, max(soft, _OPEN_MAX)) if number is None else (number,):
        with contextlib.suppress(OSError, ValueError):  # the system grants less
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            return
