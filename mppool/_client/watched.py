"""What pools tell of themselves, for a program that shows or sends their figures."""

from __future__ import annotations

import contextlib
import time
from typing import Any, NamedTuple

from mppool._pool_info import PoolInfo
from mppool._validation import expect
from mppool._wire.connection import DeadlineExceeded
from mppool.errors import PoolClosed, PoolError
from mppool.stats import ObjectInfo, PoolStats

from .channel import Channel
from .pool import ObjectPool
from .shared import SharedChannel

_ANSWER_SECONDS = 5.0
"""For a manager to tell the figures of all its pools: half of what Prometheus waits for by default."""


class Figures(NamedTuple):
    """What a pool tells."""

    stats: PoolStats
    objects: list[ObjectInfo]
    """Those that have a process of their own."""


class Watched:
    """A manager with all its pools, or of a manager the pool with one name."""

    def __init__(self, source: Any) -> None:
        fine = isinstance(source, ObjectPool) or hasattr(source, "_reach")
        expect(fine, "source", "a PoolManager or an ObjectPool", source)
        self._source = source
        self._only = source.name if isinstance(source, ObjectPool) else None

    @property
    def manager(self) -> str:
        """What its manager is called: by its name, or by its address."""
        channel = self._source._channel
        if isinstance(channel, SharedChannel):
            return channel.name
        address = self._source.address if self._only is None else channel.address
        return "{}:{}".format(*address) if isinstance(address, tuple) else address or ""

    def figures(self) -> dict[int, Figures] | None:
        """Those of each pool that is not closed, by its id; None if the manager does not answer in time."""
        end = time.monotonic() + _ANSWER_SECONDS
        found: dict[int, Figures] = {}

        def ask(*request: object) -> Any:
            return channel.request(request, end - time.monotonic())[1]

        try:
            channel = self._channel()
            for known, _ in channel.request(("pools",), _ANSWER_SECONDS)[1]:
                info = PoolInfo(*known)
                with contextlib.suppress(PoolClosed):  # since then
                    if self._only in (None, info.name):
                        objects = ask("objects", info.pool_id) if info.isolation == "process" else []
                        found[info.pool_id] = Figures(ask("stats", info.pool_id), objects)
        except (PoolError, DeadlineExceeded):
            return None
        return found

    def _channel(self) -> Channel:
        channel: Channel = self._source._reach() if self._only is None else self._source._channel
        return channel
