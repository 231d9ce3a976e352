"""Rows about pools on a Ray cluster, beside plain actors of it, that are called from the same places."""

from __future__ import annotations

import importlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from .bench import MPPOOL, Bench, beside
from .clients import Crew, Desk, in_a_process, orderly, run_for
from .measure import Block, Row, Samples, Unit, interleave
from .peers import RAY_SETTINGS, RayPool, is_installed
from .things import MIB, Operation, Thing, cycle, plain_call, receive, send

__all__ = ["RAY", "RAY_ROWS", "beside_ray", "lacking"]

RAY = "Ray"

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "127.0.0.1"
NODE = {"num_cpus": 16, "object_store_memory": 200 * MIB, "node_ip_address": LOOPBACK}
CLIENTS, OBJECTS = 8, 2
CROWD_BLOCKS = 4
"""A block of the crowd lasts so many times as long as others: its clients begin one after the other."""

_LARGE = {"kind": "array", "size": 16 * MIB}

# Name, title, operation of mppool, of a plain actor.
_OPERATIONS: tuple[tuple[str, str, Operation, Operation], ...] = (
    ("call", "plain call", plain_call, plain_call),
    ("cycle", "acquire+call+release, beside a plain call", cycle, plain_call),
    ("argument", "array argument, 16 MiB", partial(send, **_LARGE), partial(send, **_LARGE)),
    ("result", "array result, 16 MiB", partial(receive, **_LARGE), partial(receive, **_LARGE)),
)

RAY_ROWS = (*(f"ray-{name}" for name, *_ in _OPERATIONS), "ray-crowd", "ray-kill")


def lacking() -> dict[str, str]:
    """What is missing here."""
    return {each: f"not installed: pip install {each}" for each in ("ray", "numpy") if not is_installed(each)}


def beside_ray(bench: Bench) -> Iterator[Row]:
    """Objects on another node than their callers, and a crowd on all nodes."""
    pace = bench.pace
    with orderly() as stack:
        address, others = stack.enter_context(in_a_process(_serve_nodes))
        crew = stack.enter_context(Crew(1))  # its process is the driver
        openers = {MPPOOL: partial(_lend, address, others[0]), RAY: partial(_call, address, others[0])}
        for name, title, ours, theirs in _OPERATIONS:
            blocks: dict[str, Block] = {
                who: partial(crew.block, 1, who, openers[who], operation, pace.seconds)
                for who, operation in ((MPPOOL, ours), (RAY, theirs))
            }
            yield _row(name, title, "time", interleave(blocks, pace.rounds))

        driver = crew.first
        driver.open("crowd", partial(_crowd, address))
        seconds = CROWD_BLOCKS * pace.seconds
        blocks = {who: partial(driver.do, _let_crowd_work, who, seconds) for who in (MPPOOL, RAY)}
        title = f"acquire+call+release, {CLIENTS} clients, {OBJECTS} objects, beside plain calls"
        yield _row("crowd", title, "rate", interleave(blocks, pace.rounds))

        driver.open("kill", partial(_lend, address, others[0], on_reclaim="reset", reset=_reset))
        samples = [driver.do(_kill_holder, others[1]) for _ in range(pace.starts)]
        title = f"kill -9 on another node to object lent again, {pace.starts} times"
        yield Row("ray-kill", f"Ray cluster: {title}", "time", {MPPOOL: samples}, {RAY: "never"})


def _row(name: str, title: str, unit: Unit, samples: Samples) -> Row:
    return Row(f"ray-{name}", f"Ray cluster: {title}", unit, {**samples, beside(RAY): samples[MPPOOL]})


@contextmanager
def _serve_nodes() -> Iterator[tuple[str, list[str]]]:
    """A cluster of three nodes on this machine: its address, and which nodes are not the head."""
    os.environ |= RAY_SETTINGS
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # loopback alone. Ray asks this when it is imported
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    make: Any = importlib.import_module("ray.cluster_utils").Cluster
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as home:
        head = {**NODE, "include_dashboard": False, "temp_dir": home}
        cluster = make(initialize_head=True, head_node_args=head)
        try:
            yield cluster.address, [cluster.add_node(**NODE).node_id for _ in range(2)]
        finally:
            cluster.shutdown()


