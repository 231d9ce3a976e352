"""The children of a Celery worker, which come and go, use one pool."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import PATIENCE, Command
from helpers import wait_until
from servers import Models

celery = pytest.importorskip("celery", reason="the extra `real` is not installed")

WORKER = "-m celery --app celery_app worker --concurrency 4 --max-tasks-per-child 3 --loglevel info".split()


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What sends tasks, through a broker that is a directory."""
    for name in ("queue", "control", "results"):
        (tmp_path / name).mkdir()
    queue = str(tmp_path / "queue")
    options = {"data_folder_in": queue, "data_folder_out": queue, "control_folder": str(tmp_path / "control")}
    settings = {
        "broker_url": "filesystem://",
        "broker_transport_options": options,
        "result_backend": f"file://{tmp_path / 'results'}",
        "worker_prefetch_multiplier": 1,
    }
    text = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
    (tmp_path / "celeryconfig.py").write_text(text)
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "celeryconfig")
    return celery.Celery(set_as_current=False, config_source=settings)


def test_prefork(app: Any, models: Models, tmp_path: Path) -> None:
    def predict(text: str) -> Any:
        return app.send_task("celery_app.predict", [text])

    with Command(tmp_path, *WORKER) as worker:
        wait_until(lambda: "ready." in worker.log(), PATIENCE, "it is ready")
        before = worker.family()
        (manager,) = {each.get(timeout=PATIENCE) for each in [predict("hello") for _ in range(16)]}
        wait_until(lambda: not before & worker.family(), message="all children are replaced")

        with models.pool() as pool, models.log() as log:
            tasks = [predict("wait") for _ in range(4)]
            wait_until(lambda: pool.stats().waiting == 2 and len(models.noted("begun")) == 2, PATIENCE)
            os.kill(pool.leases()[0].pid, signal.SIGKILL)
            wait_until(lambda: len(models.noted("begun")) == 3, message="one that waited has its turn")
            wait_until(lambda: sum(map(psutil.pid_exists, models.noted("made"))) == 2)

            worker.process.terminate()
            wait_until(lambda: "Warm shutdown" in worker.log())
            models.go_on()
            assert worker.process.wait(PATIENCE) == 0
            assert [each.result for each in tasks if each.successful()] == [manager] * 3
            assert (pool.stats().leased, pool.stats().size) == (0, 2)
            assert "mppool/_" not in worker.log(), "what a killed child costs is told without us"
            assert "Traceback" not in log()
    wait_until(lambda: models.all_closed(but=1), PATIENCE)
