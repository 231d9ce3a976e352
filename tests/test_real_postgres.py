"""Connections of psycopg in a pool, to a real PostgreSQL."""

from __future__ import annotations

import datetime as dt
import io
import uuid
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from actors import Worker, acquire
from helpers import promptly

from mppool import ObjectPool, PoolManager

psycopg = pytest.importorskip("psycopg", reason="the extra `real` is not installed", exc_type=ImportError)
errors, rows, sql = psycopg.errors, psycopg.rows, psycopg.sql

pytestmark = pytest.mark.everywhere


@pytest.fixture
def bank(postgres: str) -> str:
    """How to connect to a database with two accounts."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS account")
        connection.execute("CREATE TABLE account (id int PRIMARY KEY, money int NOT NULL CHECK (money >= 0))")
        connection.execute("INSERT INTO account VALUES (1, 50), (2, 50)")
    return postgres


def is_alive(connection: Any) -> None:
    connection.execute("")


@pytest.fixture
def pool(manager: PoolManager, bank: str) -> ObjectPool[Any]:
    connect, close = partial(psycopg.connect, bank, autocommit=True), psycopg.Connection.close
    return manager.create_pool(connect, max_size=1, check=is_alive, close=close)


def money(connection: Any) -> list[int]:
    """What is in the accounts."""
    return [money for (money,) in connection.execute("SELECT money FROM account ORDER BY id")]


def take(connection: Any, amount: int) -> None:
    connection.execute("UPDATE account SET money = money - %s WHERE id = 1", [amount])


def transfer(connection: Any, amount: int) -> list[int]:
    with connection.transaction():
        take(connection, amount)
        connection.execute("UPDATE account SET money = money + %s WHERE id = 2", [amount])
    return money(connection)


def take_and_raise(connection: Any, error: BaseException) -> None:
    with connection.transaction():
        take(connection, 10)
        assert connection.info.transaction_status.name == "INTRANS"
        raise error


def test_a_transaction_commits_or_rolls_back(pool: ObjectPool[Any]) -> None:
    unknown = type("Unknown", (Exception,), {})  # to the process of the connection
    with pool.lease() as connection:
        assert transfer(connection, 10) == [40, 60]
        for error in (KeyError("a"), unknown("a"), KeyboardInterrupt()):
            with pytest.raises(type(error)):
                take_and_raise(connection, error)
            assert (money(connection), connection.info.transaction_status.name) == ([40, 60], "IDLE")
        with pytest.raises(errors.CheckViolation):
            transfer(connection, 41)
    assert pool.apply(transfer, 10) == [30, 70]
    with pytest.raises(errors.CheckViolation):
        pool.apply(transfer, 31)
    assert pool.apply(money) == [30, 70]


def test_savepoints(pool: ObjectPool[Any]) -> None:
    with pool.lease() as connection:
        with connection.transaction():
            take(connection, 10)
            with pytest.raises(errors.CheckViolation), connection.transaction():
                take(connection, 1000)
            with connection.transaction() as inner:
                take(connection, 5)
                raise psycopg.Rollback(inner)
            with connection.transaction(force_rollback=True):
                take(connection, 7)
        assert money(connection) == [40, 50]
        with connection.transaction() as outer:
            take(connection, 1)
            with connection.transaction("named") as named:
                assert (named.savepoint_name, named.connection) == ("named", connection)
                raise psycopg.Rollback(outer)
        assert money(connection) == [40, 50]


def test_without_autocommit_the_holder_commits(manager: PoolManager, bank: str) -> None:
    hooks = {"reset": psycopg.Connection.rollback, "close": psycopg.Connection.close}
    pool = manager.create_pool(partial(psycopg.connect, bank), max_size=1, **hooks)
    for amount, commits, left in [(10, True, 40), (20, False, 40), (5, True, 35)]:
        with pool.lease() as connection:
            take(connection, amount)
            if commits:
                connection.commit()
        assert pool.apply(money)[0] == left


def test_copy_both_ways(pool: ObjectPool[Any]) -> None:
    with pool.lease() as connection, connection.cursor() as cursor:
        with cursor.copy("COPY account FROM STDIN") as copy:
            copy.write("10\t100\n")
            copy.write(b"11\t110\n12\t120\n")
        with cursor.copy("COPY account (id, money) FROM STDIN") as copy:
            for number in range(20, 1020):
                copy.write_row((number, number))
        file = io.BytesIO()
        with cursor.copy("COPY (SELECT * FROM account ORDER BY id) TO STDOUT") as copy:
            for data in copy:
                file.write(data)
        lines = file.getvalue().splitlines()
        assert (lines[:4], len(lines)) == ([b"1\t50", b"2\t50", b"10\t100", b"11\t110"], 1005)
        with cursor.copy("COPY (SELECT * FROM account ORDER BY id) TO STDOUT") as copy:
            copy.set_types(["int4", "int4"])
            assert [copy.read_row(), bytes(copy.read())] == [(1, 50), b"2\t50\n"]
            assert [*copy.rows()][:2] == [(10, 100), (11, 110)]
        with pytest.raises(errors.BadCopyFileFormat), cursor.copy("COPY account FROM STDIN") as copy:
            copy.write("13\t130\t1\n")
        with pytest.raises(KeyError, match="given up"):
            give_up(cursor)
        assert len(money(connection)) == 1005


def give_up(cursor: Any) -> None:
    with cursor.copy("COPY account FROM STDIN") as copy:
        copy.write("14\t140\n")
        raise KeyError("given up")


@dataclass
class Account:
    id: int
    money: int


def test_rows_in_every_form(pool: ObjectPool[Any]) -> None:
    query = "SELECT id, money FROM account ORDER BY id"
    with pool.lease() as connection:
        with connection.cursor(row_factory=rows.dict_row) as cursor:
            assert cursor.execute(query).fetchall() == [{"id": 1, "money": 50}, {"id": 2, "money": 50}]
            assert [*cursor.execute(query)] == [{"id": 1, "money": 50}, {"id": 2, "money": 50}]
            assert [column.name for column in cursor.description] == ["id", "money"]
            assert (cursor.rowcount, cursor.statusmessage) == (2, "SELECT 2")
        with connection.cursor(row_factory=rows.namedtuple_row) as cursor:
            for one, other in (cursor.execute(query).fetchmany(5), [*cursor.execute(query)]):
                assert (one.id, one.money, other.id, *one, *other) == (1, 50, 2, 1, 50, 2, 50)
                assert (isinstance(one, tuple), repr(one)) == (True, "Row(id=1, money=50)")
        with connection.cursor(row_factory=rows.class_row(Account)) as cursor:
            assert cursor.execute(query).fetchall() == [Account(1, 50), Account(2, 50)]
        assert connection.cursor(row_factory=rows.scalar_row).execute(query).fetchone() == 1
        assert sum(n for (n,) in connection.cursor().stream("SELECT generate_series(1, 1000)")) == 500500
        many = "INSERT INTO account VALUES (%s, %s) RETURNING id"
        with connection.cursor() as cursor:
            cursor.executemany(many, [(number, 0) for number in range(3, 6)], returning=True)
            assert [result.fetchone() for result in cursor.results()] == [(3,), (4,), (5,)]


def numbers(last: int) -> str:
    return f"SELECT generate_series(1, {last})"


def test_a_loop_that_is_left_leaves_the_rest(pool: ObjectPool[Any]) -> None:
    with pool.lease() as connection, connection.cursor() as cursor:
        for (number,) in cursor.execute(numbers(100)):
            if number == 10:
                break
        assert (cursor.fetchone(), cursor.fetchmany(2), len(cursor.fetchall())) == ((11,), [(12,), (13,)], 87)
        cursor.execute(numbers(10))
        assert next(iter(cursor)) == (1,)
        cursor.scroll(3)
        assert (cursor.fetchone(), cursor.rownumber) == ((5,), 5)
        for (number,) in cursor.stream(numbers(100_000)):
            if number == 300:
                break
        assert cursor.execute("SELECT 1; SELECT 2").fetchall() == [(1,)]
        assert (cursor.nextset(), cursor.fetchall(), cursor.nextset()) == (True, [(2,)], None)
        others = connection.execute(numbers(9)), connection.execute(numbers(9))
        assert [one + other for one, other in zip(*others, strict=True)] == [(n, n) for n in range(1, 10)]


def test_an_error_among_rows_comes_in_its_place(pool: ObjectPool[Any]) -> None:
    with pool.lease() as connection:
        rows = connection.cursor().stream("SELECT 10 / (n - 500) FROM generate_series(1, 1000) n")
        for _ in range(499):
            next(rows)
        with pytest.raises(errors.DivisionByZero):
            next(rows)
        assert money(connection) == [50, 50]


def test_pipelines(pool: ObjectPool[Any]) -> None:
    with pool.lease() as connection, connection.pipeline() as pipeline:
        one, two = connection.execute("SELECT 1"), connection.execute("SELECT 2")
        pipeline.sync()
        assert (one.fetchone(), two.fetchone()) == ((1,), (2,))
        connection.execute("SELECT 1 / 0")
        with pytest.raises(errors.DivisionByZero):
            pipeline.sync()


def test_cursors_of_the_server(pool: ObjectPool[Any]) -> None:
    with pool.lease() as connection, connection.transaction():
        with connection.cursor("all", scrollable=True) as cursor:
            cursor.execute("SELECT generate_series(1, 3000)")
            assert sum(n for (n,) in cursor) == 4501500
            cursor.scroll(10, mode="absolute")
            assert cursor.fetchone() == (11,)
            assert cursor.fetchmany(2) == [(12,), (13,)]
            cursor.scroll(-3)
            assert (cursor.fetchone(), len(cursor.fetchall())) == ((11,), 2989)
        with pytest.raises(errors.UndefinedTable), connection.transaction():
            connection.cursor("none").execute("SELECT * FROM nothing")
        assert connection.execute("SELECT count(*) FROM pg_cursors WHERE name = 'all'").fetchone() == (0,)


def test_values_of_many_types(pool: ObjectPool[Any]) -> None:
    now, some_id = dt.datetime.now(dt.timezone.utc), uuid.uuid4()
    values = [
        *(True, -1, 1.5, "é", b"\0\xff", Decimal("1.50"), now, now.date(), dt.timedelta(days=1)),
        *(some_id, [1, 2], None, float("inf")),
    ]
    query = sql.SQL("SELECT {}, {}").format(sql.SQL(", ").join([sql.Placeholder()] * len(values)), "it's")
    with pool.lease() as connection:
        (*got, literal) = connection.execute(query, values).fetchone()
        assert (got, literal) == (values, "it's")
        assert connection.execute("SELECT %(a)s", {"a": psycopg.types.json.Jsonb({"b": [1]})}).fetchone() == (
            {"b": [1]},
        )
        large = bytes(3_000_000)
        assert connection.execute("SELECT %s", [large]).fetchone() == (large,)
        assert connection.execute("SELECT %b::int4", [7], binary=True).fetchone() == (7,)


def as_string(connection: Any, query: Any) -> Any:
    return query.as_string(connection)


def test_what_needs_the_connection_itself_is_applied(pool: ObjectPool[Any]) -> None:
    query = sql.SQL("SELECT {} FROM {}").format("it's", sql.Identifier('a "b"'))
    assert pool.apply(as_string, query) == """SELECT 'it''s' FROM "a ""b""\""""
    assert pool.apply(fetch_type, "int4").oid == 23


