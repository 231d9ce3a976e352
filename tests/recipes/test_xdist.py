"""The workers of pytest-xdist use one pool, that of their run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import PATIENCE, Command, most_at_once
from helpers import wait_until
from servers import Models

pytest.importorskip("xdist", reason="the extra `test` is not installed")

TESTS = """
import os
import pytest

@pytest.mark.parametrize("number", range(8))
def test_it(model, number, testrun_uid):
    assert "shared-models-" + testrun_uid[:8] in os.listdir(os.environ["MPPOOL_RUNTIME_DIR"])
    assert model.predict("hello")

def test_bad(model):
    os._exit(1)
"""


def test_xdist(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "xdist_conftest.py").rename(tmp_path / "conftest.py")
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").touch()
    with Command(tmp_path, "-m", "pytest", "-p", "xdist", "--numprocesses", "4") as run:
        assert run.process.wait(PATIENCE) == 1
        assert re.search(r"worker 'gw\d' crashed while running 'test_it.py::test_bad'", run.log())
        assert "1 failed, 8 passed" in run.log()
        assert len({*models.noted("made")}) == 1
        assert most_at_once(tmp_path / "diary") <= 2
    wait_until(models.all_closed, PATIENCE)
