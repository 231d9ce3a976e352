"""gunicorn: workers that are replaced, reloaded and killed share one manager and two models."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import Beside, wait_until
from servers import PATIENCE, Models, Server

pytest.importorskip("gunicorn", reason="the extra `examples` is not installed")

# Workers tell that they have loaded the application, as those of uvicorn do.
CONFIG = """
def post_worker_init(worker):
    worker.log.info("Started server process [%d]", worker.pid)
"""


@pytest.mark.timeout(150)  # most of it is waiting: for workers to come, and for the manager, which lingers
@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_gunicorn(
    serve: Callable[..., Server],
    models: Models,
    beside: Beside,
    tmp_path: Path,
    worker_class: str,
    preload: list[str],
) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    kind = ["--workers", "3", "--worker-class", worker_class, *preload]
    server = serve("gunicorn", *kind, "--max-requests", "8", "--bind", "127.0.0.1:0", "wsgi:application")
    manager = server.get("text")

    def ask() -> None:
        with ThreadPoolExecutor(4) as clients:
            assert {*clients.map(server.get, ["text"] * 6)} == {manager}

    with models.log() as log:
        with models.pool() as pool:
            first = server.workers(3)
            while first & server.workers(3):  # each answers eight requests
                ask()

            before = server.workers(3)
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: not before & server.workers(3), PATIENCE)
            ask()

            server.kill_a_worker(pool, lambda: models.noted("begun"), beside)
            server.workers(3)
            ask()
            assert pool.stats().size <= 2

        assert server.end() == 0
        wait_until(lambda: models.all_closed(but=1), PATIENCE)
        assert len(models.noted("made")) <= 2 + 1
        assert "Traceback" not in server.log() + log()
