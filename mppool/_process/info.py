"""What the processes of a manager are told when they begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mppool._system.open_files import open_files
from mppool._wire.connection import Address
from mppool._wire.handshake import Key


@dataclass(frozen=True, kw_only=True)
class ManagerInfo:
    """What the manager's process is told, and by it, with an address of its own, each object's process."""

    address: Address
    """Where to listen."""
    runtime_dir: str
    """The path of the manager's private directory."""
    key: Key
    creator_pid: int | None = None
    """The process with which this one ends; None: with none."""
    creator_token: str = ""
    """What its program calls itself."""
    start_method: str | None
    """Of `multiprocessing`, for objects in a process of their own; None: the default one."""
    watch_interval: float
    """Seconds between two sweeps of the watchdog."""
    restart: bool = False
    """Whether a manager that dies has a successor, which gets the same listener and runtime directory."""
    linger: float | None = None
    """Seconds for which a manager with a name stays when its last user has ended; None: it has no name."""
    log: str | None = None
    """The file that it prints to, which it keeps short; None: it prints where its creating process does."""
    open_files: int = field(default_factory=open_files)
    """How many files the creating process may have open, and an object's. The manager may have more."""
    initializer: Callable[[], object] | None = None
    """What is to be called first; None: nothing."""
