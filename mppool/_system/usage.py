"""What processes take of the machine, each together with what it has started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import psutil

from mppool._system import PORTABLE

from .processes import ProcessId


class Usage(NamedTuple):
    """What a process and its followers use."""

    memory: int
    """Bytes."""
    cpu_seconds: float


class Table(Protocol):
    """A look at some processes."""

    def usage(self, leader: ProcessId) -> Usage | None:
        """What it uses, with memory as RSS; None: this cannot be told."""

    def exact_memory(self, leader: ProcessId) -> int:
        """Bytes, with a share of each page that several processes have, where this can be told."""


FarTable = Callable[[set[ProcessId]], Table]
"""A look at these processes, which may be on several machines."""


class ProcessTable:
    """All processes of the machine at one moment, as far as this one may look at them.

    The followers of a process are all that descend from it, or are of the group that it leads: orphans. With
    both of these links cut, by a fork of a fork in a new session, a process follows it no more.

    To read the table takes one pass over all processes, however many families are asked for.
    """

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}
        self._children: dict[int, list[int]] = {}
        self._groups: dict[int, list[int]] = {}
        for pid, parent, group, seen in self._read():
            self._seen[pid] = seen
            self._children.setdefault(parent, []).append(pid)
            self._groups.setdefault(group, []).append(pid)

    def usage(self, leader: ProcessId) -> Usage | None:
        """With memory as RSS: a page counts in each process that has it. None: this cannot be told."""
        if leader.elsewhere or leader.pid not in self._seen:
            return None
        try:
            own = self._usage(self._seen[leader.pid])
        except psutil.Error:
            return None
        rest = [self._usage_of_follower(pid) for pid in self._family(leader.pid) if pid != leader.pid]
        return Usage(*map(sum, zip(own, *rest, strict=True)))

    def exact_memory(self, leader: ProcessId) -> int:
        """Bytes, with a share of each page that several processes have, where this can be told."""
        return sum(self._exact_memory(pid) for pid in self._family(leader.pid))

    def _family(self, leader: int) -> Iterable[int]:
        """The process and its followers."""
        found = dict.fromkeys((leader, *self._groups.get(leader, ())))
        waiting = list(found)
        while waiting:
            new = [pid for pid in self._children.get(waiting.pop(), ()) if pid not in found]
            found.update(dict.fromkeys(new))
            waiting += new
        return found

    def _usage_of_follower(self, pid: int) -> Usage:
        try:
            return self._usage(self._seen[pid])
        except psutil.Error:  # it has ended since, or we may not look
            return Usage(0, 0.0)

    # By psutil, on any platform.

    def _read(self) -> Iterator[tuple[int, int, int, Any]]:
        """Each process: pid, parent, group, and what its usage is found by."""
        for process in psutil.process_iter():
            try:
                yield process.pid, process.ppid(), os.getpgid(process.pid), process
            except (psutil.Error, OSError):
                continue

    def _usage(self, seen: Any) -> Usage:
        with seen.oneshot():
            return Usage(seen.memory_info().rss, sum(seen.cpu_times()[:4]))  # of reaped children, too

    def _exact_memory(self, pid: int) -> int:
        return self._usage_of_follower(pid).memory


class _LinuxProcessTable(ProcessTable):
    """From the files that psutil reads, too: one for each process, in a fifth of the time."""

    _PAGE = os.sysconf("SC_PAGE_SIZE")
    _TICK = 1 / os.sysconf("SC_CLK_TCK")

    def _read(self) -> Iterator[tuple[int, int, int, Any]]:
        for name in os.listdir("/proc"):
            if name.isdecimal():
                try:
                    text = _read_proc(name, "stat")
                except OSError:  # it has just ended
                    continue
                fields = text[text.rindex(b")") + 2 :].split()  # after its name, which may hold anything
                yield int(name), int(fields[1]), int(fields[2]), fields

    def _usage(self, seen: Any) -> Usage:
        return Usage(int(seen[21]) * self._PAGE, sum(map(int, seen[11:15])) * self._TICK)

    def _exact_memory(self, pid: int) -> int:
        """PSS. The kernel looks at all pages for it, and tells it of processes that may be traced."""
        try:
            text = _read_proc(str(pid), "smaps_rollup")
            return int(text.partition(b"\nPss:")[2].split(maxsplit=1)[0]) * 1024
        except ProcessLookupError:
            return 0
        except (OSError, IndexError):
            return super()._exact_memory(pid)


def _read_proc(pid: str, name: str) -> bytes:
    file = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, 4096)
    finally:
        os.close(file)


def process_table() -> ProcessTable:
    """The table of this moment. Raises what psutil or the platform raises where none is to be had."""
    return ProcessTable() if PORTABLE or not psutil.LINUX else _LinuxProcessTable()
