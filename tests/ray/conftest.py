"""One cluster for all tests on Ray."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nodes
import pytest

if TYPE_CHECKING:
    from mppool.ray import RayPoolManager

HAS_RAY = importlib.util.find_spec("ray.cluster_utils") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this directory is about Ray, and takes its time."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.timeout(180))
            # What Ray leaves open, and warns of, is its own.
            item.add_marker(pytest.mark.filterwarnings("default"))
            if not HAS_RAY:
                item.add_marker(pytest.mark.skip(reason="Ray is not installed: the extra `ray`"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[nodes.Nodes]:
    """Three nodes, on the first of which this process is the driver."""
    nodes.importable()
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
