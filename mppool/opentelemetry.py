"""The figures of pools for OpenTelemetry, by its semantic conventions. Needs the extra `opentelemetry`.

That is the API: what becomes of the figures is up to the SDK that the program has set up.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from operator import lt
from typing import Any
from weakref import WeakKeyDictionary

try:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider
except ModuleNotFoundError as _error:
    raise ImportError('mppool.opentelemetry needs its API: pip install "mppool[opentelemetry]"') from _error

from . import _version
from ._buckets import BUCKETS
from ._client.pool import ObjectPool
from ._client.watched import Figures, Watched
from .manager import PoolManager
from .stats import Histogram, PoolStats

_SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the conventions by which the metrics are named."""

_PREFIX = "db.client.connection."
_POOL, _STATE = _PREFIX + "pool.name", _PREFIX + "state"

# What the conventions say of each metric: the end of its name, its unit, its description. And, where it tells
# one figure of `PoolStats`, which.
_COUNT = (
    "count",
    "{connection}",
    "The number of connections that are currently in state described by the `state` attribute.",
)
_TIMEOUTS = (
    "timeouts",
    "{timeout}",
    "The number of connection timeouts that have occurred trying to obtain a connection from the pool.",
)
_LEVELS = (
    ("idle.max", "{connection}", "The maximum number of idle open connections allowed.", "max_size"),
    ("idle.min", "{connection}", "The minimum number of idle open connections allowed.", "min_size"),
    ("max", "{connection}", "The maximum number of open connections allowed.", "max_size"),
    (
        "pending_requests",
        "{request}",
        "The number of current pending requests for an open connection.",
        "waiting",
    ),
)
_TIMES = (
    ("create_time", "s", "The time it took to create a new connection.", "build"),
    ("wait_time", "s", "The time it took to obtain an open connection from the pool.", "wait"),
    ("use_time", "s", "The time between borrowing a connection and returning it to the pool.", "hold"),
)

# Of each object with a process of its own, by the names of mppool: there are no conventions for it.
_OBJECT = "mppool.object."
_OF_OBJECTS = (
    ("memory", "By", "The memory that an object of the pool holds.", "memory"),
    ("cpu_time", "s", "The processor time that an object of the pool has used.", "cpu_seconds"),
    ("age", "s", "The time since the build of an object of the pool began.", "age"),
)


def instrument(
    source: PoolManager | ObjectPool[Any], meter_provider: MeterProvider | None = None
) -> Callable[[], None]:
    """Have the figures of pools collected as the `db.client.connection.*` metrics of OpenTelemetry.

    Call it in one process of a program: that one asks the manager whenever the SDK collects, and a forked
    child of it does not. A manager that is gone, or does not answer within 5 seconds, tells nothing until it
    answers again.

    - `count` (of the states `idle` and `used`), `idle.max`, `idle.min`, `max`, `pending_requests`: how things
      stand, which are `idle`, `leased`, `max_size`, `min_size`, `max_size` and `waiting` of `PoolStats`. All
      objects may lie idle, so `idle.max` is `max`.
    - `mppool.object.memory`, `mppool.object.cpu_time`, `mppool.object.age`: of each object with a process of
      its own, as `ObjectInfo` tells; the attribute `mppool.object.number` is its number, of which there are
      about as many as `max_size`: what replaces an object most often has the same one.
    - `timeouts`: how many acquires ended in `PoolTimeout`, from this call on.
    - `create_time`, `wait_time`, `use_time`: how long builds, waits and leases lasted that ended from this
      call on. The manager tells how many fell into which of its buckets, and each is recorded as a value of
      its bucket, so chosen that their sum is true. Exact are count, sum and, with the bounds that the SDK is
      advised to take, the buckets. As exact as a bucket is wide are the least and the greatest value, and
      what a view with other bounds counts. Each of them costs some microseconds when it is collected, as if
      it was recorded where it happens.

    Args:
        source: a manager, of which all pools are told, also those that come later, or a pool. Pools of
            different managers need different names: the attribute `db.client.connection.pool.name`.
        meter_provider: what collects. Default: the one of the program, `get_meter_provider()`.

    Returns:
        A function that undoes this.

    Raises:
        TypeError: `source` is neither a manager nor a pool.
    """
    provider = meter_provider or get_meter_provider()
    instruments = _instruments.get(provider)
    if instruments is None:
        instruments = _instruments[provider] = _Instruments(provider)
    return instruments.add(_Source(source))


