"""The web service of the examples: under load, with clients that hang up and workers that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import psutil
import pytest
from actors import lives
from helpers import ROOT, Beside, RunPython, wait_until

from mppool import ManagerLost, ObjectPool, PoolManager

for library in "starlette", "uvicorn":
    pytest.importorskip(library)

sys.path.append(str(ROOT / "examples"))

from web import Catalogue  # noqa: E402

WEB = ROOT / "examples" / "web.py"
SIZE = 4
PATIENCE = 30.0
WORDS = ["generator", "import module", "with", "lambda", "nothing of the kind", '"quoted" words"', ""]


class Service:
    """The example as a program in a session of its own."""

    def __init__(self, directory: Path, workers: int) -> None:
        self._log = directory / "log"
        command = [sys.executable, str(WEB), "--port=0", f"--workers={workers}", f"--size={SIZE}"]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.pid = self._process.pid
        self._count = workers
        self.port = int(wait_until(self._find_port, PATIENCE, "it tells its port"))
        wait_until(self._listens, PATIENCE, "its workers listen")

    def log(self) -> str:
        return self._log.read_text()

    def _find_port(self) -> str | None:
        found = re.search(r"http://127.0.0.1:(\d+)", self.log())
        assert found or self._process.poll() is None, self.log()
        return found and found[1]

    def _listens(self) -> bool:
        if self.log().count("Application startup complete") < self._count:
            return False
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def workers(self) -> list[psutil.Process]:
        """Those that have begun to answer."""
        told = re.findall(r"Started server process \[(\d+)\]", self.log())
        family = psutil.Process(self.pid).children()
        return [each for each in family if str(each.pid) in told and lives(each)]

    def press_ctrl_c(self) -> None:
        """As a terminal does. Returns when it has ended, as it should."""
        os.killpg(self._process.pid, signal.SIGINT)
        assert self._process.wait(PATIENCE) == 0
        assert "Traceback" not in self.log()
        assert "ERROR" not in self.log()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the service's manager has its directory. In the end that is gone, and so are all processes."""
    with tempfile.TemporaryDirectory(prefix="w", dir="/tmp") as directory:
        place = Path(directory, "p")
        monkeypatch.setenv("MPPOOL_RUNTIME_DIR", str(place))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        yield place
        wait_until(lambda: not live_with(place), message="nothing is left")
        assert list(place.iterdir()) == []


def live_with(place: Path) -> list[psutil.Process]:
    """The processes that were told this place."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # a zombie, for instance
            if process.environ().get("MPPOOL_RUNTIME_DIR") == str(place):
                found.append(process)
    return found


@pytest.fixture
def serve(place: Path, tmp_path: Path) -> Iterator[Callable[[int], Service]]:
    """Start the service, with so many workers."""
    with contextlib.ExitStack() as ends:

        def start(workers: int) -> Service:
            service = Service(tmp_path, workers)
            ends.callback(service.kill)
            return service

        yield start


@contextlib.contextmanager
def pool_of_service() -> Iterator[ObjectPool[Any]]:
    """The pool as this process sees it, which is a user of it, too, for the length of the block."""
    with PoolManager.shared("catalogues", linger=0) as manager:
        yield manager.get_pool("catalogues")


def at_rest(pool: ObjectPool[Any]) -> bool:
    """Whether every object is free, and no one waits for it."""
    stats = pool.stats()
    return stats.idle == stats.size and not stats.waiting


# --- clients --------------------------------------------------------------------------------------


class Answer(NamedTuple):
    status: int
    body: bytes
    seconds: float


async def get(port: int, path: str) -> Answer:
    """Ask over a connection of its own. `OSError` or `EOFError` if there is no whole answer."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)  # a stream has none, and ends with its connection
        body = await (reader.readexactly(int(length[1])) if length else reader.read())
    finally:
        writer.close()
    return Answer(int(head.split()[1]), body, time.perf_counter() - began)


