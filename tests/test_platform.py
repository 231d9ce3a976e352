"""Machines that are not like the others."""

from __future__ import annotations

import hashlib
import hmac
import os
import resource
import stat
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from actors import FORK, Tool, manager_in
from helpers import RunPython

from mppool import ObjectPool


def square(pool: ObjectPool[Any], number: int) -> int:
    with pool.lease(timeout=20) as tool:
        return tool.echo(number) ** 2


def assert_works(start_method: str = "fork") -> Path:
    """A manager, an executor and an orderly end; returns the directory that was the manager's."""
    with manager_in(start_method) as manager:
        home = Path(str(manager.address)).parent
        pool = manager.create_pool(Tool)
        with ProcessPoolExecutor(2, mp_context=FORK) as executor:
            assert [executor.submit(square, pool, number).result() for number in (2, 3)] == [4, 9]
    assert not home.exists()
    return home


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_directory_for_temporary_files_with_a_very_long_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_method: str
) -> None:
    # The path of a Unix socket has 104 to 108 bytes.
    directory = tmp_path / ("x" * 120)
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert tempfile.gettempdir() == str(directory)
    home = assert_works(start_method)
    assert len(os.fsencode(home)) < 90


def test_where_md5_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    new = hmac.new

    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("[digital envelope routines] unsupported")

    def new_without_md5(key: bytes, msg: bytes | None = None, digestmod: Any = "") -> Any:
        return forbidden() if "md5" in str(digestmod) else new(key, msg, digestmod)

    monkeypatch.setattr(hashlib, "md5", forbidden)
    monkeypatch.setattr(hmac, "new", new_without_md5)
    with pytest.raises(ValueError, match="unsupported"):
        hmac.new(b"", b"", "md5")
    assert_works()


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_whatever_the_umask_is_nobody_else_can_read_the_key(umask: int) -> None:
    before = os.umask(umask)
    try:
        with manager_in() as manager:
            pool = manager.create_pool(Tool)
            os.umask(before)
            assert pool.apply(Tool.echo, 1) == 1
            home = Path(str(manager.address)).parent
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()}
            assert stat.S_IMODE(home.stat().st_mode) == 0o700 & ~umask
            assert all(not mode & 0o077 for mode in modes.values()), modes
    finally:
        os.umask(before)


def test_windows_is_told_that_it_is_none_of_ours(run_python: RunPython) -> None:
    done = run_python("-c", "import sys; sys.platform = 'win32'; import mppool", status=1)
    assert done.stderr.splitlines()[-1] == "ImportError: mppool is for Linux and macOS"


def test_where_many_files_are_open() -> None:
    # Descriptors with high numbers: select() cannot do with them.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3000:
        pytest.skip("too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1500)]
    try:
        assert_works()
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
