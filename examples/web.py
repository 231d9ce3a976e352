"""A web service whose workers share a few search indexes, and a page that shows their pool live.

    python examples/web.py [--workers 2] [--size 4] [--port 8000]

    /search?q=WORDS   the pages of Python's language reference in which all these words are
    /export           all pages, line by line, for as long as the client takes to read them
    /                 the pool in a browser: what is idle, who holds what since when, who waits how long

Each index is a SQLite database in memory, which lives in a thread of the pool's manager. Workers of uvicorn
borrow one with `async with pool.aio.lease()`: a request that waits for one costs no thread, and if its client
hangs up it is out of the queue at once. Put it under load, and look: `hey -c 50 http://127.0.0.1:8000/search?q=if`
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from pydoc_data.topics import topics
from typing import Any

from mppool import ObjectPool, PoolError, shared_pool

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
    from starlette.routing import Route
    from starlette.types import ASGIApp, Receive, Scope, Send
except ModuleNotFoundError as missing:
    name = str(missing.name).partition(".")[0]
    sys.exit(f"web.py: error: {name} is not installed: pip install 'mppool[examples]'")

HOST = "127.0.0.1"
INTERVAL = 0.25  # seconds between two looks at the pool
LOOKS = 8  # of one stream of events; the browser then asks for the next


class Catalogue:
    """The expensive object: an index of all words in the language reference, which comes with Python."""

    def __init__(self) -> None:
        self._database = sqlite3.connect(":memory:")
        self._database.execute("CREATE VIRTUAL TABLE page USING fts5(title, text)")
        self._database.executemany("INSERT INTO page VALUES (?, ?)", topics.items())

    def search(self, words: str) -> list[tuple[str, str]]:
        """Return title and extract of the pages in which all these words are, the best ones first."""
        terms = " ".join(f'"{word}"' for word in words.replace('"', " ").split())
        extract = "SELECT title, snippet(page, 1, '', '', '…', 16) FROM page"
        query = extract + " WHERE page MATCH ? ORDER BY rank LIMIT 10"
        return self._database.execute(query, [terms]).fetchall() if terms else []

    def pages(self) -> Iterator[tuple[str, str]]:
        """Give title and text of all pages, one by one."""
        yield from self._database.execute("SELECT title, text FROM page ORDER BY title")

    def close(self) -> None:
        self._database.close()


def open_pool() -> ObjectPool[Catalogue]:
    """One pool for all workers: the first process that comes here makes it."""
    size = int(os.environ["CATALOGUES"])
    options: dict[str, Any] = {"isolation": "thread", "max_size": size, "timeout": 10, "max_hold": 60}
    return shared_pool("catalogues", Catalogue, linger=0, close=Catalogue.close, **options)


# --- in a worker ----------------------------------------------------------------------------------


async def search(request: Request) -> Response:
    async with request.app.state.pool.aio.lease() as catalogue:
        return JSONResponse(await catalogue.search(request.query_params.get("q", "")))


async def export(request: Request) -> ASGIApp:
    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        async with request.app.state.pool.aio.lease() as catalogue:  # to the end of the response
            lines = (json.dumps(each) + "\n" async for each in await catalogue.pages())
            await StreamingResponse(lines, media_type="application/x-ndjson")(scope, receive, send)

    return respond


async def page(_: Request) -> Response:
    return HTMLResponse(PAGE)


async def events(request: Request) -> Response:
    """The pool as server-sent events. They end soon: a server that is to end waits for its responses."""

    async def looks() -> AsyncIterator[str]:
        yield "retry: 0\n"
        for _ in range(LOOKS):
            yield f"data: {await look(request.app.state.pool)}\n\n"
            await asyncio.sleep(INTERVAL)

    return StreamingResponse(looks(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def look(pool: ObjectPool[Catalogue]) -> str:
    """How things stand in the pool, whichever workers use it, as JSON."""
    try:
        stats, leases = await asyncio.gather(pool.aio.stats(), pool.aio.leases())
    except PoolError as error:
        return json.dumps({"worker": os.getpid(), "error": str(error)})
    return json.dumps({"worker": os.getpid(), "stats": stats, "leases": leases}, default=vars)


def busy(_: Request, error: Exception) -> Response:
    """No object in time, or no manager: it may be better soon."""
    return JSONResponse({"error": str(error)}, 503, {"Retry-After": "1"})


class EndWithClient:
    """Cancels a request when its client hangs up: then it waits for no object, and holds none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request = asyncio.current_task()
        assert request

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":  # no request here has a body
                pass
            request.cancel()

        watching = asyncio.create_task(watch())
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not watching.done():  # the server's own doing
                raise
        finally:
            watching.cancel()


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.pool = await asyncio.to_thread(open_pool)
    yield


