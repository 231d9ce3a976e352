"""Sessions of `requests` and `httpx`, and a client made of one, against a server on the loopback."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest
from actors import Worker

from mppool import ObjectPool, PoolManager

httpx = pytest.importorskip("httpx", reason="the extra `real` is not installed")
requests = pytest.importorskip("requests", reason="the extra `real` is not installed")

pytestmark = pytest.mark.everywhere


class Server(ThreadingHTTPServer):
    """Counts its connections, and sends the lines of a stream when it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: Counter[Any] = Counter()  # by connection
        self.projects = [{"id": 1, "name": "engine"}, {"id": 2, "name": "notes"}]
        self.agents: set[str | None] = set()  # as they called themselves
        self.lines = threading.Semaphore(0)
        self.goes_on = threading.Event()  # whatever the semaphore says
        self.hung_up = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.count()
        getattr(self, "give_" + self.path.strip("/").partition("?")[0])()

    def count(self) -> None:
        self.server.requests[self.client_address] += 1
        self.server.agents.add(self.headers.get("User-Agent"))

    def do_PUT(self) -> None:
        self.count()
        project = self.server.projects[int(self.path.rpartition("/")[2]) - 1]
        project.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer(project)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({"type": self.headers.get("Content-Type"), "body": body.decode("latin-1")})

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def give_cookie(self) -> None:
        self.answer(self.headers.get("Cookie"))

    def give_login(self) -> None:
        self.answer("welcome", **{"Set-Cookie": "user=ada; Path=/"})

    def give_projects(self) -> None:
        self.answer(self.server.projects)

    def give_error(self) -> None:
        self.answer("nothing here", 404)

    def give_nothing(self) -> None:
        self.server.hung_up.wait(20)

    def give_numbers(self) -> None:
        self.send_lines(range(2000))

    def give_log(self) -> None:
        """An endless body, of which each line comes when the test wants it."""
        server = self.server
        self.send_lines(iter(lambda: server.goes_on.is_set() or server.lines.acquire(timeout=20), False))

    def send_lines(self, lines: Any) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for line in lines:
                self.send_chunk(f"{line}\n".encode())
            self.send_chunk(b"")
        except ConnectionError:
            self.server.hung_up.set()
            self.close_connection = True

    def send_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


def open_requests() -> Any:
    session = requests.Session()
    session.trust_env = False
    return session


def open_httpx() -> Any:
    return httpx.Client(trust_env=False)


class Library(NamedTuple):
    """What differs between the two."""

    factory: Callable[[], Any]
    response: type
    stream: Callable[[Any, str], AbstractContextManager[Any]]
    body: str
    """The keyword for the bytes to send."""
    errors: type[Exception]
    refused: type[Exception]
    timed_out: type[Exception]
    status: type[Exception]


LIBRARIES = {
    "requests": Library(
        open_requests,
        requests.Response,
        lambda session, url: session.get(url, stream=True),
        "data",
        *(requests.RequestException, requests.ConnectionError, requests.ReadTimeout, requests.HTTPError),
    ),
    "httpx": Library(
        open_httpx,
        httpx.Response,
        lambda client, url: client.stream("GET", url),
        "content",
        *(httpx.HTTPError, httpx.ConnectError, httpx.ReadTimeout, httpx.HTTPStatusError),
    ),
}


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Library:
    return LIBRARIES[request.param]


@pytest.fixture
def pool(manager: PoolManager, library: Library) -> ObjectPool[Any]:
    return manager.create_pool(library.factory, max_size=1, close=close)


@pytest.fixture
def keeping(manager: PoolManager, library: Library) -> ObjectPool[Any]:
    """A pool whose responses stay with their session."""
    return manager.create_pool(library.factory, max_size=1, close=close, keep=[library.response])


@pytest.fixture
def server(manager: PoolManager) -> Iterator[Server]:  # forked before there are threads
    with Server() as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield server
        server.hung_up.set()
        server.shutdown()
        serving.join()


def close(session: Any) -> None:
    session.close()


def get(things: dict[str, Any], pool: ObjectPool[Any], url: str) -> Any:
    """In a worker."""
    with pool.lease() as session:
        return session.get(url).json()


