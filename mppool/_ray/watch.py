"""The actor of a node that tells of its processes, to all who ask: psutil's word."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable

from mppool._server.watchdog import Watchdog
from mppool._system.processes import ProcessId, kill, kill_group_at_end
from mppool._system.usage import process_table

_CLOCK_SECONDS = 2.0
"""By which two processes may see one start time differently: the kernel rounds the time of its boot."""

_SWEEP_SECONDS = 1.0


class Watch:
    """One on each node that has holders or objects, for the controls of a namespace.

    What it does not see with its own eyes it does not know: the pid of a process in another container may be
    that of another one here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next one
        self._awaited: dict[ProcessId, list[Callable[[], object]]] = {}
        self._watchdog = Watchdog(
            interval=_SWEEP_SECONDS, holders=lambda: list(self._awaited), on_gone=self._tell, tick=_no_tick
        )
        self._watchdog.start()

    async def await_end(self, pid: int, started: float | None) -> bool:
        """Answer when the process has ended; False, at once: there is no such process to be seen here."""
        process = _seen(pid, started)
        if process is None:
            return False
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._awaited.setdefault(process, []).append(lambda: loop.call_soon_threadsafe(ended.set))
        self._watchdog.watch(process)
        await ended.wait()
        return True

    async def answer(self) -> None:
        """Give a sign of life of this node."""

    async def usage(self, pid: int, started: float | None) -> tuple[int, float] | None:
        """What the process uses, as `ProcessTable.usage` tells it."""
        process = _seen(pid, started)
        return None if process is None else process_table().usage(process)

    async def exact_memory(self, pid: int, started: float | None) -> int | None:
        """As `ProcessTable.exact_memory`."""
        process = _seen(pid, started)
        return None if process is None else process_table().exact_memory(process)

    async def kill(self, pid: int, started: float | None) -> None:
        """Kill the process and all that descend from it."""
        process = _seen(pid, started)
        if process is not None:
            kill(process)

    async def kill_group(self, pid: int, _: float | None) -> None:
        """Kill what is left of the group of a process that ends."""
        await asyncio.to_thread(kill_group_at_end, ProcessId(pid, None))

    def _tell(self, process: ProcessId) -> None:
        with self._lock:
            told = self._awaited.pop(process, [])
        for tell in told:
            tell()


def _seen(pid: int, started: float | None) -> ProcessId | None:
    """The process with this pid that started then."""
    found = ProcessId.of(pid)
    if found.process is None or started is None:
        return None
    return found if abs(found.process.create_time() - started) < _CLOCK_SECONDS else None


def _no_tick() -> float:
    return math.inf
