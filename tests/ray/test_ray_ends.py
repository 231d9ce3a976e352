"""What happens when a party of a pool dies, or its node does: each row of the table in `mppool.ray`.

Each test asserts that what it kills is what it means to kill, and that it was alive until then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from actors import Diary, Tool, Witness, acquire, echo, lives
from helpers import Beside, promptly, wait_until
from nodes import Nodes, Worker, control_of, driver, processes_of
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mppool import CallTimeout, LeaseLost, ManagerLost, ObjectPool, PoolClosed, Unreachable
from mppool.ray import Placement

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")


ON_OTHERS = Placement(num_cpus=1, resources={"steady": 1})


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    """That of the manager."""
    return request.node.name


def on(node: Any, *, soft: bool) -> Any:
    return NodeAffinitySchedulingStrategy(node.node_id, soft=soft)


def kill(pid: int) -> None:
    """`kill -9` of what lives, and lives no more afterwards."""
    process = psutil.Process(pid)
    assert lives(process)
    process.kill()
    wait_until(lambda: not lives(process))


def is_of(node: Any, pid: int) -> bool:
    """Whether a process belongs to a node."""
    return pid in [each.pid for each in processes_of(node)]


def object_of(pool: ObjectPool[Any]) -> Any:
    """What the pool tells of its one object."""
    (told,) = pool.objects()
    return told


# -- a holder, or one that waits ------------------------------------------------------------------------


def test_a_killed_holder_on_another_node_loses_its_object(
    ray_manager: Any, cluster: Nodes, beside: Beside
) -> None:
    pool = ray_manager.create_pool(Tool, max_size=1, on_reclaim="reset")
    with Worker(cluster.others[0]) as worker:
        worker.do(acquire, pool)
        worker.do(echo, 1)
        before = object_of(pool).pid
        waiting = beside(pool.acquire, 20)
        wait_until(lambda: pool.stats().waiting == 1)
        assert is_of(cluster.others[0], worker.pid)
        kill(worker.pid)
        with promptly():
            handle = waiting.result()
        assert handle.pid() == before
        assert pool.stats().reclaimed == 1
        pool.release(handle)


def test_a_killed_holder_of_a_value_loses_it(ray_manager: Any, cluster: Nodes) -> None:
    pool = ray_manager.create_pool(each=["value"])
    with Worker(cluster.others[0]) as worker:
        worker.do(acquire, pool)
        kill(worker.pid)
        assert pool.acquire() == "value"


def test_a_holder_that_stands_still_keeps_its_object(ray_manager: Any, cluster: Nodes) -> None:
    pool = ray_manager.create_pool(Tool, max_size=1)
    with Worker(cluster.others[0]) as worker:
        worker.do(acquire, pool)
        worker.stop()
        with pytest.raises(TimeoutError):
            pool.acquire(3)
        worker.go_on()
        assert worker.do(echo, 1) == 1


def test_a_killed_waiter_leaves_the_queue(ray_manager: Any, cluster: Nodes) -> None:
    pool = ray_manager.create_pool(each=[1])
    value = pool.acquire()
    with Worker(cluster.others[0]) as worker:
        worker.begin(acquire, pool)
        wait_until(lambda: pool.stats().waiting == 1)
        kill(worker.pid)
        wait_until(lambda: pool.stats().waiting == 0)
    pool.release(value)
    assert pool.acquire() == 1


def test_a_cancelled_waiter_leaves_the_queue(ray_manager: Any) -> None:
    pool = ray_manager.create_pool(each=[1])
    value = pool.acquire()
    waiting = ray.remote(num_cpus=0)(lambda: pool.acquire(None)).remote()
    wait_until(lambda: pool.stats().waiting == 1)
    ray.cancel(waiting)
    wait_until(lambda: pool.stats().waiting == 0)
    with pytest.raises(ray.exceptions.RayError):
        ray.get(waiting)
    pool.release(value)
    assert pool.acquire() == 1


# -- an object ------------------------------------------------------------------------------------------


def test_a_killed_object_is_lost_to_its_holder_and_replaced(ray_manager: Any, beside: Beside) -> None:
    pool = ray_manager.create_pool(Tool, max_size=1)
    with pool.lease() as handle:
        pid = object_of(pool).pid
        assert handle.pid() == pid
        calling = beside(handle.nap, 60)
        kill(pid)
        with promptly(), pytest.raises(LeaseLost):
            calling.result()
    with pool.lease() as another:
        assert another.pid() not in (pid, None)


def test_what_an_object_has_started_ends_with_it(ray_manager: Any, diary: Diary) -> None:
    pool = ray_manager.create_pool(Witness, each=[diary.path], max_size=1)
    with pool.lease() as witness:
        child = psutil.Process(witness.start_a_child())
        kill(object_of(pool).pid)
        wait_until(lambda: not lives(child))


def test_an_object_that_hangs_is_replaced(ray_manager: Any) -> None:
    pool = ray_manager.create_pool(Tool, max_size=1, call_timeout=0.5)
    with pool.lease() as tool:
        process = psutil.Process(tool.pid())
        with pytest.raises(CallTimeout):
            tool.nap(60)
    wait_until(lambda: not lives(process))
    with pool.lease() as tool:
        assert tool.echo(1) == 1


# -- a node ---------------------------------------------------------------------------------------------


@pytest.fixture
def extra(cluster: Nodes) -> Iterator[Any]:
    """A node that a test may kill or freeze."""
    with cluster.one_more(resources={"extra": 100}) as node:
        yield node


def test_the_node_of_a_holder_is_killed(ray_manager: Any, cluster: Nodes, extra: Any) -> None:
    pool = ray_manager.create_pool(Tool, max_size=1, on_reclaim="reset", placement=ON_OTHERS)
    worker = Worker(extra)
    worker.do(acquire, pool)
    assert is_of(extra, worker.pid)
    assert not is_of(extra, object_of(pool).pid)
    cluster.kill(extra)
    with promptly(), pool.lease() as tool:
        assert tool.echo(1) == 1


def test_the_node_of_an_object_is_killed_in_a_call(
    ray_manager: Any, cluster: Nodes, extra: Any, beside: Beside
) -> None:
    pool = ray_manager.create_pool(Tool, max_size=1, placement=Placement(num_cpus=0, resources={"extra": 1}))
    with pool.lease() as handle:
        assert is_of(extra, object_of(pool).pid)
        calling = beside(handle.nap, 100)
        cluster.kill(extra)
        with promptly(), pytest.raises(LeaseLost):
            calling.result()
    wait_until(lambda: not pool.objects())


def test_the_node_of_an_idle_object_is_killed(ray_manager: Any, cluster: Nodes, extra: Any) -> None:
    placement = Placement(num_cpus=0, strategy=on(extra, soft=True))
    pool = ray_manager.create_pool(Tool, max_size=1, placement=placement)
    pool.release(pool.acquire())
    wait_until(lambda: pool.stats().idle == 1)
    before = object_of(pool)
    assert is_of(extra, before.pid)
    cluster.kill(extra)
    with pool.lease() as tool:
        assert tool.pid() != before.pid
        assert object_of(pool).node != before.node


def test_a_call_on_a_frozen_node_ends(ray_manager: Any, cluster: Nodes, extra: Any, beside: Beside) -> None:
    """Without `call_timeout`, and long before Ray says that the node is dead."""
    pool = ray_manager.create_pool(
        Tool, max_size=1, placement=Placement(num_cpus=0, strategy=on(extra, soft=True))
    )
    with pool.lease() as handle, cluster.frozen(extra):
        assert is_of(extra, object_of(pool).pid)
        calling = beside(handle.nap, 0.5)
        with pytest.raises(Unreachable, match="may have run"):
            calling.result(30)
        with pytest.raises(LeaseLost):
            handle.echo(1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_node_of_a_holder_is_frozen(ray_manager: Any, cluster: Nodes, extra: Any) -> None:
    """Ray takes 65 seconds to call it dead."""
    pool = ray_manager.create_pool(Tool, max_size=1, on_reclaim="reset", placement=ON_OTHERS)
    worker = Worker(extra)
    worker.do(acquire, pool)
    assert is_of(extra, worker.pid)
    with cluster.frozen(extra):
        with pytest.raises(TimeoutError):
            pool.acquire(20)
        with pool.lease(100) as tool:
            assert tool.echo(1) == 1


# -- the control ----------------------------------------------------------------------------------------


def test_a_killed_control_is_followed_by_another_one(
    ray_manager: Any, beside: Beside, namespace: str
) -> None:
    pool = ray_manager.create_pool(Tool, max_size=1, name="it")
    with pool.lease() as handle:
        of_before = psutil.Process(handle.pid())
        waiting = beside(pool.acquire)
        wait_until(lambda: pool.stats().waiting == 1)
        kill(control_of(pool, namespace))
        with promptly(), pytest.raises(ManagerLost):
            waiting.result()
        with promptly(), pool.lease() as another:
            assert another.pid() != of_before.pid
        with pytest.raises(LeaseLost):
            handle.echo(1)
    wait_until(lambda: not lives(of_before))
    assert ray_manager.get_pool("it") == pool


def test_objects_of_a_killed_control_are_closed(ray_manager: Any, diary: Diary, namespace: str) -> None:
    pool = ray_manager.create_pool(Witness, each=[diary.path], close=Witness.close)
    pool.release(pool.acquire())
    wait_until(lambda: pool.stats().idle == 1)
    (made,) = diary.made()
    kill(control_of(pool, namespace))
    wait_until(lambda: diary.closed() == [made])


def test_without_restart_a_killed_control_is_the_end(ray_manager: Any, namespace: str) -> None:
    pool = ray_manager.create_pool(each=[1], restart=False)
    kill(control_of(pool, namespace))
    with pytest.raises((ManagerLost, PoolClosed)):
        pool.acquire()
    wait_until(lambda: pool.name not in ray_manager.pools())


@pytest.mark.slow
def test_the_node_of_a_control_is_killed(
    ray_manager: Any, cluster: Nodes, extra: Any, namespace: str
) -> None:
    pool = ray_manager.create_pool(each=[1], placement=Placement(control=extra.node_id))
    assert is_of(extra, control_of(pool, namespace))
    cluster.kill(extra)
    assert pool.acquire() == 1


# -- a driver -------------------------------------------------------------------------------------------

MAKES = """
    from actors import Witness
    from mppool.ray import RayPoolManager
    _, namespace, path, lifetime = sys.argv
    from pathlib import Path
    manager = RayPoolManager(namespace=namespace)
    pool = manager.create_pool(
        Witness, each=[Path(path)], name="it", close=Witness.close, lifetime=lifetime, on_reclaim="reset")
    handle = pool.acquire()
    print(handle.name(), flush=True)
    sys.stdin.readline()
