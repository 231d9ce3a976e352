"""What a pool tells of itself: what has happened, how things stand, which leases and objects there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from mppool._buckets import BUCKETS
from mppool._system.usage import Usage
from mppool.options import PoolOptions
from mppool.stats import LeaseInfo, ObjectInfo, PoolStats

from .delegation import Delegation
from .durations import Durations
from .entry import PoolEntry, State
from .leases import Leases
from .objects import Objects

UsageOf = Mapping[Any, Usage]
"""What processes use, as far as that is told."""

NOTHING_TOLD: UsageOf = MappingProxyType({})


class Figures:
    """What has happened, counted as it happens. How things stand is read off when it is asked for.

    Used under the pool's lock.
    """

    def __init__(self, pool: str) -> None:
        self._stats = PoolStats(name=pool)
        self.counts: dict[str, Any] = vars(self._stats)  # by which it is written: it is frozen for readers
        self.waits, self.holds, self.builds = map(Durations, ("wait", "hold", "build"))

    def add_delegated(self, delegation: Delegation) -> int:
        """Add what a holder did by itself; returns how many times it took the object again."""
        uses = _add_uses(delegation, self.waits, self.holds)
        self.counts["reused"] += uses
        return uses

    def stats(self, objects: Objects, leases: Leases, waiting: int, options: PoolOptions) -> PoolStats:
        """All figures, with those of leases that are delegated still. A lease that lies parked is none."""
        waits, holds = self.waits.copy(), self.holds.copy()
        delegations = [each.delegation for each in leases.values() if each.delegation is not None]
        again = sum([_add_uses(each, waits, holds) for each in delegations])
        parked = len(leases) - len(leases.held())
        return replace(
            self._stats,
            size=objects.size,
            idle=len(objects.idle) + parked,
            leased=len(leases) - parked,
            min_size=options.min_size,
            max_size=options.max_size,
            building=objects.count(State.BUILDING, State.STUCK),
            waiting=waiting,
            acquired=waits.count,
            reused=self._stats.reused + again,
            built=self.builds.count,
            retired=dict(self._stats.retired),
            **waits.figures(),
            **holds.figures(),
            **self.builds.figures(),
        )


def _add_uses(delegation: Delegation, waits: Durations, holds: Durations) -> int:
    """Add what a holder did by itself: how many times it took the object, each time at once, and how long.

    Returns the first of these.
    """
    uses = delegation.uses
    waits.add_counted(([uses, *[0] * len(BUCKETS)], 0.0, 0.0))
    holds.add_counted(delegation.holds)
    return uses


def lease_infos(leases: Leases, usage: UsageOf, now: float) -> list[LeaseInfo]:
    """Who holds what, the longest held first; with what the objects' processes use."""
    return [
        LeaseInfo(
            lease_id=each.id,
            pid=each.holder.pid,
            process_name=each.holder.name,
            age=now - since,
            where=each.where,
            item=each.entry.item,
            object_age=now - each.entry.began,
            node=each.holder.node,
            **_used_by(each.entry, usage),
        )
        for since, each in leases.held()
    ]


def object_infos(objects: Objects, usage: UsageOf, now: float) -> list[ObjectInfo]:
    """What objects there are, the oldest first; with what their processes use."""
    return [
        ObjectInfo(
            number=each.number,
            state=State.IDLE.name.lower() if each.is_parked else each.state.name.lower(),
            age=now - each.began,
            uses=each.uses_so_far,
            pid=getattr(each.runner.process, "pid", None),
            node=getattr(each.runner.process, "node", None),
            item=each.item,
            **_used_by(each, usage),
        )
        for each in objects
    ]


def _used_by(entry: PoolEntry, usage: UsageOf) -> dict[str, Any]:
    """What the process of an object uses, as far as that is told."""
    told = usage.get(entry.runner.process)
    return {} if told is None else told._asdict()
