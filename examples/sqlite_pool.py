"""Readers and writers from an executor share a few connections to one SQLite file.

A `sqlite3` connection refuses to be touched by any thread but the one that made it. With
`isolation="thread"` each connection has a thread of its own in the manager process, where it is made,
called, rolled back between two holders, and closed.
"""

import os
import sqlite3
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from mppool import ObjectPool, PoolManager

ACCOUNTS = 10
TRANSFERS = 200
WORKERS = 8


def connect(path: Path) -> sqlite3.Connection:
    """Open one connection. Runs in the thread that it will live in."""
    return sqlite3.connect(path, timeout=30)


def transfer(pool: ObjectPool[sqlite3.Connection], number: int) -> int:
    """Move money between two accounts, in one transaction. Runs in a worker process."""
    giver, taker = number % ACCOUNTS, (number * 7 + 1) % ACCOUNTS
    with pool.lease() as database, database:  # the connection's own `with`: commit, or roll back
        database.execute("BEGIN IMMEDIATE")
        database.execute("UPDATE account SET money = money - 1 WHERE id = ?", [giver])
        database.execute("UPDATE account SET money = money + 1 WHERE id = ?", [taker])
    return os.getpid()


def count(pool: ObjectPool[sqlite3.Connection], _: int) -> int:
    """Add up all money, while others move it. Runs in a worker process."""
    with pool.lease() as database:
        return sum(money for (money,) in database.execute("SELECT money FROM account"))


def main() -> None:
    """Let writers and readers loose on one file, and see that no money is lost."""
    with tempfile.TemporaryDirectory() as directory, PoolManager() as manager:
        pool = manager.create_pool(
            partial(connect, Path(directory, "bank.sqlite")),
            isolation="thread",
            max_size=4,
            reset=sqlite3.Connection.rollback,
            close=sqlite3.Connection.close,
        )
        with pool.lease() as database, database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, money INTEGER)")
            database.executemany("INSERT INTO account VALUES (?, 100)", [(n,) for n in range(ACCOUNTS)])
        with ProcessPoolExecutor(WORKERS) as executor:
            writers = executor.map(partial(transfer, pool), range(TRANSFERS))
            seen = set(executor.map(partial(count, pool), range(TRANSFERS)))
            workers = len(set(writers))
        stats = pool.stats()
        print(f"{TRANSFERS} transfers by {workers} workers; readers saw {sorted(seen)} in all accounts")
        print(f"{stats.built} connections, lent {stats.acquired} times")


if __name__ == "__main__":
    main()
