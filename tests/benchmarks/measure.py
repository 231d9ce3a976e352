"""Interleaved runs, medians, ratios.

A block runs some operations and returns what one of them took. Those who are compared take turns, block by
block, and every other round in the opposite order: what else the machine does meanwhile hits all alike. A
ratio is the median of the ratios within each round.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = ["FULL", "QUICK", "Block", "Pace", "Row", "Samples", "Unit", "interleave"]

Block = Callable[[], float]
Samples = dict[str, list[float]]
Unit = Literal["time", "rate", "memory", "count"]


@dataclass(frozen=True)
class Pace:
    """How much is measured."""

    rounds: int
    """Blocks of each of those who are compared."""
    seconds: float
    """Length of a block."""
    kills: int
    starts: int

    def beside_peers(self) -> Pace:
        """For those who are only compared to show the order of magnitude."""
        return replace(self, rounds=max(2, self.rounds // 3))


FULL = Pace(rounds=25, seconds=0.1, kills=200, starts=25)
QUICK = Pace(rounds=3, seconds=0.04, kills=20, starts=3)


@dataclass
class Row:
    """What was measured, and by whom: seconds or bytes for each operation, one sample a block."""

    name: str
    title: str
    unit: Unit
    samples: Samples = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    """What stands where somebody has no figure."""

    def has(self, *who: str) -> bool:
        return all(self.samples.get(each) for each in who)

    def median(self, who: str) -> float:
        return statistics.median(self.samples[who])

    def mean(self, who: str) -> float:
        return statistics.fmean(self.samples[who])

    def worst(self, who: str) -> float:
        return max(self.samples[who])

    def ratio(self, one: str, other: str) -> float:
        """How many times more `one` costs than `other`."""
        pairs = list(zip(self.samples[one], self.samples[other], strict=True))
        return statistics.median(a / b if b else math.inf for a, b in pairs)


def interleave(blocks: Mapping[str, Block], rounds: int) -> Samples:
    """Let them take turns."""
    samples: Samples = {who: [] for who in blocks}
    for number in range(rounds):
        order = list(blocks) if number % 2 == 0 else list(blocks)[::-1]
        for who in order:
            samples[who].append(blocks[who]())
    return samples
