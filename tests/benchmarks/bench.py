"""Those who are measured: each is started when a row first needs it, all are ended together."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from functools import partial

from . import limits, ours, stock
from .clients import Crew, Opener, in_a_process
from .measure import Block, Pace
from .things import Operation

__all__ = ["KEPT", "LIMIT", "MPPOOL", "STOCK", "Bench", "beside"]

MPPOOL = "mppool"
STOCK = "stock"
KEPT = "stock, proxies kept"
LIMIT = "limit"

MOST_CLIENTS = 8
"""Also the number of objects in each pool: nobody waits for one."""


def beside(peer: str) -> str:
    """The samples of mppool that were taken in turn with a peer's."""
    return f"{MPPOOL} beside {peer}"


class Bench:
    """A crew of clients, and the pools that they open."""

    def __init__(self, pace: Pace, stack: ExitStack) -> None:
        self.pace = pace
        self.crew = stack.enter_context(Crew(MOST_CLIENTS))
        self._stack = stack
        self._openers: dict[str, Opener] = {}

    def add(self, who: str, opener: Opener) -> None:
        """Somebody who was started elsewhere."""
        self._openers[who] = opener

    def opener(self, who: str) -> Opener:
        """What opens somebody's pool in a client."""
        return self._openers[who]

    def block(self, who: str, operation: Operation, clients: int = 1, seconds: float | None = None) -> Block:
        """A block of an operation, in so many clients, on somebody's pool."""
        if who not in self._openers:
            self.add(who, self._start(who))
        seconds = seconds or self.pace.seconds
        return partial(self.crew.block, clients, who, self._openers[who], operation, seconds)

    def _start(self, who: str) -> Opener:
        enter = self._stack.enter_context
        if who == MPPOOL:
            return partial(nullcontext, enter(ours.serve(MOST_CLIENTS)))
        if who == LIMIT:
            return partial(limits.open_wire, enter(in_a_process(limits.serve)))
        pool = enter(stock.serve(MOST_CLIENTS))
        return partial(nullcontext, pool) if who == STOCK else partial(stock.open_kept, pool)