def fetch_type(connection: Any, name: str) -> Any:
    return psycopg.types.TypeInfo.fetch(connection, name)


ERRORS = {
    "SELEC": (errors.SyntaxError, psycopg.ProgrammingError, None),
    "SELECT * FROM nothing": (errors.UndefinedTable, psycopg.ProgrammingError, None),
    "SELECT 1 / 0": (errors.DivisionByZero, psycopg.DataError, None),
    "INSERT INTO account VALUES (1, 1)": (errors.UniqueViolation, psycopg.IntegrityError, "account_pkey"),
    "INSERT INTO account VALUES (3)": (errors.NotNullViolation, psycopg.IntegrityError, None),
    "INSERT INTO account VALUES (3, -1)": (
        errors.CheckViolation,
        psycopg.IntegrityError,
        "account_money_check",
    ),
    "SET LOCAL statement_timeout = 1; SELECT pg_sleep(9)": (
        errors.QueryCanceled,
        psycopg.OperationalError,
        None,
    ),
    "DO $$ BEGIN RAISE 'é' USING ERRCODE = 'ABCDE'; END $$": (psycopg.DatabaseError, psycopg.Error, None),
}


def test_errors_by_type(pool: ObjectPool[Any]) -> None:
    with pool.lease() as connection:
        for query, (kind, base, constraint) in ERRORS.items():
            with pytest.raises(base) as caught:
                connection.execute(query)
            error = caught.value
            assert type(error) is kind
            assert error.sqlstate == error.diag.sqlstate == (kind.sqlstate or "ABCDE")
            assert error.diag.message_primary in str(error)
            assert error.diag.constraint_name == constraint
            assert "in execute" in str(error.__cause__)
        with pytest.raises(psycopg.ProgrammingError, match="1 placeholders but 0 parameters"):
            connection.execute("SELECT %s", [])
        assert money(connection) == [50, 50]


