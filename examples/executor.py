"""Sixteen worker processes share four databases that are expensive to build.

Each database holds every function that the standard library's modules define: read from all their files,
and held in memory by one SQLite connection, which no other process can use. The pool builds four of them
in its manager process; workers borrow one, ask it something, and give it back.
"""

import os
import re
import sqlite3
import sysconfig
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from mppool import ObjectPool, PoolManager

DEFINITION = re.compile(r"^ *def (\w+)", re.MULTILINE)
WORKERS = 16
DATABASES = 4
QUESTIONS = ["open", "close", "run", "main", "loads", "dumps", "parse", "format", "connect", "copy"] * 20


def build() -> sqlite3.Connection:
    """Make one database. Runs in the manager process."""
    # Calls come from a thread per worker, and never two at a time.
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.execute("CREATE TABLE definition (name TEXT, module TEXT)")
    for path in Path(sysconfig.get_path("stdlib")).glob("*.py"):
        names = set(DEFINITION.findall(path.read_text("utf-8", errors="replace")))
        database.executemany("INSERT INTO definition VALUES (?, ?)", [(name, path.stem) for name in names])
    return database


def ask(pool: ObjectPool[sqlite3.Connection], name: str) -> tuple[str, int, int]:
    """Count the modules that define a function of this name. Runs in a worker process."""
    with pool.lease() as database:  # waits its turn, first come first served
        query = "SELECT count(*) FROM definition WHERE name = ?"
        (modules,) = database.execute(query, [name]).fetchone()
    return name, modules, os.getpid()


if __name__ == "__main__":
    with PoolManager() as manager:
        pool = manager.create_pool(build, max_size=DATABASES, close=sqlite3.Connection.close)
        with ProcessPoolExecutor(WORKERS) as executor:
            answers = list(executor.map(partial(ask, pool), QUESTIONS))
        for name, modules in sorted({(name, modules) for name, modules, _ in answers}):
            print(f"{name + '()':10} is defined in {modules:2} modules")
        stats = pool.stats()
        askers = {pid for _, _, pid in answers}
        print(f"{len(answers)} questions from {len(askers)} workers")
        print(
            f"{stats.built} databases built, lent {stats.acquired} times; "
            f"the longest wait was {stats.wait_longest:.2f} s"
        )
