"""Where the objects of a pool live on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mppool._validation import expect

from .cluster import on_node, own_node

_SOMETHING = 1  # byte: an actor that needs nothing at all Ray puts anywhere, wherever it is to be


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What each object of a pool needs, and where it is to live: Ray places it.

    An object's process has what is asked for here for itself as long as the object lives. While the cluster
    has no room for it, acquires wait; a `PoolTimeout` says so.

    Args:
        num_cpus: CPUs (default 1).
        num_gpus: GPUs (default 0). Its process sees no others.
        resources: further resources of nodes, by name (default: none).
        strategy: "DEFAULT" (pack, as Ray does by itself) or "SPREAD" over the nodes, or one of
            `ray.util.scheduling_strategies` (default "DEFAULT").
        node: the id of the one node that is to have the objects (default None: any).
        runtime_env: Ray's runtime environment of the objects' processes, and of the control, which has to
            find the factory, too (default None: that of the job).
        control: the id of the node on which the pool itself is to live (default None: that of the process
            that makes it). If that node dies, Ray takes another one.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a number below 0, an unknown strategy, or `node` and a strategy.
    """

    num_cpus: float = 1
    num_gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    strategy: Any = "DEFAULT"
    node: str | None = None
    runtime_env: Mapping[str, Any] | None = None
    control: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_cpus", "num_gpus"):
            _amount(name, getattr(self, name))
        expect(isinstance(self.resources, Mapping), "resources", "numbers by name", self.resources)
        for name, value in self.resources.items():
            _amount(f"resources[{name!r}]", value)
        for name in ("node", "control"):
            value = getattr(self, name)
            expect(value is None or isinstance(value, str), name, "a node's id or None", value)
        fine = self.runtime_env is None or isinstance(self.runtime_env, Mapping)
        expect(fine, "runtime_env", "a mapping or None", self.runtime_env)
        if isinstance(self.strategy, str) and self.strategy not in ("DEFAULT", "SPREAD"):
            raise ValueError(f"strategy must be 'DEFAULT', 'SPREAD' or an object of Ray's: {self.strategy!r}")
        if self.node is not None and self.strategy != "DEFAULT":
            raise ValueError(f"node={self.node!r} says where all objects go: it takes no strategy")

    def of_host(self) -> dict[str, Any]:
        """The options of the actor of an object."""
        return {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "memory": _SOMETHING,
            "lifetime": "detached",
            "resources": dict(self.resources),
            "runtime_env": self.runtime_env and dict(self.runtime_env),
            "scheduling_strategy": self.strategy if self.node is None else on_node(self.node, soft=False),
        }

    def of_control(self) -> dict[str, Any]:
        """Those of the actor of the pool, which needs no CPU of its own."""
        return {
            "num_cpus": 0,
            "memory": _SOMETHING,
            "runtime_env": self.runtime_env and dict(self.runtime_env),
            "scheduling_strategy": on_node(self.control or own_node(), soft=True),
        }

    def __str__(self) -> str:
        """What it asks for, in a text."""
        amounts = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        asked = ", ".join(f"{value:g} {name}" for name, value in amounts.items() if value) or "no resources"
        return asked if self.node is None else f"{asked} on node {self.node[:8]}"


def _amount(name: str, value: Any) -> None:
    fine = isinstance(value, (int, float)) and not isinstance(value, bool)
    expect(fine, name, "a number", value)
    if value < 0:
        raise ValueError(f"{name} must be 0 or more: {value!r}")
