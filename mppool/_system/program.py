"""The program that runs in this process, told from one that replaces it by exec and keeps its pid."""

from __future__ import annotations

import functools
import os


def token() -> str:
    """What it calls itself. A forked child and a program that follows by exec have another one."""
    return _token_of(os.getpid())


@functools.lru_cache(maxsize=1)
def _token_of(pid: int) -> str:  # noqa: ARG001  # a forked child gets one of its own
    return os.urandom(8).hex()
