"""What a pool relies on of a delegated lease, which its holder gives back, and takes again, by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .durations import Counted


class Delegation(Protocol):
    """What the pool and a holder share of a delegated lease. Nothing of it waits."""

    is_home: bool
    """Whether it is over: the holder does not have the object, and cannot take it again."""

    def begin(self, granted_at: float, uses: int, until: float) -> None:
        """The holder has it since that moment, and may take it again so many times, until another moment."""

    def recall(self) -> bool:
        """The holder is not to take the object again. Whether it `is_home`."""

    def await_home(self, come_home: Callable[[], object]) -> None:
        """Call this, from any thread, whenever the object may have come home."""

    def close(self) -> None:
        """Its lease is over. Where it is not home its holder may not know that yet."""

    @property
    def granted_at(self) -> float | None:
        """Since when the holder has the object; None while it is parked."""

    @property
    def parked_at(self) -> float:
        """When the holder gave it back last."""

    @property
    def uses(self) -> int:
        """How many times the holder has taken it again."""

    @property
    def holds(self) -> Counted:
        """How long it was held each time that the holder gave it back."""
