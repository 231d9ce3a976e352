"""Who a process is, and whether it is gone. The only user of psutil.

A pid alone proves nothing: it is used again. An owner is a pid and the moment its process started,
and only psutil's word that this very process is no more makes it gone; *unknown is alive*.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass, field
from multiprocessing.connection import wait

import psutil

_FIRST_GLANCE, _GLANCE = 0.002, 0.5  # seconds between two looks at a process whose end nothing tells

_DEAD = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


@dataclass(frozen=True)
class ProcessId:
    """A process that can hold objects. Two are equal if pid and start time are."""

    pid: int
    process: psutil.Process | None
    """psutil's identity of the process (on Linux and macOS its start time does not move with the
    wall clock); None where psutil could not tell the start time."""
    name: str = field(default="", compare=False)
    """What `multiprocessing` calls the process; for people only."""
    mark: str = ""
    """What a process of another machine or container calls itself. Its pid means nothing here: it is
    known by its connections alone, and psutil never proves it gone."""

    @classmethod
    def of(cls, pid: int, name: str = "") -> ProcessId:
        """The process that has this pid now."""
        try:
            process = psutil.Process(pid)
            process.create_time()  # a start time that cannot be read must not be compared later
        except (psutil.Error, OSError):  # the latter if no descriptor is free
            return cls(pid, None, name)
        return cls(pid, process, name)

    @classmethod
    def at(cls, peer: tuple[str, int] | None, pid: int, mark: str, name: str = "") -> ProcessId:
        """The process that says it has this pid, and is at the other end of a connection from `peer`.

        It is believed if psutil finds that end in the process with that pid.
        """
        claimed = cls.of(pid, name)
        if peer is not None and claimed.process is not None and _has_end(claimed.process, peer):
            return claimed
        return cls(pid, None, name, mark)

    @classmethod
    def me(cls) -> ProcessId:
        """The process that asks."""
        return cls.of(os.getpid())

    def __str__(self) -> str:
        where = " elsewhere" if self.mark else ""
        return f"pid {self.pid}{where} ({self.name})" if self.name else f"pid {self.pid}{where}"


def is_gone(owner: ProcessId) -> bool:
    """Whether it is proved that the owner's process has ended. A zombie has; a stopped one has not."""
    if owner.mark:
        return False
    try:
        if owner.process is None:
            return not psutil.pid_exists(owner.pid)
        now = psutil.Process(owner.pid)
        now.create_time()  # refused: then the comparison below would prove nothing
        return now != owner.process or now.status() in _DEAD
    except psutil.ZombieProcess:
        return True
    except psutil.NoSuchProcess:
        # A process that is hidden from us looks like none; the kernel still knows its pid.
        return not psutil.pid_exists(owner.pid)
    except (psutil.Error, OSError):
        return False


def _has_end(process: psutil.Process, peer: tuple[str, int]) -> bool:
    try:
        return any(tuple(each.laddr) == peer for each in process.net_connections("tcp"))
    except (psutil.Error, OSError):
        return False


def open_pidfd(owner: ProcessId) -> int | None:
    """A descriptor that becomes readable when the owner's process ends; None where there is none.

    Linux only, and only a hint that makes the watchdog look at once: `is_gone` decides.
    """
    try:
        return os.pidfd_open(owner.pid)
    except (AttributeError, OSError):
        return None


def await_end(owner: ProcessId, patience: float = float("inf")) -> bool:
    """Return when the owner's process has ended; False if it has not within so many seconds."""
    deadline, glance = time.monotonic() + patience, _FIRST_GLANCE
    pidfd = open_pidfd(owner)
    try:
        while not is_gone(owner):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if pidfd is None:
                time.sleep(min(left, glance))  # nothing here tells of an end
                glance = min(2 * glance, _GLANCE)
            elif wait([pidfd], min(left, _GLANCE)):
                return True  # the one that was alive just now
        return True
    finally:
        if pidfd is not None:
            os.close(pidfd)


def kill(owner: ProcessId) -> None:
    """Kill a process and all that descend from it. That it has ended is no error."""
    if owner.process is None or is_gone(owner):
        return
    descendants = _descendants(owner.process)  # before it is gone: then nobody knows whose they are
    _kill_each([owner.process, *descendants])


def lead_a_group() -> None:
    """Have this process and all that it will start known together, where the platform knows of groups."""
    global _leader
    with contextlib.suppress(AttributeError, OSError):
        os.setpgid(0, 0)
        _leader = os.getpid()


_leader: int | None = None  # of a group, if it was this process


def kill_group(leader: ProcessId) -> None:
    """Kill what is left of the group of a process that has ended: others than its children stay known so."""
    if hasattr(os, "getpgid") and not psutil.pid_exists(leader.pid):  # used again? Then nobody was left
        _kill_members(leader.pid)


def kill_children() -> None:
    """Kill every process that descends from this one, and all others of the group that it leads."""
    _kill_each(_descendants(psutil.Process()))
    if _leader == os.getpid():
        _kill_members(_leader)


def _kill_members(group: int) -> None:
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.Error):  # it ends just now
            if pid != group and os.getpgid(pid) == group:
                os.kill(pid, signal.SIGKILL)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except (psutil.Error, OSError):
        return []  # we may not look, or no descriptor is free


def _kill_each(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.Error:
            continue  # it ended by itself meanwhile
