"""The workers of joblib, which it starts and replaces, use one pool."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from commands import PATIENCE, Command, most_at_once
from helpers import wait_until
from servers import Models

pytest.importorskip("joblib", reason="the extra `examples` is not installed")

PROGRAM = """
from joblib.externals.loky.process_executor import TerminatedWorkerError
from joblib_workers import predict_all

print({*predict_all("abcdefgh")}, flush=True)
try:
    predict_all(["wait"] * 4)
except TerminatedWorkerError:
    print("a worker was killed", flush=True)
print({*predict_all(["wait"] * 4)})
"""


def test_joblib(models: Models, tmp_path: Path) -> None:
    with Command(tmp_path, "-c", PROGRAM) as program:
        wait_until(lambda: len(models.noted("begun")) == 2, PATIENCE, "two wait in a call, two for them")
        assert most_at_once(tmp_path / "diary") == 2
        with models.pool() as pool:
            os.kill(pool.leases()[0].pid, signal.SIGKILL)
        wait_until(lambda: "a worker was killed" in program.log(), PATIENCE)
        models.go_on()
        assert program.process.wait(PATIENCE) == 0
        (manager,) = {*models.noted("made")}
        ours = f"{{'{manager}'}}"
        assert program.log().splitlines() == [ours, "a worker was killed", ours]
        with models.pool() as pool, models.log() as log:
            assert pool.stats().leased == 0
            assert "Traceback" not in log()
    wait_until(models.all_closed, PATIENCE)
