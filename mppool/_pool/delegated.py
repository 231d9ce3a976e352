"""Leases that their holders give back, and take again, without a word to the pool.

A lease is *delegated* when its holder takes the same object again and again while no other wants one. It
goes on while the object lies parked at the holder's process. To the policy that is as good as idle: whatever
it wants with the object, it *recalls* the lease first. A parked one is over at once, and its object idle; one
that is in use ends as every lease does, when its object comes home.
"""

from __future__ import annotations

from mppool.options import PoolOptions

from .delegation import Delegation
from .entry import Lease

HOT_SECONDS = 0.1
"""An object that its last holder takes again so soon is worth a delegation, unless an acquire had to wait in
this time: then the lease would soon be recalled."""

_PARKED_SECONDS = 1.0
"""After which a lease that lies unused is recalled: what depends on time is for idle objects alone."""

_UNBOUNDED = 2**62  # uses


class Delegated:
    """The delegated leases of a pool that are not recalled. Used under its lock."""

    def __init__(self) -> None:
        self._leases: dict[int, Lease] = {}

    def add(self, lease: Lease, delegation: Delegation, uses: int | None) -> None:
        """The holder of a lease may take the object again, so many times (None: without a bound)."""
        delegation.begin(lease.granted_at, _UNBOUNDED if uses is None else uses, lease.entry.expires_at)
        lease.delegation = delegation
        self._leases[lease.id] = lease

    def remove(self, lease: Lease) -> None:
        """It is recalled, or over."""
        self._leases.pop(lease.id, None)

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


def is_delegable(options: PoolOptions, lends_values: bool) -> bool:
    """Whether an object of such a pool can come home and be lent again with nothing to be done or seen to."""
    watched = options.max_hold is not None or options.warn_hold is not None
    hooks = options.check is not None or options.reset is not None
    return options.order == "lifo" and not (watched or hooks or lends_values)
