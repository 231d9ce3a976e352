"""The site: what it allows, and one to crawl when there is no other. Runs in the main process."""

from __future__ import annotations

import contextlib
import multiprocessing
import sysconfig
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urljoin

from protego import Protego

from .crew import begin_helper, ctrl_c_held_back
from .page import MAX_HOPS, split
from .session import AGENT, Session


class BadInput(Exception):
    """The command asks for what cannot be. The text is one line for its user."""


def approach(start: str, timeout: float) -> tuple[str, str, Protego]:
    """Find the site that the start page lies on, the path there, and what robots.txt allows.

    A redirect of the start page to another site is followed, `http://` to `https://` for instance:
    that site is then the one to crawl.
    """
    try:
        site, path = split(start, "")
    except ValueError:
        raise BadInput(f"{start!r} is malformed") from None
    if not site:
        raise BadInput(f"{start!r} does not begin with http:// or https://")
    with contextlib.closing(Session(timeout)) as session:
        for _ in range(MAX_HOPS):
            rules = _robots(session, site)
            if not rules.can_fetch(site + path, AGENT):
                raise BadInput(f"robots.txt of {site} forbids {path}")
            reply = session.fetch(site + path)
            try:
                there, rest = split(site + path, reply.location or "")
            except ValueError:
                break
            if there in ("", site):
                break
            site, path = there, rest
        else:
            raise BadInput(f"{start!r} leads from site to site without end")
    return site, path, rules


def _robots(session: Session, site: str) -> Protego:
    """As RFC 9309 has it: none means that all is allowed, one that cannot be read that nothing is."""
    url = f"{site}/robots.txt"
    for _ in range(MAX_HOPS):
        reply = session.fetch(url)
        if reply.status == 0:
            raise BadInput(f"cannot reach {site}: {reply.detail or reply.error}")
        if reply.location is None:
            break
        url = urljoin(url, reply.location)
    if reply.error is None and 200 <= reply.status < 300:
        return Protego.parse(reply.body.decode("utf-8", "replace"))
    if reply.error is None and 400 <= reply.status < 500:
        return Protego.parse("")
    why = reply.error or f"HTTP {reply.status}"
    raise BadInput(f"{url} cannot be read ({why}), so nothing of this site may be")


class _LibraryHandler(SimpleHTTPRequestHandler):
    """The sources of the standard library, and a robots.txt beside them."""

    protocol_version = "HTTP/1.1"  # connections stay open
    disable_nagle_algorithm = True  # or every page waits for a delayed acknowledgement, 40 ms
    robots = b"User-agent: *\nDisallow: /*__pycache__\nDisallow: /site-packages\n"

    def send_head(self) -> Any:
        """The head of an answer; returns what its body is read from."""
        if self.path != "/robots.txt":
            return super().send_head()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(self.robots)))
        self.end_headers()
        return BytesIO(self.robots)

    def log_message(self, *_: object) -> None:
        """The crawler has its own progress bar."""


class _LibraryServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that hangs up in the middle of a page is no news: sessions do it to huge ones."""


def _serve_library(tell: Connection) -> None:
    begin_helper()
    handler = partial(_LibraryHandler, directory=sysconfig.get_path("stdlib"))
    with _LibraryServer(("127.0.0.1", 0), handler) as server:
        tell.send(server.server_port)
        server.serve_forever()


@contextlib.contextmanager
def library_site() -> Iterator[str]:
    """Serve the standard library, from a process of its own so that the crawl does not slow it down."""
    hear, tell = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.Process(target=_serve_library, args=(tell,), daemon=True)
    with ctrl_c_held_back():
        server.start()
    tell.close()
    try:
        yield f"http://127.0.0.1:{hear.recv()}/"
    finally:
        server.terminate()
        server.join()
        hear.close()
