"""Fixtures that any test may use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import RunPython, stress_seconds
from hypothesis import settings

from mppool import PoolManager

# On a busy machine an example may take long without anything being wrong; a run that fails must be
# one that anybody can repeat.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What lasts as long as it is told to gets the time for that."""
    for item in items:
        if item.get_closest_marker("stress"):
            item.add_marker(pytest.mark.timeout(60 + 3 * stress_seconds()))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What is the same wherever objects live is seen in each place: tests marked `everywhere`.

    The mark can name places, for tests that take long.
    """
    mark = metafunc.definition.get_closest_marker("everywhere")
    if mark is not None:
        metafunc.fixturenames.insert(0, "_home_of_objects")  # before a pool is made
        places = mark.args or ("none", "thread", "process")
        metafunc.parametrize("_home_of_objects", places, indirect=True)


@pytest.fixture
def _home_of_objects(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pools keep their objects there, unless they say otherwise."""
    create_pool = PoolManager.create_pool

    def with_isolation(manager: Any, factory: Any, **options: Any) -> Any:
        return create_pool(manager, factory, **{"isolation": request.param, **options})

    monkeypatch.setattr(PoolManager, "create_pool", with_isolation)


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Run this Python with the given arguments in a directory of its own; returns what came out.

    A run that takes too long fails the test, with what it had printed so far.
    """

    def run(*args: str | Path, cwd: Path = tmp_path, timeout: float = 50) -> subprocess.CompletedProcess[str]:
        command: Sequence[str] = [sys.executable, *map(str, args)]
        # Files, not pipes: a grandchild that outlives the command must not keep us reading.
        out, err = tmp_path / "stdout.txt", tmp_path / "stderr.txt"
        with out.open("w") as stdout, err.open("w") as stderr:
            try:
                done = subprocess.run(
                    command,
                    check=False,
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    timeout=timeout,
                )
            except subprocess.TimeoutExpired:
                pytest.fail(f"{command} ran for {timeout} s:\n{out.read_text()}\n{err.read_text()}")
        return subprocess.CompletedProcess(command, done.returncode, out.read_text(), err.read_text())

    return run
