"""What the processes of objects take of the machine: when it is measured, how exactly, and who is told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from functools import partial
from math import inf
from weakref import WeakKeyDictionary

from mppool._pool.pool import Pool
from mppool._pool.threads import ThreadCache
from mppool._system.processes import ProcessId, is_gone
from mppool._system.usage import FarTable, Table, Usage, process_table
from mppool.options import PoolOptions

log = logging.getLogger("mppool")

_SHARE = 0.015
"""Of a core, at most, for looks at what is bounded."""

_LOOKS = 10
"""How many looks an exact figure is good for while the cheap one does not change much: pages that a process
shares become its own, and no other figure shows it."""

_FRESH_SECONDS = 0.5
"""For which figures that were asked for are told again."""

_PATIENCE = 1.5
"""Seconds for figures that are asked for: the kernel makes us wait for a process that stands in it."""


@dataclass(slots=True)
class _Measured:
    """What a family of processes held when that was measured exactly. At first, as if it held nothing."""

    resident: int = 0
    memory: int = 0
    looks: int = 0  # since then


class Gauge:
    """Looks at the processes of objects, on threads of its own: a look that hangs holds up nothing else.

    The pools that bound memory are told by `pool.measured`, others are not looked at. A look costs one pass
    over all processes of the machine for a cheap figure, which is never too small (RSS), and an exact one
    only for those that may have passed a bound since their last. The next one comes so much later that all
    of them take no more than a small share of a core.
    """

    def __init__(self, threads: ThreadCache, far_table: FarTable | None = None) -> None:
        self._threads = threads
        self._far_table = far_table  # where objects are on other machines, too
        self._looking = threading.Lock()  # held during a look, which has the next three for itself
        self._not_before = 0.0
        self._measured: dict[ProcessId, _Measured] = {}
        self._has_complained = False
        self._lock = threading.Lock()  # guards the next
        self._answers: WeakKeyDictionary[Pool, tuple[float, Future[dict[ProcessId, Usage]]]]
        self._answers = WeakKeyDictionary()

    def _table_of(self, homes: set[ProcessId]) -> Table:
        return process_table() if self._far_table is None else self._far_table(homes)

    # -- bounds ---------------------------------------------------------------------------------------

    def look_soon(self, pools: Sequence[Pool]) -> None:
        """Have these pools be told what their objects hold, unless a look goes on, or it is too early."""
        if pools and time.monotonic() >= self._not_before and self._looking.acquire(blocking=False):
            self._threads.submit(partial(self._look, pools))

    def _look(self, pools: Sequence[Pool]) -> None:
        began = time.thread_time()
        try:
            homes = {pool: pool.homes() for pool in pools}
            known = set().union(*homes.values())
            table = self._table_of(known)  # afterwards: it has all of them that live
            self._measured = {each: self._measured.get(each, _Measured()) for each in known}
        except Exception as error:
            self._complain(error)
        else:
            for pool in pools:
                self._look_at(pool, homes[pool], table)
        finally:
            self._not_before = time.monotonic() + (time.thread_time() - began) / _SHARE
            self._looking.release()

    def _look_at(self, pool: Pool, homes: Iterable[ProcessId], table: Table) -> None:
        """Tell a pool what its objects hold. The other pools must not suffer for what fails here."""
        try:
            held = {each: self._held(table, each, pool.options) for each in homes}
        except Exception as error:
            self._complain(error)
            return
        try:
            pool.measured({each: memory for each, memory in held.items() if memory is not None})
        except Exception:
            log.exception("pool %r: could not be told what its objects hold", pool.name)

    def _held(self, table: Table, home: ProcessId, options: PoolOptions) -> int | None:
        """What an object holds, exact enough to tell which bounds it has passed; None: it cannot be told."""
        usage = table.usage(home)
        if usage is None:
            if not is_gone(home):
                self._complain(f"{home} may not be looked at")
            return None
        last = self._measured[home]
        last.looks += 1
        estimate = last.memory + usage.memory - last.resident
        is_old = last.memory > 0 and last.looks > _LOOKS
        if is_old or _passed(estimate, options) != _passed(last.memory, options):
            exact = table.exact_memory(home)
            if is_gone(home):  # else it was this very process all the time
                return None
            self._measured[home] = last = _Measured(usage.memory, exact)
        return last.memory

    def _complain(self, why: object) -> None:
        if not self._has_complained:
            self._has_complained = True
            log.warning("mppool: what objects hold cannot be measured, and max_memory is no bound: %s", why)

    # -- answers --------------------------------------------------------------------------------------

    def usage(self, pool: Pool) -> Mapping[ProcessId, Usage]:
        """What the processes of a pool's objects use now, where that can be told in time."""
        if pool.options.isolation != "process":
            return {}
        now = time.monotonic()
        with self._lock:
            since, answer = self._answers.get(pool, (-inf, None))
            if answer is None or (answer.done() and now - since > _FRESH_SECONDS):
                answer = Future()
                self._answers[pool] = now, answer
                ask = partial(self._answer, pool, answer)
            else:
                ask = None
        if ask is not None:
            self._threads.submit(ask)
        try:
            return answer.result(_PATIENCE)
        except FutureTimeoutError:
            return {}

    def _answer(self, pool: Pool, answer: Future[dict[ProcessId, Usage]]) -> None:
        found: dict[ProcessId, Usage] = {}
        try:
            homes = pool.homes()
            table = self._table_of(homes)
            for home in homes:
                usage = table.usage(home)
                if usage is not None:
                    found[home] = usage._replace(memory=table.exact_memory(home))
        except Exception as error:
            log.debug("mppool: what objects use cannot be measured: %s", error)
        finally:
            answer.set_result({home: usage for home, usage in found.items() if not is_gone(home)})


def _passed(memory: int, options: PoolOptions) -> tuple[bool, bool]:
    """Which bounds are passed."""
    return memory > (options.max_memory or inf), memory > (options.max_memory_hard or inf)
