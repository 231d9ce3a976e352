"""`PoolManager`: starts, finds and ends the process that owns the pools. Runs in worker processes."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
from collections.abc import Callable
from multiprocessing import ProcessError, current_process, util
from multiprocessing.context import BaseContext
from multiprocessing.managers import BaseManager, State, listener_client  # type: ignore[attr-defined]
from typing import Any, TypeVar, overload

from .channel import Channel
from .client import ObjectPool
from .desk import Desk
from .door import Door
from .errors import ManagerLost, PoolClosed, PoolError
from .options import PoolOptions, seconds
from .server import DESK, PoolServer, Settings, configure
from .wire import Address, Connection, connect

__all__ = ["PoolManager"]

T = TypeVar("T")

_SERIALIZER = "mppool"
_HOOKS = ("check", "reset", "close")


def _client(address: Address, authkey: bytes) -> Connection:
    try:
        return connect(address, bytes(authkey))
    except FileNotFoundError as error:
        raise ManagerLost(f"no manager can be reached at {address!r}: {error}") from error


listener_client[_SERIALIZER] = (Door, _client)


class PoolManager(BaseManager):
    """A manager process that owns pools of objects.

    `watch_interval`: seconds between two sweeps of the watchdog, which is only the backstop: the end
    of a process is noticed at once where the platform can tell. All else is as in `BaseManager`.
    """

    _Server = PoolServer

    # Kept by BaseManager, which publishes none of them.
    _address: Address
    _authkey: bytes
    _process: Any
    _registry: dict[str, Any]
    _serializer: str
    _state: State

    def __init__(
        self,
        address: Address | None = None,
        authkey: bytes | None = None,
        *,
        ctx: BaseContext | None = None,
        watch_interval: float = 1.0,
    ) -> None:
        if watch_interval is None:
            raise TypeError("watch_interval must be a number of seconds: None")
        seconds("watch_interval", watch_interval)
        super().__init__(address, authkey, serializer=_SERIALIZER, ctx=ctx)
        self._watch_interval = watch_interval
        self._channel: Channel | None = None

    def start(self, initializer: Callable[..., object] | None = None, initargs: Any = ()) -> None:
        """Start the manager's process; `initializer(*initargs)` is called in it first.

        `PoolError` in a daemonic process, which may have no children; `ManagerLost` if the new process
        ends before it serves, for instance because the address is in use.
        """
        if current_process().daemon:
            raise PoolError(
                "a daemonic process may not start a manager: start it in the parent and pass the pool"
            )
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable: {initializer!r}")
        settings = Settings(self._watch_interval, os.getpid())
        try:
            super().start(_prepare, (settings, initializer, initargs))
        except EOFError:
            raise ManagerLost("the manager's process ended while it started; see what it printed") from None
        channel = self._reach()
        channel.line()
        ending = (self.shutdown, self._process, channel.home)
        self.shutdown = util.Finalize(self, _end, ending, exitpriority=0)

    def get_server(self) -> PoolServer:
        """A server for a process that is to be the manager itself: with `serve_forever()` it ends.

        `ProcessError` if this manager was started or connected before.
        """
        if self._state.value != State.INITIAL:
            raise ProcessError("this manager has been started or connected: its server is elsewhere")
        configure(Settings(self._watch_interval))
        return PoolServer(self._registry, self._address, self._authkey, self._serializer)

    @overload
    def create_pool(
        self, factory: Callable[[], T], *, name: str | None = None, **options: Any
    ) -> ObjectPool[T]: ...

    @overload
    def create_pool(self, factory: str, *, name: str | None = None, **options: Any) -> ObjectPool[Any]: ...

    def create_pool(
        self, factory: Callable[[], Any] | str, *, name: str | None = None, **options: Any
    ) -> ObjectPool[Any]:
        """A new pool of the objects that `factory` makes, in the manager's process.

        `factory` and the hooks `check`, `reset` and `close` have to pickle; the factory can also be an
        import string `"package.module:callable"`. `options` are those of `PoolOptions`.

        Raises `TypeError` or `ValueError` for wrong options, a name that is taken, or what does not
        pickle; `FactoryError` if the manager's process cannot find the factory.
        """
        if not (callable(factory) or isinstance(factory, str)):
            raise TypeError(f"factory must be callable or an import string: {factory!r}")
        if not (name is None or isinstance(name, str)):
            raise TypeError(f"name must be a string or None: {name!r}")
        PoolOptions(**options)
        for hook in _HOOKS:
            _pickled(hook, options.get(hook))
        request = ("create_pool", _pickled("factory", factory), name, _pickled("options", options))
        return self._pool(request)

    def get_pool(self, name: str) -> ObjectPool[Any]:
        """A pool made earlier, by whichever process. `PoolError` if there is none of this name."""
        return self._pool(("get_pool", name))

    def _pool(self, request: tuple[Any, ...]) -> ObjectPool[Any]:
        channel = self._reach()
        _, description = channel.exchange(request)
        return ObjectPool(channel.address, channel.home, description)

    def _reach(self) -> Channel:
        if self._state.value == State.SHUTDOWN:
            raise PoolClosed(f"the manager at {self._address!r} has shut down")
        if self._state.value != State.STARTED:
            raise PoolError("the manager is not running: call start() or connect(), or use it in `with`")
        if self._channel is None:
            self._channel = Channel.to(self._address, None, bytes(self._authkey))
        return self._channel


PoolManager.register(DESK, Desk, exposed=Desk.METHODS, create_method=False)


def _prepare(settings: Settings, initializer: Callable[..., object] | None, initargs: Any) -> None:
    """In the manager's process, before it makes its server."""
    configure(settings)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as SIGINT: what it means to us, our creator decides
    if initializer is not None:
        initializer(*initargs)


def _end(shutdown: Callable[[], object], process: Any, home: str) -> None:
    """Shut the manager down, also if it cannot do it itself: it may stand still, or have been killed."""
    shutdown()
    if process.is_alive():
        process.kill()
        process.join()
    shutil.rmtree(home, ignore_errors=True)


def _pickled(what: str, value: object) -> bytes:
    try:
        return pickle.dumps(value, 5)
    except Exception as error:
        raise TypeError(
            f"{what} {value!r} does not pickle, so it cannot get to the manager's process ({error}). Use a "
            "function at the top level of a module, a functools.partial of one, or, for the factory, an "
            "import string 'package.module:callable'"
        ) from error