def backend(connection: Any) -> int:
    pid: int = connection.info.backend_pid
    return pid


def terminate(conninfo: str, pid: int) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        assert connection.execute("SELECT pg_terminate_backend(%s, 10000)", [pid]).fetchone() == (True,)


def test_a_connection_that_ends_while_idle_is_replaced(pool: ObjectPool[Any], bank: str) -> None:
    pid = pool.apply(backend)
    terminate(bank, pid)
    assert pool.apply(backend) != pid
    assert pool.apply(transfer, 10) == [40, 60]
    assert pool.stats().size == 1


def go_on_without_a_server(connection: Any, bank: str) -> None:
    with connection.transaction():
        take(connection, 10)
        terminate(bank, backend(connection))
        take(connection, 10)


def test_a_connection_that_ends_while_held_is_an_error_of_psycopg(pool: ObjectPool[Any], bank: str) -> None:
    with pool.lease() as connection:
        with pytest.raises(errors.AdminShutdown):
            go_on_without_a_server(connection, bank)
        assert (connection.closed, connection.broken) == (True, True)
        with pytest.raises(psycopg.OperationalError, match="closed"):
            connection.execute("SELECT 1")
    assert pool.apply(money) == [50, 50]


def begin_transfer(things: dict[str, Any], pool: ObjectPool[Any]) -> int:
    """In a worker."""
    acquire(things, pool)
    connection = things["handle"]
    things["transaction"] = connection.transaction()
    things["transaction"].__enter__()
    take(connection, 10)
    return backend(connection)


