"""What cannot be had on a cluster is said, at once or when it was waited for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from actors import Tool
from helpers import RunPython, promptly
from nodes import Nodes, driver

from mppool import FactoryError, ManagerLost, PoolError, PoolTimeout
from mppool.ray import Placement, RayPoolManager


def test_without_ray_the_extra_is_named(run_python: RunPython) -> None:
    code = "import sys; sys.modules['ray'] = None; import mppool.ray"
    assert 'pip install "mppool[ray]"' in run_python("-c", code, status=1).stderr


def test_without_a_cluster_ray_init_is_named(run_python: RunPython) -> None:
    code = "import mppool.ray; mppool.ray.RayPoolManager()"
    assert (
        "PoolError: this process belongs to no Ray cluster: call ray.init()"
        in run_python("-c", code, status=1).stderr
    )


def test_a_pool_that_comes_to_no_cluster_says_so(
    ray_manager: Any, run_python: RunPython, tmp_path: Path
) -> None:
    import pickle

    pool = ray_manager.create_pool(each=[1])
    (tmp_path / "pool").write_bytes(pickle.dumps(pool))
    code = "import pickle; pickle.load(open('pool', 'rb')).acquire()"
    assert "call ray.init()" in run_python("-c", code, status=1).stderr


def test_a_client_of_ray_is_refused(cluster: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    client = SimpleNamespace(is_connected=lambda: True)
    monkeypatch.setattr("mppool._ray.cluster.ray_client", client)
    with pytest.raises(PoolError, match="ray://"):
        RayPoolManager()


def test_a_placement_that_no_node_has_is_waited_for(ray_manager: Any) -> None:
    placement = Placement(num_cpus=0, resources={"moon": 1})
    pool = ray_manager.create_pool(Tool, max_size=1, placement=placement)
    with promptly(), pytest.raises(PoolTimeout, match="1 moon"):
        pool.acquire(1)
    with promptly():
        pool.close(0)


def test_a_factory_that_the_nodes_lack(
    ray_manager: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def make(): ...")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    with pytest.raises(FactoryError, match="only_here"):
        ray_manager.create_pool(only_here.make)
    with pytest.raises(FactoryError, match="nowhere"):
        ray_manager.create_pool("nowhere:make", name="it")
    assert ray_manager.create_pool(each=[1], name="it").acquire() == 1
    sys.modules.pop("only_here")


def test_a_name_is_one_pools(ray_manager: Any, cluster: Nodes, request: pytest.FixtureRequest) -> None:
    ray_manager.create_pool(each=[1], name="it")
    with pytest.raises(ValueError, match="name='it': a pool of this name exists already"):
        ray_manager.create_pool(each=[1], name="it")
    code = """
        from mppool.ray import RayPoolManager
        try:
            RayPoolManager(namespace=sys.argv[1]).create_pool(each=[2], name="it")
        except ValueError as error:
            print(error)
    """
    with driver(cluster, code, request.node.name) as program:
        assert "exists already" in program.communicate()[0]


def test_other_versions_are_named(ray_manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ray_manager.create_pool(each=[1], name="it")
    pool._channel.drop()
    monkeypatch.setattr("mppool._version.__version__", "9.9")
    with pytest.raises(ManagerLost, match="and this process has mppool 9"):
        ray_manager.get_pool("it")
    monkeypatch.undo()
    assert pool.acquire() == 1


def test_nodes_without_a_control_of_ours_are_named(
    ray_manager: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where mppool is missing, or is one that knows no Ray, the class of the control cannot be imported."""

    class Control:
        def __init__(self, *_: object) -> None:
            raise ModuleNotFoundError("No module named 'mppool._ray'")

        def contact(self) -> None: ...

    monkeypatch.setattr("mppool.ray.Control", Control)
    with promptly(), pytest.raises(ManagerLost, match=r"cannot be started: .*No module named 'mppool._ray'"):
        ray_manager.create_pool(each=[1])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"isolation": "thread"}, ValueError, "each object has a process of its own"),
        ({"lifetime": "forever"}, ValueError, "'job' or 'detached'"),
        ({"restart": 1}, TypeError, "restart must be"),
        ({"placement": {"num_gpus": 1}}, TypeError, "placement must be a Placement"),
        ({"max_siez": 1}, TypeError, "did you mean 'max_size'"),
        ({"placement": Placement(resources={"GPU": 1})}, ValueError, "num_gpus"),
    ],
)
def test_options_are_checked_at_once(ray_manager: Any, options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        ray_manager.create_pool(Tool, **options)
    assert not ray_manager.pools()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_cpus": -1}, ValueError),
        ({"num_gpus": "1"}, TypeError),
        ({"resources": {"a": -1}}, ValueError),
        ({"resources": "a"}, TypeError),
        ({"node": 1}, TypeError),
        ({"runtime_env": 1}, TypeError),
        ({"node": "a", "strategy": "SPREAD"}, ValueError),
        ({"strategy": "NEAR"}, ValueError),
    ],
)
def test_a_placement_is_checked_at_once(options: Any, error: Any) -> None:
    with pytest.raises(error):
        Placement(**options)