@contextlib.contextmanager
def stalled_export(port: int, pool: ObjectPool[Any]) -> Iterator[int]:
    """A client asks for more than connections hold, and reads nothing: the worker that serves it."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /export HTTP/1.1\r\nHost: here\r\n\r\n" * 30)
        yield wait_until(lambda: [lease.pid for lease in pool.leases() if lease.age > 0.5])[0]


def path_of(words: str) -> str:
    return f"/search?q={words}".replace(" ", "+").replace('"', "%22")


async def put_under_load(
    port: int, count: int, concurrency: int = 50
) -> list[tuple[str, Answer | Exception]]:
    """Ask so often, so many at a time: what was asked, and what became of it."""
    questions = iter([random.choice(WORDS) for _ in range(count)])
    outcomes: list[tuple[str, Answer | Exception]] = []

    async def client() -> None:
        for words in questions:
            try:
                outcomes.append((words, await get(port, path_of(words))))
            except (OSError, EOFError) as error:
                outcomes.append((words, error))

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return outcomes


@pytest.fixture(scope="module")
def expected() -> Iterator[dict[str, Any]]:
    """What an index of this process answers."""
    catalogue = Catalogue()
    yield {words: json.loads(json.dumps(catalogue.search(words))) for words in WORDS}
    catalogue.close()


# --- what is promised -----------------------------------------------------------------------------


def test_two_workers_share_a_pool_under_load(
    serve: Callable[[int], Service], expected: dict[str, Any], beside: Beside
) -> None:
    service = serve(2)
    with pool_of_service() as pool:
        outcomes = asyncio.run(put_under_load(service.port, 300))
        seconds = []
        for words, answer in outcomes:
            assert isinstance(answer, Answer), (words, answer)
            assert (answer.status, json.loads(answer.body)) == (200, expected[words])
            seconds.append(answer.seconds * 1000)
        p50, p99 = statistics.median(seconds), statistics.quantiles(seconds, n=100)[98]
        print(f"{len(seconds)} requests, 50 at a time, on {SIZE} indexes: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        stats = pool.stats()
        assert stats.acquired == 300
        assert stats.built == stats.size <= SIZE
        wait_until(lambda: at_rest(pool))  # a release is told, not waited for

        with stalled_export(service.port, pool) as pid:
            first, second = sorted(service.workers(), key=lambda worker: worker.pid != pid)
            load = beside(lambda: asyncio.run(put_under_load(service.port, 200)))
            wait_until(lambda: pool.stats().waiting)
            first.kill()
        for words, answer in load.result(PATIENCE):
            if isinstance(answer, Answer):
                assert (answer.status, json.loads(answer.body)) == (200, expected[words])
        wait_until(lambda: at_rest(pool))
        assert 1 <= pool.stats().reclaimed <= SIZE
        assert pool.stats().size <= SIZE
        wait_until(lambda: len(service.workers()) == 2, PATIENCE, "another worker takes its place")
        assert second in service.workers()
    service.press_ctrl_c()


def test_clients_that_hang_up_lose_nothing(serve: Callable[[int], Service], expected: dict[str, Any]) -> None:
    service = serve(1)
    with pool_of_service() as pool:
        asyncio.run(hang_up_while_waiting(service.port, pool, expected["lambda"]))
        asyncio.run(hang_up_at_any_time(service.port))
        wait_until(lambda: at_rest(pool))
        with stalled_export(service.port, pool):
            assert pool.stats().leased == 1
        wait_until(lambda: at_rest(pool))
        assert pool.stats().size <= SIZE
        assert pool.stats().timeouts == pool.stats().reclaimed == 0
        status, body, _ = asyncio.run(get(service.port, "/export"))
        assert (status, dict(map(json.loads, body.splitlines()))) == (200, topics)
    service.press_ctrl_c()


async def hang_up_while_waiting(port: int, pool: ObjectPool[Any], expected: Any) -> None:
    """All indexes are held elsewhere. Of the clients that wait half go, and the others are served."""
    with contextlib.ExitStack() as held:
        for _ in range(SIZE):
            held.enter_context(pool.lease())
        clients = [asyncio.create_task(get(port, path_of("lambda"))) for _ in range(40)]
        await until(lambda: pool.stats().waiting == 40)
        for client in clients[::2]:
            client.cancel()
        await until(lambda: pool.stats().waiting == 20)
    for answer in await asyncio.gather(*clients[1::2]):
        assert (answer.status, json.loads(answer.body)) == (200, expected)
    assert pool.stats().acquired == SIZE + 20


async def hang_up_at_any_time(port: int) -> None:
    async def hang_up() -> None:
        path = random.choice(["/export", "/events", path_of("generator")])
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(get(port, path), random.expovariate(50))

    await asyncio.gather(*(hang_up() for _ in range(150)))


async def until(predicate: Callable[[], bool]) -> None:
    """As `wait_until`, in an event loop that goes on."""
    await asyncio.to_thread(wait_until, predicate)


def test_a_manager_that_is_killed_gets_a_successor(
    serve: Callable[[int], Service], place: Path, expected: dict[str, Any]
) -> None:
    service = serve(1)
    with pool_of_service() as pool:
        for answer in asyncio.run(kill_manager_while_clients_wait(service, place, pool)):
            assert answer.status == 503
            assert "the manager" in json.loads(answer.body)["error"]
        status, body, _ = asyncio.run(get(service.port, path_of("lambda")))
        assert (status, json.loads(body)) == (200, expected["lambda"])
    service.press_ctrl_c()


async def kill_manager_while_clients_wait(
    service: Service, place: Path, pool: ObjectPool[Any]
) -> list[Answer]:
    with contextlib.suppress(ManagerLost), contextlib.ExitStack() as held:
        for _ in range(SIZE):
            held.enter_context(pool.lease())
        clients = [asyncio.create_task(get(service.port, path_of("lambda"))) for _ in range(10)]
        await until(lambda: pool.stats().waiting == 10)
        leaders = {os.getsid(each.pid) for each in live_with(place)} - {service.pid}
        os.kill(leaders.pop(), signal.SIGKILL)
        answers = await asyncio.gather(*clients)
    return answers


# --- the page -------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_browser(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Chromium, as far as it is there."""
    pytest.importorskip("selenium", reason="no Selenium installed")
    from screenshots import find_programs, start_chromium

    program, driver = find_programs()
    if not program or not driver:
        pytest.skip("no Chromium with chromedriver on PATH")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with tempfile.TemporaryDirectory() as directory:  # the test's own would have too long a path for Chromium
        browser = start_chromium(program, driver, Path(directory))
        try:
            yield browser
        finally:
            browser.quit()


