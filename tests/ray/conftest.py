"""One cluster for all tests on Ray."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import nodes
import pytest
from actors import Gate

if TYPE_CHECKING:
    from backends import Backend

    from mppool.ray import RayPoolManager

IN_SHORT = {
    "test_contract_handle",
    "test_contract_sharing",
    "test_contract_storms",
    "test_contract_interrupts",
}
"""What stands for the whole contract where time is short: the rest of it is slow."""

HAS_RAY = importlib.util.find_spec("ray.cluster_utils") is not None


class WithoutRay(pytest.Module):
    """A module that cannot even be imported here."""

    def collect(self) -> NoReturn:
        pytest.skip("Ray is not installed: the extra `ray`")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """All of this directory is about Ray."""
    if HAS_RAY or Path(__file__).parent not in module_path.parents:
        return None
    module: pytest.Module = WithoutRay.from_parent(parent, path=module_path)
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """It takes its time."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ray)
            if item.path.stem.startswith("test_contract_") and item.path.stem not in IN_SHORT:
                item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(180))
            # What Ray leaves open, and warns of, is its own.
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nodes.Nodes]:
    """Three nodes, on the first of which this process is the driver."""
    nodes.importable()
    os.environ[Gate.DIRECTORY] = str(tmp_path_factory.mktemp("gate"))
    cluster = nodes.Nodes()
    yield cluster
    cluster.shut_down()


@pytest.fixture
def ray_manager(cluster: nodes.Nodes, request: pytest.FixtureRequest) -> Iterator[RayPoolManager]:
    """A manager with a namespace of the test's own, of which all pools are closed at its end."""
    from mppool.ray import RayPoolManager

    manager = RayPoolManager(namespace=request.node.name)
    yield manager
    for pool in manager.pools().values():
        pool.close(0)


@pytest.fixture
def backend(cluster: nodes.Nodes) -> Backend:
    """Where the tests of `test_contract_*` are seen: the very tests that other places pass."""
    from ray_backend import RayBackend

    return RayBackend([each.node_id for each in (cluster.head, *cluster.others)])


@pytest.fixture(scope="module")
def shared_manager(cluster: nodes.Nodes) -> Iterator[RayPoolManager]:
    """One manager for all tests of a module that does nothing to it."""
    from ray_backend import RayBackend

    with RayBackend([]).manager() as manager:
        yield manager
