"""What the command understands, what it prints, and with which code it ends."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from mppool import PoolError, __version__
from mppool._system.runtime_dir import shared_dir

from .managers import Failure, reach, reach_pool, reach_pools

_NAME = "the name of a manager, as `mppool ls` shows it, or its pid"
_POOLS = f"{_NAME}; NAME/POOL for one of its pools"
_POOL = f"{_NAME}, for its only pool or the one of its own name; NAME/POOL for another"

_DESCRIPTION = """\
Look at the pools of this user on this machine, and serve some.

A manager goes by its name (that of `mppool.shared_pool` or `mppool serve`), one without a name by that of its
directory; `mppool ls` shows both. What only looks neither starts a manager nor keeps one from ending.
"""

_TOP = """\
Watch pools, and who holds what of them, until q or Ctrl-C. Rates and means are those since the table before;
in the first one, since the manager began. In a terminal it has colours where mppool[cli] is installed; for a
pipe or a file it prints plain tables.
"""

_SERVE = """\
Serve pools in the foreground, for systemd, a container or a terminal, until SIGTERM, SIGINT or `mppool stop`:
then all objects are closed, and the exit code is 0. Other processes find the pools with
`mppool.shared_pool(NAME, ...)` and `mppool.PoolManager.shared(NAME)`.

SETUP is a function that is called once, with the manager:

    def setup(manager):
        manager.create_pool(open_browser, name="browsers", max_size=4)

Then a line on standard output says that all is ready, and READY=1 goes to the socket NOTIFY_SOCKET, if that
is set (systemd: Type=notify). A SETUP that fails ends the command with 1, and leaves nothing behind.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns its exit code: 0 all is well, 1 it failed; argparse ends it with 2."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115  # a shell may have closed it
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)
    try:
        try:
            told = _parser().parse_args(arguments)
            told.run(told)
        finally:
            _flush()
    except BrokenPipeError:
        return 0  # `| head` has what it wants
    except (Failure, PoolError, ValueError, OSError) as error:
        _note(str(error) or repr(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _flush() -> None:
    """Have all be printed now. What cannot be is not tried once more by the interpreter at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _parser() -> argparse.ArgumentParser:
    plain_text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("mppool", description=_DESCRIPTION, formatter_class=plain_text)
    parser.add_argument("--version", action="version", version=f"mppool {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], None], text: str, more: str = ""
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=text, description=more or f"{text}.", formatter_class=plain_text
        )
        made.set_defaults(run=run)
        return made

    command("ls", _ls, "List the managers, with size/max_size of their pools")

    top = command("top", _top, "Watch pools and who holds what, live; q ends it", _TOP)
    top.add_argument("name", metavar="NAME", nargs="?", help=f"{_POOLS} (default: all)")
    top.add_argument("--interval", metavar="SECONDS", type=_seconds, help="between two tables (default: 1)")
    top.add_argument(
        "--count",
        metavar="N",
        type=_number,
        help="tables (default: without end in a terminal or with --interval, else 1)",
    )

    leases = command("leases", _leases, "List who holds what, the longest held first")
    leases.add_argument("name", metavar="NAME", help=_POOLS)

    stats = command("stats", _stats, "Print the figures of pools, which `help(mppool.PoolStats)` explains")
    stats.add_argument("name", metavar="NAME", help=_POOLS)
    stats.add_argument("--json", action="store_true", help="as one JSON document")

    resize = command("resize", _resize, "Change how many objects a pool may have")
    resize.add_argument("name", metavar="NAME", help=_POOL)
    resize.add_argument(
        "size", metavar="SIZE", type=_number, help="most objects; those beyond go as they come home"
    )
    resize.add_argument("--min", metavar="N", type=int, help="objects to keep built (default: as before)")

    refresh = command("refresh", _refresh, "Replace all objects, each as it comes home")
    refresh.add_argument("name", metavar="NAME", help=_POOLS)

    stop = command(
        "stop", _stop, "End a manager: its objects are closed, and what is held or waited for is lost"
    )
    stop.add_argument("name", metavar="NAME", help=_NAME)

    serve = command("serve", _serve, "Serve pools in the foreground", _SERVE)
    serve.add_argument("setup", metavar="SETUP", type=_import_string, help="package.module:setup")
    serve.add_argument("--name", required=True, type=_new_name, help="of letters, digits, '.', '_', '-'")
    return parser


# -- arguments --------------------------------------------------------------------------------------------


def _number(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _import_string(text: str) -> str:
    module, _, function = text.partition(":")
    if not (module and function):
        raise argparse.ArgumentTypeError(f"{text!r} does not read package.module:setup")
    return text


def _new_name(text: str) -> str:
    try:
        shared_dir(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


# -- commands ---------------------------------------------------------------------------------------------


def _note(text: str) -> None:
    """A line for people, beside what the command prints."""
    print("mppool:", " ".join(text.split()), file=sys.stderr)


def _ls(_: argparse.Namespace) -> None:
    from .listing import list_managers

    text, notes = list_managers()
    print(text)
    for each in notes:
        _note(each)


def _top(told: argparse.Namespace) -> None:
    from .top import watch

    watch(told.name, told.interval, told.count)


def _leases(told: argparse.Namespace) -> None:
    from .listing import list_leases

    print(list_leases(told.name))


def _stats(told: argparse.Namespace) -> None:
    from .listing import list_stats

    print(list_stats(told.name, told.json))


def _resize(told: argparse.Namespace) -> None:
    with reach_pool(told.name) as (manager, pool):
        manager.ask("resize", pool, told.min, told.size)


def _refresh(told: argparse.Namespace) -> None:
    with reach_pools(told.name) as (manager, pools):
        for pool in pools.values():
            manager.ask("refresh", pool)


def _stop(told: argparse.Namespace) -> None:
    with reach(told.name) as manager:
        manager.stop()


def _serve(told: argparse.Namespace) -> None:
    from .serve import serve

    serve(told.setup, told.name)
