"""What is asked of Ray, by its public names alone: whether it is there, what lives, and actors by name."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future
from typing import Any

import ray
import ray.actor
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    RayError,
)
from ray.util.client import ray as ray_client
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mppool.errors import PoolError

NAME_TAKEN = ValueError
CUT_OFF_FOR_NOW = ActorUnavailableError
TOO_LATE = GetTimeoutError
DEAD = ActorDiedError
FAILED = RayError

_CONTROL = "pool "
"""How the names of controls begin."""


def check_here() -> None:
    """Raise `PoolError` unless this process belongs to a cluster."""
    if ray_client.is_connected():
        raise PoolError(
            "this program is connected to its cluster by ray://, so it is on no node, and objects cannot be "
            "reached from here: run it on a node, with ray.init()"
        )
    if not ray.is_initialized():
        raise PoolError("this process belongs to no Ray cluster: call ray.init() or ray.init(address=...)")


def own_node() -> str:
    """The id of the node that this process is on."""
    return str(ray.get_runtime_context().get_node_id())


def own_address() -> str:
    """The host by which other nodes reach this one."""
    return str(ray.util.get_node_ip_address())


def own_actor() -> Any:
    """The actor that this process is."""
    return ray.get_runtime_context().current_actor


def is_dead(node: str) -> bool:
    """Whether Ray says that the node is dead. Of one that it does not know, or no more, it says nothing."""
    return any(each["NodeID"] == node and not each["Alive"] for each in ray.nodes())


def is_alive(node: str) -> bool:
    """Whether Ray says that it is alive."""
    return any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())


def cpus() -> int:
    """Those of the cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def on_node(node: str, *, soft: bool) -> Any:
    """Where an actor is to be; `soft`: or elsewhere, if that node is dead."""
    return NodeAffinitySchedulingStrategy(node, soft=soft)


def check_options(kind: type, **options: Any) -> None:
    """Raise `TypeError` or `ValueError` for what Ray does not take."""
    ray.remote(kind).options(**options)


def start(kind: type, *args: object, **options: Any) -> Any:
    """An actor that is made with these arguments. `ValueError` if its name is taken."""
    return ray.remote(kind).options(**options).remote(*args)


def control_of(namespace: str, name: str) -> Any:
    """The control of the pool with this name. `ValueError` if there is none."""
    return ray.get_actor(_CONTROL + name, namespace)


def start_control(kind: type, namespace: str, name: str, *args: object, **options: Any) -> Any:
    """The control of a new pool. `ValueError` if its name is taken."""
    return start(kind, namespace, name, *args, name=_CONTROL + name, namespace=namespace, **options)


def names_of_pools(namespace: str) -> Collection[str]:
    """Of which there is a control."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    names = sorted(each["name"] for each in actors if each["namespace"] == namespace)
    return [each.removeprefix(_CONTROL) for each in names if each.startswith(_CONTROL)]


def answer(ref: Any, timeout: float | None = None) -> Any:
    """What an actor answers, within so many seconds."""
    return ray.get(ref, timeout=timeout)


def future(ref: Any) -> Future[Any]:
    """What an actor will answer. What is to be done then is done on a thread of Ray's: it must not wait."""
    return ref.future()  # type: ignore[no-any-return]


def in_short(error: BaseException) -> str:
    """What Ray says of an error, for people: its own texts have many lines."""
    first, *others = str(getattr(error, "cause", None) or error).strip().splitlines()
    return f"{first.strip()} {others[-1].strip()}" if others else first


def has_failed_to_begin(error: BaseException) -> bool:
    """Whether an actor is dead because it could not be made, which it will be no other time."""
    return isinstance(error, DEAD) and error.actor_init_failed


def leave_actor() -> None:
    """End the actor that this process is, from its method."""
    ray.actor.exit_actor()


def kill(actor: Any) -> None:
    """End an actor for good, at once."""
    ray.kill(actor, no_restart=True)
