"""Screenshots from a few browsers that are shared by many workers, while one browser is killed.

    python examples/screenshots.py [--output DIR]

Who does what:

    main process   serves a small site, hands out its pages, kills a browser on the way
    workers        borrow a browser, have it show a page, save the picture; if it breaks, borrow another
    the pool       keeps at most two browsers, replaces those that are dead or do not answer

The browser is the system's Chromium, driven through Selenium: that is plain Python, speaks a standard
protocol to the driver which the system ships beside its browser, whatever their version, and downloads
nothing. (Playwright is made for browsers of its own, and comes with Node.js.)
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import psutil

from mppool import CallTimeout, FactoryError, LeaseLost, ObjectPool, PoolManager

try:
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService
    from urllib3.exceptions import HTTPError
except ModuleNotFoundError as missing:
    name = str(missing.name).partition(".")[0]
    sys.exit(f"screenshots.py: error: {name} is not installed: pip install 'mppool[examples]'")

PAGES = 24
WORKERS = 4
BROWSERS = 2
ATTEMPTS = 3  # to take one screenshot
WIDTH, HEIGHT = 800, 600
BROWSER_NAMES = ["chromium", "chromium-browser", "google-chrome"]
DRIVER_NAME = "chromedriver"

# Every page is this one. What it shows is drawn by its script, so without a browser there is nothing to see.
PAGE = b"""<!doctype html>
<title>Flower</title>
<link rel="icon" href="data:,">
<body style="margin: 0; background: #113"><canvas style="display: block" width="800" height="600"></canvas>
<script>
    const number = Number(location.pathname.slice(1));
    const pen = document.querySelector("canvas").getContext("2d");
    for (let seed = 0; seed < 400; seed++) {
        const angle = seed * (2.39996 + number / 1000), distance = 13 * Math.sqrt(seed);
        pen.fillStyle = `hsl(${15 * number + distance / 3} 80% 60%)`;
        pen.beginPath();
        pen.arc(400 + distance * Math.cos(angle), 300 + distance * Math.sin(angle), 6, 0, 7);
        pen.fill();
    }
    pen.font = "24px sans-serif";
    pen.fillText(`Flower ${number}`, 20, 40);
</script>
"""


# --- where a browser lives ------------------------------------------------------------------------


class BrowserError(Exception):
    """The browser could not do it; another one may."""


def start_chromium(program: str, driver: str, directory: Path) -> Chrome:
    """Start Chromium and its driver, which keep their files in this directory. Returns what drives it."""
    options = ChromeOptions()
    options.binary_location = program
    options.add_argument("--headless")
    options.add_argument(f"--user-data-dir={tempfile.mkdtemp(dir=directory)}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium refuses to run as root with it
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment |= {"HOME": str(directory), "TMPDIR": str(directory)}
    chromium = Chrome(options, ChromeService(driver, env=environment))
    # A window is larger than what it shows of a page, by more or less. This is what it shows.
    size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    try:
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    except Exception:
        chromium.quit()
        raise
    return chromium


class Browser:
    """The expensive object: Chromium and its driver, a dozen processes.

    `directory` is where they keep their files, and is removed with them when all browsers are gone: a
    browser that was killed cannot do that by itself.
    """

    def __init__(self, program: str, driver: str, directory: Path) -> None:
        self._driver = start_chromium(program, driver, directory)
        try:
            self._chromium = psutil.Process(self._driver.capabilities["goog:processID"])
        except Exception:
            self._driver.quit()  # there is no object yet that could
            raise

    def screenshot(self, url: str) -> bytes:
        """Return what a page looks like, as PNG. `BrowserError` if that cannot be had from this browser."""
        try:
            self._driver.get(url)
            return self._driver.get_screenshot_as_png()
        except (WebDriverException, HTTPError) as error:  # from the browser; on the way to its driver
            raise BrowserError(f"{url}: {type(error).__name__}") from error

    def pid(self) -> int:
        """Return the process id of Chromium."""
        return self._chromium.pid

    def ask(self) -> None:
        """Raise an error if the browser does not answer."""
        self._driver.current_url  # noqa: B018  # asks the browser

    def close(self) -> None:
        """End all its processes, whichever of them still work."""
        family = [self._chromium]
        with contextlib.suppress(psutil.NoSuchProcess):
            family += self._chromium.children(recursive=True)
        with contextlib.suppress(WebDriverException, HTTPError):
            self._driver.quit()
        for process in family:  # nothing, if the driver could do as it was told
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


# --- in a worker ----------------------------------------------------------------------------------


class Shot(NamedTuple):
    """How a screenshot was taken."""

    file: Path
    attempts: int
    browser: int  # the process id of the one that took it
    worker: int  # the same of the worker that it was taken for


def take(pool: ObjectPool[Browser], url: str) -> tuple[bytes, int]:
    """Return a screenshot and the browser that took it. Runs in a worker process."""
    browser = pool.acquire()
    whole = False
    try:
        png, pid = browser.screenshot(url), browser.pid()
        whole = True
    finally:
        pool.release(browser, discard=not whole)  # a broken one is not lent again
    return png, pid


def shoot(pool: ObjectPool[Browser], site: str, output: Path, number: int) -> Shot:
    """Save a screenshot of one page, however many browsers break over it. Runs in a worker process."""
    attempt = 1
    while True:
        try:
            png, browser = take(pool, f"{site}/{number}")
        except (BrowserError, CallTimeout, FactoryError, LeaseLost):
            if attempt == ATTEMPTS:
                raise
            attempt += 1
        else:
            break
    file = output / f"flower-{number:02}.png"
    file.write_bytes(png)
    return Shot(file, attempt, browser, os.getpid())


# --- in the main process --------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Whatever is asked for is the one page."""

    answering = threading.Lock()  # its holder keeps all browsers waiting

    def do_GET(self) -> None:
        """Answer a request."""
        with self.answering:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(PAGE)))
            self.end_headers()
            self.wfile.write(PAGE)

    def log_message(self, *_: object) -> None:
        """The pages that were asked for are no news."""


