"""Items of a remote iterator, fetched ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from .calls import NEXT

LARGEST_BATCH = 512
"""Items. The first batch of an iteration is one item, and each next one twice as many."""


class ReadAhead:
    """Items of an iterator that were fetched ahead of their use."""

    __slots__ = ("anew", "end", "items", "size")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """The iterator starts anew, or is at its end: what was fetched is not wanted any more."""
        self.items: deque[Any] = deque()
        self.end: tuple[Any, ...] | None = None  # the arguments of StopIteration, behind the items
        self.size = 1
        self.anew = True

    def interrupt(self, what: str) -> None:
        """Something else than iteration uses the iterator: no item must be here that it would miss."""
        if self.items:
            raise RuntimeError(
                f"iteration has fetched {len(self.items)} items ahead, which {what} would miss: "
                "use them up first, or let each item be followed by such a call"
            )
        self.end = None
        self.size = 1

    def next(self, handle: Any) -> Any:
        """The next item. Raises what the iterator raised in its place."""
        while True:
            try:
                return self.items.popleft()
            except IndexError:
                self._fetch(handle)

    def _fetch(self, handle: Any) -> None:
        if self.end is not None:
            end, self.end = self.end, None
            raise StopIteration(*end)
        size, anew, self.anew = self.size, self.anew, False
        items, self.end = handle._family.call(handle, NEXT, (size, anew), {})
        self.items.extend(items)
        # Fewer than asked for: the iterator is slow, and the first items must not wait for the others.
        self.size = 1 if len(items) < size else min(2 * size, LARGEST_BATCH)


def _joined(handle: Any) -> Any:
    parts = list(handle)
    return parts[0][:0].join(parts)


def fetchmany(handle: Any, size: int | None = None) -> list[Any]:
    return list(islice(handle, handle.arraysize if size is None else size))


# Items that were fetched ahead are lost to the object's other methods. These say the same as
# iteration does (files; cursors of the DB API), so they can go on with those items.
LIKE_ITERATION: dict[str, Callable[[Any], Any]] = {
    "fetchall": list,
    "fetchone": next,
    "read": _joined,
    "readline": next,
    "readlines": list,
}
STARTS_ANEW = frozenset("callproc close execute executemany executescript nextset seek".split())
