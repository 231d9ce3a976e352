"""Items of a remote iterator: taken in batches where it lives, fetched ahead of their use.

The first batch of an iteration is one item, and each next one twice as many, as long as the lease is used
for nothing else: so an item followed by another call is never fetched too early.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from .interface import CURSOR, ITEMS, STREAM, interface_of

LARGEST_BATCH = 512
"""Items."""
BATCH_SECONDS = 0.005
"""A batch takes no new item after this time: the first ones have waited long enough."""

End = tuple[Any, ...] | None
"""Behind the last item: the arguments of `StopIteration`. None: the iterator has not ended yet."""


def iterator_over(obj: Any, kind: str) -> Iterator[Any]:
    """What gives the next items of an object of a kind of `Interface.iterator`."""
    if hasattr(type(obj), "__next__"):
        return obj  # type: ignore[no-any-return]
    return iter(obj.fetchone, None) if kind == CURSOR else iter(obj)


def goes_on_as(iterator: Any, obj: Any, kind: str) -> bool:
    """Whether an iterator over a stream or cursor goes on where that stops, and the other way round."""
    if not hasattr(type(obj), "__next__"):
        return kind in (STREAM, CURSOR)
    return kind == STREAM == interface_of(type(iterator)).iterator  # a `SpooledTemporaryFile` gives its file


class Batches:
    """Takes items where the iterators of a lease live."""

    __slots__ = ("_errors", "sizes")

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        """Of each iterator's next batch; a call that is no iteration clears them."""
        self._errors: dict[int, Exception] = {}  # an iterator's, behind the items before it

    def take(self, number: int, iterator: Iterator[Any], anew: bool) -> tuple[list[Any], End]:
        """The next items of the iterator with this number. Raises what it raises in place of the first."""
        error = self._errors.pop(number, None)
        if error is not None and not anew:
            raise error
        size = self.sizes.get(number, 1)
        items: list[Any] = []
        end = None
        began = time.monotonic()
        try:
            while len(items) < size:
                items.append(next(iterator))
                if time.monotonic() - began > BATCH_SECONDS:
                    break
        except StopIteration as stop:
            end = stop.args
        except Exception as error:
            if not items:
                raise
            self._errors[number] = error
        # Fewer than asked for: the iterator is slow, and the first items must not wait for the others.
        self.sizes[number] = 1 if len(items) < size else min(2 * size, LARGEST_BATCH)
        return items, end

    def forget(self, number: int) -> None:
        """The iterator with this number is not used any more."""
        self._errors.pop(number, None)
        self.sizes.pop(number, None)


class ReadAhead:
    """Items that the holder of a lease fetched ahead of their use."""

    __slots__ = ("_anew", "_end", "_fetch", "_kind", "items")

    def __init__(self, kind: str, fetch: Callable[[bool], tuple[list[Any], End]]) -> None:
        """`kind` is an `Interface.iterator`. `fetch` is told whether the iterator was set anew."""
        self._kind = kind
        self._fetch = fetch
        self.forget()

    def forget(self) -> None:
        """The iterator starts anew, or is at its end: what was fetched is not wanted any more."""
        self.items: deque[Any] = deque()
        self._end: End = None
        self._anew = True

    def interrupt(self, what: str) -> None:
        """Something else than iteration uses the iterator. `RuntimeError` if it would miss items."""
        if self.items:
            raise RuntimeError(
                f"iteration has fetched {len(self.items)} items ahead, which {what} would miss: "
                "use them up first, or let each item be followed by such a call"
            )
        self._end = None

    def on_method(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[..., Any] | None:
        """A method of the iterator is about to be called.

        Returns what is to be called instead, if its answer begins with items that are ahead.
        """
        go_on = _GOES_ON[self._kind].get(name) if self.items else None
        if go_on is not None and (go_on is _fetchmany or not (args or kwargs)):
            return go_on
        if _starts_anew(name, args, kwargs):
            self.forget()
        else:
            self.interrupt(f"{name}()")
        return None

    def on_attribute(self, name: str) -> None:
        """An attribute is read or changed. Of those of streams and cursors one depends on the position."""
        if self._kind == ITEMS or name == "rownumber":
            self.interrupt(name)

    def next(self) -> Any:
        """The next item. Raises what the iterator raised in its place."""
        while True:
            try:
                return self.items.popleft()
            except IndexError:
                self._fetch_more()

    def _fetch_more(self) -> None:
        if self._end is not None:
            end, self._end = self._end, None
            raise StopIteration(*end)
        anew, self._anew = self._anew, False
        items, self._end = self._fetch(anew)
        self.items.extend(items)


def _joined(lines: Any) -> Any:
    parts = list(lines)
    return parts[0][:0].join(parts)


def _fetchmany(cursor: Any, size: int | None = None) -> list[Any]:
    return list(islice(cursor, cursor.arraysize if size is None else size))


# By kind of iterator: methods that say the same as iteration, so they can begin with what is ahead.
_GOES_ON: dict[str, dict[str, Callable[..., Any]]] = {
    STREAM: {"read": _joined, "readline": next, "readlines": list},
    CURSOR: {"fetchall": list, "fetchmany": _fetchmany, "fetchone": next},
    ITEMS: {},
}
_STARTS_ANEW = frozenset("callproc close execute executemany executescript nextset seek".split())


def _starts_anew(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether what is ahead is not wanted after this call."""
    if name == "seek" and os.SEEK_CUR in (*args[1:], *kwargs.values()):
        return False  # relative to a position that the holder has not reached
    return name in _STARTS_ANEW
