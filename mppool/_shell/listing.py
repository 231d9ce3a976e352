"""`mppool ls`, `leases` and `stats`: what is seen once, as text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator

from mppool._validation import in_short
from mppool.stats import LeaseInfo, PoolStats

from .managers import Sight, look, reach_pools
from .tables import Row, cell, duration, figures, plain, size, table

_MANAGERS = ("NAME", ">PID", "PYTHON", "MPPOOL", "STATE", ">UPTIME", ">USERS", "POOLS", "LOG")

LEASES = ("POOL", ">PID", "PROCESS", ">HELD", ">MEMORY", ">CPU", ">AGE", "WHERE", "ITEM", "CALLERS")


def list_managers() -> tuple[str, list[str]]:
    """A table of all managers, and lines about those of which more is to be said."""
    sights, left = look()
    notes = [each.trouble for each in sights if each.trouble]
    notes += [f"skipped {each!r}: its manager was killed; the next one to start removes it" for each in left]
    return table(_MANAGERS, map(_row_of_manager, sights)), notes


def _row_of_manager(sight: Sight) -> Row:
    pools = ", ".join(f"{each.name} {each.size}/{each.max_size}" for each, *_ in sight.pools)
    if sight.facts is None:
        return sight.name, sight.pid, None, sight.version, sight.state, None, None, None, None
    pid, python, uptime, users, log = sight.facts
    in_use = None if users is None else len(users)
    return sight.name, pid, python, sight.version, sight.state, duration(uptime), in_use, pools, log


def list_leases(name: str) -> str:
    """A table of who holds what of a manager's pools."""
    with reach_pools(name) as (manager, pools):
        rows = [row for pool, number in pools.items() for row in rows_of_leases(pool, manager.leases(number))]
    return table(LEASES, rows)


def rows_of_leases(pool: str, leases: Iterable[LeaseInfo]) -> Iterator[Row]:
    """A row for each lease, with what its object holds; of a batch with its callers, `*3` for three calls."""
    for each in leases:
        item = None if each.item is None else in_short(each.item)
        memory = None if each.memory is None else size(each.memory)
        cpu = None if each.cpu_seconds is None else duration(each.cpu_seconds)
        of_object = memory, cpu, duration(each.object_age)
        callers = " ".join(
            str(pid) if calls == 1 else f"{pid}*{calls}" for pid, calls in Counter(each.callers).items()
        )
        yield pool, each.pid, each.process_name, duration(each.age), *of_object, each.where, item, callers


def list_stats(name: str, as_json: bool) -> str:
    """The figures of a manager's pools: a column for each, or one document."""
    with reach_pools(name) as (manager, pools):
        told: dict[str, PoolStats] = {pool: manager.stats(number) for pool, number in pools.items()}
        if as_json:
            return json.dumps({"manager": manager.name, "pools": plain(told)}, indent=2)
    columns = {pool: dict(figures(plain(stats))) for pool, stats in told.items()}
    for each in columns.values():
        del each["name"]
    names = dict.fromkeys(name for each in columns.values() for name in each)
    rows = ([each, *(column.get(each, "0") for column in columns.values())] for each in names)
    return table(("FIGURE", *(f">{cell(pool)}" for pool in columns)), rows)
