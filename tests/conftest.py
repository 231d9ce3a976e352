"""Fixtures that any test may use."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from actors import Diary, Gate, Tool, Worker, manager_in
from backends import BACKENDS, Backend
from cluster import find_programs, private_cluster
from helpers import Beside, RunPython, stress_seconds
from hypothesis import settings

from mppool import ObjectPool, PoolManager

# A run in the background of a shell inherits an ignored SIGINT, and so would the programs of the tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On a busy machine an example may take long without anything being wrong; a run that fails must be
# one that anybody can repeat.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What lasts as long as it is told to gets the time for that; elsewhere stays what is so there, too."""
    for item in items:
        if item.get_closest_marker("stress"):
            item.add_marker(pytest.mark.timeout(60 + 3 * stress_seconds()))
    config.hook.pytest_deselected(items=[each for each in items if not holds_where_it_is_seen(each)])
    items[:] = filter(holds_where_it_is_seen, items)


def holds_where_it_is_seen(test: pytest.Item) -> bool:
    """False of the tests of this machine, in a module whose tests are seen elsewhere."""
    is_elsewhere = hasattr(getattr(test, "module", None), "BACKENDS")
    is_everywhere = test.get_closest_marker("everywhere") and not test.get_closest_marker("local")
    return bool(is_everywhere or not is_elsewhere)


def pytest_collection_finish() -> None:
    """Have no collector walk through what was collected: the tests, their modules, what these import.

    All of that stays to the end. Each full collection would look at some hundred thousand objects, and would
    do so in every forked process anew, where that also copies all their pages.
    """
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What is the same wherever objects live is seen in each place: tests marked `everywhere`.

    The mark can name places, for tests that take long; the mark `far` adds one. A module that has the tests
    of another one, to see them in another place, names that.
    """
    mark = metafunc.definition.get_closest_marker("everywhere")
    if mark is not None:
        far = ["far"] if metafunc.definition.get_closest_marker("far") else []
        here = [*(mark.args or ("none", "thread", "process")), *far]
        metafunc.parametrize("backend", getattr(metafunc.module, "BACKENDS", here), indirect=True)


@pytest.fixture(autouse=True)  # before a pool is made, and for pytest a fixture of every test
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Where pools keep their objects in a test marked `everywhere`, unless they say otherwise."""
    if not hasattr(request, "param"):
        return Backend()
    backend, create_pool = BACKENDS[request.param], PoolManager.create_pool

    def with_isolation(manager: Any, factory: Any, **options: Any) -> Any:
        return create_pool(manager, factory, **{"isolation": backend.isolation, **options})

    monkeypatch.setattr(PoolManager, "create_pool", with_isolation)
    return backend


# The bounds of the package that tests shorten or lengthen, and where each is read.
BOUNDS = {
    "silence": "_wire.connection.SILENCE_SECONDS",
    "strangers": "_wire.listener.MAX_PENDING",
    "batch": "_remote.items.BATCH_SECONDS",
    "idle_memory": "_wire.shared_memory.IDLE",
    "idle_thread": "_pool.threads._IDLE_SECONDS",
    "hook": "_pool.pool.HOOK_BOUND",
    "hook_in_process": "_process.runner.HOOK_BOUND",
    "hook_on_loop": "_pool.loop_runner.HOOK_BOUND",
    "hook_of_orphan": "_process.main.HOOK_BOUND",
    "far": "_process.far.HOOK_BOUND",
    "last_call": "_pool.pool.LAST_CALL",
    "shutdown": "_server.server.HOOK_BOUND",
    "watchdog_pause": "_server.watchdog._RETRY_SECONDS",
    "unread": "_server.session._UNREAD_SECONDS",
    "answer": "manager.ANSWER_BOUND",
    "shell": "_shell.managers._PATIENCE",
    "orphaned": "_process.launcher._ORPHANED_SECONDS",
    "restarts": "_server.supervisor.MAX_RESTARTS",
    "restarts_within": "_server.supervisor.WITHIN",
    "restart_pause": "_server.supervisor._FIRST_PAUSE",
    "figures": "_client.watched._ANSWER_SECONDS",
    "figures_of_objects": "_server.gauge._PATIENCE",
}


@pytest.fixture(autouse=True)
def _bounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests marked `bounds(silence=0.5)` run with that bound, and so do the managers they fork."""
    for mark in reversed(list(request.node.iter_markers("bounds"))):  # the test's own last
        for name, value in mark.kwargs.items():
            monkeypatch.setattr(f"mppool.{BOUNDS[name]}", value)


@pytest.fixture
def gate(backend: Backend) -> Iterator[Gate]:
    """Where calls and hooks wait; name it before what forks the manager."""
    with backend.gate() as gate:
        yield gate


@pytest.fixture
def manager(request: pytest.FixtureRequest, backend: Backend) -> Iterator[PoolManager]:
    """A manager of the test's own, with the options that the mark `manager` gives; it leaves nothing."""
    mark = request.node.get_closest_marker("manager")
    with backend.manager(**(mark.kwargs if mark else {})) as manager:
        yield manager


@pytest.fixture(scope="module")
def shared_manager() -> Iterator[PoolManager]:
    """One manager for all tests of a module that does nothing to it. Forked: strings hash there as here."""
    with manager_in() as manager:
        yield manager


@pytest.fixture
def pool(request: pytest.FixtureRequest, manager: PoolManager) -> ObjectPool[Any]:
    """A pool of two tools, or as the mark `pool` says."""
    mark = request.node.get_closest_marker("pool")
    factory, options = (*mark.args, mark.kwargs) if mark else (Tool, {})
    return manager.create_pool(factory, **{"max_size": 2, **options})


@pytest.fixture
def beside() -> Iterator[Beside]:
    """Call a function in a thread beside the test: returns what will be its result, or its error."""
    with ThreadPoolExecutor() as threads:
        yield threads.submit


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """How to connect to a PostgreSQL of this run's own."""
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed")
    with private_cluster(programs) as conninfo:
        yield conninfo


@pytest.fixture
def worker(backend: Backend) -> Iterator[Worker]:
    with backend.worker() as worker:
        yield worker


@pytest.fixture
def diary(tmp_path: Path) -> Diary:
    return Diary(tmp_path / "diary")


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Run this Python with the given arguments in a directory of its own; returns what came out.

    A run that takes too long, or ends in another way than it should, fails the test with what it printed.
    """

    def run(
        *args: str | Path, cwd: Path = tmp_path, status: int = 0, timeout: float = 50
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, args)]
        # Files, not pipes: a grandchild that outlives the command must not keep us reading.
        out, err = tmp_path / "stdout.txt", tmp_path / "stderr.txt"
        with out.open("w") as stdout, err.open("w") as stderr:
            streams = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr}
            try:
                done = subprocess.run(command, check=False, cwd=cwd, timeout=timeout, **streams)
            except subprocess.TimeoutExpired:
                pytest.fail(f"{command} goes on:\n{out.read_text()}\n{err.read_text()}")
        assert done.returncode == status, out.read_text() + err.read_text()
        return subprocess.CompletedProcess(command, done.returncode, out.read_text(), err.read_text())

    return run
