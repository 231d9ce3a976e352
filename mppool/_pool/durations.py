"""How long things took that happen again and again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from mppool._buckets import BUCKETS
from mppool.stats import Histogram

Counted = tuple[Sequence[int], float, float]
"""How many durations fell into which bucket, in all, and the longest, in seconds."""


class Durations:
    """Seconds that one kind of event took: in all, at most, and how many events fell into which bucket.

    Used under the pool's lock.
    """

    __slots__ = ("_counts", "_longest", "_name", "_sum")

    def __init__(self, name: str) -> None:
        self._name = name
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = self._longest = 0.0

    def add(self, seconds: float) -> None:
        """One event more."""
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds
        if seconds > self._longest:  # noqa: PLR1730  # `max` would take as long as all the rest
            self._longest = seconds

    def add_counted(self, counted: Counted) -> None:
        """Several events more, which were counted elsewhere."""
        counts, total, longest = counted
        self._counts = [one + other for one, other in zip(self._counts, counts, strict=True)]
        self._sum += total
        self._longest = max(self._longest, longest)

    def copy(self) -> Durations:
        """The same, by itself."""
        other = Durations(self._name)
        other.add_counted((self._counts, self._sum, self._longest))
        return other

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self._counts)

    def figures(self) -> dict[str, Any]:
        """What `PoolStats` tells of them."""
        return {
            self._name: Histogram(tuple(self._counts), self._sum),
            f"{self._name}_seconds": self._sum,
            f"{self._name}_longest": self._longest,
        }
