"""The selector of an event loop that runs in one process."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable
from typing import Any, NoReturn


class OwnSelector(selectors.DefaultSelector):
    """A child that comes back to the loop of its parent would take events from it: `end_child` is called."""

    def __init__(self, end_child: Callable[[], NoReturn]) -> None:
        super().__init__()
        self._pid = os.getpid()
        self._end_child = end_child

    def select(self, timeout: float | None = None) -> Any:
        """Wait for events, in the process that made this."""
        if os.getpid() != self._pid:
            self._end_child()
        return super().select(timeout)
