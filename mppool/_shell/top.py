"""`mppool top`: pools, and who holds what of them, live."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import count

from mppool.stats import ObjectInfo, PoolStats

from .listing import LEASES, rows_of_leases
from .managers import look, reach_pools
from .tables import Row, cell, duration, size, table

_POOLS = (
    *("POOL", ">SIZE", ">MAX", ">LEASED", ">IDLE", ">BUILDING", ">WAITING"),
    *(">LEASES /S", ">MEAN WAIT", ">FAILED", ">MEMORY", ">LARGEST"),
)

_BUSY, _BAD = "yellow", "red"

_INTERVAL = 1.0  # seconds

_TERMINATED = 128 + signal.SIGTERM
"""The exit code that shells give a program that SIGTERM has ended."""


@dataclass
class View:
    """What is shown at once."""

    pools: list[tuple[Row, str]] = field(default_factory=list)
    """Rows, each with the colour that it deserves, if any."""
    leases: list[Row] = field(default_factory=list)

    def text(self) -> str:
        """As two tables."""
        return f"{table(_POOLS, [row for row, _ in self.pools])}\n\n{table(LEASES, self.leases)}"


Show = Callable[[View], None]


def watch(name: str | None, interval: float | None, times: int | None) -> None:
    """Show pools, so many times, or until a key or Ctrl-C ends it. Without a name: those of all managers."""
    if name is not None:
        with reach_pools(name):  # or there is nothing to be seen
            pass
    is_live = sys.stdout.isatty()
    if times is None and interval is None and not is_live:
        times = 1
    watcher = Watcher(name or "")
    with contextlib.suppress(KeyboardInterrupt), _screen() if is_live else _lines() as show, _keys() as pause:
        for number in count(1):
            show(watcher.look())
            if number == times or pause(interval or _INTERVAL):
                break


class Watcher:
    """Looks again and again, and works out what has happened in between."""

    def __init__(self, name: str) -> None:
        self._manager, _, self._pool = name.partition("/")
        self._before: dict[tuple[int, str], tuple[float, PoolStats]] = {}

    def look(self) -> View:
        """How things stand now. The first time rates and means are those since the beginning."""
        view, now = View(), {}
        for sight in look()[0]:
            facts = sight.facts
            if self._manager not in ("", sight.name, str(facts and facts.pid)):
                continue
            if facts is None:
                view.pools.append(((f"{sight.name}: {sight.state}", *[None] * (len(_POOLS) - 1)), _BAD))
                continue
            for stats, leases, objects in sight.pools:
                if self._pool in ("", stats.name):
                    key, name = (facts.pid, stats.name), f"{sight.name}/{stats.name}"
                    now[key] = facts.uptime, stats
                    before = self._before.get(key, (0.0, PoolStats(name=stats.name)))
                    row = (*_row(name, now[key], before), *_memory(objects))
                    view.pools.append((row, _BUSY if stats.waiting else ""))
                    view.leases += rows_of_leases(name, leases)
        self._before = now
        return view


def _row(name: str, now: tuple[float, PoolStats], before: tuple[float, PoolStats]) -> Row:
    (uptime, stats), (uptime_before, stats_before) = now, before
    seconds = max(uptime - uptime_before, 0.001)
    acquired = max(stats.acquired - stats_before.acquired, 0)
    waited = max(stats.wait_seconds - stats_before.wait_seconds, 0.0)
    sizes = stats.size, stats.max_size, stats.leased, stats.idle, stats.building, stats.waiting
    wait = duration(waited / acquired) if acquired else None
    return name, *sizes, f"{acquired / seconds:.1f}", wait, stats.failed_builds


def _memory(objects: list[ObjectInfo]) -> Row:
    """What all objects hold, and the largest of them."""
    held = [each.memory for each in objects if each.memory is not None]
    return (size(sum(held)), size(max(held))) if held else (None, None)


# -- where it is shown ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _lines() -> Iterator[Show]:
    """One after the other, for a pipe or a file."""
    yield lambda view: print(view.text(), end="\n\n", flush=True)


def _screen() -> AbstractContextManager[Show]:
    """In the place of what the terminal shows, which comes back afterwards."""
    if os.environ.get("TERM", "dumb") == "dumb":
        return _lines()
    try:
        import rich  # noqa: F401  # the extra `cli`
    except ImportError:
        return _plain_screen()
    return _rich_screen()


@contextlib.contextmanager
def _plain_screen() -> Iterator[Show]:
    def show(view: View) -> None:
        columns, lines = shutil.get_terminal_size()
        text = "\n".join(line[:columns] for line in view.text().splitlines()[:lines])
        print(f"\x1b[H\x1b[J{text}", end="", flush=True)

    print("\x1b[?1049h\x1b[?25l", end="")  # the other screen, and no cursor
    try:
        yield show
    finally:
        print("\x1b[?25h\x1b[?1049l", end="", flush=True)


@contextlib.contextmanager
def _rich_screen() -> Iterator[Show]:
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def made(title: str, head: tuple[str, ...], rows: list[tuple[Row, str]]) -> Table:
        drawn = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
        for number, each in enumerate(head):
            if each.startswith(">"):  # in a narrow terminal the others give way
                words = [*each[1:].split(), *(cell(row[number]) for row, _ in rows)]
                drawn.add_column(each[1:], justify="right", min_width=max(map(len, words)))
            else:
                drawn.add_column(each, overflow="fold")
        for row, style in rows:
            drawn.add_row(*(Text(cell(each)) for each in row), style=style)
        return drawn

    with Live(screen=True, auto_refresh=False) as live:
        yield lambda view: live.update(
            Group(
                made(f"pools at {time.strftime('%X')} (q ends)\n", _POOLS, view.pools),
                made("\nleases\n", LEASES, [(row, "") for row in view.leases]),
            ),
            refresh=True,
        )


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """What waits for so many seconds, and tells whether "q" was typed. The terminal gets its modes back."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        yield lambda seconds: bool(select.select([], [], [], seconds)[0])
        return
    terminal = sys.stdin.fileno()

    def pause(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
            if os.read(terminal, 1) in (b"q", b"Q", b""):
                return True
        return False

    before, on_sigterm = termios.tcgetattr(terminal), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    tty.setcbreak(terminal)
    try:
        yield pause
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, on_sigterm)
