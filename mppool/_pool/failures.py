"""What is known of builds that failed: why the last one did, and when the next one ahead may begin."""

from __future__ import annotations

import random

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds between builds ahead that fail


class Failures:
    """Those since an object was built last. Used under the pool's lock."""

    def __init__(self) -> None:
        self.last: str | None = None
        """Why the last build failed; None if it did not."""
        self.retry_at = 0.0
        """When a build that no acquire waits for may begin."""
        self._pause = _FIRST_PAUSE

    def add(self, text: str, now: float, *, ahead: bool) -> None:
        """A build has failed. One ahead is tried again after a pause that grows."""
        self.last = text
        if ahead and now >= self.retry_at:  # else another of this round has failed already
            self.retry_at = now + self._pause * random.uniform(0.9, 1.1)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def clear(self) -> None:
        """An object was built."""
        self.last, self.retry_at, self._pause = None, 0.0, _FIRST_PAUSE
