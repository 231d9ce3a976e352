"""Sixty-four workers of a web application share four connections to PostgreSQL, while some are killed.

    python examples/postgres.py [--dsn "host=localhost user=ada"] [--workers 64] [--kill 8]

Without --dsn the server is that which libpq's variables name (PGHOST, PGUSER, PGDATABASE), or the local one.
Its tables lie in a schema of their own, `mppool_example`, which is dropped at the end.

Who does what:

    main process   makes the accounts, kills workers while they hold a connection, adds up at the end
    workers        move money between accounts, each transfer in one transaction
    the pool       keeps four connections; the one of a killed worker is closed, so that PostgreSQL rolls back

A transfer and the record of it are one transaction, so a worker that takes the place of a killed one sees in
the database what is still to be done.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

from mppool import FactoryError, ObjectPool, PoolManager

try:
    import psycopg
except ImportError as missing:  # psycopg itself, or the library of PostgreSQL that it calls
    sys.exit(f"postgres.py: error: {missing}: pip install 'mppool[examples]' 'psycopg[binary]'")

CONNECTIONS = 4
ACCOUNTS = 100
MONEY = 1000  # in each of them
SCHEMA = "mppool_example"

Connection = psycopg.Connection[Any]

# --- where a connection lives ---------------------------------------------------------------------


def connect(dsn: str) -> Connection:
    """Open one connection, to which the tables of the example are the first ones."""
    connection = psycopg.connect(dsn, autocommit=True)
    connection.execute(f"SET search_path = {SCHEMA}, public")
    return connection


def is_alive(connection: Connection) -> None:
    connection.execute("")


# --- in a worker ----------------------------------------------------------------------------------


def work(pool: ObjectPool[Connection], number: int, transfers: int) -> None:
    """Make so many transfers, less those that this worker, or the one before it, has made."""
    with pool.lease() as connection:
        made = count(connection, "SELECT count(*) FROM transfer WHERE worker = %s", number)
    for _ in range(transfers - made):
        transfer(pool, number)


def transfer(pool: ObjectPool[Connection], number: int) -> None:
    """Move some money, and write it down. A function for `apply` would save round trips.

    But it would run to its end, whatever became of the worker, and this is to show one that dies on the way.
    """
    giver, taker = random.sample(range(ACCOUNTS), 2)
    amount = random.randint(1, 50)
    with pool.lease() as connection, connection.transaction():
        for account, change in sorted([(giver, -amount), (taker, amount)]):  # one order: no deadlock
            connection.execute("UPDATE account SET money = money + %s WHERE id = %s", [change, account])
        connection.execute("INSERT INTO transfer VALUES (%s, %s)", [number, amount])


# --- in the main process --------------------------------------------------------------------------


def count(connection: Connection, query: Any, *parameters: Any) -> int:
    """Return the one number that a query finds."""
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def accounts(pool: ObjectPool[Connection]) -> Iterator[None]:
    """Make the tables, and drop them at the end."""
    with pool.lease() as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")  # of a run that was killed
        connection.execute(f"CREATE SCHEMA {SCHEMA}")
        connection.execute("CREATE TABLE account (id int PRIMARY KEY, money int NOT NULL)")
        connection.execute("CREATE TABLE transfer (worker int NOT NULL, amount int NOT NULL)")
        with connection.cursor() as cursor, cursor.copy("COPY account FROM STDIN") as copy:
            for number in range(ACCOUNTS):
                copy.write_row((number, MONEY))
    try:
        yield
    finally:
        with pool.lease() as connection:
            connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")


class Crew:
    """Workers, each with a number; one that is killed is replaced."""

    def __init__(self, pool: ObjectPool[Connection], workers: int, transfers: int) -> None:
        self._pool = pool
        self._transfers = transfers
        self._workers = {number: self._start(number) for number in range(workers)}

    def _start(self, number: int) -> BaseProcess:
        arguments = (self._pool, number, self._transfers)
        worker = multiprocessing.Process(target=work, args=arguments, daemon=True)
        worker.start()
        return worker

    def kill_a_holder(self) -> bool:
        """Kill a worker that holds a connection. Returns False when all work is done."""
        while any(worker.is_alive() for worker in self._workers.values()):
            holders = {lease.pid for lease in self._pool.leases()}
            for number, worker in self._workers.items():
                if worker.pid in holders:
                    worker.kill()
                    worker.join()
                    self._workers[number] = self._start(number)
                    return True
        return False

    def join(self) -> None:
        """Wait until all have done their work."""
        for worker in self._workers.values():
            worker.join()


def main() -> None:
    """Let the workers loose, and see that no money is lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dsn", default="", help="how to connect (default: as libpq's variables say)")
    parser.add_argument("--workers", type=int, default=64, help="worker processes (default: 64)")
    parser.add_argument("--transfers", type=int, default=25, help="of each worker (default: 25)")
    parser.add_argument("--kill", type=int, default=8, help="workers to kill on the way (default: 8)")
    options = parser.parse_args()

    with PoolManager() as manager:
        connection = partial(connect, options.dsn)
        close = psycopg.Connection.close
        pool = manager.create_pool(connection, max_size=CONNECTIONS, check=is_alive, close=close)
        try:
            pool.apply(is_alive)
        except FactoryError as error:
            sys.exit(f"postgres.py: error: {error.__cause__}")
        with accounts(pool):
            crew = Crew(pool, options.workers, options.transfers)
            killed = 0
            while killed < options.kill and crew.kill_a_holder():
                killed += 1
                time.sleep(0.05)
            crew.join()
            transfers = pool.apply(count, "SELECT count(*) FROM transfer")
            money = pool.apply(count, "SELECT sum(money) FROM account")
        stats = pool.stats()
    print(f"{transfers:,} transfers by {options.workers} workers over {CONNECTIONS} connections")
    print(f"{killed} workers killed, {stats.reclaimed} connections taken back from them and closed")
    print(f"the longest wait for a connection was {stats.wait_longest:.2f} s")
    if (transfers, money) != (options.workers * options.transfers, ACCOUNTS * MONEY):
        sys.exit(f"postgres.py: error: {money:,} in all accounts")
    print(f"{money:,} in all accounts, as before")


if __name__ == "__main__":
    main()
