"""Who a process is, whether it has ended, and killing it.

A pid alone proves nothing: it is used again. A process is a pid and the moment it started, and only psutil's
word that this very process is no more makes it gone; *unknown is alive*. Where a program was replaced by
exec, pid and start time stay: the new one has another token.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass, field
from multiprocessing.connection import wait

import psutil

from mppool._system import PORTABLE

# -- who it is ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProcessId:
    """A process that can hold objects. Two are equal if pid and token are; without one, the start time."""

    pid: int = field(compare=False)
    process: psutil.Process | None = field(compare=False)
    """psutil's identity of the process (on Linux and macOS its start time does not move with the
    wall clock); None where psutil could not tell the start time."""
    name: str = field(default="", compare=False)
    """What `multiprocessing` calls the process; for people only."""
    token: str = field(default="", compare=False)
    """What its program calls itself, where it has told: no other one does."""
    elsewhere: bool = field(default=False, compare=False)
    """On another machine or in another container. Its pid means nothing here: it is known by its token and
    its connections alone, and psutil never proves it gone."""
    node: str | None = field(default=None, compare=False)
    """The id of the cluster's node that it is on, where that tells of it."""
    _identity: tuple[object, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Of a client that psutil cannot tell of for want of a descriptor, but could before, or can later, the
        # connections are those of one process all the same.
        told = (self.token,) if self.token else (self.process, self.elsewhere, self.node)
        object.__setattr__(self, "_identity", (self.pid, *told))

    @classmethod
    def of(cls, pid: int, name: str = "", token: str = "") -> ProcessId:
        """The process that has this pid now."""
        try:
            process = psutil.Process(pid)
            process.create_time()  # a start time that cannot be read must not be compared later
        except (psutil.Error, OSError):  # the latter if no descriptor is free
            return cls(pid, None, name, token)
        return cls(pid, process, name, token)

    @classmethod
    def claimed_by(cls, peer: tuple[str, int] | None, pid: int, name: str, token: str) -> ProcessId:
        """The process that connected from `peer` and says that it has this pid.

        It is believed if psutil finds that end of the connection in the process with this pid.
        """
        claimed = cls.of(pid, name, token)
        with contextlib.suppress(psutil.Error, OSError):
            ends = claimed.process.net_connections("tcp") if peer and claimed.process else []
            if any(tuple(each.laddr) == peer for each in ends):
                return claimed
        return cls(pid, None, name, token, elsewhere=True)

    def __str__(self) -> str:
        where = f" on {self.node}" if self.node else " elsewhere" * self.elsewhere
        return f"pid {self.pid}{where} ({self.name})" if self.name else f"pid {self.pid}{where}"


# -- whether it has ended ---------------------------------------------------------------------------------

_FIRST_LOOK_SECONDS, _LOOK_SECONDS = 0.002, 0.5
"""Between two looks at a process whose end no descriptor tells: at first, and at most."""


def is_gone(process_id: ProcessId) -> bool:
    """Whether it is proved that the process has ended. A zombie has; a stopped one has not."""
    if process_id.elsewhere:
        return False
    try:
        if process_id.process is None:
            return not _exists(process_id.pid)
        now = psutil.Process(process_id.pid)
        now.create_time()  # refused: then the comparison below would prove nothing
        return now != process_id.process or _is_dead(now)
    except psutil.ZombieProcess:
        return True
    except psutil.NoSuchProcess:
        # A process that is hidden from us looks like none; the kernel still knows its pid.
        return not _exists(process_id.pid)
    except (psutil.Error, OSError):
        return False


def _exists(pid: int) -> bool:
    """Whether the kernel knows this pid. Where that cannot be told, as without a free descriptor, it does."""
    try:
        return psutil.pid_exists(pid)
    except OSError:
        return True


def _is_dead(process: psutil.Process) -> bool:
    # On Linux a process of which only the main thread has ended looks like a zombie; its other threads run.
    return process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) and process.num_threads() <= 1


def open_pidfd(process_id: ProcessId) -> int | None:
    """A descriptor that becomes readable when the process ends; None where there is none.

    Linux only, and only a hint to look at once: `is_gone` decides.
    """
    if PORTABLE:
        return None
    try:
        return os.pidfd_open(process_id.pid)
    except (AttributeError, OSError):
        return None


def await_end(process_id: ProcessId, timeout: float = float("inf")) -> bool:
    """Return when the process has ended; False if it has not within so many seconds."""
    deadline, pause = time.monotonic() + timeout, _FIRST_LOOK_SECONDS
    pidfd = open_pidfd(process_id)
    signs = [] if pidfd is None else [pidfd]
    try:
        while not is_gone(process_id):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if wait(signs, min(left, pause)):
                return True  # the descriptor was opened before the process was seen alive: it is of this one
            pause = min(2 * pause, _LOOK_SECONDS)
        return True
    finally:
        for each in signs:
            os.close(each)


# -- killing it -------------------------------------------------------------------------------------------


def lead_a_group() -> None:
    """Have this process and all that it will start share a process group, by which they are found."""
    with contextlib.suppress(OSError):  # it leads a session, and so a group
        os.setpgid(0, 0)


def kill(process_id: ProcessId) -> None:
    """Kill a process and all that descend from it. That it has ended is no error."""
    if process_id.process is not None:
        # The list is complete before the first is killed: orphans are no longer descendants.
        _kill_each([process_id.process, *_descendants(process_id.process)])


def kill_group(leader: ProcessId) -> None:
    """Kill what is left of the group of a process that has ended: orphans are still in it."""
    if not _exists(leader.pid):  # a pid is not used again while a group has this number
        with contextlib.suppress(OSError):  # nothing is left
            os.killpg(leader.pid, signal.SIGKILL)


def kill_group_at_end(leader: ProcessId, timeout: float = 5.0) -> None:
    """`kill_group` of a process that is about to end, and which its parent has to reap."""
    deadline = time.monotonic() + timeout
    while _exists(leader.pid) and time.monotonic() < deadline:
        time.sleep(_FIRST_LOOK_SECONDS)
    kill_group(leader)


def kill_descendants() -> None:
    """Kill every process that descends from this one."""
    _kill_each(_descendants(psutil.Process()))


def kill_children() -> None:
    """The same, and all others of the group that it leads, which are orphans by now."""
    me = os.getpid()
    kill_descendants()
    for pid in psutil.pids() if os.getpgrp() == me else []:
        with contextlib.suppress(OSError):  # it ends just now
            if pid != me and os.getpgid(pid) == me:
                os.kill(pid, signal.SIGKILL)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error, OSError):  # we may not look, or no descriptor is free
        return process.children(recursive=True)
    return []


def _kill_each(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):  # it has ended meanwhile, or no descriptor is free
            process.kill()
