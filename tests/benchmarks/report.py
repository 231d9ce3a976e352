"""One table for people, one JSON for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from typing import Any

from .bench import KEPT, LIMIT, MPPOOL, STOCK, beside
from .figures import FIGURES, Figure, Rows
from .measure import Row

__all__ = ["as_json", "figures_table", "machine", "rows_table"]

_NONE = "-"


def machine() -> dict[str, Any]:
    """Where and when this runs."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "load_average": [round(each, 2) for each in os.getloadavg()],
    }


# -- for people -------------------------------------------------------------------------------------------


def rows_table(rows: Rows, peers: Sequence[str]) -> list[str]:
    """Medians, and ratios: how many times faster than stock, how many times the limit.

    A peer's figure comes with how many times longer it takes than mppool.
    """
    present = [peer for peer in peers if any(row.has(peer) or peer in row.notes for row in rows.values())]
    kept = [KEPT] if any(row.has(KEPT) for row in rows.values()) else []
    heading = ["", MPPOOL, STOCK, "stock/mppool", *kept, LIMIT, "mppool/limit", *present]
    lines = [heading]
    for row in rows.values():
        line = [row.title, _value(row, MPPOOL), _value(row, STOCK), _times(row, STOCK, MPPOOL)]
        line += [_value(row, each) for each in kept]
        line += [_value(row, LIMIT), _times(row, MPPOOL, LIMIT)]
        line += [_peer(row, peer) for peer in present]
        lines.append(line)
    return _aligned(lines)


def figures_table(rows: Rows) -> list[str]:
    """What was to be reached, and what was."""
    lines = [["", "to reach", "is", ""]]
    lines += [[figure.row, figure.reach, *_outcome(figure, rows)] for figure in FIGURES]
    return _aligned(lines)


def _outcome(figure: Figure, rows: Rows) -> tuple[str, str]:
    value, verdict = _judged(figure, rows)
    return _NONE if value is None else f"{value:.3g}", verdict


def _judged(figure: Figure, rows: Rows) -> tuple[float | None, str]:
    try:
        value = figure.value(rows)
    except KeyError:
        return None, "not measured"
    return value, "reached" if figure.reached(value) else "NOT REACHED"


def _value(row: Row, who: str) -> str:
    return _formatted(row, row.median(who)) if row.has(who) else row.notes.get(who, _NONE)


def _peer(row: Row, peer: str) -> str:
    value = _value(row, peer)
    return f"{value} ({row.ratio(peer, beside(peer)):.1f} x)" if row.has(peer) else value


def _times(row: Row, one: str, other: str) -> str:
    return f"{row.ratio(one, other):.2f}" if row.has(one, other) else _NONE


def _formatted(row: Row, value: float) -> str:
    if row.unit == "rate":
        return f"{1 / value:,.0f}/s"
    if row.unit == "count":
        return f"{value:,.0f}"
    if row.unit == "memory":
        return f"{value / 1024:,.0f} KiB"
    if value < 0.001:
        return f"{value * 1e6:,.1f} us"
    return f"{value * 1000:,.2f} ms"


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(_padded(line, widths)).rstrip() for line in lines]


def _padded(line: list[str], widths: list[int]) -> Iterable[str]:
    for number, (text, width) in enumerate(zip(line, widths, strict=True)):
        yield f"{text:{'>' if number else '<'}{width}}"


# -- for programs -----------------------------------------------------------------------------------------


def as_json(
    where: dict[str, Any], options: dict[str, Any], rows: Rows, missing: dict[str, str]
) -> dict[str, Any]:
    """All that was measured. Times are in seconds for each operation, memory is in bytes."""
    return {
        "machine": where,
        "options": options,
        "rows": [_row(row) for row in rows.values()],
        "figures": [_figure(figure, rows) for figure in FIGURES],
        "missing": missing,
    }


def _row(row: Row) -> dict[str, Any]:
    ratios = {f"{one}/{other}": row.ratio(one, other) for one, other in _compared(row)}
    return {
        "name": row.name,
        "title": row.title,
        "unit": row.unit,
        "medians": {who: row.median(who) for who in row.samples},
        "worst": {who: row.worst(who) for who in row.samples},
        "ratios": ratios,
        "samples": row.samples,
        "notes": row.notes,
    }


def _compared(row: Row) -> Iterable[tuple[str, str]]:
    pairs = [(STOCK, MPPOOL), (KEPT, MPPOOL), (MPPOOL, LIMIT)]
    pairs += [(who, beside(who)) for who in row.samples if beside(who) in row.samples]
    return (pair for pair in pairs if row.has(*pair))


def _figure(figure: Figure, rows: Rows) -> dict[str, Any]:
    value, verdict = _judged(figure, rows)
    return {"row": figure.row, "reach": figure.reach, "is": value, "verdict": verdict.lower()}