"""


def made_by(driver: Any) -> str:
    return driver.stdout.readline().strip()


def test_a_driver_ends_without_closing_its_pool(
    ray_manager: Any, cluster: Nodes, diary: Diary, namespace: str
) -> None:
    with driver(cluster, MAKES, namespace, diary.path, "job") as program:
        name = made_by(program)
        assert ray_manager.get_pool("it").stats().leased == 1
        program.communicate("end\n")
        assert program.returncode == 0
    assert diary.closed() == diary.made() == [name]
    assert "it" not in ray_manager.pools()


def test_a_driver_is_killed(ray_manager: Any, cluster: Nodes, diary: Diary, namespace: str) -> None:
    with driver(cluster, MAKES, namespace, diary.path, "job") as program:
        name = made_by(program)
        process = psutil.Process(object_of(ray_manager.get_pool("it")).pid)
        kill(program.pid)
    wait_until(lambda: "it" not in ray_manager.pools())
    wait_until(lambda: not lives(process))
    assert diary.closed() == [name]


def test_a_detached_pool_outlives_its_driver(
    ray_manager: Any, cluster: Nodes, diary: Diary, namespace: str
) -> None:
    with driver(cluster, MAKES, namespace, diary.path, "detached") as program:
        name = made_by(program)
        kill(program.pid)
    pool = ray_manager.get_pool("it")
    with pool.lease() as witness:
        assert witness.name() == name
    pool.close()
    assert diary.closed() == [name]


# -- a watch --------------------------------------------------------------------------------------------


def test_a_watch_that_ends_is_followed_by_another_one(
    ray_manager: Any, cluster: Nodes, namespace: str
) -> None:
    """It ends with the control that has started it; others ask it, too."""
    first, second = (ray_manager.create_pool(each=[1]) for _ in range(2))
    name = f"watch {cluster.others[0].node_id}"
    with Worker(cluster.others[0]) as worker:
        worker.do(acquire, first)
        before = wait_until(lambda: named(name, namespace))
        worker.do(acquire, second)
        first.close(0)
        wait_until(lambda: named(name, namespace) not in (None, before))
        kill(worker.pid)
        assert second.acquire() == 1


def named(name: str, namespace: str) -> Any:
    """The actor of this name; None if there is none."""
    try:
        return ray.get_actor(name, namespace)
    except ValueError:
        return None
