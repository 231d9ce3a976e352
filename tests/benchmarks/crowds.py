"""Rows with many objects in a pool, with many processes, and with many clients that do nothing."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

from . import ours, stock
from .bench import MPPOOL, STOCK, Bench
from .clients import leave_terminal, orderly
from .measure import Block, Row, Samples, interleave
from .things import cycle, cycle_of_many, pid

__all__ = ["IDLE_ROWS", "LOOK_ROWS", "OBJECT_ROWS", "ONE", "UNBOUNDED", "idle", "looks", "objects"]

OBJECTS = (1, 100, 1000)
IDLE = (1, 100, 500)

OBJECT_ROWS = tuple(f"objects-{many}" for many in OBJECTS)
IDLE_ROWS = (*(f"idle-{many}" for many in IDLE), *(f"idle-memory-{many}" for many in IDLE))

ONE = f"{MPPOOL} with one"
"""mppool with one object or one idle client, in the rounds in which it had many."""

LOOK_ROWS = ("memory-looks",)

UNBOUNDED = f"{MPPOOL} without a bound"
"""mppool with as many processes, none of which has to be measured."""

FAMILIES, CHILDREN = 100, 10

WINDOW = 2.0
"""Seconds of which the processor time is one sample: two looks, by default."""

PATIENCE = 30.0

Pools = dict[str, Any]


def objects(bench: Bench) -> Iterator[Row]:
    """One client's cycle on pools of different sizes, half of whose objects it holds."""
    blocks: dict[str, Block] = {}
    with orderly() as stack:
        for many in OBJECTS:
            pools = _pools(stack, many)
            _wait_until(lambda pools=pools, many=many: pools[MPPOOL].stats().idle == many)  # type: ignore[misc]
            operation = partial(cycle_of_many, objects=many)
            for who, pool in pools.items():
                name = f"{who}, {many} objects"
                bench.add(name, partial(nullcontext, pool))
                blocks[_key(who, many)] = bench.block(name, operation)
        samples = interleave(blocks, bench.pace.rounds)
    for many in OBJECTS:
        title = "1 object" if many == 1 else f"{many} objects, half of them lent"
        yield Row(f"objects-{many}", f"acquire+call+release, {title}", "time", _beside_one(samples, many))


def idle(bench: Bench) -> Iterator[Row]:
    """One client's cycle beside processes that were served and now do nothing; what these cost."""
    blocks: dict[str, Block] = {}
    memory: list[Row] = []
    with orderly() as stack:
        for many in IDLE:
            pools = _pools(stack, 2)
            for who, pool in pools.items():
                name = f"{who}, {many} idle clients"
                bench.add(name, partial(nullcontext, pool))
                blocks[_key(who, many)] = bench.block(name, cycle)
                blocks[_key(who, many)]()  # what the busy client costs the manager, it costs it now
            memory.append(_gather(stack, pools, many))
        samples = interleave(blocks, bench.pace.rounds)
    for many in IDLE:
        title = f"acquire+call+release, {_idle_clients(many)}"
        yield Row(f"idle-{many}", title, "time", _beside_one(samples, many))
    yield from memory


def looks(bench: Bench) -> Iterator[Row]:
    """What a manager uses of a processor, which measures what many processes hold, in a second."""
    bounds = {UNBOUNDED: {}, MPPOOL: {"max_memory": 2**40}}
    samples: Samples = {}
    for who, options in bounds.items():
        with ours.serve(FAMILIES, _Family, isolation="process", timeout=300, **options) as pool:
            pool.wait()
            manager = max(psutil.Process().children(), key=psutil.Process.create_time)  # the latest
            samples[who] = [_use(manager) for _ in range(bench.pace.rounds)]
    title = f"watch {FAMILIES} objects with {CHILDREN} children each, for a second"
    yield Row("memory-looks", title, "time", samples)


class _Family:
    """An object that has children."""

    def __init__(self) -> None:
        self._children = [subprocess.Popen(["sleep", "1000"]) for _ in range(CHILDREN)]


def _use(process: psutil.Process) -> float:
    """Processor seconds that a process uses in a second."""
    began, before = time.monotonic(), process.cpu_times()
    time.sleep(WINDOW)
    now = process.cpu_times()
    return (now.user + now.system - before.user - before.system) / (time.monotonic() - began)


def _idle_clients(many: int) -> str:
    return f"{many} idle client{'s' * (many > 1)}"


def _pools(stack: ExitStack, size: int) -> Pools:
    return {
        MPPOOL: stack.enter_context(ours.serve(size)),
        STOCK: stack.enter_context(stock.serve(size)),
    }


def _key(who: str, many: int) -> str:
    return f"{who} {many}"


def _beside_one(samples: Samples, many: int) -> Samples:
    of_many = {who: samples[_key(who, many)] for who in (MPPOOL, STOCK)}
    return {**of_many, ONE: samples[_key(MPPOOL, 1)]}


# -- clients that do nothing ------------------------------------------------------------------------------


def _gather(stack: ExitStack, pools: Pools, many: int) -> Row:
    """Let so many idle clients come, and see what each takes of the managers' memory."""
    before = {who: _memory(pool) for who, pool in pools.items()}
    stack.enter_context(_crowd(many, list(pools.values())))
    each: Samples = {who: [(_memory(pool) - before[who]) / many] for who, pool in pools.items()}
    return Row(f"idle-memory-{many}", f"manager's memory for each of {_idle_clients(many)}", "memory", each)


def _memory(pool: Any) -> int:
    """Bytes that only this pool's manager has."""
    return int(psutil.Process(pool.apply(pid)).memory_full_info().uss)


@contextmanager
def _crowd(many: int, pools: list[Any]) -> Iterator[None]:
    """So many processes that each used the pools once, and keep their connections."""
    pickled = pickle.dumps(pools)  # a stock proxy does not survive a fork whole
    fork = multiprocessing.get_context("fork")
    stay, leave = fork.Pipe(duplex=False)
    processes: list[Any] = []
    try:
        for _ in range(many):
            arrival, arrive = fork.Pipe(duplex=False)
            process = fork.Process(target=_be_idle, args=(pickled, arrive, stay, leave), daemon=True)
            process.start()
            processes.append(process)
            arrive.close()
            if not arrival.poll(PATIENCE):
                raise TimeoutError(f"client {len(processes)} was not served within {PATIENCE:g} s")
            arrival.recv_bytes()
            arrival.close()
        yield
    finally:
        leave.close()
        for process in processes:
            process.join(10)
            process.kill()
            process.join()
            process.close()
        stay.close()


def _be_idle(pickled: bytes, arrive: Connection, stay: Connection, leave: Connection) -> None:
    leave_terminal()
    leave.close()
    for pool in pickle.loads(pickled):
        with cycle(pool) as step:
            step()
    arrive.send_bytes(b"!")
    wait([stay])  # until the parent closes its end, or ends
    os._exit(0)


def _wait_until(predicate: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not predicate():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the pool was not filled within {PATIENCE:g} s")
        time.sleep(0.001)
