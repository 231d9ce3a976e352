"""The processes that rq's workers fork for one job each use one pool."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import PATIENCE, Command
from helpers import wait_until
from servers import Models

rq = pytest.importorskip("rq", reason="the extra `real` is not installed")
redis = pytest.importorskip("redis")  # comes with it

pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server is installed")


@pytest.fixture
def queue(tmp_path: Path, place: Path) -> Iterator[Any]:
    """A queue in a Redis of the test's own."""
    socket = place.with_name("redis")
    command = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", ""]
    server = psutil.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        wait_until(socket.exists, PATIENCE)
        with redis.Redis(unix_socket_path=str(socket)) as connection:
            yield rq.Queue(connection=connection)
    finally:
        server.kill()
        server.wait()


def test_rq(queue: Any, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RQ_REDIS_URL", f"unix://{queue.connection.connection_pool.connection_kwargs['path']}")
    with Command(tmp_path, "-m", "rq.cli", "worker-pool", "--num-workers", "3") as workers:
        jobs = [queue.enqueue("rq_jobs.predict", "wait") for _ in range(3)]
        wait_until(lambda: len(models.noted("begun")) == 2, PATIENCE)
        with models.pool() as pool, models.log() as log:
            wait_until(lambda: pool.stats().waiting == 1, PATIENCE)
            os.kill(pool.leases()[0].pid, signal.SIGKILL)
            wait_until(lambda: len(models.noted("begun")) == 3, message="the one that waited has its turn")
            wait_until(lambda: sum(map(psutil.pid_exists, models.noted("made"))) == 2)
            models.go_on()
            ended = "finished", "failed"
            wait_until(lambda: all(each.get_status(refresh=True) in ended for each in jobs), PATIENCE)
            manager = str(os.getsid(models.noted("made")[-1]))
            assert [each.return_value() for each in jobs if each.is_finished] == [manager] * 2
            assert (pool.stats().leased, pool.stats().size) == (0, 2)
            workers.process.terminate()
            assert workers.process.wait(PATIENCE) == 0
            assert "Traceback" not in workers.log() + log()
    wait_until(lambda: models.all_closed(but=1), PATIENCE)