def get_response(session: Any, url: str) -> Any:
    return session.get(url)


def get_beside(session: Any, url: str) -> Any:
    return session.get(url).json()


def test_workers_share_the_connection_and_the_cookies(
    pool: ObjectPool[Any], server: Server, worker: Worker
) -> None:
    assert worker.do(get, pool, f"{server.url}/login") == "welcome"
    assert get({}, pool, f"{server.url}/cookie") == "user=ada"
    assert pool.apply(get_beside, f"{server.url}/cookie") == "user=ada"
    assert [*server.requests.values()] == [3]
    with pool.lease() as session:
        assert dict(session.cookies) == {"user": "ada"}


def test_a_response_is_a_copy_that_is_all_there(
    pool: ObjectPool[Any], server: Server, library: Library
) -> None:
    with pool.lease() as session:
        response = session.get(f"{server.url}/login", params={"a": "é"})
    assert type(response) is library.response
    assert (response.status_code, response.json()) == (200, "welcome")
    assert (response.headers["Content-Length"], response.cookies["user"]) == ("9", "ada")
    assert response.elapsed.total_seconds() > 0
    assert str(response.request.url) == f"{server.url}/login?a=%C3%A9"


def test_uploads(pool: ObjectPool[Any], server: Server, library: Library) -> None:
    large = bytes(range(256)) * 4096
    with pool.lease() as session:

        def post(**what: Any) -> Any:
            return session.post(f"{server.url}/", **what).json()

        got = post(json={"a": [1]})
        assert (got["type"], json.loads(got["body"])) == ("application/json", {"a": [1]})
        assert post(data={"a": "b c"})["body"] == "a=b+c"
        assert post(**{library.body: large})["body"].encode("latin-1") == large
        for file in (b"ABC", io.BytesIO(b"ABC")):
            got = post(files={"file": ("name.txt", file, "text/x")})
            assert got["type"].startswith("multipart/form-data")
            assert 'filename="name.txt"\r\nContent-Type: text/x\r\n\r\nABC\r\n' in got["body"]
        with open(__file__, "rb") as file, pytest.raises(TypeError, match=r"argument 'files'.*Pass"):
            post(files={"file": file})
        with pytest.raises(TypeError, match=f"argument '{library.body}', of type 'generator'.*Pass a list"):
            post(**{library.body: (b"x" for _ in range(3))})
        assert post(data={"a": "b"})["body"] == "a=b"


def test_what_is_set_on_a_session_is_used(pool: ObjectPool[Any], server: Server) -> None:
    with pool.lease() as session:
        session.headers = {"User-Agent": "a pool"}
        session.get(f"{server.url}/cookie")
        session.get(f"{server.url}/cookie", headers={"User-Agent": "another"})
    assert server.agents == {"a pool", "another"}


def refusing() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/"


def test_errors_are_those_of_the_library(pool: ObjectPool[Any], server: Server, library: Library) -> None:
    with pool.lease() as session:
        for kind, url in ((library.refused, refusing()), (library.timed_out, f"{server.url}/nothing")):
            with pytest.raises(library.errors) as caught:
                session.get(url, timeout=0.2)
            assert type(caught.value) is kind
            assert str(caught.value.request.url) == url
            assert "Traceback" in str(caught.value.__cause__)
        with pytest.raises(library.status, match="404") as caught:
            session.get(f"{server.url}/error").raise_for_status()
        assert caught.value.response.json() == "nothing here"
        assert session.get(f"{server.url}/login").json() == "welcome"
    with pytest.raises(library.refused):
        pool.apply(get_beside, refusing())


def test_an_endless_body_streams(keeping: ObjectPool[Any], server: Server, library: Library) -> None:
    with keeping.lease() as session:
        with library.stream(session, f"{server.url}/log") as response:
            assert (response.status_code, response.headers["Transfer-Encoding"]) == (200, "chunked")
            lines = response.iter_lines()
            for _ in range(20):  # each is sent when the one before was seen
                server.lines.release()
                assert next(lines) in ("True", b"True")
            assert not server.hung_up.is_set()
            server.goes_on.set()
            server.lines.release()
        assert server.hung_up.wait(10), "the end of the block closes the connection"
        assert session.get(f"{server.url}/cookie").json() is None
    with pytest.raises(TypeError, match="stays with the object"):
        keeping.apply(get_response, f"{server.url}/cookie")
    assert keeping.apply(get_beside, f"{server.url}/cookie") is None


