"""SQLAlchemy on a real PostgreSQL: connections of Core and sessions of the ORM in a pool."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from mppool import ObjectPool, PoolManager

psycopg = pytest.importorskip("psycopg", reason="the extra `real` is not installed", exc_type=ImportError)
sa = pytest.importorskip("sqlalchemy", reason="the extra `real` is not installed")
orm = pytest.importorskip("sqlalchemy.orm", reason="the extra `real` is not installed")

pytestmark = pytest.mark.everywhere


class Base(orm.DeclarativeBase):  # type: ignore[misc, name-defined]
    pass


class Account(Base):
    __tablename__ = "account"
    id = orm.mapped_column(sa.Integer, primary_key=True)
    money = orm.mapped_column(sa.Integer, nullable=False)


ACCOUNTS = Account.__table__


def engine_for(conninfo: str) -> Any:
    host = psycopg.conninfo.conninfo_to_dict(conninfo)["host"]
    return sa.create_engine(f"postgresql+psycopg://postgres@/postgres?host={host}", poolclass=sa.NullPool)


@pytest.fixture
def bank(postgres: str) -> str:
    """How to connect to a database with two accounts."""
    with engine_for(postgres).begin() as connection:
        Base.metadata.drop_all(connection)
        Base.metadata.create_all(connection)
        connection.execute(ACCOUNTS.insert(), [{"id": 1, "money": 50}, {"id": 2, "money": 50}])
    return postgres


def open_connection(conninfo: str) -> Any:
    return engine_for(conninfo).connect()


def is_alive(connection: Any) -> None:
    connection.execute(sa.text("SELECT 1"))
    connection.rollback()


@pytest.fixture
def pool(manager: PoolManager, bank: str) -> ObjectPool[Any]:
    """Of connections."""
    hooks = {"check": is_alive, "reset": sa.Connection.rollback, "close": sa.Connection.close}
    return manager.create_pool(partial(open_connection, bank), max_size=1, **hooks)


def money(connection: Any) -> list[int]:
    found: list[int] = connection.scalars(sa.select(ACCOUNTS.c.money).order_by(ACCOUNTS.c.id)).all()
    return found


def test_results_of_a_connection(pool: ObjectPool[Any]) -> None:
    with pool.lease() as connection:
        rows = connection.execute(sa.select(ACCOUNTS).order_by(ACCOUNTS.c.id)).all()
        assert [(row.id, row.money, *row) for row in rows] == [
            (1, 50, 1, 50),
            (2, 50, 2, 50),
        ]
        assert isinstance(rows[0], sa.Row)
        assert connection.execute(sa.text("SELECT 1 AS a, 2 AS b")).mappings().one() == {"a": 1, "b": 2}
        assert connection.scalar(sa.text("SELECT :a + 1"), {"a": 1}) == 2
        series = sa.select(sa.func.generate_series(1, 1000))
        streaming = connection.execution_options(stream_results=True, yield_per=100)
        assert streaming.execute(series).scalars().all() == [*range(1, 1001)]
        assert sum(number for (number,) in streaming.execute(series)) == 500500
        assert [len(part) for part in streaming.execute(series).partitions()] == [100] * 10


def test_transactions_of_a_connection(pool: ObjectPool[Any]) -> None:
    with pool.lease() as connection:
        with connection.begin():
            connection.execute(ACCOUNTS.update().where(ACCOUNTS.c.id == 1).values(money=40))
            with pytest.raises(sa.exc.IntegrityError) as caught:
                insert_again(connection)
            connection.execute(ACCOUNTS.update().where(ACCOUNTS.c.id == 2).values(money=60))
        assert money(connection) == [40, 60]
        connection.execute(ACCOUNTS.delete())
    assert pool.apply(money) == [40, 60], "the reset rolls back"
    assert type(caught.value.orig) is psycopg.errors.UniqueViolation
    assert caught.value.orig.diag.constraint_name == "account_pkey"
    assert caught.value.statement.startswith("INSERT INTO account")
    assert caught.value.params == {"id": 1, "money": 0}


def insert_again(connection: Any) -> None:
    with connection.begin_nested():
        connection.execute(ACCOUNTS.insert(), {"id": 1, "money": 0})


def test_a_connection_that_the_server_ends(pool: ObjectPool[Any], bank: str) -> None:
    def terminate(connection: Any) -> None:
        pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        connection.rollback()
        with psycopg.connect(bank, autocommit=True) as other:
            assert other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid]).fetchone() == (True,)

    with pool.lease() as connection:
        terminate(connection)
        with pytest.raises(sa.exc.OperationalError) as caught:
            money(connection)
        assert (caught.value.connection_invalidated, connection.invalidated) == (True, True)
        assert type(caught.value.orig) is psycopg.errors.AdminShutdown
        connection.rollback()
        assert money(connection) == [50, 50], "SQLAlchemy connects again"
    with pool.lease() as connection:
        terminate(connection)
    assert (pool.apply(money), pool.stats().size) == ([50, 50], 1)


def test_an_engine_works_on_a_handle(manager: PoolManager, bank: str) -> None:
    pool = manager.create_pool(partial(psycopg.connect, bank), max_size=1, close=psycopg.Connection.close)
    with pool.lease() as handle:
        # The types of hstore would be fetched by what needs psycopg's own connection.
        options = {"poolclass": sa.StaticPool, "use_native_hstore": False}
        engine = sa.create_engine("postgresql+psycopg://", creator=lambda: handle, **options)
        with engine.begin() as connection:
            connection.execute(ACCOUNTS.insert(), [{"id": 3, "money": 0}, {"id": 4, "money": 0}])
            with pytest.raises(sa.exc.IntegrityError) as caught:
                insert_again(connection)
            assert type(caught.value.orig) is psycopg.errors.UniqueViolation
            assert money(connection) == [50, 50, 0, 0]
        with orm.Session(engine) as session:
            session.get(Account, 3).money = 7
            session.commit()
            assert [each.money for each in session.scalars(sa.select(Account).order_by(Account.id))] == [
                50,
                50,
                7,
                0,
            ]
        assert "account" in sa.inspect(engine).get_table_names()
        engine.dispose()


# -- sessions -----------------------------------------------------------------------------------------------


def open_session(conninfo: str) -> Any:
    return orm.Session(engine_for(conninfo))


def transfer(session: Any, amount: int) -> list[int]:
    """Beside the session."""
    with session.begin():
        giver, taker = session.get(Account, 1), session.get(Account, 2)
        giver.money -= amount
        taker.money += amount
    with session.begin():
        return [each.money for each in session.scalars(sa.select(Account).order_by(Account.id))]


def get(session: Any, number: int) -> Any:
    with session.begin():
        return session.get(Account, number)


def test_apply_beside_a_session(manager: PoolManager, bank: str) -> None:
    hooks = {"reset": orm.Session.rollback, "close": orm.Session.close}
    pool = manager.create_pool(partial(open_session, bank), max_size=1, **hooks)
    assert pool.apply(transfer, 10) == [40, 60]
    with pytest.raises(sa.exc.DataError) as caught:
        pool.apply(transfer, 10**10)
    assert type(caught.value.orig) is psycopg.errors.NumericValueOutOfRange
    assert pool.apply(transfer, 10) == [30, 70]
    account = pool.apply(get, 2)
    assert (type(account), sa.inspect(account).detached) == (Account, True), "a copy"


def test_what_a_session_loads_stays_if_it_is_kept(manager: PoolManager, bank: str) -> None:
    pool = manager.create_pool(partial(open_session, bank), max_size=1, close=orm.Session.close, keep=[Base])
    with pool.lease() as session:
        with session.begin():
            session.get(Account, 1).money -= 10
            account = session.get(Account, 2)
            account.money += 10
            session.add(Account(id=3, money=0))
            assert account in session.dirty
        assert session.get(Account, 2) is account
        session.delete(account)
        session.commit()
        session.rollback()
    with psycopg.connect(bank) as connection:
        assert connection.execute("SELECT * FROM account ORDER BY id").fetchall() == [(1, 40), (3, 0)]
