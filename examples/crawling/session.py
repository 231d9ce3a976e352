"""One HTTP connection, and what comes out of it. Lives in the manager's process."""

from __future__ import annotations

import time
from dataclasses import dataclass

import urllib3
from urllib3 import exceptions

AGENT = "mppool-crawler"
MAX_BYTES = 4 << 20  # of one page, decoded; a larger one is dropped
REDIRECTS = (301, 302, 303, 307, 308)

_KINDS: dict[str, tuple[type[Exception], ...]] = {
    "unreachable": (exceptions.NewConnectionError,),
    "timeout": (exceptions.TimeoutError,),
    "bad certificate": (exceptions.SSLError,),
    "bad encoding": (exceptions.DecodeError,),
    "connection broken": (exceptions.ProtocolError, OSError),
    "malformed answer": (exceptions.HTTPError, ValueError),
}


@dataclass(frozen=True)
class Reply:
    """What came of one request: an answer, or the kind of error that came instead."""

    status: int = 0
    content_type: str = ""
    body: bytes = b""
    location: str | None = None
    """Where a redirect points, as the site wrote it."""
    error: str | None = None
    detail: str = ""


class Session:
    """At most one connection, kept alive. It carries no cookies and follows no redirects by itself.

    `timeout`: seconds that connecting, each wait for the site, and a whole page may take.
    """

    def __init__(self, timeout: float) -> None:
        headers = {"User-Agent": AGENT, "Accept-Encoding": "gzip"}
        self._http = urllib3.PoolManager(num_pools=1, maxsize=1, block=True, headers=headers)
        self._timeout = timeout

    def fetch(self, url: str) -> Reply:
        """GET one page. Whatever the site does is a `Reply`, not an exception."""
        try:
            return self._fetch(url)
        except (exceptions.HTTPError, OSError, ValueError) as error:
            kind = next(kind for kind, types in _KINDS.items() if isinstance(error, types))
            return Reply(error=kind, detail=str(error))

    def close(self) -> None:
        """Close the connection."""
        self._http.clear()

    def _fetch(self, url: str) -> Reply:
        deadline = time.monotonic() + self._timeout
        try:
            response = self._open(url)
        except exceptions.ProtocolError:  # the site had closed the kept connection
            response = self._open(url)
        complete = False
        try:
            if int(response.headers.get("Content-Length") or 0) > MAX_BYTES:
                return Reply(response.status, error="too large")
            body = bytearray()
            while chunk := response.read1(1 << 16):
                body += chunk
                if len(body) > MAX_BYTES:
                    return Reply(response.status, error="too large")
                if time.monotonic() > deadline:
                    return Reply(response.status, error="timeout")
            complete = True
        finally:
            if not complete:
                response.close()  # or what is left of this page would be the next one's answer
            response.release_conn()
        location = response.headers.get("Location") if response.status in REDIRECTS else None
        return Reply(response.status, response.headers.get("Content-Type", ""), bytes(body), location)

    def _open(self, url: str) -> urllib3.BaseHTTPResponse:
        limit = urllib3.Timeout(total=self._timeout)
        return self._http.request(
            "GET", url, timeout=limit, pool_timeout=1, retries=False, redirect=False, preload_content=False
        )
