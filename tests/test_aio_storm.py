"""Processes with event loops that acquire and call, are cancelled at any time, killed and stopped at random.

MPPOOL_STRESS_SECONDS is the length of the random part, MPPOOL_STRESS_SEED its seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from actors import Exclusive, KillStorm
from backends import Backend
from helpers import stress_seconds, stress_seed, wait_until

from mppool import ObjectPool, PoolManager

_TASKS = 12


def work_until_killed(pool: ObjectPool[Any], seed: float, counts: Any) -> None:
    """Loops one after the other, each with many tasks that are cancelled now and then."""
    dice = random.Random(seed)
    for number in range(10**9):
        asyncio.run(run_for_a_while(pool, dice, number, counts))


async def run_for_a_while(pool: ObjectPool[Any], dice: random.Random, number: int, counts: Any) -> None:
    """Ends with tasks under way."""
    tasks = [
        asyncio.create_task(use(pool, dice, (os.getpid(), number, each), counts)) for each in range(_TASKS)
    ]
    for _ in range(dice.randrange(100)):
        await asyncio.sleep(dice.choice((0, 0, 0.0005, 0.002)))
        victim = dice.randrange(_TASKS)
        tasks[victim].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tasks[victim]
        token = os.getpid(), number, len(tasks), dice.random()
        tasks[victim] = asyncio.create_task(use(pool, dice, token, counts))


async def use(pool: ObjectPool[Any], dice: random.Random, token: tuple[Any, ...], counts: Any) -> None:
    """Acquire, call, release, in all ways there are, as fast as can be."""
    aio: Any = pool.aio
    while True:
        token = *token[:3], dice.random()
        if dice.random() < 0.3:
            assert await aio.apply(Exclusive.step, token, dice.choice((0.0, 0.001)), timeout=None) == token
        else:
            async with aio.lease(timeout=None) as thing:
                for _ in range(dice.randrange(1, 4)):
                    assert await thing.step(token, dice.choice((0.0, 0.0, 0.002))) == token
        counts[0] += 1


@pytest.mark.far
@pytest.mark.everywhere("none", "process")
def test_a_storm_of_loops(backend: Backend, manager: PoolManager, tmp_path: Path) -> None:
    seed = stress_seed()
    complaints = tmp_path / "complaints"
    complaints.touch()
    pool = manager.create_pool(partial(Exclusive, complaints), max_size=3)
    with KillStorm(backend.worker, partial(work_until_killed, pool), random.Random(seed), workers=3) as storm:
        storm.rage(stress_seconds(), pauses=(0.0, 0.02, 0.1), stops=True)
        storm.all_go_on(timeout=30)
    wait_until(lambda: (pool.stats().leased, pool.stats().waiting) == (0, 0), timeout=30)
    with pool.lease(), pool.lease(), pool.lease():
        pass
    assert complaints.read_text() == ""
