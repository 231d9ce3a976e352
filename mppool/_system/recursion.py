"""A module that starts a manager when it is imported, and is imported by the manager to find a factory.

Under spawn and forkserver the manager does not have the module yet: it would start a manager, which would
import the module, and so on until the machine has no processes left.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_thread = threading.local()


@contextmanager
def without_managers() -> Iterator[None]:
    """What this thread imports in here may not start a manager."""
    before = may_start_manager()
    _thread.may_start = False
    try:
        yield
    finally:
        _thread.may_start = before


def may_start_manager() -> bool:
    """Whether this thread imports nothing for a manager."""
    return getattr(_thread, "may_start", True)
