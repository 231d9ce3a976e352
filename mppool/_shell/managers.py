"""The managers of this user, as a shell reaches them: it starts none, and is a user of none."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

from mppool import _version
from mppool._client.channel import Channel
from mppool._client.connect import key_errors
from mppool._pool_info import PoolInfo
from mppool._system.processes import ProcessId, await_end
from mppool._system.runtime_dir import RuntimeDir, runtime_dirs
from mppool._system.users import check_peer
from mppool._wire.connection import DeadlineExceeded
from mppool._wire.handshake import Key, OtherVersion
from mppool.errors import ManagerLost, PoolClosed, PoolError
from mppool.stats import LeaseInfo, ManagerFacts, ObjectInfo, PoolStats

_PATIENCE = 2.0
"""Seconds for an answer: a manager that stands still must not hold up what is told of the others."""

_END_SECONDS = 15.0
"""For a process to end, once its objects are closed."""

_MANY = 16  # managers that are asked at once


class Failure(Exception):
    """What a command cannot do. The text is a line that says why."""


class NoAnswer(Failure):
    """The manager stands still."""


class Manager:
    """A manager, reached by its directory."""

    def __init__(self, directory: RuntimeDir) -> None:
        self.name = directory.name
        try:
            with key_errors(directory.socket):
                key = Key(directory.key())
        except FileNotFoundError:
            raise Failure(f"the manager {self.name!r} begins or ends just now") from None
        self._channel = Channel(directory.address(), directory.path, key.fingerprint, key)

    def ask(self, *request: Any) -> Any:
        """What it answers to a request."""
        try:
            return self._channel.request(request, _PATIENCE)[1]
        except DeadlineExceeded:
            raise NoAnswer(f"the manager {self.name!r} gives no answer within {_PATIENCE:g} s") from None
        except (PoolError, OSError, ValueError):
            raise
        except Exception as error:  # it is of a state of the code between two versions
            raise Failure(f"the manager {self.name!r} fails: {type(error).__name__}: {error}") from error

    def facts(self) -> ManagerFacts:
        """What it tells of its process."""
        return cast(ManagerFacts, self.ask("about"))

    def pools(self) -> dict[str, int]:
        """The ids of its pools, by their names."""
        pools = [PoolInfo(*info) for info, _ in self.ask("pools")]
        return {each.name: each.pool_id for each in sorted(pools, key=lambda pool: pool.name)}

    def stats(self, pool_id: int) -> PoolStats:
        """The figures of a pool."""
        return cast(PoolStats, self.ask("stats", pool_id))

    def leases(self, pool_id: int) -> list[LeaseInfo]:
        """Who holds what of a pool."""
        return cast("list[LeaseInfo]", self.ask("leases", pool_id))

    def objects(self, pool_id: int) -> list[ObjectInfo]:
        """What objects a pool has."""
        return cast("list[ObjectInfo]", self.ask("objects", pool_id))

    def stop(self) -> None:
        """End it. Returns when its process has ended."""
        process = ProcessId.of(self.facts().pid)
        self._channel.stop()
        if not await_end(process, _END_SECONDS):
            raise Failure(f"the manager {self.name!r} has closed its objects, and its {process} goes on")

    def close(self) -> None:
        """Hang up."""
        self._channel.leave()


# -- one that is named ------------------------------------------------------------------------------------


@contextlib.contextmanager
def reach(name: str) -> Iterator[Manager]:
    """The manager of this name; one without a name goes by that of its directory. Either goes by its pid."""
    present = [each for each in runtime_dirs() if _is_held(each)]
    named = [each for each in present if each.name == name] or _with_pid(name, present)
    if not named:
        known = ", ".join(each.name for each in present) or "none"
        raise Failure(f"no manager {name!r} runs here; those that do: {known}")
    with contextlib.closing(Manager(named[-1])) as manager:  # one with a name comes last
        yield manager


def _with_pid(pid: str, directories: list[RuntimeDir]) -> list[RuntimeDir]:
    if not pid.isdecimal():
        return []
    facts = [each.facts for each in _look_at_all(directories)]
    return [each for each, told in zip(directories, facts, strict=True) if told and told.pid == int(pid)]


@contextlib.contextmanager
def reach_pools(text: str) -> Iterator[tuple[Manager, dict[str, int]]]:
    """All pools of a manager, or with "NAME/POOL" that one, by their names."""
    name, _, pool = text.partition("/")
    with reach(name) as manager:
        pools = manager.pools()
        if pool and pool not in pools:
            known = ", ".join(pools) or "none"
            raise Failure(f"the manager {name!r} has no pool {pool!r}; those that it has: {known}")
        yield manager, {pool: pools[pool]} if pool else pools


@contextlib.contextmanager
def reach_pool(text: str) -> Iterator[tuple[Manager, int]]:
    """The one pool that is meant; "NAME" alone means the one of the same name, or the only one."""
    with reach_pools(text) as (manager, pools):
        meant = pools if len(pools) == 1 else pools.keys() & {manager.name}
        if not meant:
            known = ", ".join(f"{manager.name}/{each}" for each in pools)
            raise Failure(f"say which pool of {text!r}: {known}" if pools else f"{text!r} has no pool")
        (pool,) = meant
        yield manager, pools[pool]


# -- all of them ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What is seen of a manager at once."""

    name: str
    state: str = "running"
    version: str | None = None
    """Of mppool."""
    facts: ManagerFacts | None = None
    pools: list[tuple[PoolStats, list[LeaseInfo], list[ObjectInfo]]] = field(default_factory=list)
    pid: int | None = None
    """Of its process, where it is known though it tells nothing."""
    trouble: str = ""
    """Why no more is seen."""


def look() -> tuple[list[Sight], list[str]]:
    """All managers; and the directories that killed ones have left."""
    directories = runtime_dirs()
    held = [each for each in directories if _is_held(each)]
    left = [each.path for each in directories if each not in held and each.exists()]
    return _look_at_all(held), left


def _is_held(directory: RuntimeDir) -> bool:
    try:
        return directory.is_held()
    except FileNotFoundError:
        return False
    except OSError:  # another user's: what that means is told where it is looked at
        return True


def _look_at_all(directories: list[RuntimeDir]) -> list[Sight]:
    with ThreadPoolExecutor(_MANY) as threads:
        return list(threads.map(_look_at, directories))


def _look_at(directory: RuntimeDir) -> Sight:
    name = directory.name
    try:
        with contextlib.closing(Manager(directory)) as manager:
            facts, pools = manager.facts(), []
            for each in manager.pools().values():
                with contextlib.suppress(PoolClosed):  # just now
                    pools.append((manager.stats(each), manager.leases(each), manager.objects(each)))
    except NoAnswer as error:
        return Sight(name=name, state="no answer", pid=_listening_pid(directory), trouble=str(error))
    except ManagerLost as error:
        if isinstance(error.__cause__, OtherVersion):
            return Sight(name=name, state="other version", version=str(error.__cause__), trouble=str(error))
        return Sight(name=name, state="unreachable", trouble=str(error))
    except (Failure, PoolError, OSError) as error:  # it begins or ends just now, or its files are no use
        return Sight(name=name, state="unreachable", trouble=str(error))
    return Sight(name=name, version=_version.__version__, facts=facts, pools=pools)


def _listening_pid(directory: RuntimeDir) -> int | None:
    """The process that listens there, as the kernel tells: that of a plain manager is its creator."""
    if directory.has_name:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            probe.connect(directory.socket)
            return check_peer(probe, "the manager")
    return None
