"""`httpx.AsyncClient` and `psycopg.AsyncConnection` in pools, for callers without an event loop."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from actors import Worker, acquire
from helpers import promptly, wait_until

from mppool import AsyncObjectPool, CallTimeout, ObjectPool, PoolManager

httpx = pytest.importorskip("httpx", reason="the extra `real` is not installed")
psycopg = pytest.importorskip("psycopg", reason="the extra `real` is not installed", exc_type=ImportError)
errors = psycopg.errors

pytestmark = pytest.mark.everywhere("thread", "process")


# -- httpx ------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Counts its connections; some of its answers come when it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.clients: set[Any] = set()
        self.asked, self.goes_on = threading.Semaphore(0), threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.clients.add(self.client_address)
        with suppress(ConnectionError):
            getattr(self, "give_" + self.path.strip("/"))()

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def give_login(self) -> None:
        self.answer("welcome", **{"Set-Cookie": "user=ada; Path=/"})

    def give_cookie(self) -> None:
        self.answer(self.headers.get("Cookie"))

    def give_error(self) -> None:
        self.answer("nothing here", 404)

    def give_late(self) -> None:
        self.server.asked.release()
        self.server.goes_on.wait(20)
        self.answer("late")

    def give_lines(self) -> None:
        """Two lines, and others when the server is told to."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.send_chunk(b"0\n1\n")
        self.server.goes_on.wait(20)
        for number in range(2, 1000):
            self.send_chunk(b"%d\n" % number)
        self.send_chunk(b"")

    def send_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


@pytest.fixture
def server(manager: PoolManager) -> Iterator[Server]:  # forked before there are threads
    with Server() as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield server
        server.goes_on.set()
        server.shutdown()
        serving.join()


async def open_client() -> Any:
    return httpx.AsyncClient(trust_env=False)


@pytest.fixture
def clients(manager: PoolManager) -> ObjectPool[Any]:
    """A pool of one client, with which its responses stay."""
    options: dict[str, Any] = {"max_size": 1, "close": httpx.AsyncClient.aclose}
    return manager.create_pool(open_client, keep=[httpx.Response], call_timeout=10, **options)


def get(client: Any, url: str) -> Any:
    return client.get(url).json()


async def get_beside(client: Any, url: str) -> Any:
    return (await client.get(url)).json()


def get_in_worker(things: dict[str, Any], url: str) -> Any:
    return get(things["handle"], url)


def test_holders_share_connection_and_cookies(
    clients: ObjectPool[Any], server: Server, worker: Worker
) -> None:
    assert isinstance(clients, AsyncObjectPool)
    with clients.lease() as client:
        assert get(client, f"{server.url}/login") == "welcome"
        assert isinstance(client, httpx.AsyncClient)
    assert clients.apply(get_beside, f"{server.url}/cookie") == "user=ada"
    worker.do(acquire, clients)
    assert worker.do(get_in_worker, f"{server.url}/cookie") == "user=ada"
    assert len(server.clients) == 1


def test_copies_of_responses(manager: PoolManager, server: Server) -> None:
    with manager.create_pool(open_client, max_size=1, close=httpx.AsyncClient.aclose) as pool:
        with pool.lease() as client:
            response = client.get(f"{server.url}/login")
        assert (response.status_code, response.json(), type(response)) == (200, "welcome", httpx.Response)
        assert dict(response.cookies) == {"user": "ada"}


def test_lines_of_a_stream_come_when_they_are_there(clients: ObjectPool[Any], server: Server) -> None:
    with clients.lease() as client:
        with client.stream("GET", f"{server.url}/lines") as response:
            assert response.status_code == 200
            lines = response.aiter_lines()
            assert [next(lines), next(lines)] == ["0", "1"]
            server.goes_on.set()
            assert [int(line) for line in lines] == list(range(2, 1000))
        with client.stream("GET", f"{server.url}/lines") as response:
            assert len(response.aread().splitlines()) == 1000
            assert response.is_closed


