"""Crawl a site with many worker processes and few HTTP sessions.

    python examples/crawler.py https://example.org --workers 8 --sessions 4 --db crawl.db
    python examples/crawler.py --kill 2       (no URL: Python's own library, without any network)

Who does what:

    main process   takes pages from the frontier, hands them out, replaces workers that die
    workers        borrow a session, fetch a page, give the session back, parse, save
    manager        owns two pools: the HTTP sessions, and the one connection to SQLite

A session has at most one connection, so the site never sees more connections than the pool has
sessions, however many workers parse. A page and what it links to lie in SQLite before the main
process hears of it. So whatever dies, another run with the same --db goes on where this one was.

What has nothing to do with pools is in `crawling/` beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NoReturn

from mppool import ObjectPool, PoolError, PoolManager, PoolStats, PoolTimeout

try:
    from crawling.crew import Crew, Visit, ctrl_c_held_back
    from crawling.page import Page, examine
    from crawling.session import AGENT, Reply, Session
    from crawling.site import BadInput, approach, library_site
    from crawling.store import Store
    from protego import Protego
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ModuleNotFoundError as missing:
    name = str(missing.name).partition(".")[0]
    sys.exit(f"crawler.py: error: {name} is not installed: pip install 'mppool[examples]'")

LIBRARY = "the standard library of Python {}.{}".format(*sys.version_info)
AHEAD = 2  # pages handed out beyond one for each worker, so that none waits for the main process
LEASE = 120.0  # seconds, far more than a worker ever waits for a session
GONE = 5  # pages in a row without an answer: the site is down, the rest is for another run


def visit(sessions: ObjectPool[Session], store: ObjectPool[Store], site: str, page: Page) -> Visit:
    """Fetch, parse and save one page; only to fetch it takes a session. Runs in a worker."""
    try:
        with sessions.lease(timeout=LEASE) as session:
            reply = session.fetch(site + page.path)
    except PoolTimeout:
        reply = Reply(error="no session came free")
    finding = examine(site, page, reply)
    return Visit(finding.error, store.apply(Store.save, page, finding))


class Crawl:
    """Goes on while there are pages to fetch. Runs in the main process."""

    def __init__(
        self, args: argparse.Namespace, site: str, rules: Protego, manager: PoolManager, file: str
    ) -> None:
        self.site, self.rules = site, rules
        self.workers: int = args.workers
        self.max_pages: int = args.max_pages
        self.kills_left: int = args.kill
        self.sessions = manager.create_pool(
            partial(Session, args.timeout), name="sessions", max_size=args.sessions, close=Session.close
        )
        self.store = manager.create_pool(partial(Store, file), name="store", max_size=1, close=Store.close)
        self.crew = Crew(args.workers, partial(visit, self.sessions, self.store, site))
        self.console = Console(stderr=True)
        self.done, self.known = self.store.apply(Store.counts)
        self.fetched = self.breaks = self.kills = self.unreachable = 0
        self.next_kill: int | None = None
        self.delay = float(rules.crawl_delay(AGENT) or 0)
        self.due = 0.0
        self.interrupted = self.stuck = False

    def run(self) -> None:
        """Until the frontier is empty, there are pages enough, the site is gone or Ctrl-C comes."""
        columns = TextColumn("crawling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        try:
            with Progress(*columns, console=self.console, auto_refresh=False) as progress:
                bar = progress.add_task("", completed=self.done, total=min(self.known, self.max_pages))
                while not self.interrupted and self.unreachable < GONE:
                    more = self.hand_out()
                    if not more and not self.crew.running:
                        break
                    self.note(*self.crew.collect(0.2))
                    self.perhaps_kill()
                    progress.update(bar, completed=self.done, total=min(self.known, self.max_pages))
                    progress.refresh()
        finally:
            self.stuck = self.crew.dismiss()

    def interrupt(self, *_: object) -> None:
        """Ctrl-C: the first ends the crawl in good order, the second is an exception as usual."""
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def hang_up(self) -> None:
        """End the manager at once: an orderly shutdown awaits the pages that its sessions wait for."""
        self.store.close()
        for child in multiprocessing.active_children():
            child.kill()

    def hand_out(self) -> bool:
        """Give pages to the workers; False if there are none, or enough."""
        running = self.crew.running
        budget = self.max_pages - self.done - len(running)
        room = min(budget, self.workers + AHEAD - len(running))
        if room <= 0 or any(page.deaths for page in running.values()):  # a suspect goes alone
            return budget > 0
        if self.delay:
            time.sleep(min(0.2, max(0.0, self.due - time.monotonic())))
            if time.monotonic() < self.due:
                return True
            room = 1
        pages = self.store.apply(Store.take, room)
        forbidden = [page for page in pages if not self.rules.can_fetch(self.site + page.path, AGENT)]
        if forbidden:
            self.store.apply(Store.forbid, forbidden)
            self.known -= len(forbidden)
        for page in pages:
            if page not in forbidden:
                self.crew.submit(page)
                self.due = time.monotonic() + self.delay
        return bool(pages)

    def note(self, visits: list[Visit], lost: list[Page]) -> None:
        """Count what ended; pages that a death cut short go back to the frontier."""
        for error, found in visits:
            self.fetched += 1
            self.done += 1
            self.known += found
            self.unreachable = self.unreachable + 1 if error == "unreachable" else 0
        if lost:
            self.breaks += 1
            back = self.store.apply(Store.give_back, lost)
            before, (self.done, self.known) = self.done, self.store.apply(Store.counts)
            self.fetched += self.done - before  # saved, but not told any more
            self.console.print(f"a worker died: {back} pages go back to the frontier")

    def perhaps_kill(self) -> None:
        """For --kill, at random; not while a page is on trial, which would be blamed for it."""
        if not self.kills_left or len(self.crew.running) < 2:
            return
        if self.next_kill is None:
            ahead = min(self.known, self.max_pages) - self.done
            self.next_kill = self.done + random.randint(1, max(1, ahead // (self.kills_left + 1)))
        if self.done >= self.next_kill and (pid := self.crew.kill_one()):
            self.console.print(f"killed worker {pid}")
            self.kills += 1
            self.kills_left -= 1
            self.next_kill = None

    def report(self, seconds: float, stats: PoolStats) -> Table:
        """All that was found, by this run and those before, and what the pool has to say."""
        figures, errors = self.store.apply(Store.summary)
        table = Table(title=f"Crawl of {self.site}", show_header=False, min_width=50)
        table.add_column(ratio=1)
        table.add_column(justify="right")
        sections: list[dict[str, int | str]] = [
            {
                "pages": figures["pages"],
                "redirects": figures["redirects"],
                "links": figures["links"],
                "bytes": figures["bytes"],
                "pages a second": f"{self.fetched / seconds:.1f}",
                "forbidden by robots.txt": figures["forbidden"],
                "left in the frontier": figures["frontier"],
            },
            {f"error: {kind}": count for kind, count in errors.items()} or {"errors": 0},
            {
                "malformed links": figures["bad_links"],
                "workers killed": self.kills,
                "workers lost": self.breaks,
            },
            {
                "sessions built": stats.built,
                "sessions reused": stats.reused,
                "sessions reclaimed": stats.reclaimed,
                "longest wait for a session": f"{stats.wait_longest * 1000:.1f} ms",
            },
        ]
        for section in sections:
            for name, value in section.items():
                table.add_row(name, value if isinstance(value, str) else f"{value:,}")
            table.add_section()
        return table


def begin_manager() -> None:
    """First thing in the manager: its notes on lost leases would tear the progress bar in two."""
    logging.getLogger("mppool").setLevel(logging.ERROR)


def run(args: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[int, str]:
    """Crawl as asked, and have `stack` clean up. Returns the exit code and a last line for the user."""
    url = args.url or stack.enter_context(library_site())
    site, path, rules = approach(url, args.timeout)
    file = args.db
    if file is None:
        handle, file = tempfile.mkstemp(prefix="crawl-", suffix=".db")
        os.close(handle)
    # The library's port is another one each time.
    start, home = (LIBRARY, LIBRARY) if args.url is None else (site + path, site)
    try:
        with contextlib.closing(Store(file)) as store:  # closed before any fork: SQLite must not cross one
            store.open_crawl(start, home, path)
    except (sqlite3.Error, ValueError) as error:
        raise BadInput(f"cannot use {file}: {error}") from None

    again = f"go on with --db {file}"
    try:
        tidy = stack.enter_context(contextlib.ExitStack())  # after the manager, which has the file open
        with ctrl_c_held_back():
            manager = PoolManager()
            manager.start(begin_manager)
            stack.enter_context(manager)
        crawl = Crawl(args, site, rules, manager, file)
        signal.signal(signal.SIGINT, crawl.interrupt)
        begin = time.monotonic()
        crawl.run()
        table = crawl.report(time.monotonic() - begin, crawl.sessions.stats())
    except (PoolError, sqlite3.Error) as error:
        return 1, f"{type(error).__name__}: {error}; {again}"
    Console().print(table)
    if crawl.stuck:
        crawl.hang_up()
    if crawl.interrupted:
        return 130, f"stopped; {again}"
    if crawl.unreachable >= GONE:
        return 1, f"{site} answers no more; {again}"
    if args.db is None:
        tidy.callback(Path(file).unlink)
    return 0, ""


class Parser(argparse.ArgumentParser):
    """Reports what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Instead of the usage, which --help tells."""
        raise BadInput(message)


def whole(least: int, text: str) -> int:
    """A whole number that is not too small."""
    if text.isdecimal() and int(text) >= least:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")


def seconds(text: str) -> float:
    """A time that is neither nothing nor for ever."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 3600:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to 3600")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. `BadInput` if it makes no sense."""
    parser = Parser(prog="crawler.py", description="Crawl a site through a pool of HTTP sessions.")
    count = partial(whole, 1)
    add = parser.add_argument
    add("url", nargs="?", help="where to begin; without it, a site of its own is served and crawled")
    add("--workers", type=count, default=8, metavar="N", help="processes that parse (8)")
    add("--sessions", type=count, default=4, metavar="N", help="connections to the site, at most (4)")
    add("--max-pages", type=count, default=500, metavar="N", help="pages to fetch, with earlier runs (500)")
    add("--db", metavar="FILE", help="what to keep the crawl in; without it, kept only if it is cut short")
    add("--kill", type=partial(whole, 0), default=0, metavar="N", help="kill N workers on the way (0)")
    add("--timeout", type=seconds, default=10.0, metavar="S", help="seconds that a page may take (10)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 cut short, 2 bad input, 130 Ctrl-C."""
    try:
        with contextlib.ExitStack() as stack:
            code, last_line = run(parse_arguments(arguments), stack)
    except BadInput as error:
        code, last_line = 2, f"error: {error}"
    except KeyboardInterrupt:
        code, last_line = 130, "stopped"
    if last_line:
        print(f"crawler.py: {last_line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
