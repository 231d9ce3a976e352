"""What is measured. Rows that must be measured together make a family; most stand alone."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import batches, crowds, databases, limits, lives, loops, names, nodes, parked, places, ways
from .bench import KEPT, LIMIT, MPPOOL, STOCK, Bench, beside
from .measure import Row, Unit, interleave
from .things import (
    KIB,
    MIB,
    Kind,
    Operation,
    acquire_release,
    apply,
    cursor_fetched,
    cursor_iterated,
    cycle,
    plain_call,
    receive,
    send,
)

__all__ = ["ALL", "FAMILIES", "SINGLES", "Family", "Single", "matches"]

CLIENTS = (1, 2, 4, 8)
SIZES = (4 * KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB)
CURSOR_ROWS = 2000


# -- rows that are one operation ------------------------------------------------------------------------


@dataclass(frozen=True)
class Single:
    """An operation that everybody can be asked for."""

    name: str
    title: str
    unit: Unit
    operation: Operation
    limit: Operation | None = None
    clients: int = 1
    kept: bool = False
    """Whether it makes a difference that a client of the stock pool keeps its proxies."""

    def run(self, bench: Bench) -> Row:
        """Measure mppool, the stock pool and the limit."""
        blocks = {who: bench.block(who, self.operation, self.clients) for who in (MPPOOL, STOCK)}
        if self.kept:
            blocks[KEPT] = bench.block(KEPT, self.operation, self.clients)
        if self.limit is not None:
            blocks[LIMIT] = bench.block(LIMIT, self.limit, self.clients)
        return Row(self.name, self.title, self.unit, interleave(blocks, bench.pace.rounds))

    def run_beside(self, bench: Bench, peer: str, row: Row) -> None:
        """Measure a peer, and mppool again beside it."""
        blocks = {who: bench.block(who, self.operation, self.clients) for who in (MPPOOL, peer)}
        samples = interleave(blocks, bench.pace.rounds)
        row.samples[peer], row.samples[beside(peer)] = samples[peer], samples[MPPOOL]


def _small() -> Iterator[Single]:
    operations: tuple[tuple[str, str, Operation], ...] = (
        ("call", "plain call", plain_call),
        ("acquire-release", "acquire+release", acquire_release),
        ("cycle", "acquire+call+release", cycle),
        ("apply", "apply", apply),
    )
    for name, title, operation in operations:
        kept = operation in (acquire_release, cycle)
        for clients in CLIENTS:
            who = "1 client" if clients == 1 else f"{clients} clients"
            yield Single(
                f"{name}-{clients}", f"{title}, {who}", "rate", operation, limits.echo, clients, kept
            )


def _large() -> Iterator[Single]:
    kinds: tuple[tuple[Kind, tuple[int, ...]], ...] = (("array", SIZES), ("bytes", (64 * MIB,)))
    for kind, sizes in kinds:
        for size in sizes:
            yield _transfer("argument", send, limits.transfer_in, kind, size)
            yield _transfer("result", receive, limits.transfer_out, kind, size)


def _transfer(
    way: str, operation: Callable[..., Any], through_socket: Callable[..., Any], kind: Kind, size: int
) -> Single:
    limit = limits.copy if limits.is_copied(size) else through_socket
    in_words = f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"
    return Single(
        name=f"{kind}-{way}-{in_words.replace(' ', '')}",
        title=f"{kind} {way}, {in_words}",
        unit="time",
        operation=partial(operation, kind=kind, size=size),
        limit=partial(limit, size=size),
    )


SINGLES: tuple[Single, ...] = (
    *_small(),
    *_large(),
    Single(
        "cursor-iterated",
        f"{CURSOR_ROWS} rows from a cursor, iterated",
        "time",
        partial(cursor_iterated, rows=CURSOR_ROWS),
    ),
    Single(
        "cursor-fetched",
        f"{CURSOR_ROWS} rows from a cursor, fetchall",
        "time",
        partial(cursor_fetched, rows=CURSOR_ROWS),
    ),
)


# -- all rows ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """Rows that are measured together."""

    names: tuple[str, ...]
    run: Callable[[Bench], Iterator[Row]]
    lacking: Callable[[], dict[str, str]] = dict
    """What would have to be installed first: its name, and what is to be said of it."""


def _loops() -> Iterator[Family]:
    for kind in loops.LOOPS:
        lacking = partial(loops.lacking, kind)
        yield Family(loops.loop_rows(kind), partial(loops.rows_of, kind), lacking)
        yield Family(loops.stall_rows(kind), partial(loops.stalls, kind), partial(lacking, "numpy"))
        yield Family(ways.way_rows(kind), partial(ways.ways, kind), lacking)


FAMILIES: tuple[Family, ...] = (
    Family(crowds.OBJECT_ROWS, crowds.objects),
    Family(crowds.IDLE_ROWS, crowds.idle),
    Family(crowds.LOOK_ROWS, crowds.looks),
    Family(places.PLACE_ROWS, places.places),
    Family(batches.BATCH_ROWS, batches.batches),
    Family(databases.DATABASE_ROWS, databases.databases, databases.lacking),
    Family(lives.KILL_ROWS, lives.kill),
    Family(lives.IMPORT_ROWS, lives.imports),
    Family(lives.START_ROWS, lives.starts),
    Family(lives.FIRST_ROWS, lives.firsts),
    Family(names.NAME_ROWS, names.names),
    Family(parked.PARKED_ROWS, parked.parked),
    Family(parked.PARKED_IDLE_ROWS, parked.idle, parked.lacking),
    Family(nodes.RAY_ROWS, nodes.beside_ray, nodes.lacking),
    *_loops(),
)

ALL = (*(single.name for single in SINGLES), *(name for family in FAMILIES for name in family.names))
"""Names of all rows."""


def matches(name: str, wanted: list[str]) -> bool:
    """Whether a row was asked for: by its name, its beginning up to a hyphen, or a pattern."""
    return any(name.startswith(f"{each}-") or fnmatch.fnmatchcase(name, each) for each in wanted)
