"""What a pool says where it refuses: its errors, with the numbers that they name."""

from __future__ import annotations

from mppool.errors import FactoryError, LeaseLost, PoolClosed, PoolTimeout, TooManyWaiting
from mppool.options import PoolOptions

from .entry import PoolEntry
from .failures import Failures
from .leases import Leases
from .objects import Objects
from .waiters import Waiter, Waiters


class Refusals:
    """Makes the errors of one pool; decides nothing. Used under its lock, but for `lost`."""

    def __init__(
        self, pool: str, objects: Objects, leases: Leases, waiters: Waiters, failures: Failures
    ) -> None:
        self._pool = f"pool {pool!r}"
        self._objects = objects
        self._leases = leases
        self._waiters = waiters
        self._failures = failures

    # -- acquires ---------------------------------------------------------------------------------

    def closed(self) -> PoolClosed:
        """The pool is closed."""
        return PoolClosed(f"{self._pool} is closed")

    def too_many_waiting(self, others: int, options: PoolOptions) -> TooManyWaiting:
        """So many others wait for a holder already."""
        return TooManyWaiting(
            f"{self._pool}: {others} wait already, max_waiting={options.max_waiting}; "
            f"{len(self._leases)} of at most {options.max_size} objects are held"
        )

    def timed_out(self, waiter: Waiter, now: float, options: PoolOptions) -> PoolTimeout:
        """No object came free in time."""
        held = self._leases.held()
        text = f"{self._pool}: no object came free in {now - waiter.since:.3g} s: {len(held)} held"
        if held:
            text += f" (longest by {held[0][1].holder}, {now - held[0][0]:.1f} s)"
        text += f", {self._builds()}, {len(self._waiters)} waiting, max_size={options.max_size}"
        own = sum(each.holder == waiter.holder for _, each in held)
        if own:
            text += f"; this process holds {own} of them itself"
        return PoolTimeout(text + self._why_none_was_built())

    def not_built(self, waiter: Waiter, now: float, options: PoolOptions) -> PoolTimeout:
        """Fewer than `min_size` objects are there in time."""
        text = f"{self._pool}: {self._objects.built} of min_size={options.min_size} objects are there"
        text += f" after {now - waiter.since:.3g} s, {self._builds()}"
        return PoolTimeout(text + self._why_none_was_built())

    def _builds(self) -> str:
        builds = self._objects.builds()
        waits_for = sorted({each.runner.waits_for for each in builds} - {""})
        return f"{len(builds)} being built" + f" (waiting for {', '.join(waits_for)})" * bool(waits_for)

    def _why_none_was_built(self) -> str:
        last = self._failures.last
        return "" if last is None else f"; the last build failed: {last}"

    # -- builds -----------------------------------------------------------------------------------

    def build_failed(self, entry: PoolEntry, error: BaseException, text: str) -> FactoryError:
        """The object could not be built; `text` says what the error is."""
        refusal = FactoryError(f"{self._pool}: the factory failed{entry.of_item}: {text}")
        refusal.__cause__ = error
        return refusal

    def builds_hang(self, options: PoolOptions) -> FactoryError:
        """No build begins: too many that were given up run on."""
        return FactoryError(
            f"{self._pool}: {self._objects.hung_threads} builds hang, for over {options.build_timeout:g} s "
            f"(build_timeout), max_size={options.max_size}: no other begins before one of them ends. They "
            "run in threads, which cannot be killed as processes are (isolation='process')"
        )

    # -- leases -----------------------------------------------------------------------------------

    def lost(self, lease_id: int) -> LeaseLost:
        """The lease is over. Needs no lock."""
        return LeaseLost(f"{self._pool}: lease {lease_id} is over: {self._leases.why_lost(lease_id)}")


# What is wrong with an object, for those who learn of it by an error or by the log.


def no_object_in_time(options: PoolOptions) -> TimeoutError:
    """Why a build is given up."""
    return TimeoutError(
        f"no object after {options.build_timeout:g} s (build_timeout): "
        "see where the factory, or what it imports, hangs, or allow more time"
    )


def too_large(entry: PoolEntry, options: PoolOptions) -> MemoryError:
    """Why an object is killed, or replaced when it is idle."""
    bound, fate = ("max_memory_hard", "killed") if entry.is_killed else ("max_memory", "replaced")
    allowed = getattr(options, bound)
    return MemoryError(
        f"its object held {entry.memory:,} bytes, more than {bound}={allowed:,}, and is {fate}"
    )
