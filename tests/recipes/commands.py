"""Commands that run in the directory of a recipe."""

from __future__ import annotations

import sys
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

import psutil
from actors import lives

PATIENCE = 40


class Command:
    """`python ARGUMENT ...` in this directory, with what it prints in a file."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._log = directory / "command.log"
        command = [sys.executable, *arguments]
        with self._log.open("w") as log:
            self.process = psutil.Popen(command, cwd=directory, stdout=log, stderr=log)

    def log(self) -> str:
        return self._log.read_text()

    def family(self) -> set[psutil.Process]:
        """The processes that it started, and those that they started."""
        return {each for each in self.process.children(recursive=True) if lives(each)}

    def kill(self) -> None:
        """`kill -9` for all of its processes."""
        with suppress(psutil.NoSuchProcess):
            for each in [self.process, *self.family()]:
                each.kill()
        self.process.wait()

    def __enter__(self) -> Command:  # noqa: PYI034  # `Self` came with Python 3.11
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()


def most_at_once(diary: Path) -> int:
    """How many models there were at the same time."""
    steps = {"made": 1, "closed": -1}
    return max(accumulate(steps.get(line.split()[0], 0) for line in diary.read_text().splitlines()))
