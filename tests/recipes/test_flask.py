"""Flask's reloader: the code is loaded anew, the models stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import wait_until
from servers import PATIENCE, Models, Server

from mppool import PoolManager

pytest.importorskip("flask", reason="the extra `real` is not installed")


@pytest.mark.timeout(150)  # as that of gunicorn
def test_a_touched_file(serve: Callable[..., Server], models: Models, tmp_path: Path) -> None:
    server = serve("flask", "--app", "flask_app", "run", "--debug", "--port", "0")
    manager = server.get("text")
    with models.log() as log:
        with models.pool():
            before = server.family()
            (tmp_path / "flask_app.py").touch()
            wait_until(lambda: not before & server.family(), PATIENCE)
            assert server.get("text") == manager
            assert len(models.noted("made")) == 1

            PoolManager.shared("models").shutdown()
            assert models.all_closed()
            assert server.get("text") != manager

        server.end()
        wait_until(models.all_closed, PATIENCE)
        assert len(models.noted("made")) == 2
        assert "Traceback" not in server.log() + log()
