"""The same pools on a Ray cluster: `RayPoolManager`. Needs the extra `ray`.

    import ray
    from mppool.ray import Placement, RayPoolManager

    ray.init()
    manager = RayPoolManager()
    pool = manager.create_pool(load, each=["small", "large"], placement=Placement(num_gpus=1))

The pool goes to tasks and actors on any node, as an argument or in what they are made of; other drivers find
it by its name. It is the same `ObjectPool`, with the same handles, options and errors as on one machine.

A pool has an actor of its own, its control, and each of its objects has one, in the main thread of which it
lives, with what `Placement` asks for. The control decides who holds what; calls go straight from the holder
to the object, over TCP: so any node must reach the others on any port. Peers prove by a key, which Ray
carries, that they belong to the pool; what they say is not encrypted. Arrays come as copies that may be
written to: between nodes as fast as Ray brings them, on one node not, where Ray shares its memory.

What happens when a party dies. "Here" is in seconds, on three nodes that were simulated on one busy machine.

===============================  ==============================================================  ==========
a holder is killed               with `on_reclaim="reset"` the next in the queue has its object  0.01
                                 else it gets a new one, in a new process                        0.9
its node is killed               likewise                                                        0.3
its node freezes                 likewise, when Ray calls the node dead: silence proves nothing  65
it is only stopped               it keeps what it holds
a waiter is killed               it is out of the queue, and no object goes to it                0.01
a waiter is cancelled by Ray     likewise; on an event loop at once                              5
an object's process is killed    its holder gets `LeaseLost`,                                    0.02
                                 the next acquire a new object                                   0.8
a call takes too long            with `call_timeout` its caller gets `CallTimeout`, the process
                                 is killed, with all that it started, and replaced               1
an object's node is killed       its holder gets `LeaseLost`,                                    1
                                 the next acquire a new object, on another node,                 1.3
                                 or when Ray knows, if `Placement` prefers the dead one          15
an object's node freezes         a call on it gets `Unreachable`, and may have run; the object
                                 is replaced                                                     11
the control is killed            who waits gets `ManagerLost`,                                   0.01
                                 handles of before are `LeaseLost`; objects are closed, and the
                                 next acquire gets a new one of the next control                 2
the control's node is killed     likewise; without `restart` the pool is gone                    18
the control freezes              who asks it gets `ManagerLost`, calls on objects go on          10
the driver ends, with or
without closing the pool         all objects are closed: their `close` has run
the driver is killed, or calls   the pool is gone; the objects' processes close them, unless a
`ray.shutdown()`                 call runs there, and end                                        1
a driver with a pool that is     the pool lives on for others; what the driver held is
"detached" is killed             reclaimed                                                       0.3
the head's node dies             the cluster ends with it, unless Ray is told to keep its state
===============================  ==============================================================  ==========

A holder that is wrongly called dead, as one on a frozen node that thaws, reaches no object that another one
has by then: its handles are `LeaseLost`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, overload

try:
    from ._ray import cluster
except ImportError as _error:
    raise ImportError('mppool.ray needs its library: pip install "mppool[ray]"') from _error

from ._client.making import by_name_or_value, checked, names_main, pickled_recipe
from ._client.pool import AsyncObjectPool, ObjectPool
from ._client.shared import Recipe
from ._pool_info import PoolInfo, new_pool_id
from ._ray.channel import RayChannel
from ._ray.control import Control
from ._ray.host import Host
from ._ray.placement import Placement
from ._remote.arguments import by_value_pickler
from ._validation import expect
from ._wire.connection import DeadlineExceeded
from .errors import ManagerLost, PoolClosed, PoolError, PoolTimeout
from .manager import ANSWER_BOUND
from .options import HOOK_BOUND, with_options

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import Options, ValueOptions

__all__ = ["Placement", "RayPoolManager"]

Placement.__module__ = __name__

T = TypeVar("T")

Lifetime = Literal["job", "detached"]

_LOOK_SECONDS = 0.05
"""Between two tries to take a name: Ray does not tell when it is free."""

_kept: dict[tuple[str, str], Any] = {}
"""The controls that this process has started: without their handles Ray ends them."""


class RayPoolManager:
    """Makes and finds pools on the Ray cluster that this process belongs to: a driver, a task or an actor.

    Nothing is started but what a pool needs. Its methods run in the process that calls them.

    Args:
        namespace: in which Ray looks for the names of pools (default "mppool"). Drivers with the same one
            find each other's pools.

    Raises:
        PoolError: this process belongs to no cluster, or is connected to it by `ray://`. From every method.
    """

    def __init__(self, *, namespace: str = "mppool") -> None:
        expect(isinstance(namespace, str), "namespace", "a string", namespace)
        cluster.check_here()
        self._namespace = namespace

    def __repr__(self) -> str:
        return f"<RayPoolManager namespace={self._namespace!r}>"

    @overload
    def create_pool(
        self,
        factory: Callable[..., Coroutine[Any, Any, T]],
        *,
        name: str | None = None,
        each: Iterable[Any] | None = None,
        exist_ok: bool = False,
        placement: Placement | None = None,
        lifetime: Lifetime = "job",
        restart: bool = True,
        **options: Unpack[Options[T]],
    ) -> AsyncObjectPool[T]: ...

    @overload
    def create_pool(
        self,
        factory: Callable[..., T],
        *,
        name: str | None = None,
        each: Iterable[Any] | None = None,
        exist_ok: bool = False,
        placement: Placement | None = None,
        lifetime: Lifetime = "job",
        restart: bool = True,
        **options: Unpack[Options[T]],
    ) -> ObjectPool[T]: ...

    @overload
    def create_pool(
        self,
        factory: str,
        *,
        name: str | None = None,
        each: Iterable[Any] | None = None,
        exist_ok: bool = False,
        placement: Placement | None = None,
        lifetime: Lifetime = "job",
        restart: bool = True,
        **options: Unpack[Options[Any]],
    ) -> ObjectPool[Any]: ...

    @overload
    def create_pool(
        self,
        factory: None = None,
        *,
        name: str | None = None,
        each: Iterable[T],
        exist_ok: bool = False,
        placement: Placement | None = None,
        lifetime: Lifetime = "job",
        restart: bool = True,
        **options: Unpack[ValueOptions[T]],
    ) -> ObjectPool[T]: ...

    def create_pool(
        self,
        factory: Callable[..., Any] | str | None = None,
        *,
        name: str | None = None,
        each: Iterable[Any] | None = None,
        exist_ok: bool = False,
        placement: Placement | None = None,
        lifetime: Lifetime = "job",
        restart: bool = True,
        **options: Any,
    ) -> ObjectPool[Any]:
        """A new pool, for all processes of the cluster. As `mppool.PoolManager.create_pool`, but for these.

        Args:
            factory: called in the process that each object has to itself, on whichever node that is. What a
                script defines itself travels by value, with cloudpickle.
            name: what `get_pool` finds it by, in the namespace (default: one is made up).
            each: items, as there.
            exist_ok: whether a pool of this name that is there already is returned (default False), if it was
                made of the same factory, items and options.
            placement: what each object needs, and where it is to live (default: `Placement()`).
            lifetime: "job" (default): the pool ends with the process that makes it; with "detached" it
                outlives that, until it is closed.
            restart: whether Ray makes the pool anew if its control dies (default True).
            options: those of `mppool.PoolOptions`, but for `isolation`. `max_size` is by default the number
                of the cluster's CPUs.

        Raises:
            TypeError: as there.
            ValueError: as there: a value out of range, a name that is taken, what the pool of this name has
                otherwise. An `isolation` is given.
            FactoryError: the cluster's nodes cannot find the factory, a hook or the type of an item.
            PoolTimeout: the pool is not there within 60 seconds.
            ManagerLost: its control cannot be started, or is of another version of mppool; the text says why.
            PoolError: this process belongs to no cluster.
        """
        cluster.check_here()
        placement = Placement() if placement is None else placement
        _check(placement, lifetime, restart, options)
        if factory is not None:
            options["isolation"] = "process"
        defaults = {} if each is not None else {"max_size": cluster.cpus()}
        items, _ = checked(factory, name, each, exist_ok, defaults | options)

        patience = time.monotonic() + ANSWER_BOUND

        def ask(by_value: bool) -> ObjectPool[Any]:
            while True:
                if exist_ok:  # an option that is left out matches any
                    with contextlib.suppress(PoolClosed):
                        recipe = _recipe(factory, options, items, by_value)
                        return self._ask(str(name), ("create_pool", name, True, None, *recipe))
                recipe = _recipe(factory, defaults | options, items, by_value)
                try:
                    return self._start(
                        name or f"pool-{os.urandom(4).hex()}", recipe, placement, lifetime, restart
                    )
                except cluster.NAME_TAKEN:
                    if time.monotonic() > patience or not (exist_ok or self._is_ending(str(name))):
                        text = f"name={name!r}: a pool of this name exists already; get_pool() finds it"
                        raise ValueError(text) from None
                time.sleep(_LOOK_SECONDS)

        return by_name_or_value(ask, factory, items)

    def _is_ending(self, name: str) -> bool:
        """Whether the pool of this name is closed, though its control still has the name for a moment."""
        try:
            self._ask(name, ("get_pool", name))
        except PoolClosed:
            return True
        except PoolError:  # it cannot be asked just now
            pass
        return False

    def _start(
        self, name: str, recipe: Recipe, placement: Placement, lifetime: Lifetime, restart: bool
    ) -> ObjectPool[Any]:
        """Have Ray start a control, which makes the pool of this recipe."""
        arguments = self._namespace, name, new_pool_id(), recipe, placement
        actor = cluster.start_control(
            Control,
            *arguments,
            **placement.of_control(),
            max_restarts=-1 if restart else 0,
            lifetime="detached" if lifetime == "detached" else None,
        )
        try:
            pool = self._ask(name, ("get_pool", name))
        except PoolClosed as error:
            why = error.__cause__ or error
            text = f"the control of pool {name!r} cannot be started: {cluster.in_short(why)}"
            raise ManagerLost(text) from why
        except BaseException:
            cluster.kill(actor)
            raise
        if lifetime == "job":
            _keep(self._namespace, name, actor)
        return pool

    def get_pool(self, name: str) -> ObjectPool[Any]:
        """The pool of this name in the namespace, whichever process of the cluster made it.

        Args:
            name: as it was given to `create_pool`.

        Raises:
            PoolError: there is no pool of this name; or this process belongs to no cluster.
            PoolTimeout: its control has not answered within 60 seconds.
            ManagerLost: its control cannot be reached.
        """
        expect(isinstance(name, str), "name", "a string", name)
        try:
            return self._ask(name, ("get_pool", name))
        except PoolClosed:
            known = ", ".join(map(repr, cluster.names_of_pools(self._namespace))) or "none"
            text = f"there is no pool named {name!r} in namespace {self._namespace!r}; known: {known}"
            raise PoolError(text) from None

    def pools(self) -> dict[str, ObjectPool[Any]]:
        """All pools of the namespace by their names, whichever processes made them.

        Raises:
            PoolError: as `get_pool`.
        """
        cluster.check_here()
        pools = {}
        for name in cluster.names_of_pools(self._namespace):
            with contextlib.suppress(PoolClosed):  # just now
                pools[name] = self._ask(name, ("get_pool", name))
        return pools

    def _ask(self, name: str, request: tuple[Any, ...]) -> ObjectPool[Any]:
        """The pool of this name, of which its control is asked. `PoolClosed` if there is none."""
        channel = RayChannel.named(self._namespace, name)
        try:
            channel.find(ANSWER_BOUND, time.monotonic() + ANSWER_BOUND)
            info, _ = self._answer(channel, request)
        except DeadlineExceeded:
            text = f"the control of pool {name!r} lives, but does not answer within {ANSWER_BOUND:g} s"
            raise PoolTimeout(text) from None
        return ObjectPool._known_by(channel, PoolInfo(*info))

    def _answer(self, channel: RayChannel, request: tuple[Any, ...]) -> Any:
        try:
            return channel.request(request, ANSWER_BOUND)[1]
        except PoolError as error:
            if type(error) is not PoolError:
                raise
            raise PoolClosed(str(error)) from None  # it knows no such pool: that is closed, and it ends


# What `help()`, editors and sphinx show: `**options` one by one.
RayPoolManager.create_pool.__signature__ = with_options(  # type: ignore[attr-defined]
    RayPoolManager.create_pool, without="isolation"
)


def _check(placement: Any, lifetime: Any, restart: Any, options: dict[str, Any]) -> None:
    expect(isinstance(placement, Placement), "placement", "a Placement or None", placement)
    cluster.check_options(Host, **placement.of_host())
    expect(isinstance(restart, bool), "restart", "True or False", restart)
    if lifetime not in get_args(Lifetime):
        raise ValueError(f"lifetime must be 'job' or 'detached': {lifetime!r}")
    if "isolation" in options:
        raise ValueError(
            f"isolation={options['isolation']!r}: on a cluster each object has a process of its own"
        )


def _recipe(factory: Any, options: dict[str, Any], items: list[Any], by_value: bool) -> Recipe:
    recipe = pickled_recipe(factory, options, items, by_value)
    if names_main(recipe) and by_value_pickler():  # Ray's processes have another `__main__`
        return pickled_recipe(factory, options, items, by_value=True)
    return recipe


def _keep(namespace: str, name: str, actor: Any) -> None:
    """Keep the handle of a control, without which Ray ends it, and forget those of pools that are closed."""
    if not _kept:
        atexit.register(_end_all, os.getpid())  # runs before Ray's own, which was registered earlier
    for each in set(_kept) - {(namespace, alive) for alive in cluster.names_of_pools(namespace)}:
        if each[0] == namespace:
            _kept.pop(each, None)
    _kept[namespace, name] = actor


def _end_all(pid: int) -> None:
    """At the end of this program: end the pools that end with it, so that the objects' close hooks run."""
    if os.getpid() != pid:  # a forked child has none
        return
    with contextlib.suppress(PoolError):  # this program has left its cluster, and with it these
        cluster.check_here()
        for each in [actor.end.remote() for actor in _kept.values()]:
            with contextlib.suppress(cluster.FAILED):  # it has ended
                cluster.answer(each, HOOK_BOUND)
