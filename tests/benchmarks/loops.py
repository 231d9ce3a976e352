"""Rows about `pool.aio`: the tasks of one event loop, beside threads that do the same."""

from __future__ import annotations

import asyncio
import importlib
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, TypeVar

import psutil

from mppool import PoolTimeout

from . import ours
from .bench import LIMIT, MPPOOL, Bench
from .clients import Client, Desk, orderly
from .limits import copy
from .measure import Row, Samples, interleave
from .peers import is_installed
from .things import MIB, Kind, Step, sample

__all__ = [
    "LOOPS",
    "THREADS",
    "lacking",
    "loop_rows",
    "new_loop",
    "repeated",
    "rows_of",
    "stall_rows",
    "stalls",
]

T = TypeVar("T")

LOOPS = ("asyncio", "uvloop")
"""Kinds of event loops, by the modules that make them."""

THREADS = f"{MPPOOL} in threads"
"""The same without a loop, in the same rounds."""

OBJECTS = 4
TASKS = 1000
REPEATED = 50  # calls of a step: to enter a loop takes as long as one
TIMEOUT = 30.0
LARGE = 64 * MIB
TICK = 0.001
STALL_SECONDS = 0.5  # of a block in which a loop is watched

STALLS = ("idle", "plain", "bytes", "array")


def loop_rows(kind: str) -> tuple[str, ...]:
    """Names of the rows of one kind of loop."""
    crowd = [f"crowd{each}" for each in ("", "-timeouts", "-threads", "-connections")]
    return tuple(_row(each, kind) for each in ("call", *crowd, "cancel"))


def stall_rows(kind: str) -> tuple[str, ...]:
    """Names of those that tell how long such a loop stands still."""
    return tuple(_row(f"stall-{load}-{what}", kind) for load in STALLS for what in ("p99", "longest"))


def _row(name: str, kind: str) -> str:
    return f"aio-{name}" if kind == "asyncio" else f"aio-{name}-{kind}"


def lacking(kind: str, *modules: str) -> dict[str, str]:
    """What is missing here, of a kind of loop and of what else is needed."""
    return {each: f"not installed: pip install {each}" for each in (kind, *modules) if not is_installed(each)}


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    """An event loop of this kind."""
    loop: asyncio.AbstractEventLoop = importlib.import_module(kind).new_event_loop()
    return loop


def _run(kind: str, main: Awaitable[T]) -> T:
    with closing(new_loop(kind)) as loop:
        return loop.run_until_complete(main)


# -- beside threads ---------------------------------------------------------------------------------------


def rows_of(kind: str, bench: Bench) -> Iterator[Row]:
    """What takes how long on a loop of this kind."""
    with orderly() as stack:
        pool = f"{MPPOOL}, for {kind}"
        bench.add(pool, partial(nullcontext, stack.enter_context(ours.serve(OBJECTS))))
        for name, title, in_loop, in_threads, times in (
            ("call", "plain call, awaited", _calls, _calls_of_thread, REPEATED),
            ("crowd", f"acquire+call+release, {TASKS} tasks", _crowds, _cycles_of_threads, TASKS),
        ):
            operations = {MPPOOL: partial(in_loop, kind=kind), THREADS: in_threads}
            blocks = {who: bench.block(pool, operation) for who, operation in operations.items()}
            samples = interleave(blocks, bench.pace.rounds)
            yield Row(_row(name, kind), _titled(title, kind), "time", repeated(samples, times))
        client = Client()  # in which nothing else was done
        stack.callback(client.close)
        client.open(pool, bench.opener(pool))
        for what, count in client.do(_count_in_crowd, pool, kind).items():
            title = _titled(f"{TASKS} tasks: {what}", kind)
            yield Row(_row(f"crowd-{what}", kind), title, "count", {MPPOOL: [count]})
        title = _titled(f"cancelled until it waits no more, {bench.pace.kills} times", kind)
        cancelled = client.do(_cancel_waiting, pool, kind, bench.pace.kills)
        yield Row(_row("cancel", kind), title, "time", {MPPOOL: cancelled})


def repeated(samples: Samples, times: int) -> Samples:
    """The samples of steps, each of which did something so many times."""
    return {who: [each / times for each in seconds] for who, seconds in samples.items()}


def _titled(title: str, kind: str) -> str:
    return title if kind == "asyncio" else f"{title}, {kind}"


@contextmanager
def _calls(pool: Any, kind: str) -> Iterator[Step]:
    async def acquire() -> Any:
        return await pool.aio.acquire()

    async def step(handle: Any) -> None:
        for _ in range(REPEATED):
            await handle.echo(1)

    async def release(handle: Any) -> None:
        await pool.aio.release(handle)

    with closing(new_loop(kind)) as loop:
        handle = loop.run_until_complete(acquire())
        yield lambda: loop.run_until_complete(step(handle))
        loop.run_until_complete(release(handle))


@contextmanager
def _calls_of_thread(pool: Any) -> Iterator[Step]:
    def step() -> None:
        for _ in range(REPEATED):
            handle.echo(1)

    with pool.lease() as handle:
        yield step


@contextmanager
def _crowds(pool: Any, kind: str) -> Iterator[Step]:
    with closing(new_loop(kind)) as loop:
        yield lambda: loop.run_until_complete(_crowd(pool))


async def _crowd(pool: Any) -> None:
    await asyncio.gather(*[_cycle(pool) for _ in range(TASKS)])


async def _cycle(pool: Any) -> None:
    handle = await pool.aio.acquire(timeout=TIMEOUT)
    await handle.echo(1)
    await pool.aio.release(handle)


