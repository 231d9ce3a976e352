"""Two terminals use one pool; the window of one is closed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from actors import lives
from commands import PATIENCE, most_at_once
from helpers import wait_until
from programs import Terminal
from servers import Models


class Shell(Terminal):
    """A shell in a terminal of its own, in this directory."""

    def __init__(self, directory: Path) -> None:
        self._start(["/bin/bash", "--norc", "--noprofile", "-i"], {**os.environ, "TERM": "dumb"})
        self.type(f"cd {directory}")

    def type(self, line: str) -> None:
        os.write(self._terminal, f"{line}\n".encode())

    def shows(self, line: str) -> bool:
        self.read()
        return line in self.text.splitlines()


def test_two_shells(models: Models, tmp_path: Path) -> None:
    with Shell(tmp_path) as first, Shell(tmp_path) as second:
        for each in (first, second):
            each.type(f"{sys.executable} -i anywhere.py")
        wait_until(lambda: models.noted("made"), PATIENCE)
        manager = str(models.noted("made")[0])
        for each in (first, second):
            wait_until(lambda each=each: each.shows(manager), PATIENCE, f"it shows {manager}")
            each.type("model = models.acquire()")
            each.family = each.leader.children()
        with models.pool() as pool, models.log() as log:
            wait_until(lambda: pool.stats().leased == 2)
            second.type("another = models.acquire(); print('the answer: ' + another.predict('hello'))")
            wait_until(lambda: pool.stats().waiting == 1)
            first.hang_up()
            wait_until(lambda: second.shows(f"the answer: {manager}"))
            wait_until(lambda: not any(map(lives, [first.leader, *first.family])))
            assert "Traceback" not in log()
        second.type("exit()\nexit")
        wait_until(second.has_ended)
        assert "Traceback" not in first.text + second.text
    wait_until(models.all_closed, PATIENCE)
    assert most_at_once(tmp_path / "diary") <= 2
