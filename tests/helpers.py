"""What tests share."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import mppool

if TYPE_CHECKING:  # processes that tests start import this, and it takes them long
    import pytest

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
"""The project's directory."""


def stress_seconds() -> float:
    """How long the random part of a stress test lasts: MPPOOL_STRESS_SECONDS."""
    return float(os.environ.get("MPPOOL_STRESS_SECONDS", "0.5"))


def stress_times(times: int) -> int:
    """How often a stress test does what takes as long each time: all of it from 40 seconds on."""
    return int(times * min(1.0, stress_seconds() / 40))


def stress_seed() -> int:
    """The seed of a stress test: MPPOOL_STRESS_SEED, or a new one. A test that fails shows it."""
    seed = int(os.environ.get("MPPOOL_STRESS_SEED") or random.randrange(2**32))
    print(f"MPPOOL_STRESS_SEED={seed}")
    return seed


GREETING = f"mppool: {mppool.__version__}".encode().ljust(64, b"\0")
"""What a manager says to a newcomer, before the nonce."""


def do_without_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process, and those it starts, go the way of platforms that lack what only Linux has."""
    monkeypatch.setenv("MPPOOL_PORTABLE", "1")
    for name, module in list(sys.modules.items()):
        if name.startswith("mppool.") and hasattr(module, "PORTABLE"):
            monkeypatch.setattr(module, "PORTABLE", True)


RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
"""The type of the fixture `run_python`."""

Beside = Callable[..., Any]
"""The type of the fixture `beside`, which returns a future."""


PROMPT = 8.0
"""Seconds that tell what hangs, or waits for a bound, from what a busy machine does late."""


@contextmanager
def promptly() -> Iterator[None]:
    """The block waits for nothing that lasts: no hook, no build, nobody's silence."""
    began = time.monotonic()
    yield
    lasted = time.monotonic() - began
    assert lasted < PROMPT, f"{lasted:.1f} s"


def wait_until(predicate: Callable[[], T], timeout: float = 10, message: str = "") -> T:
    """Wait for something that happens elsewhere, and return what `predicate` then returned.

    The one place where tests may sleep: they wait for what they can see, never for a time that
    they hope is long enough. Raises `AssertionError` after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not (seen := predicate()):
        if time.monotonic() > deadline:
            what = message or getattr(predicate, "__qualname__", repr(predicate))
            raise AssertionError(f"not so after {timeout} s: {what} (last seen: {seen!r})")
        time.sleep(0.005)
    return seen
