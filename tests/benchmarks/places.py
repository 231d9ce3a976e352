"""Rows for each place where an object can live: in its manager, in a thread or in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

from . import ours
from .bench import MPPOOL, Bench
from .clients import orderly
from .measure import Row, Unit, interleave
from .things import MIB, Operation, apply, compute, cycle, plain_call, receive

__all__ = ["BESIDE", "PLACE_ROWS", "places"]

PLACES = ("none", "thread", "process")

BESIDE = f"{MPPOOL} in the manager"
"""mppool with `isolation="none"`, in the same rounds."""

# Name, title, unit, operation, clients.
_OPERATIONS: tuple[tuple[str, str, Unit, Operation, int], ...] = (
    ("call", "plain call", "time", plain_call, 1),
    ("cycle", "acquire+call+release", "time", cycle, 1),
    ("apply", "apply", "time", apply, 1),
    ("array", "array result, 16 MiB", "time", partial(receive, kind="array", size=16 * MIB), 1),
    ("compute", "Python code, 2 clients", "rate", compute, 2),
)

PLACE_ROWS = tuple(f"place-{operation[0]}-{place}" for operation in _OPERATIONS for place in PLACES)


def places(bench: Bench) -> Iterator[Row]:
    """The same operations on objects in each place."""
    with orderly() as stack:
        for place in PLACES:
            pool = stack.enter_context(ours.serve(2, isolation=place))
            bench.add(_name(place), partial(nullcontext, pool))
        for name, title, unit, operation, clients in _OPERATIONS:
            blocks = {place: bench.block(_name(place), operation, clients) for place in PLACES}
            samples = interleave(blocks, bench.pace.rounds)
            for place in PLACES:
                compared = {MPPOOL: samples[place], BESIDE: samples["none"]}
                yield Row(f"place-{name}-{place}", f'{title}, isolation="{place}"', unit, compared)


def _name(place: str) -> str:
    return f"{MPPOOL}, {place}"
