"""`python -m tests.benchmarks`: measure, print the table, write it as JSON."""

from __future__ import annotations

import argparse
import compileall
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import mppool

from . import report
from .bench import Bench
from .clients import ClientError, orderly
from .measure import FULL, QUICK, Pace, Row
from .peers import PEERS, Peer, is_installed
from .rows import ALL, FAMILIES, SINGLES, Family, Single, matches

DESCRIPTORS = 4096
"""For the managers with 500 clients, which inherit it."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    signal.signal(signal.SIGTERM, _leave)  # so that all is cleaned up
    _raise_descriptor_limit()
    compileall.compile_dir(mppool.__path__[0], quiet=2)  # as it is where it is installed
    where = report.machine()
    _print_machine(where)
    pace = QUICK if options.quick else FULL
    wanted = [name for name in ALL if matches(name, options.only or ["*"])]
    missing: dict[str, str] = {}
    rows = _measure(pace, wanted, missing)
    for peer in PEERS if options.peers else ():
        _measure_peer(peer, pace, rows, missing)
    _print_tables(rows, missing)
    settings = {"quick": options.quick, "only": options.only, "peers": options.peers}
    result = report.as_json(where, settings, rows, missing)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten to {options.json}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute, and rough")
    parser.add_argument(
        "--json", type=Path, default=Path("benchmark.json"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="ROW",
        help="rows by name, by the beginning of the name (`call`, `array-result`) or by pattern ('*-64MiB')",
    )
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="without other libraries")
    options = parser.parse_args(arguments)
    for each in options.only or ():
        if not any(matches(name, [each]) for name in ALL):
            parser.error(f"there is no row {each!r}; there are: {' '.join(ALL)}")
    return options


def _leave(signum: int, frame: object) -> NoReturn:
    raise SystemExit(128 + signum)


def _raise_descriptor_limit() -> None:
    try:
        import resource
    except ImportError:
        return  # there is no such limit on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))


# -- measuring --------------------------------------------------------------------------------------------


def _measure(pace: Pace, wanted: list[str], missing: dict[str, str]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    with orderly() as stack:
        bench = Bench(pace, stack)
        for single in _possible(wanted, missing):
            _progress(single.name)
            rows[single.name] = single.run(bench)
        for family in _families(wanted, missing):
            _progress(family.names[0])
            rows |= {row.name: row for row in family.run(bench) if row.name in wanted}
    return rows


def _possible(wanted: list[str], missing: dict[str, str]) -> list[Single]:
    singles = [single for single in SINGLES if single.name in wanted]
    arrays = [single for single in singles if single.name.startswith("array-")]
    if not arrays or is_installed("numpy"):
        return singles
    missing["NumPy"] = "not installed, so there are no arrays: pip install numpy"
    return [single for single in singles if single not in arrays]


def _families(wanted: list[str], missing: dict[str, str]) -> Iterator[Family]:
    for family in FAMILIES:
        if set(family.names).intersection(wanted):
            lacking = family.lacking()
            missing |= lacking
            if not lacking:
                yield family


def _measure_peer(peer: Peer, pace: Pace, rows: dict[str, Row], missing: dict[str, str]) -> None:
    if not is_installed(peer.module):
        missing[peer.name] = f"not installed: pip install {peer.distribution}"
        return
    takes_part = []
    for single in (each for each in SINGLES if each.name in rows):
        reason = peer.why_not(single.name, single.clients)
        if reason is None:
            takes_part.append(single)
        else:
            rows[single.name].notes[peer.name] = reason
    if takes_part:
        _run_beside(peer, takes_part, pace.beside_peers(), rows, missing)


def _run_beside(
    peer: Peer, singles: list[Single], pace: Pace, rows: dict[str, Row], missing: dict[str, str]
) -> None:
    _progress(f"{peer.name} starts")
    try:
        with orderly() as stack:
            opener = stack.enter_context(peer.serve())  # so that its clients leave before it ends
            bench = Bench(pace, stack)
            bench.add(peer.name, opener)
            for single in singles:
                _progress(f"{peer.name}: {single.name}")
                single.run_beside(bench, peer.name, rows[single.name])
    except ClientError as error:
        missing[peer.name] = f"failed: {str(error).strip().splitlines()[-1]}"


def _progress(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


# -- printing ---------------------------------------------------------------------------------------------


def _print_machine(where: dict[str, Any]) -> None:
    load = " ".join(f"{each:.2f}" for each in where["load_average"])
    print(f"Python {where['python']}, {where['platform']}, {where['cpus']} CPUs")
    print(f"load average: {load}" + (" - the machine is busy" if where["load_average"][0] > 0.5 else ""))


def _print_tables(rows: dict[str, Row], missing: dict[str, str]) -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    print()
    print("\n".join(report.rows_table(rows, [peer.name for peer in PEERS])))
    print("\nA peer's (x): how many times mppool's time it takes, measured in turn with it.")
    for name, why in missing.items():
        print(f"{name}: {why}")
    print("\nFigures to reach")
    print("\n".join(report.figures_table(rows)))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os._exit(1)
