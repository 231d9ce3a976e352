"""The options of a pool: their defaults and their validation, in one place."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from typing_extensions import TypedDict

Hook = Callable[[Any], object]


class _UseDefault:
    """The type of `USE_DEFAULT`: a timeout that was left out, as opposed to None (wait for ever)."""

    def __repr__(self) -> str:
        return "<the pool's timeout>"

    def __reduce__(self) -> str:
        return "USE_DEFAULT"


USE_DEFAULT = _UseDefault()
Timeout = float | None | _UseDefault


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """What a pool promises; seconds wherever there is time. A wrong value is named when it is made.

    Raises `TypeError` for a value of the wrong type, `ValueError` for one out of range.
    """

    min_size: int = 0
    """Objects built ahead, in the background."""
    max_size: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Most objects at once."""
    timeout: float | None = 30.0
    """How long `acquire` waits when the call says nothing; None waits for ever."""
    max_waiting: int | None = None
    """Queue length past which `acquire` fails at once."""
    max_idle: float | None = 600.0
    """How long an object above `min_size` may lie idle."""
    max_lifetime: float | None = None
    """Age at which an object is replaced when it is not held, up to 5 % earlier at random."""
    max_uses: int | None = None
    """Leases after which an object is replaced."""
    check: Hook | None = None
    """Before an object is lent; raises or returns False: the object is closed, the next is tried."""
    reset: Hook | None = None
    """After an object comes home; raises: the object is closed and replaced."""
    close: Hook | None = None
    """When an object leaves the pool, for whatever reason but the end of its process."""
    on_reclaim: Literal["close", "reset"] = "close"
    """What becomes of an object whose holder died."""
    max_hold: float | None = None
    """After so long a lease is taken back from a living holder."""
    warn_hold: float | None = None
    """After so long one warning names the holder, and another its late return."""
    order: Literal["lifo", "fifo"] = "lifo"
    """Which idle object goes first."""
    expose: Collection[str] | None = None
    """Names of the attributes callers may use; None: all public ones."""
    isolation: Literal["none", "thread", "process"] = "none"
    """Where an object is made, called for other processes, and closed: in whichever thread serves the
    holder, in one thread of its own, or in the main thread of a process of its own."""
    call_timeout: float | None = None
    """How long one call on an object may take; its caller gets `CallTimeout`, the pool a new object."""

    def __post_init__(self) -> None:
        _whole("min_size", self.min_size, at_least=0)
        _whole("max_size", self.max_size, at_least=1)
        if self.min_size > self.max_size:
            text = f"min_size={self.min_size} is more than max_size={self.max_size}"
            raise ValueError(f"{text} (left out, max_size is the number of CPUs)")
        seconds("timeout", self.timeout, zero=True)
        _whole("max_waiting", self.max_waiting, at_least=0, none=True)
        _whole("max_uses", self.max_uses, at_least=1, none=True)
        for name in ("max_idle", "max_lifetime", "max_hold", "warn_hold", "call_timeout"):
            seconds(name, getattr(self, name), zero=name == "max_idle")
        for name in ("check", "reset", "close"):
            hook = getattr(self, name)
            if hook is not None and not callable(hook):
                raise TypeError(f"{name} must be callable with the object, or None: {hook!r}")
        _one_of("on_reclaim", self.on_reclaim, ("close", "reset"))
        _one_of("order", self.order, ("lifo", "fifo"))
        _one_of("isolation", self.isolation, ("none", "thread", "process"))
        _names("expose", self.expose)

    @functools.cached_property
    def exposed(self) -> frozenset[str] | None:
        """`expose`, to look names up in."""
        return None if self.expose is None else frozenset(self.expose)

    @property
    def traced(self) -> bool:
        """Whether a lease records the file and line that acquired it."""
        return self.warn_hold is not None or self.max_hold is not None


if TYPE_CHECKING:
    T = TypeVar("T")

    class Options(TypedDict, Generic[T], total=False):
        """`PoolOptions` as the keywords of a call, for pools of `T`: to type checkers and editors."""

        min_size: int
        max_size: int
        timeout: float | None
        max_waiting: int | None
        max_idle: float | None
        max_lifetime: float | None
        max_uses: int | None
        check: Callable[[T], object] | None
        reset: Callable[[T], object] | None
        close: Callable[[T], object] | None
        on_reclaim: Literal["close", "reset"]
        max_hold: float | None
        warn_hold: float | None
        order: Literal["lifo", "fifo"]
        expose: Collection[str] | None
        isolation: Literal["none", "thread", "process"]
        call_timeout: float | None


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
    found: object = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _whole(name: str, value: object, *, at_least: int, none: bool = False) -> None:
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number{' or None' if none else ''}: {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}: {value!r}")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}: {value!r}")


def _names(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, str) or not isinstance(value, Collection):
        raise TypeError(f"{name} must be a collection of attribute names or None: {value!r}")
    if not all(isinstance(each, str) and each.isidentifier() for each in value):
        raise TypeError(f"{name} must hold attribute names only: {value!r}")
