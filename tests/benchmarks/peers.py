"""Other libraries that share objects between processes, each used in its own way, in as little code.

A peer is measured beside mppool alone, and ended before the next one starts: some keep a machine busy
while they do nothing. None of them takes an object back from a client that died.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .clients import Opener, in_a_process
from .things import Kind, Thing

__all__ = ["PEERS", "RAY_SETTINGS", "Peer", "RayPool", "is_installed"]

OBJECTS = 8
ONE_PROCESS = "in 1 process only"
NOT_OFFERED = "not offered"


@dataclass(frozen=True)
class Peer:
    """One of them."""

    name: str
    module: str
    distribution: str
    serve: Callable[[], AbstractContextManager[Opener]]
    most_clients: int = 8
    lacks: dict[str, str] = field(default_factory=dict)
    """Beginnings of names of rows that it cannot take part in, and why."""

    def why_not(self, row: str, clients: int) -> str | None:
        """What stands in this row instead of a figure."""
        if clients > self.most_clients:
            return ONE_PROCESS
        return next((why for start, why in self.lacks.items() if row.startswith(start)), None)


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


class Calls:
    """A handle: methods of `Thing`, each called through `call(name, *args)`."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.echo = partial(call, "echo")
        self.take = partial(call, "take")
        self.give = partial(call, "give")


# -- Ray: actors in processes of their own, an ActorPool in the client ------------------------------------


class RayPool:
    def __init__(self, ray: Any, actors: list[Any]) -> None:
        self._get = ray.get
        self._pool = importlib.import_module("ray.util").ActorPool(actors)

    def acquire(self) -> Calls:
        actor = self._pool.pop_idle()
        handle = Calls(lambda name, *args: self._get(getattr(actor, name).remote(*args)))
        handle.actor = actor  # type: ignore[attr-defined]
        return handle

    def release(self, handle: Any) -> None:
        self._pool.push(handle.actor)


RAY_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
"""For the environment: no calls home, no files there."""


@contextmanager
def open_ray() -> Iterator[RayPool]:
    """The cluster belongs to the client that starts it."""
    os.environ |= RAY_SETTINGS
    ray: Any = importlib.import_module("ray")
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as home:
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", _temp_dir=home
        )
        try:
            yield RayPool(ray, [ray.remote(Thing).remote() for _ in range(2)])
        finally:
            ray.shutdown()


# -- Pyro5: a daemon with a thread for each connection ----------------------------------------------------


class PyroService:
    """The pool, and all its objects by number."""

    def __init__(self) -> None:
        self._things = [Thing() for _ in range(OBJECTS)]
        self._idle = list(range(OBJECTS))
        self._free = threading.Semaphore(OBJECTS)

    def acquire(self) -> int:
        self._free.acquire()
        return self._idle.pop()

    def release(self, number: int) -> None:
        self._idle.append(number)
        self._free.release()

    def call(self, number: int, name: str, *args: Any) -> Any:
        return getattr(self._things[number], name)(*args)


@contextmanager
def pyro_daemon() -> Iterator[str]:
    server = importlib.import_module("Pyro5.server")
    importlib.import_module("Pyro5").config.THREADPOOL_SIZE = 100
    with tempfile.TemporaryDirectory(prefix="pyro-") as home:
        daemon = server.Daemon(unixsocket=os.path.join(home, "socket"))
        uri = daemon.register(server.expose(PyroService)(), "pool")
        threading.Thread(target=daemon.requestLoop, daemon=True).start()
        yield str(uri)
        daemon.shutdown()


class PyroPool:
    def __init__(self, proxy: Any) -> None:
        self._proxy = proxy

    def acquire(self) -> Calls:
        number = self._proxy.acquire()
        handle = Calls(partial(self._call, number))
        handle.number = number  # type: ignore[attr-defined]
        return handle

    def release(self, handle: Any) -> None:
        self._proxy.release(handle.number)

    def _call(self, number: int, name: str, *args: Any) -> Any:
        if name == "take" and not isinstance(args[0], bytes):
            args = (args[0].tobytes(),)  # Pyro sends no arrays
        if name == "give":
            return self._give(number, *args)
        return self._proxy.call(number, name, *args)

    def _give(self, number: int, kind: Kind, size: int) -> Any:
        data = self._proxy.call(number, "give", "bytes", size)
        return data if kind == "bytes" else importlib.import_module("numpy").frombuffer(data, "u1")


@contextmanager
def open_pyro(uri: str) -> Iterator[PyroPool]:
    importlib.import_module("Pyro5").config.SERIALIZER = "marshal"  # the fastest for bytes
    with importlib.import_module("Pyro5.client").Proxy(uri) as proxy:
        yield PyroPool(proxy)


# -- rpyc: a server with a thread for each connection, and references that call back ----------------------

RPYC_CONFIG = {"allow_pickle": True, "allow_public_attrs": True}


