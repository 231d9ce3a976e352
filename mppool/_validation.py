"""What callers give, to whatever: how it is checked, looked up, and shown in errors."""

from __future__ import annotations

import math
import reprlib
from enum import Enum
from importlib import import_module
from operator import attrgetter
from typing import Final


class _UseDefault(Enum):
    """The type of `USE_DEFAULT`: a timeout that was left out, as opposed to None (wait for ever)."""

    USE_DEFAULT = "<the pool's timeout>"

    def __repr__(self) -> str:
        return self.value


USE_DEFAULT: Final = _UseDefault.USE_DEFAULT
Timeout = float | None | _UseDefault


def in_short(value: object) -> str:
    """What stands for a value in a text: not too long, and there also if its own `repr` fails."""
    shortener = reprlib.Repr()
    shortener.maxother = shortener.maxstring = 80
    return shortener.repr(value)


def expect(fine: bool, name: str, what: str, value: object) -> None:
    """Raise the `TypeError` of an argument that must be something else, unless it is fine."""
    if not fine:
        raise TypeError(f"{name} must be {what}: {value!r}")


def seconds(name: str, value: object, *, zero: bool = False, none: bool = True) -> None:
    """Refuse what is no number of seconds: positive, or also 0, or None where these are allowed."""
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds{' or None' if none else ''}: {value!r}")
    if math.isnan(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be {'0 or more' if zero else 'more than 0'} seconds: {value!r}")


def resolve(target: object) -> object:
    """What an import string `"package.module:name"` stands for; anything else is returned as it is.

    Raises `ValueError` if the string has another form, `ImportError` or `AttributeError` if it
    leads nowhere.
    """
    if not isinstance(target, str):
        return target
    module, colon, path = target.partition(":")
    if not (module and colon and path):
        raise ValueError(f"an import string reads 'package.module:callable': {target!r}")
    return attrgetter(path)(import_module(module))
