"""The frontier and the pages, in one SQLite file. Lives in the manager's process."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from .page import MAX_HOPS, Finding, Page

MAX_DEATHS = 3  # workers that one page may kill

_APPLICATION_ID = 0x6D707063
_SCHEMA = f"""
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
PRAGMA application_id = {_APPLICATION_ID};
CREATE TABLE crawl (start TEXT NOT NULL, site TEXT NOT NULL);
CREATE TABLE pages (
    id INTEGER PRIMARY KEY,              -- in the order in which they were found
    path TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL DEFAULT 'todo',  -- todo (the frontier), taken, done, forbidden
    hops INTEGER NOT NULL DEFAULT 0,
    deaths INTEGER NOT NULL DEFAULT 0,
    status INTEGER, content_type TEXT, size INTEGER, error TEXT, location TEXT,
    title TEXT, links INTEGER, bad_links INTEGER, body BLOB
);
CREATE INDEX frontier ON pages (state, deaths DESC, id);
COMMIT;
"""


class Store:
    """One connection; while it is open, no other crawl can use the file.

    Every method is one transaction. `sqlite3.Error` if the file cannot be used.
    """

    def __init__(self, file: str) -> None:
        self._db = sqlite3.connect(file, timeout=1, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            (application,) = self._db.execute("PRAGMA application_id").fetchone()
            (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables and application != _APPLICATION_ID:
                raise sqlite3.DatabaseError("it is another program's database")
            if not tables:
                self._db.executescript(_SCHEMA)
            self._db.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def open_crawl(self, start: str, site: str, path: str) -> None:
        """Begin a crawl, or go on with it. `ValueError` if the file holds another one."""
        with self._transaction():
            row = self._db.execute("SELECT start, site FROM crawl").fetchone()
            if row is None:
                self._db.execute("INSERT INTO crawl VALUES (?, ?)", (start, site))
            elif row != (start, site):
                raise ValueError(f"it holds the crawl of {row[0]}")
            self._db.execute("INSERT OR IGNORE INTO pages (path) VALUES (?)", (path,))
            # Pages in flight when it ended, and what may be another matter by now.
            self._db.execute(
                "UPDATE pages SET state = 'todo', error = NULL"
                " WHERE state IN ('taken', 'forbidden') OR error = 'unreachable'"
            )

    def take(self, limit: int) -> list[Page]:
        """The next pages of the frontier; one that is suspected of killing workers comes alone."""
        with self._transaction():
            query = "SELECT id, path, hops, deaths FROM pages WHERE state = 'todo' ORDER BY deaths DESC, id"
            pages = [Page(*row) for row in self._db.execute(f"{query} LIMIT ?", (limit,))]
            if pages and pages[0].deaths:
                pages = pages[:1]
            self._mark("taken", pages)
        return pages

    def forbid(self, pages: list[Page]) -> None:
        """robots.txt does not want them fetched."""
        with self._transaction():
            self._mark("forbidden", pages)

    def give_back(self, pages: list[Page]) -> int:
        """A worker died: what was not saved is to be fetched again, unless it happens too often.

        Returns how many went back.
        """
        back = 0
        with self._transaction():
            for page in pages:
                deaths = page.deaths + 1
                state, error = ("todo", None) if deaths < MAX_DEATHS else ("done", "killed its worker")
                changed = self._db.execute(
                    "UPDATE pages SET deaths = ?, state = ?, error = ? WHERE id = ? AND state = 'taken'",
                    (deaths, state, error, page.id),
                ).rowcount
                back += changed if error is None else 0
        return back

    def save(self, page: Page, finding: Finding) -> int:
        """Keep a page, and add where it leads to the frontier. Returns how many of these were new."""
        hops = 0 if finding.location is None else page.hops + 1
        with self._transaction():
            error = finding.error
            if error is None and self._leads_back(page.path, finding.location):
                error = "redirect loop"
            self._db.execute(
                "UPDATE pages SET state = 'done', status = :status, content_type = :content_type,"
                " size = :size, error = :error, location = :location, title = :title, links = :links,"
                " bad_links = :bad_links, body = :body WHERE id = :id",
                {**vars(finding), "error": error, "id": page.id},
            )
            before = self._db.total_changes
            self._db.executemany(
                "INSERT OR IGNORE INTO pages (path, hops) VALUES (?, ?)",
                [(path, hops) for path in finding.onward],
            )
            return self._db.total_changes - before

    def counts(self) -> tuple[int, int]:
        """Pages done, and pages known that may be fetched."""
        states = dict(self._db.execute("SELECT state, count(*) FROM pages GROUP BY state").fetchall())
        return states.get("done", 0), sum(states.values()) - states.get("forbidden", 0)

    def summary(self) -> tuple[dict[str, int], dict[str, int]]:
        """The figures of the whole crawl, and its errors by kind."""
        cursor = self._db.execute(
            "SELECT"
            " count(*) FILTER (WHERE state = 'done' AND error IS NULL AND location IS NULL) AS pages,"
            " count(*) FILTER (WHERE error IS NULL AND location IS NOT NULL) AS redirects,"
            " total(links) AS links, total(bad_links) AS bad_links, total(size) AS bytes,"
            " count(*) FILTER (WHERE state = 'forbidden') AS forbidden,"
            " count(*) FILTER (WHERE state IN ('todo', 'taken')) AS frontier"
            " FROM pages"
        )
        names = [column[0] for column in cursor.description]
        figures = {name: int(value) for name, value in zip(names, cursor.fetchone(), strict=True)}
        errors = self._db.execute(
            "SELECT error, count(*) FROM pages WHERE error IS NOT NULL GROUP BY error ORDER BY 2 DESC, 1"
        )
        return figures, dict(errors.fetchall())

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def _mark(self, state: str, pages: list[Page]) -> None:
        self._db.executemany("UPDATE pages SET state = ? WHERE id = ?", [(state, page.id) for page in pages])

    def _leads_back(self, path: str, location: str | None) -> bool:
        for _ in range(MAX_HOPS):
            if location is None or location == path:
                break
            row = self._db.execute("SELECT location FROM pages WHERE path = ?", (location,)).fetchone()
            location = row and row[0]
        return location == path
