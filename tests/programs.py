"""Programs that make a manager, started by a test that sees what becomes of it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from actors import Diary, lives
from helpers import ROOT, wait_until

PROLOGUE = """\
import json, multiprocessing, os, signal, subprocess, sys, threading, time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from actors import Witness
from helpers import wait_until
from mppool import ManagerLost, PoolManager

def tell(manager, **more):
    facts = {"manager": manager._process.pid, "address": manager.address, **more}
    print(json.dumps(facts), flush=True)

def sleep_long():
    time.sleep(1000)

START_METHOD, DIARY = sys.argv[1], Path(sys.argv[2])
make_witness = partial(Witness, DIARY)
"""


class Program:
    """A program that makes a manager and tells about it in its first line."""

    def __init__(self, directory: Path, text: str, start_method: str) -> None:
        self.diary = Diary(directory / "diary")
        self._errors = directory / "errors"
        path = directory / "program.py"
        path.write_text(PROLOGUE + text)
        command = [sys.executable, str(path), start_method, str(self.diary.path)]
        self._start(command, {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "NO_COLOR": "1"})

    def _start(self, command: list[str], environment: dict[str, str]) -> None:
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
            )

    def read_facts(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.errors()
        self._learn(line)
        self.family = self.manager.children(recursive=True)

    def _learn(self, line: bytes | str) -> None:
        self.facts: dict[str, Any] = json.loads(line)
        self.manager = psutil.Process(self.facts["manager"])
        self.home = Path(self.facts["address"]).parent

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def errors(self) -> str:
        return self._errors.read_text()

    def nothing_is_left(self) -> bool:
        return not self.home.exists() and not any(map(lives, [self.manager, *self.family]))

    def __enter__(self) -> Program:  # noqa: PYI034  # `Self` came with Python 3.11
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        for pid in self.facts.get("siblings", ()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()


class Terminal(Program):
    """The same in a terminal of its own."""

    def _start(self, command: list[str], environment: dict[str, str]) -> None:
        pid, self._terminal = pty.fork()
        if not pid:
            os.execve(command[0], command, environment)
        os.set_inheritable(self._terminal, False)  # else another terminal keeps this one from hanging up
        self.leader = psutil.Process(pid)
        self.text = ""

    def read(self, timeout: float = 0) -> bool:
        """Read what was printed; False when nobody has the terminal open any more."""
        try:
            while self._terminal in select.select([self._terminal], [], [], timeout)[0]:
                read = os.read(self._terminal, 10000)
                if not read:
                    return False
                self.text += read.decode()
        except OSError:  # what Linux says at the end
            return False
        return True

    def read_facts(self) -> None:
        wait_until(lambda: self.read() and "\n" in self.text, timeout=30, message="it tells of its manager")
        self._learn(self.text.splitlines()[0])
        self.family = self.leader.children(recursive=True)

    def press_ctrl_c(self) -> None:
        os.write(self._terminal, b"\x03")

    def hang_up(self) -> None:
        os.close(self._terminal)
        self._terminal = -1

    def has_ended(self) -> bool:
        if self._terminal >= 0:
            self.read()
        return not lives(self.leader)

    def __exit__(self, *exc_info: object) -> None:
        for process in [self.leader, *getattr(self, "family", [])]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        os.waitpid(self.leader.pid, 0)
        if self._terminal >= 0:
            self.hang_up()