def application() -> Starlette:
    return Starlette(
        routes=[Route(f"/{each.__name__}", each) for each in (search, export, events)] + [Route("/", page)],
        middleware=[Middleware(EndWithClient)],
        exception_handlers={PoolError: busy},
        lifespan=lifespan,
    )


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Catalogues</title>
<link rel="icon" href="data:,">
<style>
    :root { color-scheme: light dark; --idle: #2a9d63; --leased: #e08a1e; --line: #8884 }
    body { font: 15px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 1.5rem auto; padding: 0 1rem }
    body.lost { opacity: .4 }
    h1 { font-size: 1.3rem; margin: 0 }
    h2 { font-size: 1rem; margin: 1.4rem 0 .3rem }
    small, th, #waits { color: #888; font-weight: normal }
    #objects, #waits { display: flex; gap: .5rem }
    #objects div { flex: 1; padding: 1rem 0; border-radius: .5rem; text-align: center; color: #fff }
    #objects .idle { background: var(--idle) }
    #objects .leased { background: var(--leased) }
    #objects .building, #objects .free { outline: 2px dashed var(--line); outline-offset: -2px; color: #888 }
    #waits { height: 7rem; align-items: flex-end; gap: 2px; font-size: .6rem; text-align: center }
    #waits div { flex: 1 1 0; white-space: nowrap }
    #waits i { display: block; background: var(--leased) }
    table { width: 100%; border-collapse: collapse; text-align: left }
    td, th { border-bottom: 1px solid var(--line); width: 33% }
    input { font: inherit; width: 100%; box-sizing: border-box; padding: .3rem }
</style>
<h1>Catalogues <small id="said"></small></h1>
<h2>Objects <small id="counts"></small></h2><div id="objects"></div>
<h2>Who holds one</h2><table><tbody id="holders"></tbody></table>
<h2>Waits <small id="longest"></small></h2><div id="waits"></div>
<h2>Search</h2><input id="words" placeholder="words of Python's language reference"><div id="found"></div>
<script>
    const at = id => document.getElementById(id);
    const element = (tag, className, ...parts) => {
        const made = document.createElement(tag);
        made.className = className;
        made.append(...parts);
        return made;
    };
    const row = (tag, ...cells) => element("tr", "", ...cells.map(cell => element(tag, "", cell)));
    const time = seconds =>
        seconds < 1 ? `${+(seconds * 1000).toPrecision(2)} ms` : `${+seconds.toFixed(1)} s`;

    function show({worker, error, stats, leases}) {
        at("said").textContent = error ?? `as worker ${worker} sees them, and all workers share them`;
        if (error) return;
        at("counts").textContent =
            `${stats.leased} leased, ${stats.idle} idle, ${stats.waiting} waiting; ` +
            `lent ${stats.acquired} times, ${stats.built} built, ` +
            `${stats.reclaimed} taken back from the dead, ${stats.timeouts} timeouts`;
        const states = ["leased", "idle", "building"].flatMap(state => Array(stats[state]).fill(state));
        while (states.length < stats.max_size) states.push("free");
        at("objects").replaceChildren(...states.map(state => element("div", state, state)));
        const held = leases.map(({process_name, pid, age, where}) =>
            row("td", `${process_name} (${pid})`, time(age), where?.split("/").pop() ?? ""));
        at("holders").replaceChildren(row("th", "process", "for", "since line"), ...held);
        at("longest").textContent = `up to ${time(stats.wait_longest)}`;
        const {counts, bounds} = stats.wait, most = Math.max(1, ...counts);
        at("waits").replaceChildren(...counts.map((count, each) => {
            const bar = element("i", "");
            bar.style.height = `${4.5 * count / most}rem`;
            return element("div", "", count || "", bar, each in bounds ? time(bounds[each]) : "more");
        }));
    }

    let late;
    new EventSource("events").onmessage = event => {
        clearTimeout(late);
        late = setTimeout(() => document.body.className = "lost", 1500);
        document.body.className = "";
        show(JSON.parse(event.data));
    };

    let asking = new AbortController();
    at("words").oninput = async event => {
        asking.abort();  // hangs up: what was typed before is asked for in vain
        asking = new AbortController();
        const url = `search?q=${encodeURIComponent(event.target.value)}`;
        const answer = await fetch(url, {signal: asking.signal}).catch(() => null);
        if (!answer?.ok) return;
        at("found").replaceChildren(...(await answer.json()).map(([title, extract]) =>
            element("p", "", element("b", "", title), ` ${extract}`)));
    };
</script>
"""


# --- in the main process --------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2, help="processes that answer (default: 2)")
    parser.add_argument("--size", type=int, default=4, help="indexes that they share (default: 4)")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: 8000)")
    options = parser.parse_args()
    if min(options.workers, options.size) < 1:
        parser.error("--workers and --size must be 1 or more")
    try:
        socket.create_server((HOST, options.port)).close()
    except (OSError, OverflowError) as error:
        parser.error(f"--port {options.port}: {error}")
    os.environ["CATALOGUES"] = str(options.size)  # for the workers, which import this module
    try:
        pool = open_pool()  # from now on used by this process, too: workers may come and go
    except (PoolError, ValueError) as error:
        sys.exit(f"web.py: error: {error}")
    uvicorn.run(
        "web:application",
        factory=True,
        host=HOST,
        port=options.port,
        workers=options.workers,
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    del pool


if __name__ == "__main__":
    import web  # by the name that it has in the workers, as have the functions that make the pool

    web.main()
