"""The leases of a pool that last, and why those are over that their holders did not end."""

from __future__ import annotations

import itertools
import secrets

from mppool._system.processes import ProcessId

from .entry import Lease, PoolEntry, Reason

_REMEMBERED = 1000  # lost leases of which it is known why

# What becomes of a lease that is ended for such a reason, in the words of `LeaseLost`.
_LOST_TO = {
    Reason.CALL: "a call on it took longer than call_timeout",
    Reason.EXPIRED: "it was held longer than max_hold",
    Reason.CLOSED: "the pool was closed",
}


class Leases(dict[int, Lease]):
    """Every lease that lasts, by its id. Used under the pool's lock; one can be looked up without it."""

    def __init__(self) -> None:
        super().__init__()
        # From a random start: a pool that is made again after its manager died must not use an id again.
        self._ids = itertools.count(secrets.randbits(62))
        self._why_lost: dict[int, str] = {}  # the latest last

    def begin(self, entry: PoolEntry, holder: ProcessId, now: float, where: str | None) -> Lease:
        """Lend an object; `where`: file and line that asked."""
        lease = entry.lease = Lease(next(self._ids), entry, holder, now, where)
        entry.runner.fence.begin(lease.id)
        self[lease.id] = lease
        return lease

    def end(self, lease: Lease, reason: Reason | None) -> None:
        """It is over. Why is kept for a holder that did not end it, for one of the reasons above."""
        lease.over = True
        del self[lease.id]
        if reason in _LOST_TO:
            self.remember(lease, _LOST_TO[reason])

    def remember(self, lease: Lease, why: str) -> None:
        """Keep why its holder loses a lease."""
        if len(self._why_lost) >= _REMEMBERED:
            del self._why_lost[next(iter(self._why_lost))]
        self._why_lost[lease.id] = why + lease.entry.of_item

    def why_lost(self, lease_id: int) -> str:
        """Why a lease is over. Needs no lock."""
        return self._why_lost.get(lease_id, "it was released or taken back")

    def held(self) -> list[tuple[float, Lease]]:
        """Those that are in use, since when, the longest held first: not those that lie parked."""
        held = [(since, each) for each in self.values() if (since := each.held_since) is not None]
        return sorted(held, key=lambda pair: pair[0])