@contextmanager
def _cycles_of_threads(pool: Any) -> Iterator[Step]:
    def cycles(_: int) -> None:
        for _ in range(TASKS // OBJECTS):
            handle = pool.acquire(timeout=TIMEOUT)
            handle.echo(1)
            pool.release(handle)

    with ThreadPoolExecutor(OBJECTS) as threads:
        yield lambda: list(threads.map(cycles, range(OBJECTS)))


# -- jobs of a client -------------------------------------------------------------------------------------


def _count_in_crowd(desk: Desk, pool: str, kind: str) -> dict[str, float]:
    """How many threads and connections its process needs for a crowd, and how many tasks got no object."""
    return _run(kind, _counted_crowd(desk.pools[pool]))


async def _counted_crowd(pool: Any) -> dict[str, float]:
    sockets, threads, late = _sockets(), 1, 0

    async def cycle() -> None:
        nonlocal late
        try:
            await _cycle(pool)
        except PoolTimeout:
            late += 1

    tasks = asyncio.gather(*[cycle() for _ in range(TASKS)])
    most = sockets
    while not tasks.done():
        threads, most = max(threads, psutil.Process().num_threads()), max(most, _sockets())
        await asyncio.sleep(TICK)
    await tasks
    return {"timeouts": late, "threads": threads, "connections": most - sockets}


def _sockets() -> int:
    return sum(map(_is_socket, range(1000)))


def _is_socket(descriptor: int) -> bool:
    with suppress(OSError):
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    return False


def _cancel_waiting(desk: Desk, pool: str, kind: str, times: int) -> list[float]:
    """From a `cancel` until the pool says that nothing waits."""
    return _run(kind, _cancelled(desk.pools[pool], times))


async def _cancelled(pool: Any, times: int) -> list[float]:
    held = [await pool.aio.acquire() for _ in range(OBJECTS)]
    seconds = []
    for _ in range(times):
        task = asyncio.ensure_future(pool.aio.acquire())
        while not (await pool.aio.stats()).waiting:
            pass
        began = time.perf_counter()
        task.cancel()
        while (await pool.aio.stats()).waiting:
            pass
        seconds.append(time.perf_counter() - began)
    for handle in held:
        await pool.aio.release(handle)
    return seconds


# -- a loop that stands still -----------------------------------------------------------------------------


def stalls(kind: str, bench: Bench) -> Iterator[Row]:
    """How late the timers of a loop are, one each millisecond, while its tasks use a pool.

    One that is late makes those behind it late as well, as it would callbacks of others.
    """
    with orderly() as stack, copy(None, LARGE) as copied:
        client = Client()
        stack.callback(client.close)
        client.open(MPPOOL, partial(nullcontext, stack.enter_context(ours.serve(OBJECTS))))
        late: dict[str, list[float]] = {load: [] for load in STALLS}
        copies = []
        for _ in range(max(2, bench.pace.rounds // 5)):
            for load in STALLS:
                late[load] += client.do(_watch, MPPOOL, kind, load)
            began = time.perf_counter()
            copied()
            copies.append(time.perf_counter() - began)
    copies.sort()
    limit = copies[len(copies) // 2]
    for load, seconds in late.items():
        seconds.sort()
        for what, value in (("p99", seconds[len(seconds) * 99 // 100]), ("longest", seconds[-1])):
            title = _titled(f"a loop's stalls, {_LOADS[load]}, {what}", kind)
            yield Row(_row(f"stall-{load}-{what}", kind), title, "time", {MPPOOL: [value], LIMIT: [limit]})


_LOADS = {
    "idle": "idle",
    "plain": f"{TASKS} tasks with plain calls",
    "bytes": f"{LARGE // MIB} MiB of bytes each way",
    "array": f"{LARGE // MIB} MiB arrays each way",
}


def _watch(desk: Desk, pool: str, kind: str, load: str) -> list[float]:
    return _run(kind, _watched(desk.pools[pool], load))


async def _watched(pool: Any, load: str) -> list[float]:
    async with pool.aio.lease() as handle:
        await handle.give("array", 256)  # NumPy does not bear two threads that import it at once
    ends = time.perf_counter() + STALL_SECONDS
    tasks = [asyncio.ensure_future(each) for each in _work(pool, load, lambda: time.perf_counter() < ends)]
    late = []
    due = time.perf_counter()
    while due < ends:
        due += TICK
        await asyncio.sleep(due - time.perf_counter())
        late.append(time.perf_counter() - due)
    await asyncio.gather(*tasks)
    return late


def _work(pool: Any, load: str, goes_on: Callable[[], bool]) -> Iterator[Awaitable[None]]:
    if load == "plain":
        yield _crowd_again(pool, goes_on)
    elif load != "idle":
        kind: Kind = "bytes" if load == "bytes" else "array"
        yield _send_again(pool, kind, goes_on)
        yield _receive_again(pool, kind, goes_on)


async def _crowd_again(pool: Any, goes_on: Callable[[], bool]) -> None:
    while goes_on():
        await _crowd(pool)


async def _send_again(pool: Any, kind: Kind, goes_on: Callable[[], bool]) -> None:
    value = sample(kind, LARGE)
    async with pool.aio.lease() as handle:
        while goes_on():
            await handle.take(value)


async def _receive_again(pool: Any, kind: Kind, goes_on: Callable[[], bool]) -> None:
    async with pool.aio.lease() as handle:
        while goes_on():
            await handle.give(kind, LARGE)
