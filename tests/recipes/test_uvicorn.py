"""uvicorn: workers that are killed share one manager and two models."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import Beside, wait_until
from servers import PATIENCE, Models, Server

for name in ("uvicorn", "fastapi"):
    pytest.importorskip(name, reason="the extra `real` is not installed")


@pytest.mark.timeout(150)  # as that of gunicorn
def test_uvicorn(serve: Callable[..., Server], models: Models, beside: Beside) -> None:
    server = serve("uvicorn", "--workers", "3", "--port", "0", "asgi:app")
    manager = server.get("text")
    with models.log() as log:
        with models.pool() as pool:
            before = server.workers(3)
            server.kill_a_worker(pool, lambda: models.noted("begun"), beside)
            wait_until(lambda: server.workers(3) != before, PATIENCE)
            with ThreadPoolExecutor(4) as clients:
                assert {*clients.map(server.get, ["text"] * 9)} == {manager}
            assert pool.stats().size <= 2

        models.go_on()  # the call of the worker that was killed
        assert server.end() == 0
        wait_until(models.all_closed, PATIENCE)
        assert len(models.noted("made")) <= 2 + 1
        assert "Traceback" not in server.log() + log()
