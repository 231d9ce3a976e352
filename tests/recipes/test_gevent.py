"""The greenlets of a program whose standard library gevent has made its own use one pool."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import PATIENCE, Command, most_at_once
from helpers import wait_until
from servers import Models

pytest.importorskip("gevent", reason="the extra `real` is not installed")

PROGRAM = """
from gevent import monkey
monkey.patch_all()

import gevent
from anywhere import models

def predict():
    with models.lease() as model:
        gevent.sleep(0.01)
        return model.predict("hello")

greenlets = [gevent.spawn(predict) for _ in range(20)]
print({each.get() for each in greenlets})
"""


def test_gevent(models: Models, tmp_path: Path) -> None:
    with Command(tmp_path, "-c", PROGRAM) as program:
        assert program.process.wait(PATIENCE) == 0, program.log()
        (manager,) = {*models.noted("made")}
        assert program.log().splitlines() == [str(manager), f"{{'{manager}'}}"]
    wait_until(models.all_closed, PATIENCE)
    assert most_at_once(tmp_path / "diary") == 2
