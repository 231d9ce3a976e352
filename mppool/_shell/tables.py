"""Tables and figures as plain text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

Row = Sequence[object]


def table(head: Sequence[str], rows: Iterable[Row]) -> str:
    """Lines of columns. Those whose title begins with ">" stand to the right."""
    cells = [[each.lstrip(">") for each in head], *(list(map(cell, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligns = [">" if each.startswith(">") else "<" for each in head]
    lines = (
        "  ".join(f"{text:{align}{width}}" for text, align, width in zip(row, aligns, widths, strict=True))
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def cell(value: object) -> str:
    """A value in one line, which does nothing to a terminal."""
    text = "-" if value is None or value == "" else str(value)
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def duration(seconds: float) -> str:
    """As 2.5ms, 250ms, 4.2s, 3m20s, 5h01m or 2d03h."""
    if seconds < 0.01:
        return f"{seconds * 1000:.1f}ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 24 else f"{hours // 24}d{hours % 24:02}h"


def size(count: int) -> str:
    """Bytes, as 512B, 2.5KiB, 250MiB or 12.5GiB."""
    if count < 1024:
        return f"{count}B"
    exponent = min((count.bit_length() - 1) // 10, 4)
    number = count / 1024**exponent
    return f"{number:.{0 if number >= 100 else 1}f}{'KMGT'[exponent - 1]}iB"


def plain(value: Any) -> Any:
    """A value of records, mappings and sequences as JSON has it. A number that is infinite is null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, type(None))) else repr(value)


def figures(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The same as lines of a name and a text: `retired.idle`, `3`."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from figures(each, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        yield name, " ".join(map(_figure, value))
    else:
        yield name, _figure(value)


def _figure(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else cell(value)
