"""A cluster of three nodes on this machine, and processes on them that obey a test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from helpers import ROOT, wait_until

LOOPBACK = "127.0.0.1"
_STEADY = {"resources": {"steady": 100}}
_NODE = {"num_cpus": 8, "object_store_memory": 100 * 2**20, "node_ip_address": LOOPBACK}

# Ray asks at its import. Without these it takes another address of this machine, and waits for itself there.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ.setdefault("RAY_DEDUP_LOGS", "0")


def join(address: str, **options: Any) -> None:
    """Have this process be a driver of the cluster at this address."""
    import ray

    ray.init(address, _node_ip_address=LOOPBACK, log_to_driver=False, logging_level="ERROR", **options)


class Nodes:
    """Three nodes: the head, on which the tests are the driver, and two others."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {**_NODE, **_STEADY, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self.head = self._cluster.head_node
        self.others = [self._cluster.add_node(**_NODE, **_STEADY) for _ in range(2)]
        join(self.address)

    @contextlib.contextmanager
    def one_more(self, **options: Any) -> Iterator[Any]:
        """A node for the length of a block, which may kill it."""
        node = self._cluster.add_node(**_NODE, **options)
        try:
            wait_until(lambda: node.node_id in _alive())
            with Worker(node):  # now Ray sends work there
                pass
            yield node
        finally:
            self._cluster.remove_node(node)

    def kill(self, node: Any) -> None:
        """`kill -9` of all its processes at once, as the loss of a machine is; sockets are reset."""
        processes = processes_of(node)
        assert processes
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until(lambda: not any(map(_runs, processes)), message="its processes are gone")

    @contextlib.contextmanager
    def frozen(self, node: Any) -> Iterator[None]:
        """SIGSTOP of all its processes for the length of a block."""
        processes = [each for each in processes_of(node) if _runs(each)]
        for process in processes:
            process.suspend()
        wait_until(lambda: all(each.status() == psutil.STATUS_STOPPED for each in processes))
        try:
            yield
        finally:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    def shut_down(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()


def _alive() -> list[str]:
    import ray

    return [each["NodeID"] for each in ray.nodes() if each["Alive"]]


def processes_of(node: Any) -> list[psutil.Process]:
    """The raylet of a node, and all that it has started."""
    (raylet,) = [psutil.Process(each.process.pid) for each in node.all_processes["raylet"]]
    return [raylet, *raylet.children(recursive=True)]


def _runs(process: psutil.Process) -> bool:
    try:
        # As long as one of its threads runs, its sockets are open.
        return process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1
    except psutil.NoSuchProcess:
        return False


class Obeying:
    """What runs in a worker's actor: it does what it is told, step by step."""

    def __init__(self) -> None:
        self._things: dict[str, Any] = {}

    def do(self, job: Callable[..., Any], *args: Any) -> Any:
        return job(self._things, *args)

    def pid(self) -> int:
        return os.getpid()


class Worker:
    """A process on a node that calls `job(things, *args)`, as `actors.Worker` is one on this machine."""

    def __init__(self, node: Any = None) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        where = {}
        if node is not None:
            where["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        self.node = node
        self._actor = ray.remote(Obeying).options(num_cpus=0, **where).remote()
        self.pid: int = ray.get(self._actor.pid.remote())
        self._job: Any = None

    def begin(self, job: Callable[..., Any], *args: Any) -> None:
        """Have it call `job(things, *args)`, where `things` is a dict that stays there."""
        self._job = self._actor.do.remote(job, *args)

    def result(self, timeout: float = 20) -> Any:
        """What the job returned, or the error that it raised."""
        import ray

        try:
            return ray.get(self._job, timeout=timeout)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def do(self, job: Callable[..., Any], *args: Any) -> Any:
        self.begin(job, *args)
        return self.result()

    def idle(self) -> bool:
        """Whether a result is there."""
        import ray

        return bool(ray.wait([self._job], timeout=0)[0])

    def kill(self) -> None:
        """`kill -9`."""
        os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        process = psutil.Process(self.pid)
        process.suspend()
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> Worker:  # noqa: PYI034  # `Self` came with Python 3.11
        return self

    def __exit__(self, *exc_info: object) -> None:
        import ray

        ray.kill(self._actor)


def importable() -> None:
    """What the tests define is found by the processes of the cluster."""
    here = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([*here, *filter(None, before)])


def control_of(pool: Any, namespace: str) -> int:
    """The pid of the process with a pool."""
    import ray

    return int(ray.get(ray.get_actor(f"pool {pool.name}", namespace).__ray_call__.remote(_pid)))


def _pid(_: object) -> int:
    return os.getpid()


@contextlib.contextmanager
def driver(cluster: Nodes, code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Another driver, a program of its own, which runs this once it has joined the cluster."""
    program = f"import nodes, sys\nnodes.join({cluster.address!r})\n{textwrap.dedent(code)}"
    command = [sys.executable, "-c", program, *map(str, args)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