class RpycThing(Thing):
    def take(self, value: Any) -> int:
        return len(_obtain(value))  # otherwise each access would go back to the client


class RpycService:
    def __init__(self) -> None:
        self._idle: list[Thing] = [RpycThing() for _ in range(OBJECTS)]
        self._free = threading.Semaphore(OBJECTS)

    def acquire(self) -> Thing:
        self._free.acquire()
        return self._idle.pop()

    def release(self, thing: Thing) -> None:
        self._idle.append(thing)
        self._free.release()


def _obtain(value: Any) -> Any:
    return importlib.import_module("rpyc.utils.classic").obtain(value)


@contextmanager
def rpyc_server() -> Iterator[str]:
    rpyc: Any = importlib.import_module("rpyc")
    server_class = importlib.import_module("rpyc.utils.server").ThreadedServer
    service = type("Service", (rpyc.Service,), {"exposed_pool": RpycService()})()
    with tempfile.TemporaryDirectory(prefix="rpyc-") as home:
        path = os.path.join(home, "socket")
        server = server_class(service, socket_path=path, protocol_config=RPYC_CONFIG)
        threading.Thread(target=server.start, daemon=True).start()
        yield path
        server.close()


class RpycPool:
    def __init__(self, pool: Any) -> None:
        self._acquire, self._release = pool.acquire, pool.release

    def acquire(self) -> RpycHandle:
        return RpycHandle(self._acquire())

    def release(self, handle: RpycHandle) -> None:
        self._release(handle.thing)


class RpycHandle:
    def __init__(self, thing: Any) -> None:
        self.thing = thing
        self.select = thing.select

    def echo(self, value: Any) -> Any:
        return self.thing.echo(value)

    def take(self, value: Any) -> Any:
        return self.thing.take(value)

    def give(self, kind: Kind, size: int) -> Any:
        return _obtain(self.thing.give(kind, size))


@contextmanager
def open_rpyc(path: str) -> Iterator[RpycPool]:
    factory = importlib.import_module("rpyc.utils.factory")
    connection = factory.unix_connect(path, config=RPYC_CONFIG)
    try:
        yield RpycPool(connection.root.pool)
    finally:
        connection.close()


# -- Dask: actors in the workers of a cluster, a distributed queue of them --------------------------------


@contextmanager
def dask_cluster() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="dask-", ignore_cleanup_errors=True) as home:
        os.environ["DASK_TEMPORARY_DIRECTORY"] = home
        distributed: Any = importlib.import_module("distributed")
        with (
            distributed.LocalCluster(n_workers=2, threads_per_worker=4, dashboard_address=None) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield _fill_queue(distributed, client)


def _fill_queue(distributed: Any, client: Any) -> str:
    things = [client.submit(Thing, actor=True, pure=False) for _ in range(OBJECTS)]
    idle = distributed.Queue("idle", client=client)
    for thing in things:
        idle.put(thing)
    return str(client.scheduler.address)


class DaskPool:
    def __init__(self, idle: Any) -> None:
        self._idle = idle

    def acquire(self) -> Calls:
        future = self._idle.get()
        actor = future.result()
        handle = Calls(lambda name, *args: getattr(actor, name)(*args).result())
        handle.future = future  # type: ignore[attr-defined]
        return handle

    def release(self, handle: Any) -> None:
        self._idle.put(handle.future)


@contextmanager
def open_dask(address: str) -> Iterator[DaskPool]:
    distributed: Any = importlib.import_module("distributed")
    with distributed.Client(address) as client:
        yield DaskPool(distributed.Queue("idle", client=client))


# -- all of them ------------------------------------------------------------------------------------------


@contextmanager
def _served(
    server: Callable[[], AbstractContextManager[str]], opener: Callable[[str], AbstractContextManager[Any]]
) -> Iterator[Opener]:
    with in_a_process(server) as address:
        yield partial(opener, address)


PEERS: tuple[Peer, ...] = (
    Peer(
        name="Ray",
        module="ray",
        distribution="ray",
        serve=lambda: nullcontext(open_ray),
        most_clients=1,
        lacks={"acquire-release": "in the caller", "apply": NOT_OFFERED, "cursor": NOT_OFFERED},
    ),
    Peer(
        name="Pyro5",
        module="Pyro5",
        distribution="Pyro5",
        serve=partial(_served, pyro_daemon, open_pyro),
        lacks={"apply": NOT_OFFERED, "cursor": NOT_OFFERED},
    ),
    Peer(
        name="rpyc",
        module="rpyc",
        distribution="rpyc",
        serve=partial(_served, rpyc_server, open_rpyc),
        lacks={"apply": NOT_OFFERED},
    ),
    Peer(
        name="Dask",
        module="distributed",
        distribution="distributed",
        serve=partial(_served, dask_cluster, open_dask),
        lacks={"apply": NOT_OFFERED, "cursor": NOT_OFFERED},
    ),
)
