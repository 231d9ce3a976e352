"""What both faces of a pool have: `ObjectPool`, for threads, and `AsyncPool`, for an event loop."""

from __future__ import annotations

import os
from typing import Any

from mppool._pool_info import PoolInfo
from mppool._validation import USE_DEFAULT, Timeout, in_short, seconds
from mppool.errors import LeaseError

from .blocking import caller
from .channel import Channel

_TRACE = "MPPOOL_TRACE" in os.environ


class PoolFace:
    """A pool as a process knows it: the way to its manager, and what that told of it."""

    name: str
    """As it was given to `create_pool`, or as the manager made it up."""
    _id: int
    _channel: Channel
    _info: PoolInfo
    _records_caller: bool
    _lends_values: bool

    def _know(self, channel: Channel, info: PoolInfo) -> None:
        self._channel = channel
        self._info = info
        self._id, self.name = info.pool_id, info.name
        self._lends_values = info.lends_values
        self._records_caller = info.records_caller or _TRACE

    def _release_value(self, value: Any, discard: bool) -> None:
        values = self._channel.values
        with values.lock:
            lease = values.find(self._id, value)
            if lease is None:
                raise LeaseError(f"pool {self.name!r}: this process does not hold {in_short(value)}")
            lease.release(discard)

    def _refuse_batch_of_values(self) -> None:
        if self._lends_values:
            text = "values are lent as they are, so there is nothing to call for many: apply() runs here"
            raise TypeError(f"pool {self.name!r}: {text}")

    def _seconds(self, timeout: Timeout) -> float | None:
        if timeout is USE_DEFAULT:
            return self._info.timeout
        seconds("timeout", timeout, zero=True)
        return timeout

    def _caller(self) -> str | None:
        """The file and line outside of mppool that is acquiring, if the pool or MPPOOL_TRACE asks."""
        if not self._records_caller:
            return None
        return caller()
