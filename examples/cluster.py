"""Models on three nodes of a Ray cluster, one of which is lost in the middle of the work.

Makes a cluster of three nodes on this machine. Tasks on all of them have examples classified by the models of
one pool, which live on all of them, too. When a third is done, all processes of a node are killed that has a
model and a task that holds one, as if its machine had lost its power. The pool takes back what was held there
and builds the model elsewhere; Ray runs the tasks anew that died, and says so.
Prints whether each example has got its class, and where models and their holders were.

    python examples/cluster.py [--tasks 90] [--megabytes 16]
    python examples/cluster.py --address auto       (a cluster that there is: no node is killed)

All nodes of such a cluster need mppool with the extra `ray`, and NumPy.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from mppool import LeaseLost, ManagerLost, ObjectPool

if not any(each.startswith("--address") for each in sys.argv):
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # loopback alone. Ray asks this when it is imported
try:
    import numpy as np
    import ray
    from ray.cluster_utils import Cluster
    from shared_model import FEATURES, Model

    from mppool.ray import Placement, RayPoolManager
except ImportError as missing:
    sys.exit(f"cluster.py: error: {missing}: pip install 'mppool[examples,ray]'")

MODELS = 3
EXAMPLES = 10  # of each task
NODE: dict[str, Any] = {
    "num_cpus": 3,
    "object_store_memory": 100 * 2**20,
    "node_ip_address": "127.0.0.1",
}
PATIENCE = 120  # seconds for a task to get a model, and for a node to have one


def classify(pool: ObjectPool[Model], first: int) -> list[int]:
    """The classes of the examples from this number on. Runs in a task, on any node."""
    while True:
        try:
            with pool.lease(timeout=PATIENCE) as model:
                return [model.predict(example(number)) for number in range(first, first + EXAMPLES)]
        except (LeaseLost, ManagerLost):
            continue  # with another model: the node of this one is lost


def example(number: int) -> Any:
    return np.random.default_rng(number).standard_normal(FEATURES, dtype=np.float32)


class Seen:
    """Where models and their holders were, as the pool has told while the work went on."""

    def __init__(self, pool: ObjectPool[Model]) -> None:
        self._pool = pool
        self._here = ray.get_runtime_context().get_node_id()  # the pool is on this node, too
        self.models: dict[str, set[int]] = {}
        self.holders: dict[str, set[int]] = {}

    def look(self) -> set[str]:
        """The nodes that have a model just now, and a process that holds one."""
        models = self._by_node((each.node, each.pid) for each in self._pool.objects())
        holders = self._by_node((each.node, each.pid) for each in self._pool.leases())
        for now, ever in (models, self.models), (holders, self.holders):
            for node, pids in now.items():
                ever.setdefault(node, set()).update(pids)
        return models.keys() & holders.keys()

    def _by_node(self, processes: Iterable[tuple[str | None, int | None]]) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for node, pid in processes:
            if pid is not None:  # else it is being built
                found.setdefault(node or self._here, set()).add(pid)
        return found

    def table(self, killed: str | None) -> Iterator[str]:
        """A line for each node."""
        yield f"{'node':12}{'models':>8}{'holders':>9}"
        for node in sorted(self.models.keys() | self.holders.keys(), key=lambda node: node != self._here):
            note = {self._here: "  this program, and the pool", killed: "  killed"}.get(node, "")
            models, holders = len(self.models.get(node, ())), len(self.holders.get(node, ()))
            yield f"{node[:8]:12}{models:8}{holders:9}{note}"


@contextlib.contextmanager
def nodes_of_our_own() -> Iterator[dict[str, Any]]:
    """A cluster of three nodes, on the first of which this program is: the other two by their ids."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}  # no calls home, no files
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as home:
        head = {**NODE, "include_dashboard": False, "temp_dir": home}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            others = [cluster.add_node(**NODE) for _ in range(2)]
            with joined(cluster.address, _node_ip_address=NODE["node_ip_address"]):
                yield {node.node_id: node for node in others}
        finally:
            cluster.shutdown()


@contextlib.contextmanager
def joined(address: str, **options: Any) -> Iterator[None]:
    """Be a driver of the cluster at this address, which need not see how this program speaks of its tasks."""
    ray.init(address, log_to_driver=False, logging_level="ERROR", **options)
    try:
        yield
    finally:
        ray.shutdown()


def kill(node: Any) -> None:
    """`kill -9` of a node's raylet, and of all that it has started."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in [raylet, *raylet.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def run(tasks: int, size: int, mortal: dict[str, Any]) -> None:
    """Have all examples classified, and kill one of the nodes that may be killed meanwhile."""
    began = time.monotonic()
    placement = Placement(strategy="SPREAD")
    with RayPoolManager().create_pool(
        partial(Model, size), min_size=MODELS, max_size=MODELS, placement=placement
    ) as pool:
        pool.wait(PATIENCE)  # until its models are there
        seen, killed = Seen(pool), None
        # Ray runs anew what is lost with a node.
        task = ray.remote(classify).options(scheduling_strategy="SPREAD", max_retries=-1)
        results = [task.remote(pool, number * EXAMPLES) for number in range(tasks)]
        left = results
        while left:
            _, left = ray.wait(left, num_returns=len(left), timeout=0.1)
            in_use = seen.look() & mortal.keys()
            if in_use and killed is None and len(left) < tasks * 2 / 3:
                killed = in_use.pop()
                kill(mortal[killed])
                print(f"node {killed[:8]} is killed, {len(left)} of {tasks} tasks are not done")
        classes = [each for result in results for each in ray.get(result)]
        pool.wait(PATIENCE)  # until the model that was lost has a successor
        seen.look()
        stats = pool.stats()

    model = Model(size)  # the same as those of the pool
    right = sum(model.predict(example(number)) == each for number, each in enumerate(classes))
    took = time.monotonic() - began
    print(f"all {tasks} tasks are done, {took:.1f} s: {right} of {len(classes)} examples are right")
    print(f"{stats.built} models built, {stats.reclaimed} leases taken back from holders that died\n")
    print("\n".join(seen.table(killed)))
    if right < len(classes) or (mortal and killed is None):
        sys.exit("\nnot all is right, or the work was over before there was a node to be killed")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--address", help="of a cluster, as ray.init takes it (default: one is made)")
    parser.add_argument("--tasks", type=int, default=90, help=f"with {EXAMPLES} examples each (default: 90)")
    parser.add_argument("--megabytes", type=int, default=16, help="size of a model (default: 16)")
    options = parser.parse_args()
    if min(options.tasks, options.megabytes) < 1:
        parser.error("--tasks and --megabytes must be 1 or more")
    with contextlib.ExitStack() as stack:
        mortal: dict[str, Any] = {}
        if options.address is None:
            mortal = stack.enter_context(nodes_of_our_own())
        else:  # its nodes get the file of the model
            here = {"working_dir": str(Path(__file__).parent)}
            stack.enter_context(joined(options.address, runtime_env=here))
        run(options.tasks, options.megabytes * 2**20, mortal)


if __name__ == "__main__":
    main()