def test_what_a_killed_worker_began_is_rolled_back(pool: ObjectPool[Any], bank: str, worker: Worker) -> None:
    pid = worker.do(begin_transfer, pool)
    worker.kill()
    with promptly():  # for the row is locked until then
        assert pool.apply(transfer, 20) == [30, 70]
    assert (pool.apply(backend) == pid, pool.stats().reclaimed) == (False, 1)


def test_a_reset_rolls_back_what_a_killed_worker_began(
    manager: PoolManager, bank: str, worker: Worker
) -> None:
    options = {"on_reclaim": "reset", "reset": psycopg.Connection.rollback, "max_size": 1}
    connect, close = partial(psycopg.connect, bank, autocommit=True), psycopg.Connection.close
    pool = manager.create_pool(connect, close=close, **options)
    pid = worker.do(begin_transfer, pool)
    worker.kill()
    with promptly():
        assert pool.apply(money) == [50, 50]
    assert pool.apply(backend) == pid
    with pytest.raises(errors.NoActiveSqlTransaction):
        pool.apply(psycopg.Connection.execute, "SAVEPOINT a")


def test_notifications_come_when_they_are_sent(pool: ObjectPool[Any], bank: str) -> None:
    with pool.lease() as connection, psycopg.connect(bank, autocommit=True) as other:
        connection.execute("LISTEN news")
        notices = connection.notifies(timeout=20, stop_after=3)
        for text in ("a", "b", "c"):
            other.execute("SELECT pg_notify('news', %s)", [text])
            notice = next(notices)
            assert (notice.channel, notice.payload, notice.pid) == ("news", text, backend(other))
        assert next(notices, None) is None
