"""A pooled object that holds much, and what it does. Light: a process that is spawned for it imports this."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from actors import Witness
from helpers import wait_until

MIB = 2**20
LARGE, HUGE = 120 * MIB, 240 * MIB


class Eater(Witness):
    """Holds what it is told to."""

    def __init__(self, diary: Path, size: int = 0) -> None:
        self._kept = [b"x" * size]
        super().__init__(diary)

    def grow(self, size: int) -> None:
        self._kept.append(b"x" * size)

    def grow_and_hang(self, size: int = HUGE) -> None:
        self.grow(size)
        time.sleep(1000)

    def shrink(self) -> None:
        del self._kept[1:]

    def grow_when_told(self, size: int) -> None:
        """Beside all calls, once there is a file `go` beside the diary."""

        def grow() -> None:
            wait_until(self._diary.with_name("go").exists)
            self.grow(size)

        threading.Thread(target=grow, daemon=True).start()

    def burn(self, seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    def start(self, way: str) -> int:
        """Have another process be large: a child, also in a session of its own, or an orphan, likewise."""
        if way in ("child", "session"):
            code = f"import time; kept = b'x' * {LARGE}; print(flush=True); time.sleep(1000)"
            command = [sys.executable, "-c", code]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=way == "session")
            assert process.stdout is not None
            process.stdout.readline()
            return process.pid
        reading, writing = os.pipe()
        if child := os.fork():
            os.waitpid(child, 0)
            return int(os.read(reading, 20))
        if way == "daemon":
            os.setsid()
        if os.fork():
            os._exit(0)
        kept = b"x" * LARGE
        os.write(writing, b"%d" % os.getpid())
        time.sleep(1000)
        os._exit(len(kept) % 2)

    def start_twins(self, count: int) -> None:
        """Fork children that have what this one has."""
        for _ in range(count):
            if not os.fork():
                time.sleep(1000)
                os._exit(0)


def make_and_hang(diary: Path) -> None:
    Eater(diary).grow_and_hang()


def overeat_once(once: Path, eater: Eater) -> None:
    if not once.exists():
        once.touch()
        eater.grow_and_hang()