def test_a_long_body_streams(keeping: ObjectPool[Any], server: Server, library: Library) -> None:
    with keeping.lease() as session, library.stream(session, f"{server.url}/numbers") as response:
        assert [int(line) for line in response.iter_lines()] == [*range(2000)]


def test_the_raw_body_is_a_file(manager: PoolManager, server: Server) -> None:
    pool = manager.create_pool(open_requests, close=close, keep=[requests.Response])
    with pool.lease() as session, session.get(f"{server.url}/login", stream=True) as response:
        file = io.BytesIO()
        shutil.copyfileobj(response.raw, file)
        assert (file.getvalue(), response.raw.read()) == (b'"welcome"', b"")


def test_without_keep_a_stream_of_requests_is_read_to_its_end(manager: PoolManager, server: Server) -> None:
    with manager.create_pool(open_requests, close=close).lease() as session:
        response = session.get(f"{server.url}/numbers", stream=True)
    assert type(response) is requests.Response
    assert [int(line) for line in response.iter_lines()] == [*range(2000)]


def test_requests_of_httpx_are_built_and_sent_if_they_are_kept(manager: PoolManager, server: Server) -> None:
    pool = manager.create_pool(open_httpx, close=close, keep=["httpx:Request", "httpx:Response"])
    with pool.lease() as client:
        request = client.build_request("POST", f"{server.url}/", content=b"ABC")
        response = client.send(request, stream=True)
        assert json.loads(response.read())["body"] == "ABC"
        response.close()


# -- a client whose parts refer back to it ------------------------------------------------------------------


class Api:
    """As the clients of GitLab and Docker are: what it gives out sends its requests through it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests = 0
        self.session = open_requests()
        self.projects = Projects(self)

    def request(self, verb: str, path: str, **data: Any) -> Any:
        self.requests += 1
        headers = {"User-Agent": str(os.getpid())}
        response = self.session.request(verb, f"{self.url}/{path}", json=data or None, headers=headers)
        response.raise_for_status()
        return response.json()


class Projects:
    def __init__(self, api: Api) -> None:
        self.api = api

    def list(self) -> list[Project]:
        return [Project(self, found) for found in self.api.request("GET", "projects")]

    def each(self) -> Iterator[Project]:
        yield from self.list()

    def by_name(self) -> dict[str, Project]:
        return {project.name: project for project in self.list()}


class Project:
    """Offers what the server told of it as its attributes."""

    def __init__(self, projects: Projects, found: dict[str, Any]) -> None:
        self.projects = projects
        self._found = found

    def __getattr__(self, name: str) -> Any:
        try:
            return vars(self)["_found"][name]
        except KeyError:
            raise AttributeError(name) from None

    def rename(self, name: str) -> None:
        self._found = self.projects.api.request("PUT", f"projects/{self.id}", name=name)


def shout(things: dict[str, Any], pool: ObjectPool[Api]) -> list[str]:
    """In a worker: 7 requests."""
    with pool.lease() as api:
        for project in api.projects.list():
            project.rename(f"{project.name}!")
        for project in api.projects.each():
            project.rename(f"{project.name}?")
        return [*api.projects.by_name()]


def test_what_a_client_gives_out_speaks_through_it(manager: PoolManager, server: Server) -> None:
    pool = manager.create_pool(partial(Api, server.url), max_size=1)
    for count in (1, 2, 3):
        with Worker() as worker:
            names = worker.do(shout, pool)
        assert names == [name + count * "!?" for name in ("engine", "notes")]
    with pool.lease() as api:
        assert (api.requests, [*server.requests.values()], len(server.agents)) == (21, [21], 1)
        projects = api.projects
        assert projects.by_name().keys() == {"engine!?!?!?", "notes!?!?!?"}
        with pytest.raises(requests.HTTPError, match="404"):
            projects.api.request("GET", "error")
    with pytest.raises(TypeError, match="stays with the object"):
        pool.apply(list_projects)


def list_projects(api: Api) -> list[Project]:
    return api.projects.list()