def test_the_page_shows_the_pool_live(
    serve: Callable[[int], Service], monkeypatch: pytest.MonkeyPatch, beside: Beside, tmp_path: Path
) -> None:
    with open_browser(monkeypatch) as browser:
        service = serve(1)

        def seen(selector: str) -> list[str]:
            script = "return [...document.querySelectorAll(arguments[0])].map(each => each.innerText)"
            return browser.execute_script(script, selector)

        browser.get(f"http://127.0.0.1:{service.port}/")
        wait_until(lambda: seen("#objects div") == ["free"] * SIZE)
        browser.find_element("css selector", "#words").send_keys("lambda")
        wait_until(lambda: "lambda" in " ".join(seen("#found p b")))
        wait_until(lambda: seen(".idle"))
        pictures = {browser.get_screenshot_as_png()}
        with pool_of_service() as pool, contextlib.ExitStack() as held:
            for _ in range(SIZE):
                held.enter_context(pool.lease())
            waits = beside(asyncio.run, get(service.port, path_of("with")))
            wait_until(lambda: len(seen(".leased")) == SIZE)
            wait_until(lambda: ", 1 waiting" in seen("#counts")[0])
            assert f"MainProcess ({os.getpid()})" in seen("#holders td")
            assert browser.save_screenshot(tmp_path / "page.png")
            held.close()
            assert waits.result().status == 200
            wait_until(lambda: len(seen(".idle")) == pool.stats().size)
        pictures |= {browser.get_screenshot_as_png(), (tmp_path / "page.png").read_bytes()}
        assert len(pictures) == 3
        service.press_ctrl_c()  # though its page is open
        wait_until(lambda: seen("body.lost"))


# --- bad input ------------------------------------------------------------------------------------


def test_without_its_libraries_it_names_the_extra(run_python: RunPython) -> None:
    without = f"sys.modules['starlette'] = None; runpy.run_path({str(WEB)!r}, run_name='__main__')"
    done = run_python("-c", f"import runpy, sys; {without}", status=1)
    assert "starlette is not installed: pip install 'mppool[examples]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_it_refuses(run_python: RunPython, place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for arguments, said in (
            ([f"--port={port}"], f"--port {port}: [Errno"),
            (["--workers=0"], "must be 1 or more"),
        ):
            done = run_python(WEB, *arguments, status=2)
            assert said in done.stderr
            assert "Traceback" not in done.stderr
    place.mkdir()  # no manager was started that could have made it