class _Source:
    """A manager or pool, what it tells now, and what of that was recorded."""

    def __init__(self, source: Any) -> None:
        self._watched = Watched(source)
        self._process = os.getpid()
        self.now: dict[int, Figures] = {}
        self._recorded = _stats_of(self._watched.figures() or {})

    def read(self) -> Iterator[tuple[PoolStats, PoolStats]]:
        """What each pool tells now, and from where on it is new."""
        figures = self._watched.figures() if os.getpid() == self._process else None
        self.now = figures or {}
        if figures is None:  # what was recorded stays so: the manager may go on
            return
        before, self._recorded = self._recorded, _stats_of(figures)
        for pool_id, now in self._recorded.items():
            yield now, _start(now, before.get(pool_id))


class _Instruments:
    """The instruments of a provider, which takes each only once, for all that is to be told."""

    def __init__(self, provider: MeterProvider) -> None:
        self._sources: list[_Source] = []
        meter = provider.get_meter("mppool", _version.__version__, _SCHEMA)

        def observe(callback: Callable[[CallbackOptions], Iterable[Observation]], *of: str) -> None:
            name, unit, text = of
            meter.create_observable_up_down_counter(_PREFIX + name, [callback], unit, text)

        observe(self._read, *_COUNT)  # the first: they are asked in this order, and this asks the managers
        for *of, figure in _LEVELS:
            observe(partial(self._tell, figure), *of)
        for name, unit, text, figure in _OF_OBJECTS:
            tell = partial(self._tell_of_objects, figure)
            meter.create_observable_gauge(_OBJECT + name, [tell], unit, text)
        name, unit, text = _TIMEOUTS
        self._timeouts = meter.create_counter(_PREFIX + name, unit, text)
        self._times = {
            figure: meter.create_histogram(
                _PREFIX + name, unit, text, explicit_bucket_boundaries_advisory=BUCKETS
            )
            for name, unit, text, figure in _TIMES
        }

    def add(self, source: _Source) -> Callable[[], None]:
        """Tell of this, too; returns what ends that."""
        self._sources.append(source)

        def remove() -> None:
            if source in self._sources:
                self._sources.remove(source)

        return remove

    def _read(self, _: CallbackOptions) -> Iterable[Observation]:
        for source in list(self._sources):
            for now, before in source.read():
                self._record(now, before)
                for state, count in ("idle", now.idle), ("used", now.leased):
                    yield Observation(count, {_POOL: now.name, _STATE: state})

    def _tell(self, figure: str, _: CallbackOptions) -> Iterable[Observation]:
        for source in list(self._sources):
            for stats, _ in source.now.values():
                yield Observation(getattr(stats, figure), {_POOL: stats.name})

    def _tell_of_objects(self, figure: str, _: CallbackOptions) -> Iterable[Observation]:
        for source in list(self._sources):
            for stats, objects in source.now.values():
                for each in objects:
                    value = getattr(each, figure)
                    if value is not None:
                        yield Observation(value, {_POOL: stats.name, f"{_OBJECT}number": each.number})

    def _record(self, now: PoolStats, before: PoolStats) -> None:
        """What has happened since then: a histogram cannot be observed, it is told of one event at a time."""
        attributes = {_POOL: now.name}
        self._timeouts.add(now.timeouts - before.timeouts, attributes)
        for figure, histogram in self._times.items():
            longest = getattr(now, f"{figure}_longest")
            for seconds, count in _values(getattr(now, figure), getattr(before, figure), longest):
                for _ in range(count):
                    histogram.record(seconds, attributes)


_instruments: WeakKeyDictionary[MeterProvider, _Instruments] = WeakKeyDictionary()


def _stats_of(figures: dict[int, Figures]) -> dict[int, PoolStats]:
    return {pool_id: told.stats for pool_id, told in figures.items()}


def _start(now: PoolStats, before: PoolStats | None) -> PoolStats:
    """From where on to count: from nothing, if the pool is new, or its manager was restarted since."""
    if before is None or any(map(lt, _counts(now), _counts(before))):
        return PoolStats(name=now.name)
    return before


def _counts(stats: PoolStats) -> tuple[int, ...]:
    """What can only grow while the manager lives."""
    return stats.timeouts, *stats.build.counts, *stats.wait.counts, *stats.hold.counts


def _values(now: Histogram, before: Histogram, longest: float) -> Iterator[tuple[float, int]]:
    """A value for each bucket, and how many events are new in it.

    All values lie at the same share of the way through their buckets: at that with which their sum is the
    true one. Not at the very start, which belongs to the bucket before.
    """
    counts = [after - earlier for after, earlier in zip(now.counts, before.counts, strict=True)]
    buckets = list(pairwise((0.0, *now.bounds, max(longest, now.bounds[-1]))))
    least = sum(count * low for count, (low, _) in zip(counts, buckets, strict=True))
    room = sum(count * (high - low) for count, (low, high) in zip(counts, buckets, strict=True))
    share = min(max((now.sum - before.sum - least) / (room or 1.0), 1e-9), 1.0)
    for count, (low, high) in zip(counts, buckets, strict=True):
        yield high - (1 - share) * (high - low), count
