"""The figures to reach, each a ratio within one run on one machine, or a bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from .batches import APPLY, BATCH_WAIT
from .bench import LIMIT, MPPOOL, STOCK, beside
from .crowds import ONE, UNBOUNDED
from .loops import LOOPS, THREADS, loop_rows
from .measure import Row
from .names import CONNECTED, OWN
from .nodes import RAY
from .parked import CALL, MANY, NOTHING, ROUND_TRIP
from .places import BESIDE

__all__ = ["FIGURES", "Figure", "Rows"]

Rows = Mapping[str, Row]

NOISE = 1.05
"""Equal to within this factor is not slower."""


@dataclass(frozen=True)
class Figure:
    """One of them."""

    row: str
    reach: str
    bound: float
    value: Callable[[Rows], float]
    """`KeyError` if a row or somebody in it was not measured."""
    at_least: bool = False

    def reached(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def _ratio(row: str, one: str, other: str) -> Callable[[Rows], float]:
    return lambda rows: rows[row].ratio(one, other)


def _times_slower(title: str, row: str, other: str, bound: float, of: str) -> Figure:
    reach = f"at most {bound:g} x {of}"
    return Figure(title, reach, bound, _ratio(row, MPPOOL, other))


def _times_faster(title: str, row: str, bound: float) -> Figure:
    reach = f"at least {bound:g} x faster than stock"
    return Figure(title, reach, bound, _ratio(row, STOCK, MPPOOL), at_least=True)


def _not_slower(title: str, rows: tuple[str, ...], other: str = STOCK, mine: str = MPPOOL) -> Figure:
    """The worst of the rows counts."""

    def worst(of: Rows) -> float:
        return max(of[row].ratio(mine, other) for row in rows)

    return Figure(title, f"not slower than {other}", NOISE, worst)


def _more_in_all(title: str, many: str, one: str) -> Figure:
    def gain(rows: Rows) -> float:
        return rows[one].median(MPPOOL) / rows[many].median(MPPOOL)

    return Figure(title, "more operations in all than 1 client", 1, gain, at_least=True)


def _round_trips() -> Iterator[Figure]:
    yield _times_slower("plain call, 1 client", "call-1", STOCK, 1.1, "stock")
    yield _times_slower("plain call, 1 client", "call-1", LIMIT, 1.3, "bare echo")
    yield _times_faster("acquire+call+release, 1 client", "cycle-1", 15)
    yield _times_slower("acquire+call+release, 1 client", "cycle-1", LIMIT, 3, "bare echo")
    yield _times_faster("acquire+call+release, 8 clients", "cycle-8", 20)
    yield _times_slower("apply, 1 client", "apply-1", LIMIT, 1.6, "bare echo")
    yield _times_faster("plain call, 8 clients", "call-8", 1.5)
    yield _more_in_all("plain call, 8 clients", "call-8", "call-1")
    yield _more_in_all("acquire+call+release, 8 clients", "cycle-8", "cycle-1")


def _large() -> Iterator[Figure]:
    for way in ("argument", "result"):
        title, row = f"64 MiB array {way}", f"array-{way}-64MiB"
        yield _times_slower(title, row, LIMIT, 1.5, "one memory copy")
        yield _times_faster(title, row, 20)
        yield _not_slower(title, (row,), RAY, beside(RAY))
    for way in ("argument", "result"):
        rows = tuple(f"array-{way}-{size}" for size in ("4KiB", "64KiB", "1MiB"))
        yield _not_slower(f"array {way}, 4 KiB to 1 MiB, the worst", rows)
    for way in ("argument", "result"):
        yield _times_faster(f"64 MiB bytes {way}", f"bytes-{way}-64MiB", 5)


def _many() -> Iterator[Figure]:
    yield _times_slower("1000 objects", "objects-1000", ONE, 1.25, "the time with one")
    yield _times_slower("500 idle clients", "idle-500", ONE, 1.25, "the time with one")
    yield Figure(
        "an idle client in the manager",
        "at most 150 KiB",
        150,
        lambda rows: rows["idle-memory-500"].median(MPPOOL) / 1024,
    )

    def looks(rows: Rows) -> float:
        row = rows["memory-looks"]
        return 100 * (row.mean(MPPOOL) - row.mean(UNBOUNDED))

    yield Figure("max_memory, 100 objects with 10 children", "at most 2 % of a core", 2, looks)


def _places() -> Iterator[Figure]:
    process, none = 'isolation="process"', 'isolation="none"'
    yield _times_slower(f"plain call, {process}", "place-call-process", BESIDE, 1.1, none)
    yield _times_slower(f"acquire+call+release, {process}", "place-cycle-process", BESIDE, 1.5, none)
    yield Figure(
        f"Python code, 2 clients, {process}",
        f"at least 1.8 x the operations of {none}",
        1.8,
        _ratio("place-compute-process", BESIDE, MPPOOL),
        at_least=True,
    )


def _batches() -> Iterator[Figure]:
    model = "a model of 5 ms"
    of_apply = _ratio("batch-model", APPLY, MPPOOL)
    yield Figure(f"{model}, 32 callers", "at least 12 x the items of apply", 12, of_apply, at_least=True)

    def lone(rows: Rows) -> float:
        row = rows["batch-lone"]
        return (row.median(MPPOOL) - BATCH_WAIT) / row.median(APPLY)

    yield Figure(f"{model}, 1 caller, beyond batch_wait", "at most 1.3 x apply", 1.3, lone)


def _lives() -> Iterator[Figure]:
    again = "kill -9 to object lent again"
    yield Figure(again, "median at most 20 ms", 20, lambda rows: rows["kill"].median(MPPOOL) * 1000)
    yield Figure(again, "worst at most 250 ms", 250, lambda rows: rows["kill"].worst(MPPOOL) * 1000)
    yield _not_slower("import, in a fresh interpreter", ("start-import",))
    yield _not_slower("start a manager", ("start-manager",))
    yield _not_slower("unpickle a pool", ("start-unpickle",))
    yield _not_slower("first acquire", ("start-first-acquire",))
    yield _times_slower("start a pool by name", "name-start", OWN, 1.5, "PoolManager(ctx=spawn)")
    yield _times_slower("join a pool by name", "name-join", CONNECTED, 1.2, "connect()")


def _loops() -> Iterator[Figure]:
    for kind in LOOPS:
        call, crowd, timeouts, threads, connections, cancel = loop_rows(kind)
        yield _times_slower(f"plain call, awaited, {kind}", call, THREADS, 2, "one of a thread")
        tasks = f"1000 tasks on 4 objects, {kind}"
        bound = 0.7
        reach = f"at least {bound:g} x the cycles of 4 threads"
        yield Figure(tasks, reach, bound, _ratio(crowd, THREADS, MPPOOL), at_least=True)
        yield Figure(tasks, "no PoolTimeout", 0, _median(timeouts))
        yield Figure(tasks, "at most 10 threads in the client", 10, _median(threads))
        yield Figure(tasks, "at most 12 connections", 12, _median(connections))
        waits = f"cancelled until it waits no more, {kind}"
        yield Figure(waits, "worst at most 100 ms", 100, _worst_ms(cancel))


def _nodes() -> Iterator[Figure]:
    of = "a plain actor call"
    yield _times_slower("plain call, on a Ray cluster", "ray-call", RAY, 1.4, of)
    yield _times_slower("acquire+call+release, on a Ray cluster", "ray-cycle", RAY, 5, of)
    for way in ("argument", "result"):
        yield _times_slower(
            f"16 MiB array {way}, on a Ray cluster", f"ray-{way}", RAY, 1.2, "a plain actor's"
        )
    yield _times_slower("8 clients, 2 objects, on a Ray cluster", "ray-crowd", RAY, 7, of)

    def again(rows: Rows) -> float:
        return rows["ray-kill"].median(MPPOOL) * 1000

    yield Figure("kill -9 on another node to lent again", "median at most 100 ms", 100, again)


def _parked() -> Iterator[Figure]:
    of = "a plain call"
    title, row = "acquire+release, 1 client, parked", "parked-acquire-release"
    yield _times_slower(title, row, CALL, 0.3, of)
    title, row = "acquire+call+release, 1 client, parked", "parked-cycle"
    yield _times_slower(title, row, CALL, 1.3, of)
    yield _times_more(title, row, 2.2)
    yield _times_more("8 clients on 8 processes, parked", "parked-clients", 1.8)
    yield _not_slower("8 clients on 2 objects, parked", ("parked-crowd",), ROUND_TRIP)
    yield _times_more("4 tasks on 4 objects, parked", "parked-aio", 2)
    for side in ("client", "manager"):
        title, row = f"descriptors of a parked object, {side}", f"parked-idle-{side}"
        yield Figure(title, "one", 1, _median(row))

    def wakes(rows: Rows) -> float:
        row = rows["parked-idle-wakes"]
        return (row.median(MPPOOL) - row.median(NOTHING)) / MANY

    yield Figure("wakes of a manager for a parked object", "none, within 0.1", 0.1, wakes)


def _times_more(title: str, row: str, bound: float) -> Figure:
    reach = f"at least {bound:g} x as many as by the round trip"
    return Figure(title, reach, bound, _ratio(row, ROUND_TRIP, MPPOOL), at_least=True)


def _median(row: str) -> Callable[[Rows], float]:
    return lambda rows: rows[row].median(MPPOOL)


def _worst_ms(row: str) -> Callable[[Rows], float]:
    return lambda rows: rows[row].worst(MPPOOL) * 1000


FIGURES: tuple[Figure, ...] = (
    *_round_trips(),
    *_large(),
    *_many(),
    *_places(),
    *_batches(),
    *_lives(),
    *_loops(),
    *_parked(),
    *_nodes(),
)