def test_errors_of_httpx(clients: ObjectPool[Any], server: Server) -> None:
    with clients.lease() as client:
        with pytest.raises(httpx.HTTPStatusError, match="404 Not Found"):
            client.get(f"{server.url}/error").raise_for_status()
        with pytest.raises(httpx.ReadTimeout):
            client.get(f"{server.url}/late", timeout=0.2)
        with pytest.raises(httpx.ConnectError):
            client.get("http://127.0.0.1:1/")
        with pytest.raises(httpx.UnsupportedProtocol):
            client.get("nowhere")
        assert get(client, f"{server.url}/login") == "welcome"
    assert clients.stats().retired == {}


def get_late(things: dict[str, Any], url: str) -> Any:
    return things["handle"].get(url)


def test_a_worker_killed_in_a_request(clients: ObjectPool[Any], server: Server, worker: Worker) -> None:
    worker.do(acquire, clients)
    worker.begin(get_late, f"{server.url}/late")
    assert server.asked.acquire(timeout=10)
    worker.kill()
    with promptly():
        assert clients.apply(get_beside, f"{server.url}/login") == "welcome"
        wait_until(lambda: clients.stats().size == 1)
    assert clients.stats().retired == {"reclaimed": 1}


# -- psycopg ----------------------------------------------------------------------------------------


