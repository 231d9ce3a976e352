"""Rows about leases that are delegated: beside the round trip, in one run, and what lies parked costs."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from . import ours
from .bench import MOST_CLIENTS, MPPOOL, STOCK, Bench
from .clients import Client, Desk, orderly
from .loops import OBJECTS, REPEATED, new_loop, repeated
from .measure import Row, Samples, Unit, interleave
from .things import Operation, Step, acquire_release, cycle, pid, plain_call

__all__ = [
    "CALL",
    "MANY",
    "NOTHING",
    "PARKED_IDLE_ROWS",
    "PARKED_ROWS",
    "ROUND_TRIP",
    "idle",
    "lacking",
    "parked",
]

ROUND_TRIP = f"{MPPOOL} by the round trip"
"""mppool with an option that has the manager told of each acquire and release, in the same rounds."""

CALL = f"{MPPOOL}, a plain call"
"""A plain call, in the same rounds."""

NOTHING = f"{MPPOOL} with nothing parked"
"""The same process at the same pace, while all objects lie idle in the manager."""

MANY = 16
"""Objects that lie parked."""

IDLE_SECONDS = 0.7  # of which one sample is: after one second they are recalled
TOLD = {"warn_hold": 3600.0}

PARKED_ROWS = tuple(f"parked-{each}" for each in ("acquire-release", "cycle", "clients", "crowd", "aio"))
PARKED_IDLE_ROWS = tuple(f"parked-idle-{each}" for each in ("client", "manager", "wakes", "processor"))


def parked(bench: Bench) -> Iterator[Row]:
    """What a client does again and again, with its manager and without it."""
    with orderly() as stack:

        def pools(name: str, objects: int, **options: Any) -> dict[str, str]:
            """A pool whose objects are parked, and one whose objects are not, by their names here."""
            named = {}
            for who, more in ((MPPOOL, {}), (ROUND_TRIP, TOLD)):
                named[who] = f"{who}, {name}"
                pool = stack.enter_context(ours.serve(objects, **options, **more))
                bench.add(named[who], partial(nullcontext, pool))
            return named

        def both(named: dict[str, str], operation: Operation, clients: int = 1) -> dict[str, Any]:
            return {who: bench.block(pool, operation, clients) for who, pool in named.items()}

        def row(name: str, title: str, unit: Unit, blocks: dict[str, Any], times: int = 1) -> Row:
            samples = repeated(interleave(blocks, bench.pace.rounds), times)
            return Row(f"parked-{name}", f"{title}, parked", unit, samples)

        alone = pools("1 client", 1)
        for name, title, operation in (
            ("acquire-release", "acquire+release, 1 client", acquire_release),
            ("cycle", "acquire+call+release, 1 client", cycle),
        ):
            blocks = both(alone, operation)
            blocks[CALL] = bench.block(alone[MPPOOL], plain_call)
            blocks[STOCK] = bench.block(STOCK, operation)
            yield row(name, title, "time", blocks)
        apart = pools("processes", MOST_CLIENTS, isolation="process")
        title = f"acquire+call+release, {MOST_CLIENTS} clients on {MOST_CLIENTS} processes"
        yield row("clients", title, "rate", both(apart, cycle, MOST_CLIENTS))
        title = f"acquire+call+release, {MOST_CLIENTS} clients on 2 objects"
        yield row("crowd", title, "rate", both(pools("a crowd", 2), cycle, MOST_CLIENTS))
        title = f"acquire+call+release, {OBJECTS} tasks on {OBJECTS} objects"
        tasks = both(pools("tasks", OBJECTS), _cycles_of_tasks)
        yield row("aio", title, "rate", tasks, OBJECTS * REPEATED)


@contextmanager
def _cycles_of_tasks(pool: Any) -> Iterator[Step]:
    async def cycles() -> None:
        for _ in range(REPEATED):
            handle = await pool.aio.acquire()
            await handle.echo(1)
            await pool.aio.release(handle)

    async def step() -> None:
        await asyncio.gather(*[cycles() for _ in range(OBJECTS)])

    with closing(new_loop("asyncio")) as loop:
        yield lambda: loop.run_until_complete(step())


# -- what lies parked ---------------------------------------------------------------------------------------


def lacking() -> dict[str, str]:
    """What is missing here to see it."""
    return {} if sys.platform == "linux" else {"/proc": "not here, where no lease is delegated either"}


def idle(bench: Bench) -> Iterator[Row]:
    """Descriptors, wakes and processor time, with objects that lie parked and without."""
    with orderly() as stack:
        client = Client()
        stack.callback(client.close)
        client.open(MPPOOL, partial(nullcontext, stack.enter_context(ours.serve(MANY))))
        for name, count in client.do(_count_descriptors, MPPOOL).items():
            title = f"descriptors of a parked object, {name}"
            yield Row(f"parked-idle-{name}", title, "count", {MPPOOL: [count]})
        wakes: Samples = {MPPOOL: [], NOTHING: []}
        processor: Samples = {MPPOOL: [], NOTHING: []}
        for _ in range(max(2, bench.pace.rounds // 3)):
            for who in wakes:
                woke, worked = client.do(_watch_manager, MPPOOL, who == MPPOOL)
                wakes[who].append(woke)
                processor[who].append(worked)
        seconds = f"manager with {MANY} parked objects, {IDLE_SECONDS:g} s"
        yield Row("parked-idle-wakes", f"wakes of a {seconds}", "count", wakes)
        yield Row("parked-idle-processor", f"processor time of a {seconds}", "time", processor)


def _use(pool: Any, objects: int) -> None:
    for handle in [pool.acquire() for _ in range(objects)]:
        pool.release(handle)


def _tokens(process: int) -> int:
    """How many leases are delegated to a process, or by it: each has an event counter."""
    return _descriptors(process, "anon_inode:[eventfd]")


def _descriptors(process: int, of: str = "") -> int:
    count = 0
    for each in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):  # that of the directory
            count += os.readlink(each).startswith(of)
    return count


def _park(pool: Any, objects: int) -> None:
    while _tokens(os.getpid()) < objects:
        _use(pool, objects)
        time.sleep(0.01)
    time.sleep(0.05)  # until the manager has done what this brought about


def _count_descriptors(desk: Desk, name: str) -> dict[str, float]:
    """Those that each further parked object takes, here and in the manager."""
    pool = desk.pools[name]
    processes = {"client": os.getpid(), "manager": pool.apply(pid)}
    counts = []
    for objects in (1, MANY):
        _park(pool, objects)
        counts.append([_descriptors(each) for each in processes.values()])
    more = [(many - one) / (MANY - 1) for one, many in zip(*counts, strict=True)]
    return dict(zip(processes, more, strict=True))


def _watch_manager(desk: Desk, name: str, parked: bool) -> tuple[float, float]:
    """How often a manager wakes for anything, and its processor time, while its clients do nothing."""
    pool = desk.pools[name]
    manager = pool.apply(pid)
    if parked:
        _park(pool, MANY)
    else:
        pool.resize(max_size=MANY)  # which recalls all
        _use(pool, 1)
        time.sleep(0.05)
    before = _tasks(manager)
    time.sleep(IDLE_SECONDS)
    woke, worked = (after - was for after, was in zip(_tasks(manager), before, strict=True))
    return woke, worked / 1e9


def _tasks(process: int) -> tuple[int, int]:
    """How often the threads of a process have waited, and their nanoseconds on a processor."""
    wakes = nanoseconds = 0
    for each in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):  # it has just ended
            lines = (each / "status").read_text().splitlines()
            wakes += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary"))
            nanoseconds += int((each / "schedstat").read_text().split()[0])
    return wakes, nanoseconds