class Server(ThreadingHTTPServer):
    """The site, in threads of this process."""

    def handle_error(self, *_: object) -> None:
        """A browser that hangs up in the middle of a page was killed, and that is no news either."""


@contextlib.contextmanager
def serve_site() -> Iterator[str]:
    """Serve the site on this machine alone, and return its address."""
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def take_all(pool: ObjectPool[Browser], site: str, output: Path) -> tuple[list[Shot], int]:
    """Have all screenshots taken, and kill a browser in the middle. Returns also which."""
    task = partial(shoot, pool, site, output)
    # The threads of the site run by now, and to fork beside threads would be a gamble.
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as executor:
        early = executor.map(task, range(PAGES * 2 // 3))
        shots = list(islice(early, PAGES // 3))
        killed = shots[-1].browser
        with Handler.answering:
            time.sleep(0.5)  # by then another worker has it, and waits for its page
            psutil.Process(killed).kill()
        late = executor.map(task, range(PAGES * 2 // 3, PAGES))
        return [*shots, *early, *late], killed


def examine(files: list[Path]) -> str | None:
    """Return what is wrong with the screenshots, or None."""
    pictures = {file.read_bytes() for file in files}
    size = WIDTH.to_bytes(4, "big") + HEIGHT.to_bytes(4, "big")
    for picture in pictures:
        if not picture.startswith(b"\x89PNG\r\n\x1a\n") or picture[16:24] != size:
            return f"a screenshot is no PNG of {WIDTH}x{HEIGHT}"
    return None if len(pictures) == PAGES else f"{len(pictures)} different screenshots of {PAGES} pages"


def run(program: str, driver: str, output: Path | None) -> None:
    """Take the screenshots, look at them, and tell about it."""
    os.environ["no_proxy"] = "127.0.0.1,localhost"  # all that is asked for is on this machine
    # Chromium makes a socket there, which fails if the path is long.
    place = None if len(tempfile.gettempdir()) < 36 else "/tmp"  # noqa: S108  # what is made there is private
    with tempfile.TemporaryDirectory(prefix="screenshots-", dir=place) as directory, PoolManager() as manager:
        pool = manager.create_pool(
            partial(Browser, program, driver, Path(directory)),
            isolation="process",
            max_size=BROWSERS,
            call_timeout=30,
            check=Browser.ask,
            close=Browser.close,
        )
        started = time.monotonic()
        with serve_site() as site:
            shots, killed = take_all(pool, site, output or Path(directory))
        seconds, stats = time.monotonic() - started, pool.stats()
        if wrong := examine([shot.file for shot in shots]):
            sys.exit(f"screenshots.py: error: {wrong}")
    workers, again = len({shot.worker for shot in shots}), sum(shot.attempts - 1 for shot in shots)
    print(f"{PAGES} screenshots of {WIDTH}x{HEIGHT}, no two alike, by {workers} workers in {seconds:.1f} s")
    print(f"browser {killed} was killed; {again} of the screenshots took another try")
    print(f"{stats.built} browsers built, {sum(stats.retired.values())} lost, lent {stats.acquired} times")
    if output:
        print(f"they are in {output}")


def find_programs() -> tuple[str | None, str | None]:
    """Return the paths of a browser and of its driver, as far as they are there."""
    return next(filter(None, map(shutil.which, BROWSER_NAMES)), None), shutil.which(DRIVER_NAME)


def main() -> None:
    """Find a browser and use it, or say that there is none."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to keep the screenshots")
    output: Path | None = parser.parse_args().output
    program, driver = find_programs()
    if not program or not driver:
        missing = " and no ".join(["Chromium"] * (not program) + [DRIVER_NAME] * (not driver))
        print(f"skipped: there is no {missing} on PATH (Debian: apt-get install chromium chromium-driver)")
        return
    if output:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--output {output}: {error.strerror}")
    run(program, driver, output)


if __name__ == "__main__":
    main()
