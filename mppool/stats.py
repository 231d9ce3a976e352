"""What a pool tells of itself."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ._buckets import BUCKETS


@dataclass(frozen=True)
class Histogram:
    """How long things took: how many fell into which bucket, as Prometheus and OpenTelemetry count them.

    Args:
        counts: events for each bucket: those that took no longer than its bound, and longer than the one
            before; at the end those that took longer than all bounds.
        sum: seconds that all of them took.
        bounds: the upper bounds of the buckets, in seconds; the same in all histograms of a version.
    """

    __module__ = "mppool"  # where users find it

    counts: tuple[int, ...] = (0,) * (len(BUCKETS) + 1)
    sum: float = 0.0
    bounds: tuple[float, ...] = BUCKETS

    @property
    def count(self) -> int:
        """How many events there were."""
        return sum(self.counts)

    def __repr__(self) -> str:
        """The buckets in which there is something."""
        names = [*(f"<={bound:g}" for bound in self.bounds), f">{self.bounds[-1]:g}"]
        found = [f"{name}: {count}" for name, count in zip(names, self.counts, strict=True) if count]
        return f"<Histogram of {self.count}, {self.sum:.3g} s in all{' - ' * bool(found)}{', '.join(found)}>"


@dataclass(frozen=True, kw_only=True)
class PoolStats:
    """The figures of one pool: how things stand now, and what happened since it was made.

    What `ObjectPool.stats()` returns, a copy that does not change any more.

    Args:
        name: the pool's name.

        min_size: objects built ahead, as `resize` left it.
        max_size: objects at most.
        size: objects that count against `max_size`: idle, leased, being built, checked, reset or closed,
            or asked whether a call of its last lease still runs.
        idle: objects ready to be lent.
        leased: objects that are held now.
        building: objects being built.
        waiting: acquires in the queue.

        acquired: leases granted.
        built: objects built.
        reused: leases granted on an object that had been lent before.
        timeouts: acquires that ended in `PoolTimeout`.
        rejected: acquires that ended in `TooManyWaiting`.
        exhausted: acquires that found every object held, and no room for another.
        reclaimed: leases taken back because their holder's process had ended.
        failed_builds: builds that raised, or took longer than `build_timeout`.
        late_releases: releases refused because their lease had ended before.
        retired: objects that left the pool, by reason: "idle", "lifetime", "uses" (the pool's `max_...`),
            "check", "reset" (the hook refused), "hung" (the hook did not return), "discarded", "call"
            (`call_timeout`), "expired" (`max_hold`), "reclaimed" (its holder's process ended), "interrupted"
            (its lease ended during a call), "refreshed", "shrunk" (`resize`), "closed" (with the pool),
            "died" (its own process ended), "memory", "memory_hard" (it held too much: the pool's `max_...`).

        wait_seconds: seconds that granted acquires waited, in all.
        wait_longest: seconds that the longest of them waited.
        hold_seconds: seconds that ended leases lasted, in all.
        hold_longest: seconds that the longest of them lasted.
        build_seconds: seconds that it took to build the objects that were built, in all.
        build_longest: seconds that the longest of these builds took.

        wait: how long granted acquires waited; one that found an object idle waited 0 seconds.
        hold: how long leases lasted that have ended, in whichever way.
        build: how long the objects took that were built.
    """

    __module__ = "mppool"  # where users find it

    name: str

    min_size: int = 0
    max_size: int = 0
    size: int = 0
    idle: int = 0
    leased: int = 0
    building: int = 0
    waiting: int = 0

    acquired: int = 0
    built: int = 0
    reused: int = 0
    timeouts: int = 0
    rejected: int = 0
    exhausted: int = 0
    reclaimed: int = 0
    failed_builds: int = 0
    late_releases: int = 0
    retired: dict[str, int] = field(default_factory=Counter)

    wait_seconds: float = 0.0
    wait_longest: float = 0.0
    hold_seconds: float = 0.0
    hold_longest: float = 0.0
    build_seconds: float = 0.0
    build_longest: float = 0.0

    wait: Histogram = Histogram()
    hold: Histogram = Histogram()
    build: Histogram = Histogram()


@dataclass(frozen=True, kw_only=True)
class LeaseInfo:
    """One lease that lasts now: an element of `ObjectPool.leases()`.

    Args:
        lease_id: never used again for another lease.
        pid: the holder's process.
        process_name: what `multiprocessing` calls it in its own process.
        node: the machine of a cluster where that process is; None: the manager's, or none of a cluster.
        age: seconds since it was granted.
        where: file and line that acquired it; None unless `warn_hold`, `max_hold` or the environment variable
            MPPOOL_TRACE asks for it.
        item: of which the object was made, with `each`, else None; where its type is not known, its `repr`.
        callers: the processes whose calls of `apply_batch` are in the batch that holds the object, each call
            by its pid; empty if no batch does. The holder of a batch is the manager's process.
        object_age: seconds since the object's build began.
        memory: bytes that the object holds, as `max_memory` counts them, within the last half second; None
            without a process of its own, and where that cannot be told.
        cpu_seconds: processor time that it has used, with the processes that `memory` counts; else None.
    """

    __module__ = "mppool"  # where users find it

    lease_id: int
    pid: int
    process_name: str
    age: float
    where: str | None = None
    item: Any = None
    callers: tuple[int, ...] = ()
    object_age: float = 0.0
    memory: int | None = None
    cpu_seconds: float | None = None
    node: str | None = None


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """One object that is there now: an element of `ObjectPool.objects()`.

    Args:
        number: from 0 on, the lowest that no other object of the pool had when its build began. So its
            successor most often has the same one.
        state: "idle", "leased", "revoking" (its lease is over, and its process is asked whether a call still
            runs), "checking", "resetting", "building" ("stuck": for so long that no acquire counts on it;
            "hung": for longer than `build_timeout`), "closing" ("written_off": it no longer counts), or
            "abandoned" (its lease or hook ended badly, and code runs in it).
        age: seconds since its build began.
        uses: leases that it had.
        pid: the process that it has for itself, or None.
        node: the machine of a cluster where that process is; None: the manager's, or none of a cluster.
        memory: bytes that it holds, as `max_memory` counts them, within the last half second; None without a
            process of its own, and where that cannot be told.
        cpu_seconds: processor time that it has used, with the processes that `memory` counts; else None.
        item: of which it was made, with `each`, else None; where its type is not known, its `repr`.
    """

    __module__ = "mppool"  # where users find it

    number: int
    state: str
    age: float
    uses: int
    pid: int | None = None
    memory: int | None = None
    cpu_seconds: float | None = None
    item: Any = None
    node: str | None = None


class ManagerFacts(NamedTuple):
    """What a manager tells of its process."""

    pid: int
    python: str
    """The version of Python that it runs."""
    uptime: float
    """Seconds."""
    users: list[int] | None
    """The processes that use a manager with a name; None: it has no name, and is its creator's."""
    log: str | None
    """The file that it prints to; None: it prints where the process does that created it."""
