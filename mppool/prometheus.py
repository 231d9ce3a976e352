"""The figures of pools for Prometheus: a collector for `prometheus_client`. Needs the extra `prometheus`.

It is registered in any process that can reach the manager, and asks it when it is scraped::

    from prometheus_client import REGISTRY
    from mppool.prometheus import PoolCollector

    REGISTRY.register(PoolCollector(manager))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

try:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
except ModuleNotFoundError as _error:
    raise ImportError('mppool.prometheus needs its library: pip install "mppool[prometheus]"') from _error

from ._client.pool import ObjectPool
from ._client.watched import Figures, Watched
from .manager import PoolManager

# What is told of each pool, by the names that it has in `PoolStats`.
_GAUGES = {
    "min_size": "Objects built ahead.",
    "max_size": "Objects at most.",
    "size": "Objects that count against max_size: idle, leased, being built, checked, reset or closed.",
    "idle": "Objects ready to be lent.",
    "leased": "Objects that are held.",
    "building": "Objects being built.",
    "waiting": "Acquires in the queue.",
}
_COUNTERS = {
    "acquired": "Leases granted.",
    "built": "Objects built.",
    "reused": "Leases granted on an object that had been lent before.",
    "timeouts": "Acquires that ended in PoolTimeout.",
    "rejected": "Acquires that ended in TooManyWaiting.",
    "exhausted": "Acquires that found every object held, and no room for another.",
    "reclaimed": "Leases taken back because their holder's process had ended.",
    "failed_builds": "Builds that raised, or took longer than build_timeout.",
    "late_releases": "Releases refused because their lease had ended before.",
}
_HISTOGRAMS = {
    "wait": "How long granted acquires waited.",
    "hold": "How long leases lasted that have ended.",
    "build": "How long the objects took that were built.",
}
_OF_OBJECTS = {
    "memory": ("memory_bytes", "Bytes that it holds, as max_memory counts them.", GaugeMetricFamily),
    "cpu_seconds": ("cpu_seconds", "Processor time that it has used.", CounterMetricFamily),
    "age": ("age_seconds", "Seconds since its build began.", GaugeMetricFamily),
}
_LABELS = ("manager", "pool")


class PoolCollector:
    """Asks the managers of pools for their figures when it is scraped, in whichever process.

    - `mppool_up`: 1 if the manager answers, else 0: it is not running, has shut down, died, or is silent for
      5 seconds. Then there is nothing of its pools.
    - `mppool_min_size`, `mppool_max_size`, `mppool_size`, `mppool_idle`, `mppool_leased`, `mppool_building`,
      `mppool_waiting`: how things stand, as `PoolStats` tells.
    - `mppool_acquired_total`, `mppool_built_total`, `mppool_reused_total`, `mppool_timeouts_total`,
      `mppool_rejected_total`, `mppool_exhausted_total`, `mppool_reclaimed_total`, `mppool_retired_total`
      (label `reason`), `mppool_failed_builds_total`, `mppool_late_releases_total`: what happened since the
      pool was made, or the manager restarted.
    - `mppool_wait_seconds`, `mppool_hold_seconds`, `mppool_build_seconds`: histograms.
    - `mppool_object_memory_bytes`, `mppool_object_cpu_seconds_total`, `mppool_object_age_seconds`: of each
      object with a process of its own, as `ObjectInfo` tells. The label `object` is its number, of which
      there are about as many as `max_size`: what replaces an object most often has the same one.

    The label `manager` is the name of the manager, or else its address; `pool` is the name of the pool. A
    pool that is closed is left out.

    Args:
        sources: managers, of which all pools are told, also those that come later, and pools. One collector
            for all: a registry takes no second one.

    Raises:
        TypeError: one is neither a manager nor a pool, or there is none.
    """

    def __init__(self, *sources: PoolManager | ObjectPool[Any]) -> None:
        if not sources:
            raise TypeError("PoolCollector() needs a PoolManager or an ObjectPool, or several")
        self._watched = [Watched(each) for each in sources]

    def describe(self) -> Iterator[Metric]:
        """The metrics without their samples: a registry asks for them, and then asks no manager."""
        return _families({}, {})

    def collect(self) -> Iterator[Metric]:
        """The metrics, as they are now."""
        up, pools = {}, {}
        for each in self._watched:
            figures = each.figures()
            up[each.manager] = figures is not None
            pools.update({(each.manager, told.stats.name): told for told in (figures or {}).values()})
        return _families(up, pools)


def _families(up: Mapping[str, bool], pools: Mapping[tuple[str, str], Figures]) -> Iterator[Metric]:
    answers = GaugeMetricFamily("mppool_up", "Whether the manager answers.", labels=_LABELS[:1])
    for manager, is_up in up.items():
        answers.add_metric([manager], is_up)
    yield answers
    for name, text in _GAUGES.items():
        gauge = GaugeMetricFamily(f"mppool_{name}", text, labels=_LABELS)
        for labels, (stats, _) in pools.items():
            gauge.add_metric(labels, getattr(stats, name))
        yield gauge
    for name, text in _COUNTERS.items():
        counter = CounterMetricFamily(f"mppool_{name}", text, labels=_LABELS)
        for labels, (stats, _) in pools.items():
            counter.add_metric(labels, getattr(stats, name))
        yield counter
    retired = CounterMetricFamily("mppool_retired", "Objects that left.", labels=(*_LABELS, "reason"))
    for labels, (stats, _) in pools.items():
        for reason, count in stats.retired.items():
            retired.add_metric((*labels, reason), count)
    yield retired
    for name, text in _HISTOGRAMS.items():
        histogram = HistogramMetricFamily(f"mppool_{name}_seconds", text, labels=_LABELS)
        for labels, (stats, _) in pools.items():
            seconds = getattr(stats, name)
            bounds = [*map(str, seconds.bounds), "+Inf"]
            buckets = list(zip(bounds, accumulate(seconds.counts), strict=True))
            histogram.add_metric(labels, buckets, seconds.sum)
        yield histogram
    yield from _families_of_objects(pools)


def _families_of_objects(pools: Mapping[tuple[str, str], Figures]) -> Iterator[Metric]:
    for figure, (name, text, family) in _OF_OBJECTS.items():
        metric = family(f"mppool_object_{name}", text, labels=(*_LABELS, "object"))
        for labels, (_, objects) in pools.items():
            for each in objects:
                value = getattr(each, figure)
                if value is not None:
                    metric.add_metric((*labels, str(each.number)), value)
        yield metric
