"""The crawler, run as its users run it, against a site of this module's own."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import PROMPT, ROOT, RunPython, promptly, wait_until

for library in "protego", "rich", "selectolax", "urllib3":
    pytest.importorskip(library)

EXAMPLES = ROOT / "examples"
CRAWLER = EXAMPLES / "crawler.py"
PLAIN = 40  # pages /plain/0 ...
ALL_PLAIN = {f"/plain/{number}": None for number in range(PLAIN)}

sys.path.append(str(EXAMPLES))

import crawler  # noqa: E402
from crawling.crew import Crew, Visit  # noqa: E402
from crawling.page import Page, examine, split  # noqa: E402
from crawling.session import MAX_BYTES, Reply, Session  # noqa: E402
from crawling.site import BadInput, approach  # noqa: E402
from crawling.store import Store  # noqa: E402

# --- the site -----------------------------------------------------------------------------------


NEVER = "<a href=/plain/no>"
"""What no crawl follows."""

ANSWERS: dict[str, dict[str, Any]] = {
    "missing": {"body": NEVER, "status": 404},
    "broken": {"body": NEVER, "status": 500},
    "to_plain": {"body": "moved", "status": 301, "Location": "/plain/3"},
    "loop_a": {"status": 302, "Location": "/loop/b"},
    "loop_b": {"status": 302, "Location": "a"},
    "to_itself": {"status": 307, "Location": "/to-itself"},
    "away": {"status": 302, "Location": "http://elsewhere.invalid/"},
    "to_nowhere": {"status": 302, "Location": "http://[::1/"},
    "data_bin": {"body": f"\0{NEVER}", "mime": "application/octet-stream"},
    "notes_txt": {"body": NEVER, "mime": "text/plain"},
    "gzip": {
        "body": gzip.compress(b"<title>unpacked</title><a href=/gzip/further>"),
        "Content_Encoding": "gzip",
    },
    "gzip_further": {"body": "not gzip at all", "Content_Encoding": "gzip"},
    "latin": {"body": "<title>Grüße</title>".encode("latin-1"), "mime": "text/html; charset=ISO-8859-1"},
    "based": {"body": "<base href='/elsewhere/'><a href=here?q=%C3%BC>"},
    "elsewhere_here": {},
    "empty": {},
    "nonsense": {"body": bytes(range(256)) * 20 + b"<a href>" + b"<div>" * 5000},
}
"""The pages that are always the same."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Site

    def do_GET(self) -> None:
        site = self.server
        with site.lock:
            site.requests[self.path] += 1
            site.cookies += "Cookie" in self.headers
            answers = sum(site.requests.values())
        if site.answers is not None and answers > site.answers:
            site.gate.wait(60)
        page = re.sub(r"\W+", "_", re.sub(r"\d+$|\?.*", "", self.path)).strip("_")
        if page in ANSWERS:
            self.answer(**ANSWERS[page])
        else:
            getattr(self, f"page_{page or 'root'}", self.page_unexpected)()

    def answer(
        self, body: str | bytes = "", status: int = 200, mime: str = "text/html", **headers: str
    ) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Type", mime)
        self.send_header("Set-Cookie", "followed=1")
        for name, value in {"Content_Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def page_robots_txt(self) -> None:
        status, rules = self.server.robots
        self.answer("User-agent: *\n" + rules, status, mime="text/plain")

    def page_root(self) -> None:
        links = """
            /plain/0 plain/1#part ./plain/../plain/2 /private/page /missing /broken /to-plain /loop/a
            /to-itself /hop/1 /away /to-nowhere /data.bin /notes.txt /huge /huge-and-says-so /slow /drips
            /hangs-up /stops-short /gzip /latin /based /empty /nonsense
            mailto:a@b.example javascript:void(0) tel:+123 http://[::1 http://elsewhere.invalid/ //:99999/
            #here""".split()
        self.answer("<title> The \n root</title>" + "".join(f"<a href='{link}'>.</a>" for link in links))

    def page_plain(self) -> None:
        number = int(self.path.rpartition("/")[2])
        links = (f"<a href={(number * 2 + step) % PLAIN}>" for step in (1, 2))
        self.answer(f"<title>{number}</title>" + "".join(links))

    def page_hop(self) -> None:
        self.answer(status=302, Location=f"/hop/{int(self.path[5:]) + 1}")

    def page_far_away(self) -> None:
        self.answer(status=302, Location=self.server.elsewhere)

    def page_huge(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):  # the crawler hangs up
            while True:
                self.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        self.close_connection = True

    def page_huge_and_says_so(self) -> None:
        self.answer("only begun", Content_Length=str(1 << 40))
        self.server.gate.wait(60)
        self.close_connection = True

    def page_slow(self) -> None:
        self.server.gate.wait(60)
        self.close_connection = True

    def page_drips(self) -> None:
        self.answer("<", Content_Length="1000000")
        with contextlib.suppress(OSError):
            while not self.server.gate.wait(0.05):
                self.wfile.write(b"a")
        self.close_connection = True

    def page_hangs_up(self) -> None:
        self.close_connection = True

    def page_stops_short(self) -> None:
        self.answer(NEVER, Content_Length="1000")
        self.close_connection = True

    def page_unexpected(self) -> None:
        self.server.unexpected.append(self.path)
        self.answer("never linked", 418)

    def log_message(self, *_: object) -> None:
        pass


EXPECTED = {
    **ALL_PLAIN,
    "/": None, "/to-plain": None, "/loop/a": None, "/data.bin": None, "/notes.txt": None, "/gzip": None,
    "/latin": None, "/based": None, "/elsewhere/here?q=%C3%BC": None, "/empty": None, "/nonsense": None,
    **{f"/hop/{number}": None for number in range(1, 11)},
    "/hop/11": "too many redirects",
    "/private/page": "forbidden",
    "/missing": "HTTP 404",
    "/broken": "HTTP 500",
    "/loop/b": "redirect loop",
    "/to-itself": "redirect loop",
    "/away": "redirect off the site",
    "/to-nowhere": "malformed redirect",
    "/huge": "too large",
    "/huge-and-says-so": "too large",
    "/slow": "timeout",
    "/drips": "timeout",
    "/hangs-up": "connection broken",
    "/stops-short": "connection broken",
    "/gzip/further": "bad encoding",
}  # fmt: skip
"""What a whole crawl finds: each page, and the error it ends with."""


class Site(ThreadingHTTPServer):
    """A site that counts requests, and connections that are open at the same time."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.lock = threading.Lock()
        self.requests: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.cookies = 0
        self.sockets: list[socket.socket] = []
        self.accepted = self.most = 0
        self.robots = 200, "Disallow: /private\n"
        self.elsewhere = ""
        self.answers: int | None = None  # beyond so many, only when the gate opens
        self.gate = threading.Event()
        self.port = self.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self.thread.start()

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        self.accepted += 1
        self.sockets = [each for each in self.sockets if is_open(each)] + [connection]
        self.most = max(self.most, len(self.sockets))
        return connection, address

    def handle_error(self, *_: object) -> None:
        pass  # a client that hangs up is what some of these pages ask for

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Nobody listens any more, and what was being answered is not."""
        self.shutdown()
        self.thread.join()
        self.socket.close()
        for each in self.sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self.gate.set()
        self.server_close()  # joins the handlers' threads


Site.daemon_threads = False


def is_open(connection: socket.socket) -> bool:
    """False once the other side has closed it, whatever this side's handler is doing."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


# --- running it ---------------------------------------------------------------------------------


@contextlib.contextmanager
def started(tmp_path: Path, *args: object) -> Iterator[subprocess.Popen[bytes]]:
    """A crawl in a session of its own, as from a terminal; what it prints goes to files."""
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, CRAWLER, *map(str, args)], stdout=out, stderr=err, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


@contextlib.contextmanager
def stuck(site: Site, tmp_path: Path, *args: object) -> Iterator[subprocess.Popen[bytes]]:
    """A crawl that the site does not answer any more after robots.txt, the first look, and 15 pages."""
    site.answers = 17
    with started(tmp_path, site.url + "/plain/0", *args) as process:
        wait_until(lambda: sum(site.requests.values()) >= 17 + 4)
        yield process


def pages(db: Path, what: str = "error") -> dict[str, object]:
    """Of all pages that were done."""
    with contextlib.closing(sqlite3.connect(db)) as connection:
        query = f"SELECT path, {what} FROM pages WHERE state = 'done'"
        return dict(connection.execute(query).fetchall())


def figure(table: str, name: str) -> float:
    found = re.findall(rf"^│ {name} +│ +([\d,.]+)(?: ms)? │$", table, re.MULTILINE)
    assert len(found) == 1, f"{name!r} in\n{table}"
    return float(found[0].replace(",", ""))


def one_line(text: str) -> str:
    assert text.startswith("crawler.py: "), text
    assert text.count("\n") == 1, text
    return text


# --- the whole ----------------------------------------------------------------------------------


def test_a_whole_crawl(site: Site, run_python: RunPython, tmp_path: Path) -> None:
    db = tmp_path / "crawl.db"
    done = run_python(CRAWLER, site.url, "--workers", "8", "--sessions", "3", "--timeout", "2.5", "--db", db)
    assert "Traceback" not in done.stderr

    expected = {path: error for path, error in EXPECTED.items() if error != "forbidden"}
    assert pages(db) == expected
    assert site.unexpected == []
    assert site.requests["/private/page"] == 0
    assert site.cookies == 0
    assert site.most <= 3
    # A connection dies only with the pages that break it; each of those breaks one.
    broken = sum(error in ("too large", "timeout", "connection broken") for error in expected.values())
    assert site.accepted <= 1 + 3 + broken + 2  # hangs-up and stops-short may be tried again
    # Nothing is fetched twice but the start, which is looked at first, and what broke off unanswered.
    assert {path for path, times in site.requests.items() if times > 1} <= {"/", "/hangs-up"}

    titles = pages(db, "title")
    assert (titles["/"], titles["/gzip"], titles["/latin"]) == ("The root", "unpacked", "Grüße")
    redirects = 1 + 1 + 10
    assert figure(done.stdout, "pages") == list(expected.values()).count(None) - redirects
    assert figure(done.stdout, "redirects") == redirects
    assert figure(done.stdout, "links") == 32 + 2 * PLAIN + 3
    assert figure(done.stdout, "malformed links") == 2
    assert figure(done.stdout, "bytes") > 5000
    assert figure(done.stdout, "pages a second") > 0
    assert figure(done.stdout, "forbidden by robots.txt") == 1
    assert figure(done.stdout, "left in the frontier") == 0
    for kind, count in Counter(expected.values()).items():
        assert kind is None or figure(done.stdout, f"error: {kind}") == count
    assert figure(done.stdout, "sessions built") <= 3
    assert figure(done.stdout, "sessions reused") == len(expected) - figure(done.stdout, "sessions built")
    assert figure(done.stdout, "sessions reclaimed") == 0


def test_never_more_connections_than_sessions(site: Site, run_python: RunPython) -> None:
    done = run_python(CRAWLER, site.url + "/plain/0", "--workers", "12", "--sessions", "2")
    assert figure(done.stdout, "pages") == PLAIN
    assert site.most <= 2
    assert site.accepted <= 1 + 2  # the first look, and then each session keeps its connection
    assert figure(done.stdout, "longest wait for a session") > 0


def test_workers_that_are_killed_are_replaced_and_no_page_is_lost(
    site: Site, run_python: RunPython, tmp_path: Path
) -> None:
    db = tmp_path / "crawl.db"
    done = run_python(CRAWLER, site.url + "/plain/0", "--kill", "2", "--sessions", "3", "--db", db)
    assert pages(db) == ALL_PLAIN
    assert figure(done.stdout, "workers killed") == figure(done.stdout, "workers lost") == 2
    assert done.stderr.count("killed worker") == 2
    assert "Traceback" not in done.stderr
    assert site.most <= 3


def test_a_page_that_kills_its_worker_is_given_up(site: Site, run_python: RunPython, tmp_path: Path) -> None:
    script = tmp_path / "deadly.py"
    script.write_text(f"""
import os, signal, sys
sys.path.insert(0, {str(EXAMPLES)!r})
import crawler
harmless = crawler.visit

def deadly(sessions, store, site, page):
    if page.path == "/plain/7":
        os.kill(os.getpid(), signal.SIGKILL)
    return harmless(sessions, store, site, page)

crawler.visit = deadly
if __name__ == "__main__":
    sys.exit(crawler.main())
""")
    db = tmp_path / "crawl.db"
    done = run_python(script, site.url + "/plain/0", "--db", db)
    # 15 and 16 are linked from 7 and 27.
    assert pages(db) == {**ALL_PLAIN, "/plain/7": "killed its worker"}
    assert figure(done.stdout, "workers lost") == 3


def test_ctrl_c_ends_it_in_seconds_and_it_goes_on_later(
    site: Site, run_python: RunPython, tmp_path: Path
) -> None:
    db = tmp_path / "crawl.db"
    command = [CRAWLER, site.url + "/plain/0", "--db", db]
    with stuck(site, tmp_path, "--db", db) as process:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(PROMPT) == 130
    errors = (tmp_path / "err").read_text()
    assert "Traceback" not in errors
    assert f"go on with --db {db}" in errors
    found = pages(db)
    assert len(found) == 15
    assert figure((tmp_path / "out").read_text(), "pages") == 15
    before = site.requests.copy()

    site.gate.set()
    done = run_python(*command)
    assert pages(db) == ALL_PLAIN
    again = site.requests - before
    assert set(again) & set(found) == {"/plain/0"}  # only the first look
    assert sum(again.values()) == 2 + PLAIN - 15
    assert figure(done.stdout, "pages") == PLAIN

    begun = site.requests.copy()
    done = run_python(*command)  # nothing is left to do
    assert sum((site.requests - begun).values()) == 2


def test_two_crawls_do_not_share_a_file(site: Site, run_python: RunPython, tmp_path: Path) -> None:
    command = [site.url + "/plain/0", "--db", tmp_path / "crawl.db"]
    site.answers = 6
    with started(tmp_path, *command):
        wait_until(lambda: sum(site.requests.values()) >= 8)
        site.answers = None
        done = run_python(CRAWLER, *command, status=2)
        assert "database is locked" in one_line(done.stderr)


def test_a_site_that_goes_down(site: Site, run_python: RunPython, tmp_path: Path) -> None:
    db = tmp_path / "crawl.db"
    with stuck(site, tmp_path, "--db", db) as process:
        site.end()
        assert process.wait(20) == 1
    assert "answers no more" in (tmp_path / "err").read_text()
    site.__init__(site.port)  # type: ignore[misc]
    run_python(CRAWLER, site.url + "/plain/0", "--db", db)
    assert {path for path, error in pages(db).items() if error != "connection broken"} >= {
        f"/plain/{number}" for number in range(15)
    }


def test_a_lost_manager_ends_it_with_one_line(site: Site, tmp_path: Path) -> None:
    db = tmp_path / "crawl.db"
    with stuck(site, tmp_path, "--db", db) as process:
        (manager,) = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if any(each.raddr and each.raddr.port == site.port for each in child.net_connections("tcp"))
        ]
        manager.kill()
        assert process.wait(20) == 1
    text = (tmp_path / "err").read_text()
    assert "ManagerLost" in text
    assert f"go on with --db {db}" in text
    assert "Traceback" not in text
    assert len(pages(db)) == 15


def test_killed_itself_it_leaves_nobody_behind(site: Site, tmp_path: Path) -> None:
    with stuck(site, tmp_path, "--db", tmp_path / "crawl.db") as process:
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) > 8
        process.kill()
        process.wait(20)
        wait_until(lambda: not psutil.wait_procs(children, timeout=0)[1], message="a child lives on")
    assert len(pages(tmp_path / "crawl.db")) == 15


def test_processes_that_are_spawned(site: Site, run_python: RunPython, tmp_path: Path) -> None:
    script = tmp_path / "spawned.py"
    script.write_text(f"""
import multiprocessing, sys
sys.path.insert(0, {str(EXAMPLES)!r})
import crawler

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(crawler.main())
""")
    done = run_python(script, site.url + "/plain/0", "--workers", "2", "--sessions", "1", "--kill", "1")
    assert figure(done.stdout, "pages") == PLAIN
    assert figure(done.stdout, "workers killed") == 1
    assert site.most == 1


def test_a_crawl_delay_is_kept(site: Site, run_python: RunPython) -> None:
    site.robots = 200, "Crawl-delay: 0.4\n"
    begin = time.monotonic()
    done = run_python(CRAWLER, site.url + "/plain/0", "--max-pages", "4")
    assert figure(done.stdout, "pages") == 4
    assert time.monotonic() - begin > 3 * 0.4


def test_its_own_site(run_python: RunPython, tmp_path: Path) -> None:
    db = tmp_path / "crawl.db"
    for limit in 30, 50:  # the second run goes on with the first, though on another port
        done = run_python(CRAWLER, "--max-pages", limit, "--db", db, "--workers", "4")
        assert "Traceback" not in done.stderr
        assert f"{limit}/{limit}" in done.stderr
        assert len(pages(db)) == limit
        assert figure(done.stdout, "pages") == limit
    assert "/argparse.py" in pages(db)
    assert not any("__pycache__" in path for path in pages(db))


def test_without_a_file_nothing_stays_but_after_ctrl_c(
    site: Site, run_python: RunPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    run_python(CRAWLER, site.url + "/plain/0")
    assert list(tmp_path.glob("crawl-*")) == []
    site.requests.clear()
    with stuck(site, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        site.gate.set()
        assert process.wait(20) == 130
    (kept,) = tmp_path.glob("crawl-*")
    assert str(kept) in (tmp_path / "err").read_text()
    assert 15 <= len(pages(kept)) < PLAIN


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "0"], "argument --workers: '0' is not a whole number of at least 1"),
        (["--sessions", "many"], "argument --sessions: 'many' is not"),
        (["--max-pages", "-5"], "argument --max-pages: '-5' is not"),
        (["--kill", "1.5"], "argument --kill: '1.5' is not"),
        (["--timeout", "nan"], "argument --timeout: 'nan' is not"),
        (["--what"], "unrecognized arguments: --what"),
        (["ftp://example.org/"], "'ftp://example.org/' does not begin with http:// or https://"),
        (["example.org"], "does not begin with http://"),
        (["http://[::1"], "'http://[::1' is malformed"),
        (["http://127.0.0.1:{closed}/"], "cannot reach http://127.0.0.1:{closed}: "),
        (["{site}/private/page"], "robots.txt of {site} forbids /private/page"),
        (["{site}", "--db", "no/such/folder/crawl.db"], "cannot use no/such/folder/crawl.db: unable to open"),
        (["{site}", "--db", "text"], "cannot use text: file is not a database"),
        (["{site}", "--db", "foreign.db"], "cannot use foreign.db: it is another program's database"),
        (["{site}", "--db", "other.db"], "cannot use other.db: it holds the crawl of http://other.example/"),
    ],
)
def test_bad_input(
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("no database, and long enough that it cannot be an empty one\n" * 20)
    with contextlib.closing(sqlite3.connect(tmp_path / "foreign.db")) as foreign:
        foreign.execute("CREATE TABLE pages (id)")
    with contextlib.closing(Store(str(tmp_path / "other.db"))) as other:
        other.open_crawl("http://other.example/", "http://other.example", "/")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        names = {"closed": listener.getsockname()[1], "site": site.url}

    assert crawler.main([argument.format(**names) for argument in arguments]) == 2
    out, err = capfd.readouterr()
    assert one_line(err).startswith("crawler.py: error: ")
    assert said.format(**names) in err
    assert out == ""
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("library", ["urllib3", "selectolax", "protego", "rich"])
def test_a_missing_library_names_the_extra(run_python: RunPython, library: str) -> None:
    code = f"""
import runpy, sys
sys.path.insert(0, {str(EXAMPLES)!r})
sys.modules[{library!r}] = None
runpy.run_path({str(CRAWLER)!r}, run_name="__main__")
"""
    done = run_python("-c", code, status=1)
    assert f"{library} is not installed: pip install 'mppool[examples]'" in one_line(done.stderr)


def test_what_robots_txt_says_of_the_whole_site(site: Site) -> None:
    site.robots = 404, ""
    _, _, rules = approach(site.url, 5)
    assert rules.can_fetch(site.url + "/private/page", "mppool-crawler")
    site.robots = 503, ""
    with pytest.raises(BadInput, match="HTTP 503"):
        approach(site.url, 5)
    site.robots = 200, "Disallow: /\n"
    with pytest.raises(BadInput, match="forbids /"):
        approach(site.url, 5)


def test_a_start_page_that_has_moved_to_another_site(site: Site) -> None:
    with Site() as other:
        site.elsewhere = other.url + "/plain/1"
        assert approach(site.url + "/far-away", 5)[:2] == (other.url, "/plain/1")
        other.elsewhere = site.url + "/far-away"
        site.elsewhere = other.url + "/far-away"
        with pytest.raises(BadInput, match="without end"):
            approach(site.url + "/far-away", 5)


# --- the parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "leads_to"),
    [
        ("b", ("http://h.example", "/a/b")),
        ("../b/./c#part", ("http://h.example", "/b/c")),
        ("?q=ä ö", ("http://h.example", "/a/?q=%C3%A4%20%C3%B6")),
        (" HTTP://H.EXAMPLE:80 ", ("http://h.example", "/")),
        ("https://h.example/", ("https://h.example", "/")),
        ("http://h.example:8080", ("http://h.example:8080", "/")),
        ("//other.example/x", ("http://other.example", "/x")),
        ("mailto:me@h.example", ("", "")),
        ("data:text/html,<p>", ("", "")),
    ],
)
def test_links_have_one_form(link: str, leads_to: tuple[str, str]) -> None:
    assert split("http://h.example/a/", link) == leads_to


@pytest.mark.parametrize("link", ["http://[::1", "http://h:99999/", "x" * 3000])
def test_malformed_links(link: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (its text is the libraries')
        split("http://h.example/", link)


def test_a_page_in_an_encoding_that_does_not_exist() -> None:
    page = Page(1, "/", 0, 0)
    reply = Reply(200, "text/html; charset=klingon", "<title>ü</title>".encode())
    assert examine("http://h.example", page, reply).title == "ü"


def test_a_session_bounds_every_page_and_keeps_its_connection(site: Site) -> None:
    with contextlib.closing(Session(0.5)) as session:
        for path, error in [("/huge", "too large"), ("/drips", "timeout"), ("/slow", "timeout")]:
            with promptly():
                reply = session.fetch(site.url + path)
            assert reply.error == error
            assert len(reply.body) <= MAX_BYTES
            wait_until(
                lambda: not any(map(is_open, site.sockets))
            )  # given up; of that the site is told later
        before = site.accepted
        assert [session.fetch(f"{site.url}/plain/{number}").status for number in range(5)] == [200] * 5
        assert site.accepted == before + 1
        assert site.most == 1


def test_a_session_outlives_a_connection_that_the_site_closed(site: Site) -> None:
    with contextlib.closing(Session(5)) as session:
        assert session.fetch(site.url + "/plain/0").status == 200
        for each in site.sockets:
            each.shutdown(socket.SHUT_RDWR)
        assert session.fetch(site.url + "/plain/0").status == 200


def fail_on_odd(page: Page) -> Visit:
    if page.id % 2:
        raise LookupError(page.path)
    return Visit(None, page.id)


def test_an_error_of_the_task_comes_out_of_the_crew() -> None:
    crew = Crew(1, fail_on_odd)
    try:
        crew.submit(Page(2, "/2", 0, 0))
        assert wait_until(lambda: crew.collect(0.1)[0]) == [Visit(None, 2)]
        crew.submit(Page(3, "/3", 0, 0))
        with pytest.raises(LookupError, match="/3"):
            wait_until(lambda: crew.collect(0.1)[0])
    finally:
        crew.dismiss()
