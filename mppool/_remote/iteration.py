"""Items of a remote iterator, fetched ahead of their use.

The first batch of an iteration is one item, and each next one of the lease four times as many, as long as the
lease is used for nothing else: so an item followed by another call is never fetched too early.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from .errors import PackedError, unpack_error
from .interface import CURSOR, ITEMS, STREAM
from .opcodes import AWAITED, End
from .steps import Steps, is_answer

LARGEST_BATCH = 512
"""Items."""

Fetch = Callable[[bool], Steps[tuple[list[Any], End, "PackedError | None"]]]
"""Brings the next items, and what is behind them. It is told whether they are the first ones."""


class ReadAhead:
    """Items that the holder of a lease fetched ahead of their use."""

    __slots__ = ("_end", "_error", "_fetch", "_first", "_kind", "items")

    def __init__(self, kind: str, fetch: Fetch) -> None:
        """`kind` is an `Interface.iterator`."""
        self._kind = kind
        self._fetch = fetch
        self.forget()

    def forget(self) -> None:
        """The iterator starts anew, or is at its end: what was fetched is not wanted any more."""
        self.items: deque[Any] = deque()
        self._end: End = None
        self._error: PackedError | RuntimeError | None = None
        self._first = True

    @property
    def is_idle(self) -> bool:
        """Whether all that was fetched is used up, so that a call is one of the object and no more."""
        return not self.items and self._end is None and self._error is None

    @property
    def is_awaited(self) -> bool:
        """Whether the object waits for the next item, and no other is here."""
        return self._end is AWAITED and not self.items

    @property
    def holds_back(self) -> bool:
        """Whether there are items, or will be, that another user of the iterator would miss."""
        return bool(self.items) or self._end is AWAITED

    def more(self) -> Steps[tuple[Any, ...] | None]:
        """Fetch items, when there are none; at the end the arguments of `StopIteration`.

        Raises what the iterator raised in their place.
        """
        if isinstance(self._end, tuple):
            end, self._end = self._end, None
            return end
        if self._error is not None:
            error, self._error = self._error, None
            raise error if isinstance(error, RuntimeError) else unpack_error(error)
        yield from self._fetch_batch()
        return None

    def _fetch_batch(self) -> Steps[None]:
        try:
            items, self._end, self._error = yield from self._fetch(self._first)
        except BaseException as error:
            if not is_answer(error):
                text = "a fetch of items was interrupted: what it took from the iterator is lost, if anything"
                self._error = RuntimeError(text)
            raise
        self._first = False
        self.items.extend(items)

    def take(self, most: float = math.inf) -> Steps[list[Any]]:
        """The next items, as many as there are."""
        taken: list[Any] = []
        while len(taken) < most:
            try:
                taken.append(self.items.popleft())
            except IndexError:
                if (yield from self.more()) is not None:
                    break
        return taken

    def interrupt(self, what: str) -> Steps[None]:
        """Something else than iteration uses the iterator. `RuntimeError` if it would miss items."""
        while self.is_awaited:
            yield from self._fetch_batch()
        if self.items:
            raise RuntimeError(
                f"iteration has fetched {len(self.items)} items ahead, which {what} would miss: "
                "use them up first, or let each item be followed by such a call"
            )
        self._end = None  # there may be items again; an error, which the iterator raised once, is still due

    def before_call(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Steps[Callable[..., Steps[Any]] | None]:
        """A method of the iterator is about to be called.

        Returns what is to be called instead, if its answer begins with items that are ahead.
        """
        go_on = _GOES_ON[self._kind].get(name)
        if go_on is not None and (go_on is _fetchmany or not (args or kwargs)):
            while self.is_awaited or (self._error is not None and not self.items):
                yield from self.more()
            if self.items:
                return go_on
        # A seek may be relative to a position that the holder has not reached.
        relative = name == "seek" and os.SEEK_CUR in (*args[1:], *kwargs.values())
        if name in _STARTS_ANEW and not relative:
            self.forget()
        elif not name.startswith("_"):
            yield from self.interrupt(f"{name}()")
        return None

    def on_attribute(self, name: str) -> Steps[None]:
        """An attribute is read or changed. Of those of streams and cursors one depends on the position."""
        if self._kind == ITEMS or name == "rownumber":
            yield from self.interrupt(name)


Get = Callable[[tuple[str], dict[str, Any]], Steps[Any]]
"""Reads an attribute of an iterator."""


def _joined(ahead: ReadAhead, _: Get) -> Steps[Any]:
    parts = yield from ahead.take()
    return parts[0][:0].join(parts)


def _listed(ahead: ReadAhead, _: Get) -> Steps[list[Any]]:
    return (yield from ahead.take())


def _next(ahead: ReadAhead, _: Get) -> Steps[Any]:
    return (yield from ahead.take(1))[0]


def _fetchmany(ahead: ReadAhead, get: Get, size: int | None = None) -> Steps[list[Any]]:
    return (yield from ahead.take((yield from get(("arraysize",), {})) if size is None else size))


# By kind of iterator: methods that say the same as iteration, so they can begin with what is ahead.
_GOES_ON: dict[str, dict[str, Callable[..., Steps[Any]]]] = {
    STREAM: {"read": _joined, "readline": _next, "readlines": _listed},
    CURSOR: {"fetchall": _listed, "fetchmany": _fetchmany, "fetchone": _next},
    ITEMS: {},
}
_STARTS_ANEW = frozenset(
    "__exit__ aclose callproc close execute executemany executescript nextset seek".split()
)
"""After these, what is ahead is not wanted."""
