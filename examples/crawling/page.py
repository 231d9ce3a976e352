"""What a page says and where it leads. Runs in the workers."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from urllib.parse import urljoin

from selectolax.lexbor import LexborHTMLParser
from urllib3.util import parse_url

from .session import Reply

HTML = ("text/html", "application/xhtml+xml")
MAX_HOPS = 10  # redirects in a row
MAX_URL = 2000  # characters: a site without end makes longer and longer links


class Page(NamedTuple):
    """A page to fetch."""

    id: int
    path: str
    """All of its address that follows the site's."""
    hops: int
    """Redirects in a row that led to it."""
    deaths: int
    """Workers that died while they had it."""


@dataclass(frozen=True)
class Finding:
    """What was made of a reply."""

    status: int = 0
    content_type: str = ""
    size: int = 0
    error: str | None = None
    location: str | None = None
    """Where a redirect leads: a path, or a whole address off the site."""
    title: str | None = None
    links: int = 0
    bad_links: int = 0
    onward: tuple[str, ...] = ()
    """Paths within the site."""
    body: bytes | None = None
    """Of text, compressed."""


def split(base: str, link: str) -> tuple[str, str]:
    """The site that a link leads to, and the path there, both in one normal form.

    The site is "" if the link is no web address, as with `mailto:`. `ValueError`: it is malformed.
    """
    url = parse_url(urljoin(base, link.strip()))
    if url.scheme not in ("http", "https"):
        return "", ""
    path = (url.path or "/") + ("" if url.query is None else f"?{url.query}")
    if not url.host or len(path) > MAX_URL:
        raise ValueError(link)
    usual = {"http": 80, "https": 443}[url.scheme]
    port = "" if url.port in (None, usual) else f":{url.port}"
    return f"{url.scheme}://{url.host}{port}", path


def examine(site: str, page: Page, reply: Reply) -> Finding:
    """Read one reply; whatever the web sends, it ends as a `Finding`."""
    finding = partial(Finding, reply.status, reply.content_type, len(reply.body))
    if reply.error is not None:
        return finding(error=reply.error)
    if reply.location is not None:
        return _redirect(site, page, reply.location, finding)
    if not 200 <= reply.status < 300:
        return finding(error=f"HTTP {reply.status}")
    mime, _, parameters = reply.content_type.lower().partition(";")
    if mime.strip() not in HTML:
        return finding(body=zlib.compress(reply.body) if mime.startswith("text/") else None)
    try:
        return _html(site, page, reply.body, parameters, finding)
    except Exception as error:  # what no parser foresaw is an error of this page only
        return finding(error=f"not understood: {type(error).__name__}")


def _redirect(site: str, page: Page, location: str, finding: Callable[..., Finding]) -> Finding:
    """A page whose only link is its target: that one passes the same checks as any other."""
    try:
        where, path = split(site + page.path, location)
    except ValueError:
        return finding(error="malformed redirect", location=location)
    if where != site:
        return finding(error="redirect off the site", location=location)
    if page.hops >= MAX_HOPS:
        return finding(error="too many redirects", location=path)
    return finding(location=path, onward=(path,))


def _html(site: str, page: Page, body: bytes, parameters: str, finding: Callable[..., Finding]) -> Finding:
    tree = _parse(body, parameters)
    title, base = tree.css_first("title"), tree.css_first("base[href]")
    here = urljoin(site + page.path, (base.attributes.get("href") or "") if base else "")
    links = [node.attributes.get("href") or "" for node in tree.css("a[href], area[href]")]
    onward, bad = {}, 0
    for link in links:
        try:
            where, path = split(here, link)
        except ValueError:
            bad += 1
        else:
            if where == site:
                onward[path] = True  # a dict, not a set: it keeps the order of the page
    return finding(
        title=" ".join(title.text().split()) if title else None,
        links=len(links),
        bad_links=bad,
        onward=tuple(onward),
        body=zlib.compress(body),
    )


def _parse(body: bytes, parameters: str) -> LexborHTMLParser:
    """Decode as the header says, or else as the document itself does."""
    _, named, charset = parameters.partition("charset=")
    if named:
        with contextlib.suppress(LookupError):
            return LexborHTMLParser(body.decode(charset.partition(";")[0].strip(" \"'"), "replace"))
    return LexborHTMLParser(body, encoding=True)
