"""Rows about pools by name, each to its first lease, in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mppool import PoolManager

from .bench import MPPOOL, Bench
from .measure import Row, interleave

__all__ = ["CONNECTED", "NAME_ROWS", "OWN", "names"]

NAME_ROWS = ("name-start", "name-join")

OWN = f"{MPPOOL}, with a manager of its own"
CONNECTED = f"{MPPOOL}, with connect()"

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0

TIMED = """
import time
from multiprocessing import get_context
from mppool import PoolManager, shared_pool
began = time.perf_counter()
{}
with pool.lease():
    print(time.perf_counter() - began)
"""


def names(bench: Bench) -> Iterator[Row]:
    """The first one that comes starts the manager; a later one finds it."""
    name = f"benchmark-{os.getpid()}"
    by_name = f"pool = shared_pool({name!r}, 'collections:Counter', linger=0)"
    created = "pool = manager.create_pool('collections:Counter')"
    blocks = {
        MPPOOL: partial(_time, by_name, then=f"PoolManager.shared({name!r}).shutdown()"),
        OWN: partial(_time, f"manager = PoolManager(ctx=get_context('spawn')); manager.start(); {created}"),
    }
    yield Row("name-start", "start a pool by name", "time", interleave(blocks, bench.pace.starts))
    manager = PoolManager.shared(name, linger=None)
    manager.create_pool("collections:Counter", name=name)
    connected = f"manager = PoolManager({manager.address!r}); manager.connect()"
    blocks = {
        MPPOOL: partial(_time, by_name),
        CONNECTED: partial(_time, f"{connected}; pool = manager.get_pool({name!r})"),
    }
    try:
        yield Row("name-join", "join a pool by name", "time", interleave(blocks, bench.pace.starts))
    finally:
        manager.shutdown()


def _time(code: str, then: str = "") -> float:
    command = [sys.executable, "-c", TIMED.format(code) + then]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=PATIENCE)
    return float(done.stdout)
