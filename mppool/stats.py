"""What a pool tells of itself."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field
from importlib import metadata
from typing import NamedTuple


@dataclass(kw_only=True)
class PoolStats:
    """The figures of one pool: how things stand now, and what happened since it was made."""

    name: str
    """The pool's name."""

    size: int = 0
    """Objects that count against `max_size`: idle, leased, being built, checked, reset or closed."""
    idle: int = 0
    """Objects ready to be lent."""
    leased: int = 0
    """Objects held by somebody."""
    building: int = 0
    """Objects being built."""
    waiting: int = 0
    """Acquires in the queue."""

    acquired: int = 0
    """Leases granted."""
    built: int = 0
    """Objects built."""
    reused: int = 0
    """Leases granted on an object that had been lent before."""
    timeouts: int = 0
    """Acquires that ended in `PoolTimeout`."""
    exhausted: int = 0
    """Acquires that found every object held, and no room for another."""
    reclaimed: int = 0
    """Leases taken back because their holder's process had ended."""
    failed_builds: int = 0
    """Factory calls that raised."""
    late_releases: int = 0
    """Releases refused because their lease had ended before."""
    retired: dict[str, int] = field(default_factory=Counter)
    """Objects that left the pool, by reason: see `mppool._pool.entry.Reason`."""

    wait_seconds: float = 0.0
    """Seconds that granted acquires waited, in all."""
    wait_longest: float = 0.0
    """Seconds that the longest of them waited."""
    hold_seconds: float = 0.0
    """Seconds that ended leases lasted, in all."""
    hold_longest: float = 0.0
    """Seconds that the longest of them lasted."""


@dataclass(frozen=True, kw_only=True)
class LeaseInfo:
    """One lease that lasts now."""

    lease_id: int
    """Never used again for another lease."""
    pid: int
    """The holder's process."""
    process_name: str
    """What `multiprocessing` calls it in its own process."""
    age: float
    """Seconds since it was granted."""
    where: str | None = None
    """File and line that acquired it; None unless `warn_hold`, `max_hold` or MPPOOL_TRACE asks."""


@functools.cache
def installed_version() -> str:
    """The version of mppool in this process; "unknown" where it runs from a bare source tree."""
    try:
        return metadata.version("mppool")
    except metadata.PackageNotFoundError:
        return "unknown"


class PoolInfo(NamedTuple):
    """What a client has to know of a pool.

    It travels as `tuple(info)`, plain values with the version first, so that another version of mppool
    can read that much before it looks at the rest.
    """

    version: str
    """The manager's `installed_version()`."""
    pool_id: int
    name: str
    timeout: float | None
    """Seconds that `acquire` waits when the call says nothing."""
    records_caller: bool
    """Whether a lease records the file and line that acquired it."""
    call_timeout: float | None
    isolated: bool
    """Whether each object lives in a process of its own."""