@pytest.fixture
def bank(postgres: str) -> str:
    """How to connect to a database with two accounts."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS async_account")
        connection.execute("CREATE TABLE async_account (id int PRIMARY KEY, money int CHECK (money >= 0))")
        connection.execute("INSERT INTO async_account VALUES (1, 50), (2, 50)")
    return postgres


async def is_alive(connection: Any) -> None:
    await connection.execute("")


@pytest.fixture
def pool(manager: PoolManager, bank: str) -> ObjectPool[Any]:
    connect: Any = partial(psycopg.AsyncConnection.connect, bank, autocommit=True)
    options: dict[str, Any] = {"check": is_alive, "close": psycopg.AsyncConnection.close}
    return manager.create_pool(connect, max_size=1, **options)


def money(connection: Any) -> list[int]:
    """What is in the accounts."""
    return [money for (money,) in connection.execute("SELECT money FROM async_account ORDER BY id")]


async def money_beside(connection: Any) -> list[int]:
    rows = await connection.execute("SELECT money FROM async_account ORDER BY id")
    return [money async for (money,) in rows]


def take(connection: Any, amount: int) -> None:
    connection.execute("UPDATE async_account SET money = money - %s WHERE id = 1", [amount])


def take_and_raise(connection: Any, error: BaseException) -> None:
    with connection.transaction():
        take(connection, 10)
        assert connection.info.transaction_status.name == "INTRANS"
        raise error


def test_transactions(pool: ObjectPool[Any]) -> None:
    unknown = type("Unknown", (Exception,), {})  # to the process of the connection
    with pool.lease() as connection:
        with connection.transaction():
            take(connection, 10)
            with pytest.raises(errors.CheckViolation), connection.transaction():
                take(connection, 1000)
            with connection.transaction() as inner:
                take(connection, 5)
                raise psycopg.Rollback(inner)
        assert money(connection) == [40, 50]
        for error in (KeyError("a"), unknown("a"), KeyboardInterrupt()):
            with pytest.raises(type(error)):
                take_and_raise(connection, error)
            assert (money(connection), connection.info.transaction_status.name) == ([40, 50], "IDLE")
    assert pool.apply(money_beside) == [40, 50]


def numbers(last: int) -> str:
    return f"SELECT generate_series(1, {last})"


def test_rows_of_every_kind_of_cursor(pool: ObjectPool[Any]) -> None:
    with pool.lease() as connection:
        with connection.cursor() as cursor:
            for (number,) in cursor.execute(numbers(100)):
                if number == 10:
                    break
            rest = cursor.fetchone(), cursor.fetchmany(2), len(cursor.fetchall())
            assert rest == ((11,), [(12,), (13,)], 87)
            assert sum(number for (number,) in cursor.stream(numbers(1000))) == 500500
        with connection.transaction(), connection.cursor("all", scrollable=True) as cursor:
            cursor.execute(numbers(3000))
            assert sum(number for (number,) in cursor) == 4501500
            cursor.scroll(10, mode="absolute")
            assert cursor.fetchone() == (11,)
        with connection.cursor() as cursor:
            with cursor.copy("COPY async_account FROM STDIN") as copy:
                for number in range(20, 120):
                    copy.write_row((number, number))
            with cursor.copy("COPY (SELECT id FROM async_account ORDER BY id) TO STDOUT") as copy:
                assert b"".join(map(bytes, copy)).split() == [b"%d" % n for n in (1, 2, *range(20, 120))]
        with connection.pipeline() as pipeline:
            one, two = connection.execute("SELECT 1"), connection.execute("SELECT 2")
            pipeline.sync()
            assert (one.fetchone(), two.fetchone()) == ((1,), (2,))


def test_errors_of_psycopg(pool: ObjectPool[Any]) -> None:
    with pool.lease() as connection:
        for query, kind in {
            "SELEC": errors.SyntaxError,
            "SELECT 1 / 0": errors.DivisionByZero,
            "INSERT INTO async_account VALUES (1, 1)": errors.UniqueViolation,
        }.items():
            with pytest.raises(kind) as caught:
                connection.execute(query)
            assert caught.value.sqlstate == caught.value.diag.sqlstate == kind.sqlstate
        rows = connection.cursor().stream("SELECT 10 / (n - 50) FROM generate_series(1, 100) n")
        for _ in range(49):
            next(rows)
        with pytest.raises(errors.DivisionByZero):
            next(rows)
        assert money(connection) == [50, 50]


def sleep_long(things: dict[str, Any]) -> None:
    things["handle"].execute("SELECT pg_sleep(30)")


async def sleep_beside(connection: Any) -> None:
    await connection.execute("SELECT pg_sleep(30)")


def backend(connection: Any) -> int:
    return int(connection.info.backend_pid)


def state(bank: str, pid: int) -> str | None:
    """What the server does for a connection; None: that has ended."""
    with psycopg.connect(bank, autocommit=True) as connection:
        row = connection.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()
        return row and str(row[0])


def test_a_worker_killed_in_a_query(pool: ObjectPool[Any], bank: str, worker: Worker) -> None:
    pid = pool.apply(backend)
    worker.do(acquire, pool)
    worker.begin(sleep_long)
    wait_until(lambda: state(bank, pid) == "active")
    worker.kill()
    with promptly():
        assert pool.apply(money_beside) == [50, 50]
        wait_until(lambda: pool.stats().size == 1)
        if pool.options.isolation == "thread":  # a killed process leaves it to the server to find that out
            wait_until(lambda: state(bank, pid) is None)
    assert pool.stats().retired == {"reclaimed": 1}


def test_a_query_that_takes_too_long_is_cancelled(manager: PoolManager, bank: str) -> None:
    connect: Any = partial(psycopg.AsyncConnection.connect, bank, autocommit=True)
    pool = manager.create_pool(connect, max_size=1, call_timeout=1, close=psycopg.AsyncConnection.close)
    pid = pool.apply(backend)
    with pytest.raises(CallTimeout):
        pool.apply(sleep_beside)
    with promptly():
        assert pool.apply(money_beside) == [50, 50]
        if pool.options.isolation == "thread":
            wait_until(lambda: state(bank, pid) is None)


def test_a_connection_that_ends_while_idle_is_replaced(pool: ObjectPool[Any], bank: str) -> None:
    pid = pool.apply(backend)
    with psycopg.connect(bank, autocommit=True) as connection:
        assert connection.execute("SELECT pg_terminate_backend(%s, 10000)", [pid]).fetchone() == (True,)
    assert pool.apply(backend) != pid
    assert pool.stats().size == 1
