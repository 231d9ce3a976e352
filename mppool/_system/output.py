"""Where this process prints."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from typing import Any


def print_to_descriptors() -> None:
    """Have what is printed and logged here go to the descriptors 1 and 2, line by line.

    What a program put in the place of `sys.stdout` may need the program. A notebook's kernel has there what
    hands on each text for the cell that ran at the fork, which is over. What comes by its descriptors 1 and 2
    it shows under the cell that runs then.
    """
    for name in ("stdout", "stderr"):
        stream, of_python = getattr(sys, name), getattr(sys, f"__{name}__")
        if _is_file(stream):
            stream.reconfigure(line_buffering=True)  # into a pipe, too, where it is 8 KiB otherwise
        elif stream is not None and _is_file(of_python):  # else 1 or 2 may be any file of the program's
            _replace(name, stream, _open(of_python.fileno()))


def _is_file(stream: object) -> bool:
    """Whether it writes to a descriptor, by itself."""
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() >= 0
    except (OSError, ValueError):  # it writes to memory, or is closed
        return False


def _open(descriptor: int) -> io.TextIOWrapper:
    return open(descriptor, "w", buffering=1, errors="backslashreplace", closefd=False)


def _replace(name: str, old: object, new: Any) -> None:
    setattr(sys, name, new)
    for handler in _handlers():
        if handler.stream is old:
            handler.stream = new


def _handlers() -> Iterator[logging.StreamHandler[Any]]:
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):  # a placeholder has none
            if isinstance(handler, logging.StreamHandler):
                yield handler