# -- in the driver, which is on the head ------------------------------------------------------------------


@contextmanager
def _joined(address: str) -> Iterator[Any]:
    """Ray, of which this process is a driver as long as the first block that asks for it lasts."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray: Any = importlib.import_module("ray")
    if ray.is_initialized():
        yield ray
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # Ray prints who was killed
        ray.init(address, _node_ip_address=LOOPBACK, log_to_driver=False, logging_level="ERROR")
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _lend(address: str, node: str, **options: Any) -> Iterator[Any]:
    """A pool with one object, on this node."""
    with _joined(address):
        mppool_ray: Any = importlib.import_module("mppool.ray")
        placement = mppool_ray.Placement(node=node)
        manager = mppool_ray.RayPoolManager(namespace="benchmark")
        with manager.create_pool(Thing, min_size=1, max_size=1, placement=placement, **options) as pool:
            yield pool


@contextmanager
def _call(address: str, node: str) -> Iterator[RayPool]:
    """One plain actor, on this node."""
    with _joined(address) as ray:
        yield RayPool(ray, [_on_node(ray, Thing, node).remote()])


def _on_node(ray: Any, kind: type, node: str) -> Any:
    strategies: Any = importlib.import_module("ray.util.scheduling_strategies")
    where = strategies.NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(kind).options(num_cpus=1, scheduling_strategy=where)


def _reset(_: Thing) -> None:
    pass


class Caller:
    """One of a crowd: an actor."""

    def __init__(self, pools: dict[str, Any]) -> None:
        ray = importlib.import_module("ray")
        self._works: dict[str, AbstractContextManager[Any]] = {
            MPPOOL: cycle(pools[MPPOOL]),
            RAY: plain_call(RayPool(ray, pools[RAY])),
        }
        self._steps = {who: work.__enter__() for who, work in self._works.items()}

    def work(self, who: str, seconds: float) -> tuple[int, float]:
        """How often, and how long that took."""
        return run_for(self._steps[who], seconds)


@contextmanager
def _crowd(address: str) -> Iterator[list[Any]]:
    """The clients. All nodes have some; objects are on two of them, and so are the plain actors."""
    with _joined(address) as ray:
        mppool_ray: Any = importlib.import_module("mppool.ray")
        nodes = [each["NodeID"] for each in ray.nodes()]
        placement = mppool_ray.Placement(strategy="SPREAD")
        manager = mppool_ray.RayPoolManager(namespace="benchmark")
        actors = [_on_node(ray, Thing, node).remote() for node in nodes[:OBJECTS]]
        with manager.create_pool(Thing, min_size=OBJECTS, max_size=OBJECTS, placement=placement) as pool:
            callers = []
            for number in range(CLIENTS):
                shared = {MPPOOL: pool, RAY: [actors[number % OBJECTS]]}
                callers.append(_on_node(ray, Caller, nodes[number % len(nodes)]).remote(shared))
            yield callers


def _let_crowd_work(desk: Desk, who: str, seconds: float) -> float:
    """A job of the driver: seconds for each of all operations."""
    ray: Any = importlib.import_module("ray")
    callers = desk.pools["crowd"]
    ray.get([each.work.remote(who, seconds / 5) for each in callers])  # so that all is warm
    done = ray.get([each.work.remote(who, seconds) for each in callers])
    rate: float = sum(count / elapsed for count, elapsed in done)
    return 1 / rate


class Holder:
    """An actor that is killed while it holds an object."""

    def hold(self, pool: Any) -> int:
        """Which process that is."""
        self._handle = pool.acquire()
        self._handle.echo(1)
        return os.getpid()


def _kill_holder(desk: Desk, node: str) -> float:
    """A job of the driver: from the `kill -9` until a waiter in this process has the object."""
    ray: Any = importlib.import_module("ray")
    pool = desk.pools["kill"]
    holder = _on_node(ray, Holder, node).remote()
    pid = ray.get(holder.hold.remote(pool))

    def wait() -> float:
        with pool.lease():
            return time.monotonic()

    with ThreadPoolExecutor(1) as threads:
        lent = threads.submit(wait)
        while not pool.stats().waiting:
            pass
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return lent.result() - killed
