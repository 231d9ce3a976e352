"""Rows about `apply_batch`, beside `apply` of the same pool: calls of a model, and what an item costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from . import ours
from .bench import MPPOOL, Bench
from .clients import orderly
from .measure import Block, Row, interleave
from .things import MIB, Step, Thing, sample

__all__ = ["APPLY", "BATCH_ROWS", "BATCH_WAIT", "batches"]

APPLY = f"{MPPOOL}, apply"
"""The same number of calls, each by itself."""

MODEL_SECONDS = 0.005
BATCH_WAIT = 0.002
PROCESSES, THREADS = 8, 4
PLACES = ("none", "process")
BLOCKS = 8
"""A block lasts so many times as long as others: with `apply` each caller waits for all others."""

BATCH_ROWS = (
    "batch-model",
    "batch-lone",
    *(f"batch-{what}-{place}" for place in PLACES for what in ("item", "items")),
)


def batches(bench: Bench) -> Iterator[Row]:
    """One object, many callers; figures are for each call."""
    with orderly() as stack:
        for place in PLACES:
            for wait in (BATCH_WAIT, 0):
                pool = stack.enter_context(ours.serve(1, isolation=place, batch_wait=wait))
                bench.add(_name(place, wait), partial(nullcontext, pool))
        model = f"a model of {MODEL_SECONDS * 1000:g} ms"
        yield _beside(bench, "batch-model", model, _model, _name("none", BATCH_WAIT), PROCESSES)
        yield _beside(bench, "batch-lone", model, _model, _name("none", BATCH_WAIT), 1)
        for place in PLACES:
            title, who = f'1 MiB array, isolation="{place}"', _name(place, 0)
            yield _beside(bench, f"batch-item-{place}", title, _array, who, 1)
            yield _beside(bench, f"batch-items-{place}", title, _array, who, PROCESSES)


def _beside(bench: Bench, name: str, title: str, operation: Any, who: str, clients: int) -> Row:
    callers = THREADS if clients > 1 else 1
    seconds = BLOCKS * bench.pace.seconds

    def block(batched: bool) -> Block:
        step = bench.block(who, partial(operation, callers=callers, batched=batched), clients, seconds)
        return lambda: step() / callers

    samples = interleave({MPPOOL: block(True), APPLY: block(False)}, bench.pace.rounds)
    many = f"{callers * clients} callers" if callers > 1 else "1 caller"
    return Row(name, f"apply_batch, {title}, {many}", "time", samples)


def _name(place: str, wait: float) -> str:
    return f"{MPPOOL}, {place}, batch_wait={wait:g}"


def _run(_: Thing, items: list[Any]) -> list[int]:
    time.sleep(MODEL_SECONDS)
    return [0] * len(items)


def _run_one(_: Thing, item: Any) -> int:
    time.sleep(MODEL_SECONDS)
    return 0


def _lengths(_: Thing, items: list[Any]) -> list[int]:
    return [len(each) for each in items]


def _length(_: Thing, item: Any) -> int:
    return len(item)


def _model(pool: Any, callers: int, batched: bool) -> Any:
    return _calls(pool, callers, batched, (_run, _run_one), 0)


def _array(pool: Any, callers: int, batched: bool) -> Any:
    return _calls(pool, callers, batched, (_lengths, _length), sample("array", MIB))


@contextmanager
def _calls(pool: Any, callers: int, batched: bool, functions: tuple[Any, Any], item: Any) -> Iterator[Step]:
    """A step is one call by each of the callers, side by side."""
    function = functions[0] if batched else functions[1]
    method = pool.apply_batch if batched else pool.apply
    if callers == 1:
        yield lambda: method(function, item)
        return
    with ThreadPoolExecutor(callers) as threads:
        yield lambda: list(threads.map(method, [function] * callers, [item] * callers))
