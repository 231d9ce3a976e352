"""Pools on a cluster: who finds and uses them, from where."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from actors import Tool, acquire, echo, release
from helpers import Beside, wait_until
from nodes import Nodes, Worker

from mppool import LeaseLost, ObjectPool, PoolClosed, PoolError
from mppool.ray import Placement

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")


def test_values_are_lent_once_each(ray_manager: Any) -> None:
    pool = ray_manager.create_pool(each=[1, 2])
    assert {pool.acquire(0), pool.acquire(0)} == {1, 2}
    assert pool.stats().leased == 2


def test_a_worker_on_another_node_borrows(ray_manager: Any, cluster: Nodes) -> None:
    pool = ray_manager.create_pool(each=[1])
    with Worker(cluster.others[0]) as worker:
        worker.do(acquire, pool)
        (lease,) = pool.leases()
        assert lease.pid == worker.pid
        worker.do(release, pool)
        assert pool.acquire() == 1


def test_a_pool_is_found_by_its_name(ray_manager: Any) -> None:
    pool = ray_manager.create_pool(each=[1], name="numbers")
    assert ray_manager.get_pool("numbers") == pool
    assert ray_manager.pools() == {"numbers": pool}
    pool.close()
    with pytest.raises(PoolError, match="no pool named 'numbers'"):
        ray_manager.get_pool("numbers")


def test_a_task_and_a_driver_lend_to_each_other(ray_manager: Any) -> None:
    pool = ray_manager.create_pool(each=[1])

    @ray.remote(num_cpus=0)
    def borrow(pool: ObjectPool[int]) -> int:
        with pool.lease() as value:
            return value + 41

    assert ray.get([borrow.remote(pool) for _ in range(4)]) == [42] * 4
    pool.release(pool.acquire())


def test_an_event_loop_borrows(ray_manager: Any) -> None:
    pool = ray_manager.create_pool(each=[1])

    async def borrow() -> int:
        async with pool.aio.lease() as value:
            return value

    assert asyncio.run(borrow()) == 1


@pytest.mark.parametrize("exist_ok", [False, True])
def test_a_name_is_free_when_its_pool_is_closed(exist_ok: bool, ray_manager: Any) -> None:
    for number in range(5):
        pool = ray_manager.create_pool(each=[number], name="it", exist_ok=exist_ok)
        assert pool.acquire() == number
        pool.close(0)
        assert ray_manager.pools() == {}
        with pytest.raises(PoolError, match="no pool named 'it'"):
            ray_manager.get_pool("it")


def test_a_pool_without_a_name_has_one(ray_manager: Any) -> None:
    first, second = (ray_manager.create_pool(each=[1]) for _ in range(2))
    assert {*ray_manager.pools()} == {first.name, second.name}
    assert first != second


def test_the_same_pool_is_made_once(ray_manager: Any) -> None:
    pool = ray_manager.create_pool(each=[1], name="a", exist_ok=True)
    assert ray_manager.create_pool(each=[1], name="a", exist_ok=True) == pool
    with pytest.raises(ValueError, match=r"its each is \[1\], not \[2\]"):
        ray_manager.create_pool(each=[2], name="a", exist_ok=True)


def test_what_waits_is_told_of_the_end(ray_manager: Any, beside: Beside) -> None:
    pool = ray_manager.create_pool(each=[1])
    pool.acquire()
    waiting = beside(pool.acquire)
    wait_until(lambda: pool.stats().waiting == 1)
    pool.close(0)
    with pytest.raises(PoolClosed):
        waiting.result()
    with pytest.raises(PoolClosed):
        pool.acquire()


def test_objects_are_called_from_another_node(ray_manager: Any, cluster: Nodes) -> None:
    pool = ray_manager.create_pool(Tool, max_size=1)
    with Worker(cluster.others[1]) as worker:
        worker.do(acquire, pool)
        assert worker.do(echo, "hello") == "hello"
        worker.do(release, pool)
    with pool.lease() as tool:
        assert tool.echo(1) == 1


class Hoarder:
    """Holds as much as it is told."""

    def hold(self, megabytes: int) -> None:
        self._held = b"x" * (megabytes * 2**20)


@pytest.mark.parametrize("number", [0, 1])
def test_what_an_object_holds_is_bounded_on_any_node(ray_manager: Any, cluster: Nodes, number: int) -> None:
    node = [cluster.head, *cluster.others][number].node_id
    bounds = {"max_memory_hard": 300 * 2**20}
    pool = ray_manager.create_pool(Hoarder, max_size=1, placement=Placement(node=node), **bounds)
    with pool.lease() as hoarder:
        (told,) = pool.objects()
        assert told.node == node
        before = wait_until(lambda: pool.objects()[0].memory)
        hoarder.hold(50)
        wait_until(lambda: pool.objects()[0].memory > before + 40 * 2**20)
        with pytest.raises(LeaseLost, match="max_memory_hard"):
            wait_until(lambda: hoarder.hold(300))
