"""Leases that their holders give back, and take again, without a word to the pool.

A lease is *delegated* when its holder takes the same object again and again while no other wants one. It
goes on while the object lies parked at the holder's process. To the policy that is as good as idle: whatever
it wants with the object, it *recalls* the lease first. A parked one is over at once, and its object idle; one
that is in use ends as every lease does, when its object comes home.
"""

from __future__ import annotations

from math import inf

from mppool._system.processes import ProcessId
from mppool.options import PoolOptions

from .delegation import Delegation
from .entry import Lease, PoolEntry
from .figures import Figures
from .objects import HOT_SECONDS

_PARKED_SECONDS = 1.0
"""After which a lease that lies unused is recalled: what depends on time is for idle objects alone."""

_UNBOUNDED = 2**62  # uses


class Delegated:
    """The delegated leases of a pool that are not recalled. Used under its lock."""

    def __init__(self, options: PoolOptions, lends_values: bool) -> None:
        self.waited_at = -inf
        """When an acquire had to wait last."""
        self._leases: dict[int, Lease] = {}
        self._is_possible = _is_possible(options, lends_values)
        self._max_uses = options.max_uses

    def is_worthwhile(self, entry: PoolEntry, holder: ProcessId, now: float) -> bool:
        """Whether an idle object that is about to be lent to this holder is worth a delegation.

        Not where an acquire had to wait of late: then the lease would soon be recalled.
        """
        is_hot = entry.last_holder == holder and now - entry.since <= HOT_SECONDS
        return is_hot and self._is_possible and now - self.waited_at > HOT_SECONDS

    def add(self, lease: Lease, delegation: Delegation) -> None:
        """The holder of a lease may take the object again, as often and as long as it may be lent."""
        entry = lease.entry
        uses = _UNBOUNDED if self._max_uses is None else self._max_uses - entry.uses
        delegation.begin(lease.granted_at, uses, entry.expires_at)
        lease.delegation = delegation
        self._leases[lease.id] = lease

    def recall(self, lease: Lease) -> bool:
        """The holder is not to take the object again. Whether it lies parked: then the lease is to end now.

        False of a lease that is not delegated, or over.
        """
        self._leases.pop(lease.id, None)
        return lease.delegation is not None and lease.delegation.recall()

    def end(self, lease: Lease, delegation: Delegation, figures: Figures) -> None:
        """It is over: what the holder did by itself is taken over."""
        self.recall(lease)
        lease.entry.uses += figures.add_delegated(delegation)
        held_since = delegation.granted_at
        lease.granted_at = held_since or lease.granted_at
        lease.parked_at = delegation.parked_at if held_since is None else None
        lease.delegation = None

    def take_all(self) -> list[Lease]:
        """All, which are about to be recalled; none is left."""
        leases, self._leases = self._leases, {}
        return list(leases.values())

    def parked(self) -> Lease | None:
        """One that lies parked, if there is one."""
        return next((each for each in self._leases.values() if each.held_since is None), None)

    def unfit(self, now: float) -> list[Lease]:
        """Those that are to come home by and by: unused for long, or of an object that is to be replaced."""
        unused = now - _PARKED_SECONDS
        return [
            each
            for each in self._leases.values()
            if each.entry.is_large
            or each.entry.expires_at <= now
            or (
                each.held_since is None
                and each.delegation is not None
                and each.delegation.parked_at <= unused
            )
        ]


def _is_possible(options: PoolOptions, lends_values: bool) -> bool:
    """Whether an object of such a pool can come home and be lent again with nothing to be done or seen to."""
    watched = options.max_hold is not None or options.warn_hold is not None
    hooks = options.check is not None or options.reset is not None
    return options.order == "lifo" and not (watched or hooks or lends_values)
