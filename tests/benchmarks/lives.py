"""Rows about the ends and beginnings of processes."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

from mppool import ObjectPool, PoolManager

from . import ours, stock
from .bench import MPPOOL, STOCK, Bench
from .clients import Client, ClientError, Desk, leave_terminal
from .measure import Row, Samples, interleave
from .things import Thing

__all__ = [
    "FIRST_ROWS",
    "IMPORT_ROWS",
    "KILL_ROWS",
    "START_ROWS",
    "firsts",
    "imports",
    "kill",
    "starts",
]

KILL_ROWS = ("kill",)
IMPORT_ROWS = ("start-import",)
START_ROWS = ("start-manager",)
FIRST_ROWS = ("start-unpickle", "start-first-acquire")

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0

# -- kill -9 ----------------------------------------------------------------------------------------------


def kill(bench: Bench) -> Iterator[Row]:
    """From the `kill -9` of an object's holder until the client that waits has the object.

    The waiting client is in the queue already: it cannot help to find out that the holder is gone.
    """
    client = bench.crew.first
    with ours.serve(1) as pool:
        client.open("the only object", partial(nullcontext, pool))
        samples = {MPPOOL: [_kill_holder(pool, client) for _ in range(bench.pace.kills)]}
    title = f"kill -9 to object lent again, {bench.pace.kills} times"
    yield Row("kill", title, "time", samples, {STOCK: "never"})


def _kill_holder(pool: ObjectPool[Thing], client: Client) -> float:
    fork = multiprocessing.get_context("fork")
    pipe, theirs = fork.Pipe()
    holder = fork.Process(target=_hold, args=(pool, theirs, pipe), daemon=True)
    holder.start()
    theirs.close()
    try:
        if not pipe.poll(PATIENCE):
            raise TimeoutError(f"the holder got no object within {PATIENCE:g} s")
        client.begin(_wait_for_object)
        while not pool.stats().waiting:
            pass
        killed = time.monotonic()
        holder.kill()
        lent: float = client.answer()
    finally:
        holder.kill()
        holder.join()
        pipe.close()
    return lent - killed


def _hold(pool: ObjectPool[Thing], pipe: Connection, others: Connection) -> None:
    others.close()
    leave_terminal()
    handle = pool.acquire()
    handle.echo(1)
    pipe.send_bytes(b"!")
    pipe.poll(None)


def _wait_for_object(desk: Desk) -> float:
    """A job of the client: when it got the object. All processes of a machine share this clock."""
    with desk.pools["the only object"].lease():
        return time.monotonic()


# -- beginnings -------------------------------------------------------------------------------------------


def imports(bench: Bench) -> Iterator[Row]:
    """An import, in a fresh interpreter."""
    modules = {MPPOOL: "mppool", STOCK: "multiprocessing.managers"}
    blocks = {who: partial(_time_import, module) for who, module in modules.items()}
    yield Row("start-import", "import", "time", interleave(blocks, bench.pace.starts))


def _time_import(module: str) -> float:
    code = f"import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=PATIENCE)
    return float(done.stdout)


def starts(bench: Bench) -> Iterator[Row]:
    """`manager.start()`, with Python's own start method."""
    blocks = {MPPOOL: partial(_time_start, PoolManager), STOCK: partial(_time_start, stock.StockManager)}
    yield Row("start-manager", "start a manager", "time", interleave(blocks, bench.pace.starts))


def _time_start(manager_class: type[BaseManager]) -> float:
    manager = manager_class()
    began = time.perf_counter()
    manager.start()
    took = time.perf_counter() - began
    manager.shutdown()
    return took


def firsts(bench: Bench) -> Iterator[Row]:
    """What a fresh process does with a pool that it is sent: unpickle it, then acquire."""
    unpickled: Samples = {MPPOOL: [], STOCK: []}
    acquired: Samples = {MPPOOL: [], STOCK: []}
    with ours.serve(1) as pool, stock.serve(1) as proxy:
        for number in range(bench.pace.starts):
            order: list[tuple[str, Any]] = [(MPPOOL, pool), (STOCK, proxy)]
            for who, each in order if number % 2 == 0 else reversed(order):
                seconds = _time_first(each)
                unpickled[who].append(seconds[0])
                acquired[who].append(seconds[1])
    yield Row("start-unpickle", "unpickle a pool, in a fresh process", "time", unpickled)
    yield Row("start-first-acquire", "then the first acquire", "time", acquired)


def _time_first(pool: Any) -> tuple[float, float]:
    spawn = multiprocessing.get_context("spawn")
    pipe, theirs = spawn.Pipe()
    process = spawn.Process(target=_first, args=(theirs, pickle.dumps(pool)), daemon=True)
    process.start()
    theirs.close()
    try:
        if not pipe.poll(PATIENCE):
            raise ClientError(f"a fresh process gave no answer within {PATIENCE:g} s")
        seconds: tuple[float, float] = pipe.recv()
    finally:
        process.join(PATIENCE)
        process.kill()
        process.join()
        pipe.close()
    return seconds


def _first(pipe: Connection, pickled: bytes) -> None:
    leave_terminal()
    began = time.perf_counter()
    pool = pickle.loads(pickled)
    there = time.perf_counter()
    handle = pool.acquire()
    acquired = time.perf_counter()
    pool.release(handle)
    pipe.send((there - began, acquired - there))
