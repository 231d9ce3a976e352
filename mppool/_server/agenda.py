"""When which pool has something to do. One that has nothing to do costs nothing, however many there are."""

from __future__ import annotations

import heapq
import threading
from math import inf


class Agenda:
    """The next moment (`time.monotonic`) of each pool that has one; pools go by their numbers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next two, which are read and written under it, no more
        self._moments: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []  # may hold some for which an earlier one came later

    def note(self, pool_id: int, moment: float) -> None:
        """The pool has something to do then, at the latest."""
        with self._lock:
            if moment < self._moments.get(pool_id, inf):
                self._moments[pool_id] = moment
                heapq.heappush(self._heap, (moment, pool_id))

    def take_due(self, now: float) -> list[int]:
        """Take out the pools whose moment has come."""
        due = []
        with self._lock:
            while self._heap and self._heap[0][0] <= now:
                moment, pool_id = heapq.heappop(self._heap)
                if self._moments.get(pool_id) == moment:
                    del self._moments[pool_id]
                    due.append(pool_id)
        return due

    def next_moment(self) -> float:
        """The moment before which `take_due` finds none."""
        with self._lock:
            return self._heap[0][0] if self._heap else inf
