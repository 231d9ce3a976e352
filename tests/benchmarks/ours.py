"""mppool, as its README shows it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mppool import ObjectPool, PoolManager

from .things import Thing

__all__ = ["serve"]


@contextmanager
def serve(size: int, factory: Callable[[], Any] = Thing, **options: Any) -> Iterator[ObjectPool[Any]]:
    """A pool of so many objects, in a manager of its own."""
    manager = PoolManager()
    manager.start(_be_quiet)
    with manager:
        yield manager.create_pool(factory, min_size=size, max_size=size, **options)


def _be_quiet() -> None:
    """In the manager: it need not log each holder that a row kills."""
    logging.getLogger("mppool").setLevel(logging.ERROR)
