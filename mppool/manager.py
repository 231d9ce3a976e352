"""`PoolManager`: starts, finds and ends the process that owns the pools."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from multiprocessing import ProcessError, current_process, util
from multiprocessing.context import BaseContext
from multiprocessing.managers import BaseManager, BaseProxy, Server, State  # type: ignore[attr-defined]
from types import NoneType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from ._client.channel import Channel
from ._client.connect import key_errors
from ._client.making import HANGS, by_name_or_value, checked, named_recipe, pickled_recipe
from ._client.pool import AsyncObjectPool, ObjectPool
from ._client.shared import Recipe, SharedChannel
from ._pool_info import PoolInfo, new_pool_id
from ._process.info import ManagerInfo
from ._process.launcher import Child
from ._server.server import SERIALIZER, PoolServer
from ._server.supervisor import Supervisor
from ._system.program import token
from ._system.recursion import may_start_manager
from ._system.runtime_dir import LONGEST_PATH, HeldDir, RuntimeDir, shared_dir
from ._validation import expect, seconds
from ._wire.connection import Address, DeadlineExceeded
from ._wire.handshake import Key
from ._wire.listener import Endpoint
from .errors import ManagerLost, PoolClosed, PoolError, PoolTimeout
from .options import PoolOptions, is_coroutine_function, with_options

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import Options, ValueOptions

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741

_SHORTEST_KEY = 16  # bytes

_LAST_PORT = 65535

ANSWER_BOUND = 60.0
"""Seconds in which a manager that lives has to find a factory, imports included."""

_LIKE_TCP = re.compile(r"[^/\\\0]*:\d*")


class PoolManager(BaseManager):
    """A manager process that owns pools of objects; a `multiprocessing.managers.BaseManager` in all else.

    `start()` or `with` starts the process, `connect()` finds one that runs, `shutdown()` or the end of the
    block ends it. Its methods run in the process that calls them. It does not pickle: pools do.

    The manager knows what a script defined before it was started. What a notebook defines later belongs in a
    module; what it defines anew is the old code in the manager.

    What happens when

    - `shutdown()` is called, the `with` block or the interpreter ends, no reference to this object is left,
      or SIGTERM comes: every object's `close` runs once (not that of an object whose call goes on for 2
      seconds more), then the manager ends; after SIGTERM to it alone, with `restart=True`, a successor takes
      over;
    - the creating process is killed, or replaces itself by `exec`: the manager closes all objects and is gone
      within 2 seconds, with its socket, its directory and the objects' processes;
    - Ctrl-C is pressed: the program decides, as without a pool; when it ends, nothing stays;
    - the manager is killed: every caller gets `ManagerLost`, those who wait included;
    - the manager freezes: calls get `ManagerLost` after two silent bounds of 5 seconds each; a call that
      merely takes long goes on, and what is released meanwhile comes home when the manager wakes up;
    - a cleaner of temporary directories comes: systemd's passes the manager's directory by, others find files
      that look new, and what is gone all the same is put back within a second, while clients wait; where it
      cannot be, they get a `ManagerLost` that says so;
    - the manager has no threads or descriptors left (it takes what its hard limit allows): clients that it
      cannot serve get `ManagerLost`; it goes on serving the others, and serves all again when there is room;
    - a manager is wanted in a daemonic process: `PoolError` that says to start it in the parent;
    - a module that is being imported makes a manager and a pool: under fork both are there at once. Under
      spawn and forkserver the manager would have to import the module, and so make one itself: `PoolError`;
    - an import of a factory hangs in the manager: `PoolTimeout` after 60 seconds; the manager goes on.

    With `restart=True`

    - a manager that dies of anything else gets a successor, at the same address and with the same pools. Who
      is in a call or waits gets `ManagerLost` (`LeaseLost` in a call on a process of its own), handles of
      before are `LeaseLost`, and the next acquire gets a new object;
    - a client that connects while there is no manager waits up to 5 seconds for the successor;
    - a pool whose factory cannot be found again is closed, and the log says why; the other pools come back;
    - a manager that dies 5 times within 60 seconds is given up: every client gets `ManagerLost`, which says
      so;
    - a thread of this process has the successor started. Under fork a process does that which `start()`
      forks and which has no threads: the successor begins with the memory of that moment. A fork of this
      program's own is one beside a thread, of which Python 3.12 and later warn.

    Args:
        address: a path, or (host, port) for TCP, of IPv4 or IPv6; port 0 is a free one. A socket that a dead
            process left at the path is taken over. None (default): a socket in a private directory of its
            own, which lies in MPPOOL_RUNTIME_DIR, or else in /tmp/mppool-<uid> (on macOS in the user's own
            temporary directory).
        authkey: the key, bytes; None (default): the key that lies beside that socket, for `connect()`, else
            this process's own. Who has it can run code in the manager; there is no encryption on TCP.
        ctx: how the process is started (default: `multiprocessing`'s default), and processes of objects:
            `multiprocessing.get_context("spawn")`, "fork" or "forkserver".
        watch_interval: seconds (default 1.0) between two sweeps of the watchdog, which is the backstop: the
            end of a process is noticed at once where the platform can tell.
        restart: whether a manager that dies gets a successor (default False).

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a `watch_interval` that is not more than 0; a path that is empty, abstract or too long; an
            address "host:port", which has to be a tuple; a port that is none; or on TCP a key of less than 16
            bytes.
    """

    # Kept by BaseManager, which publishes none of them.
    _address: Address  # None until it is known
    _authkey: Key
    _ctx: BaseContext
    _registry: dict[str, Any]
    _state: State
    _Server = PoolServer

    def __init__(
        self,
        address: Address | None = None,
        authkey: bytes | None = None,
        *,
        ctx: BaseContext | None = None,
        watch_interval: float = 1.0,
        restart: bool = False,
    ) -> None:
        seconds("watch_interval", watch_interval, none=False)
        expect(isinstance(restart, bool), "restart", "True or False", restart)
        a_context = "a context, such as multiprocessing.get_context('spawn')"
        expect(ctx is None or hasattr(ctx, "Process"), "ctx", a_context, ctx)
        expect(isinstance(authkey, (bytes, NoneType)), "authkey", "bytes or None", type(authkey))
        _check_address(address)
        super().__init__(address, authkey, serializer=SERIALIZER, ctx=ctx)
        self._authkey = Key(self._authkey)
        if isinstance(address, tuple) and len(self._authkey) < _SHORTEST_KEY:
            text = f"authkey has {len(self._authkey)} bytes: on TCP it has to have {_SHORTEST_KEY}"
            raise ValueError(f"{text}, since a shorter one can be found out from the pools that it opens")
        self._has_own_key = authkey is not None
        self._watch_interval = watch_interval
        self._restart = restart
        self._runtime_dir: str | None = None  # unknown of a manager that another process started
        self._supervisor: Supervisor | None = None
        self._end: util.Finalize[Any] | None = None
        self._channel: Channel | None = None
        self._shared: SharedChannel | None = None  # the same, of a manager with a name
        self._is_used = False  # by this object, of such a one

    def __reduce__(self) -> NoReturn:
        raise TypeError("a PoolManager does not pickle: pass a pool, or connect() in the other process")

    def __repr__(self) -> str:
        states = {State.INITIAL: "not started", State.STARTED: "started", State.SHUTDOWN: "shut down"}
        return f"<PoolManager {states[self._state.value]}, address={self._address!r}>"

    @classmethod
    def shared(cls, name: str, *, linger: float | None = 10.0) -> PoolManager:
        """The manager with this name, of all processes of this user on this machine: one that is connected.

        Where none runs, it is started: a process of its own, which outlives the one that started it. It has
        the environment and the working directory of that one, and prints to a file beside its socket. It
        ends some time after the last process has that used it: opened it, or used a pool of it. If it dies,
        the next acquire of any process starts it anew, and with it the pool that this is of.

        At the end of a `with` block this process uses it no more, unless it has opened it elsewhere, too.
        `shutdown()` ends it, for all.

        Args:
            name: of letters, digits, ".", "_" and "-".
            linger: seconds (default 10.0) for which it stays after its last user: the longest that those ask
                for who are there then. None: until `shutdown()`.

        Raises:
            ValueError: it is no such name, or too long; or `linger` is less than 0.
            TypeError: an argument of the wrong type.
            ManagerLost: It cannot be started, or reached: the text says why. It is of another version of
                mppool or of Python.
        """
        return cls._named(name, linger).__enter__()

    @classmethod
    def _named(cls, name: str, linger: float | None) -> PoolManager:
        """The same, which is first used by its first request."""
        expect(isinstance(name, str), "name", "a string", name)
        seconds("linger", linger, zero=True)
        path = shared_dir(name)
        manager = cls(RuntimeDir(path).socket)
        manager._runtime_dir = path
        manager._channel = manager._shared = SharedChannel.named(path, math.inf if linger is None else linger)
        manager._state.value = State.STARTED
        return manager

    def __enter__(self) -> PoolManager:  # noqa: PYI034  # `Self` came with Python 3.11
        if self._shared is None:
            super().__enter__()
        # A manager that imports what calls this is used later, if at all.
        elif not self._is_used and may_start_manager():
            self._shared.join()
            self._is_used = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._shared is None:
            self.shutdown()
        elif self._is_used:
            self._is_used = False
            self._shared.leave()

    def start(self, initializer: Callable[..., object] | None = None, initargs: Any = ()) -> None:
        """Start the manager's process.

        Args:
            initializer: called first in it, and in each object's own process (default None: nothing is).
            initargs: the arguments of `initializer` (default: none).

        Raises:
            TypeError: `initializer` is not callable.
            PoolError: this process is daemonic, and may have no children; or a manager imports, to find a
                factory, the module that calls this.
            ManagerLost: it cannot listen at its address, or the new process ended before it served.
            ProcessError: it was started, connected or shut down before.
        """
        if current_process().daemon:
            raise PoolError("a daemonic process starts no manager: start it in the parent and pass the pool")
        if not may_start_manager():
            raise PoolError(
                "a manager imports this module to find a factory, so the module may not start one: start it "
                "in a function, or under `if __name__ == '__main__'`"
            )
        expect(initializer is None or callable(initializer), "initializer", "callable", initializer)
        self._check_unused()
        call = None if initializer is None else partial(initializer, *initargs)
        try:
            info, endpoint = self._listen(
                creator_pid=os.getpid(), creator_token=token(), restart=self._restart, initializer=call
            )
        except OSError as error:
            what = f"listen at {self._address!r}" if self._address else "be started"
            raise ManagerLost(f"no manager can {what}: {error}") from error
        supervisor = Supervisor(self._Server, info, endpoint, self._registry, self._ctx)
        supervisor.start()
        self._supervisor, self._address, self._runtime_dir = supervisor, info.address, info.runtime_dir
        self._state.value = State.STARTED
        self._end = util.Finalize(self, _shut_down, (supervisor, self._state), exitpriority=0)

    def _listen(self, **more: Any) -> tuple[ManagerInfo, Endpoint]:
        """What a manager works with, made by the process that starts it or is to be it.

        `more` is what only a manager that has a creating process is told. `OSError` if the address cannot be
        had.
        """
        endpoint = Endpoint(self._address, HeldDir.create(self._authkey))
        info = ManagerInfo(
            address=endpoint.address,
            runtime_dir=endpoint.directory.path,
            key=self._authkey,
            start_method=self._ctx.get_start_method(),
            watch_interval=self._watch_interval,
            **more,
        )
        return info, endpoint

    def _check_unused(self) -> None:
        if self._state.value != State.INITIAL:
            what = "shut down" if self._state.value == State.SHUTDOWN else "already started or connected"
            raise ProcessError(f"this manager has {what}: make a new PoolManager")

    @property
    def _process(self) -> Child | None:
        return None if self._supervisor is None else self._supervisor.process

    def connect(self) -> None:
        """Find the manager that another process has started, or is, at this address.

        Raises:
            ValueError: no address was given.
            ManagerLost: no manager can be reached there, or it has another key or user; or the key beside
                the socket is another user's, open to others, or a link.
        """
        if not self._address:
            raise ValueError("connect() needs an address: that of the manager, which its `address` tells")
        if isinstance(self._address, str) and not self._has_own_key:
            with key_errors(self._address):
                self._authkey = Key(RuntimeDir.key_beside(self._address) or self._authkey)
        super().connect()

    def shutdown(self) -> None:  # type: ignore[override]
        """End the manager: every object's `close` runs, and what is held or waited for is lost.

        Returns when its process has ended; a `close` is waited for no longer than 10 seconds. A second call
        does nothing.

        Raises:
            PoolError: this object has started no manager: one that is connected goes on without it, but for
                one with a name.
        """
        if self._shared is not None:
            self._shared.stop()
            return
        if self._end is None:
            raise PoolError("this object has started no manager, so it cannot end one")
        self._end()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the process that this manager has started.

        Args:
            timeout: seconds (default None: as long as it lasts).
        """
        if self._process is not None:
            self._process.join(timeout)

    def get_server(self) -> Server:
        """A server for a process that is to be the manager itself: with `serve_forever()` it ends.

        Raises:
            OSError: it cannot listen at its address. Nothing is left behind.
            ProcessError: this manager was started, connected or shut down before.
        """
        self._check_unused()
        return self._Server(self._registry, *self._listen())

    @overload
    def create_pool(
        self,
        factory: Callable[[], Coroutine[Any, Any, T]],
        *,
        name: str | None = None,
        each: None = None,
        exist_ok: bool = False,
        **options: Unpack[Options[T]],
    ) -> AsyncObjectPool[T]: ...

    @overload
    def create_pool(
        self,
        factory: Callable[[I], Coroutine[Any, Any, T]],
        *,
        name: str | None = None,
        each: Iterable[I],
        exist_ok: bool = False,
        **options: Unpack[Options[T]],
    ) -> AsyncObjectPool[T]: ...

    @overload
    def create_pool(
        self,
        factory: Callable[[], T],
        *,
        name: str | None = None,
        each: None = None,
        exist_ok: bool = False,
        **options: Unpack[Options[T]],
    ) -> ObjectPool[T]: ...

    @overload
    def create_pool(
        self,
        factory: Callable[[I], T],
        *,
        name: str | None = None,
        each: Iterable[I],
        exist_ok: bool = False,
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
        **options: Unpack[ValueOptions[T]],
    ) -> ObjectPool[T]: ...

    def create_pool(
        self,
        factory: Callable[..., Any] | str | None = None,
        *,
        name: str | None = None,
        each: Iterable[Any] | None = None,
        exist_ok: bool = False,
        **options: Any,
    ) -> ObjectPool[Any]:
        """A new pool of the objects that `factory` makes: in the manager's process, for all processes.

        With `each` it has a place for each item. Whatever becomes of the object there (a crash, its holder's
        death, `max_lifetime`, `refresh`, a build that hangs, the manager's restart), the next one is made of
        the same item. With a smaller `max_size` so many items have an object at once, and the next object is
        of the item that was longest without. Without a factory it lends the items themselves: see
        `ObjectPool`.

        Runs in this process and asks the manager, which calls `factory` when an object is needed.

        Args:
            factory: a callable without arguments that pickles, or an import string "package.module:callable".
                Called where the objects live: see the option `isolation`. With `each` it gets an item, or may
                be left out. If it is a coroutine function, the pool is an `AsyncObjectPool`.
            name: what `get_pool` finds the pool by, and what logs and errors show (default: one is made up).
            each: items that pickle, in any iterable; it is read once (default None: the factory gets none).
            exist_ok: whether a pool of this name that is there already is returned (default False), if it was
                made of the same factory, items and options. An option that is left out matches any.
            options: those of `mppool.PoolOptions`, which says what each means, its unit and its default.
                `check`, `reset` and `close` have to pickle as well.

        Raises:
            TypeError: a value of the wrong type, an unknown option (the text has the nearest known one), a
                coroutine function as factory with `isolation="none"`, or as a hook without such a factory; or
                what does not pickle (the text says what to use instead). Where cloudpickle is installed,
                lambdas, local classes and what a notebook defines travel by value.
            ValueError: a value out of range, no item, fewer items than `max_size`, a name that is taken, with
                `exist_ok` what the pool of this name has otherwise, or that no name is given; or, without a
                factory, an option of objects (`isolation`, `call_timeout`, `build_timeout`, `expose`, `keep`,
                `reset`, `close`).
            FactoryError: the manager's process cannot find the factory, a hook or the type of an item.
            PoolTimeout: it has not found them within 60 seconds: an import hangs there.
            PoolError: the manager is not running.
            PoolClosed: the manager has shut down.
            ManagerLost: the manager died, froze, or cannot be reached.
        """
        items, made_with = checked(factory, name, each, exist_ok, options)
        if self._shared is not None:
            return self._create_shared(name, exist_ok, factory, made_with, options, items)

        def ask(by_value: bool) -> ObjectPool[Any]:
            request = "create_pool", name, exist_ok, None
            recipe = pickled_recipe(factory, options, items, by_value)
            return self._pool_of(*self._ask((*request, *recipe), HANGS.format(factory)))

        return by_name_or_value(ask, factory, items)

    def _create_shared(
        self,
        name: str | None,
        exist_ok: bool,
        factory: Any,
        made_with: PoolOptions,
        options: dict[str, Any],
        items: list[Any],
    ) -> ObjectPool[Any]:
        """A pool of a manager with a name. It is made of what other programs can find, too."""
        recipe = named_recipe(factory, options, items)
        pool_id = new_pool_id()
        if may_start_manager():
            request = ("create_pool", name, exist_ok, pool_id, *recipe)
            info, made_of = self._ask(request, HANGS.format(factory))
            return self._pool_of(info, None if name is None else made_of)
        asynchronous = is_coroutine_function(factory)  # a name cannot be looked up while modules are imported
        info = PoolInfo.of(pool_id, str(name), made_with, factory is None, asynchronous)
        return self._pool_of(info, recipe)

    def get_pool(self, name: str) -> ObjectPool[Any]:
        """The pool of this name, whichever process made it. Runs in this process and asks the manager.

        Args:
            name: as it was given to `create_pool`.

        Raises:
            PoolError: there is no pool of this name, or the manager is not running.
            PoolTimeout: it has not answered within 60 seconds.
            PoolClosed: the manager has shut down.
            ManagerLost: the manager died, froze, or cannot be reached.
        """
        return self._pool_of(*self._ask(("get_pool", name), "has not looked up the name"))

    def pools(self) -> dict[str, ObjectPool[Any]]:
        """All pools of the manager by their names, whichever processes made them.

        Raises:
            PoolError: the manager is not running.
            PoolTimeout: it has not answered within 60 seconds.
            PoolClosed: the manager has shut down.
            ManagerLost: the manager died, froze, or cannot be reached.
        """
        pools = [self._pool_of(*each) for each in self._ask(("pools",), "has not told its pools")]
        return {pool.name: pool for pool in pools}

    def _pool_of(self, info: tuple[Any, ...], recipe: Recipe | None) -> ObjectPool[Any]:
        """The pool of which the manager told this, and what the next one of its name makes it of."""
        pool = ObjectPool._known_by(self._reach(), PoolInfo(*info))
        if self._shared is not None:
            self._shared.remember(pool._id, pool.name, recipe)
        return pool

    def _ask(self, request: tuple[Any, ...], late: str) -> Any:
        """What the manager answers. `late`: what is to be said if that takes too long."""
        try:
            return self._reach().request(request, ANSWER_BOUND)[1]
        except DeadlineExceeded:
            text = f"the manager at {self._address!r} lives, but in {ANSWER_BOUND:g} s it {late}"
            raise PoolTimeout(text) from None

    def _reach(self) -> Channel:
        if self._state.value == State.SHUTDOWN:
            raise PoolClosed(f"the manager at {self._address!r} has shut down")
        if self._channel is None:
            if self._state.value != State.STARTED:
                raise PoolError("the manager is not running: call start() or connect(), or use it in `with`")
            key = self._authkey
            self._channel = Channel.to(self._address, self._runtime_dir, key.fingerprint, key)
        return self._channel


# What `help()`, editors and sphinx show: `**options` one by one.
PoolManager.create_pool.__signature__ = with_options(PoolManager.create_pool)  # type: ignore[attr-defined]


def _check_address(address: Any) -> None:
    """Refuse what no manager can have as its address."""
    if isinstance(address, tuple):
        fine = len(address) == 2 and isinstance(address[0], str) and isinstance(address[1], int)
        expect(fine, "address", "a path, a tuple (host, port) of a string and a number, or None", address)
        if not 0 <= address[1] <= _LAST_PORT:
            raise ValueError(f"address={address!r}: a port is a number from 0, a free one, to {_LAST_PORT}")
        return
    expect(isinstance(address, (str, NoneType)), "address", "a path, a tuple (host, port), or None", address)
    if address is None:
        return
    if _LIKE_TCP.fullmatch(address):
        raise ValueError(f"address={address!r}: one of TCP is a tuple, such as ('127.0.0.1', 5000)")
    if not address:
        raise ValueError("address='': give a path, or None for a socket in a directory of the manager's own")
    if "\0" in address:
        raise ValueError(f"address={address!r}: abstract names are open to all users: give a path of a file")
    if len(os.fsencode(address)) > LONGEST_PATH:
        raise ValueError(f"address={address!r}: the path of a socket has {LONGEST_PATH} bytes at most")


def _shut_down(supervisor: Supervisor, state: State) -> None:
    supervisor.stop()
    state.value = State.SHUTDOWN
    # A manager that starts at this address later is another one: proxies of registered types connect anew.
    BaseProxy._address_to_local.pop(supervisor.info.address, None)


@overload
def shared_pool(
    name: str,
    factory: Callable[[], Coroutine[Any, Any, T]],
    *,
    each: None = None,
    linger: float | None = 10.0,
    **options: Unpack[Options[T]],
) -> AsyncObjectPool[T]: ...


@overload
def shared_pool(
    name: str,
    factory: Callable[[I], Coroutine[Any, Any, T]],
    *,
    each: Iterable[I],
    linger: float | None = 10.0,
    **options: Unpack[Options[T]],
) -> AsyncObjectPool[T]: ...


@overload
def shared_pool(
    name: str,
    factory: Callable[[], T],
    *,
    each: None = None,
    linger: float | None = 10.0,
    **options: Unpack[Options[T]],
) -> ObjectPool[T]: ...


@overload
def shared_pool(
    name: str,
    factory: Callable[[I], T],
    *,
    each: Iterable[I],
    linger: float | None = 10.0,
    **options: Unpack[Options[T]],
) -> ObjectPool[T]: ...


@overload
def shared_pool(
    name: str,
    factory: str,
    *,
    each: Iterable[Any] | None = None,
    linger: float | None = 10.0,
    **options: Unpack[Options[Any]],
) -> ObjectPool[Any]: ...


@overload
def shared_pool(
    name: str,
    factory: None = None,
    *,
    each: Iterable[T],
    linger: float | None = 10.0,
    **options: Unpack[ValueOptions[T]],
) -> ObjectPool[T]: ...


def shared_pool(
    name: str,
    factory: Callable[..., Any] | str | None = None,
    *,
    each: Iterable[Any] | None = None,
    linger: float | None = 10.0,
    **options: Any,
) -> ObjectPool[Any]:
    """The pool with this name, of all processes of this user on this machine: the first that comes makes it.

    It is the pool of its name in `PoolManager.shared(name)`, which see.

    Args:
        name: of letters, digits, ".", "_" and "-".
        factory: as for `PoolManager.create_pool`, like `each` and the options. All processes have to say the
            same; an option that is left out matches any. What other programs could not import is refused.
        each: the items.
        linger: seconds (default 10.0) for which the objects stay after their last user; None: until they are
            told to end.
        options: those of `mppool.PoolOptions`.

    Raises:
        ValueError: it is no such name; or what the pool of this name has otherwise.
        TypeError: as `PoolManager.create_pool`.
        FactoryError: the manager's process cannot find the factory, a hook or the type of an item.
        ManagerLost: as `PoolManager.shared`.
    """
    manager = PoolManager._named(name, linger)
    create_pool: Callable[..., ObjectPool[Any]] = manager.create_pool
    pool = create_pool(factory, name=name, each=each, exist_ok=True, **options)
    manager.__enter__()  # for good: the end of another's `with` block is not the end of this use
    return pool


shared_pool.__signature__ = with_options(shared_pool)  # type: ignore[attr-defined]
