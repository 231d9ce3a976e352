"""What a pool tells of itself, and what it counts for that."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Figures", "LeaseInfo", "PoolStats"]


@dataclass(frozen=True, kw_only=True)
class PoolStats:
    """The figures of one pool: how things stand now, and what happened since it was made."""

    name: str
    """The pool's name."""

    size: int
    """Objects that count against `max_size`: idle, leased, being built, checked, reset or closed."""
    idle: int
    """Objects ready to be lent."""
    leased: int
    """Objects held by somebody."""
    building: int
    """Objects being built."""
    waiting: int
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
    retired: dict[str, int] = field(default_factory=dict)
    """Objects that left the pool, by reason: see `mppool.slot.Reason`."""

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


@dataclass
class Figures:
    """What a pool counts since it was made: the later part of `PoolStats`, under the same names."""

    acquired: int = 0
    built: int = 0
    reused: int = 0
    timeouts: int = 0
    exhausted: int = 0
    reclaimed: int = 0
    failed_builds: int = 0
    late_releases: int = 0
    retired: Counter[str] = field(default_factory=Counter)
    wait_seconds: float = 0.0
    wait_longest: float = 0.0
    hold_seconds: float = 0.0
    hold_longest: float = 0.0

    def waited(self, seconds: float) -> None:
        """An acquire was granted after so long."""
        self.wait_seconds += seconds
        self.wait_longest = max(self.wait_longest, seconds)

    def held(self, seconds: float) -> None:
        """A lease ended after so long."""
        self.hold_seconds += seconds
        self.hold_longest = max(self.hold_longest, seconds)
