"""The way to the manager with a name. Where there is none, the next use of a pool starts it."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any, ClassVar

from mppool._remote.references import PoolUnknown
from mppool._system.runtime_dir import HeldDir, RuntimeDir
from mppool._wire.connection import Connection, DeadlineExceeded
from mppool._wire.handshake import Key, connect, listens
from mppool.errors import ManagerLost, PoolClosed, PoolTimeout

from .channel import Channel, Way
from .connect import CUT_OFF, RETURN_SECONDS, USES, Request, key_errors
from .connection import ClientConnection

_MAIN = "mppool._server.shared"
"""The module whose `main` is the manager's process."""

_START_SECONDS = 60.0
"""For a manager to be there: this program's, or that of another one which came first, or is about to end."""

_LOOK_SECONDS = 0.02
"""Between two tries to find or to start it: the lock of the one that starts it, or ends, tells of no end."""

_MAKE_SECONDS = 60.0
"""For a manager to make a pool that the one before it had, imports included."""

JOIN: Request = ("join",)
"""What a program asks that comes to use a manager, and has no request yet."""

Recipe = tuple[Any, ...]
"""What a pool is made of, as the manager gets it."""


class SharedChannel(Channel):
    """The channel to a manager with a name, of which this program is a user from the first connection on.

    It has the recipes of the pools with names: a manager that was started anew gets them when their pools
    are used.
    """

    _named: ClassVar[dict[str, SharedChannel]] = {}  # to the end of this program, which is that of its use

    def __init__(self, runtime_dir: str) -> None:
        super().__init__(RuntimeDir(runtime_dir).socket, runtime_dir, b"", None)
        self._path = runtime_dir
        self._recipes: dict[int, Request] = {}  # what makes a pool anew, by the id that this program knows
        self._ids: dict[int, int] = {}  # in the present manager, of pools that it gave another one
        self._uses = 0  # of this program, which may have several of its parts open it
        self.linger = 0.0
        self._told = 0.0  # for how long it is to linger

    @classmethod
    def named(cls, runtime_dir: str, linger: float) -> SharedChannel:
        """The one to the manager with this directory."""
        channel = cls._named.setdefault(runtime_dir, cls(runtime_dir))
        channel.linger = max(channel.linger, linger)
        channel._be_known()
        return channel

    @classmethod
    def to_pool(
        cls, runtime_dir: str, linger: float, pool_id: int, name: str, recipe: Recipe | None
    ) -> SharedChannel:
        """The same, with what the pool of this id is made of."""
        channel = cls.named(runtime_dir, linger)
        channel.remember(pool_id, name, recipe)
        return channel

    @property
    def name(self) -> str:
        """The manager's."""
        return RuntimeDir(self._path).name

    # -- pools ----------------------------------------------------------------------------------------

    def remember(self, pool_id: int, name: str, recipe: Recipe | None) -> None:
        """A pool is made of this anew, when its manager is another one."""
        if recipe is not None:
            self._recipes[pool_id] = "create_pool", name, True, pool_id, *recipe

    def way(self, pool_id: int) -> Way:
        """As `Channel.way`, with the recipe of the pool."""
        request = self._recipes.get(pool_id)
        name, recipe = (None, None) if request is None else (request[1], request[4:])
        return "mppool._client.shared:SharedChannel.to_pool", (self._path, self.linger, pool_id, name, recipe)

    def request(self, request: Request, timeout: float | None = None) -> tuple[int, Any]:
        """As `Channel.request`. A manager that does not know the pool gets its recipe first."""
        try:
            try:
                return super().request(self.translated(request), timeout)
            except PoolUnknown:
                if not self.make_anew(request[1]):
                    raise
            return super().request(self.translated(request), timeout)
        except PoolUnknown as error:
            raise PoolClosed(str(error)) from None

    def make_anew(self, pool_id: int) -> bool:
        """Have a manager that does not know this pool make it; whether its recipe is known."""
        if pool_id not in self._recipes:
            return False
        try:
            made = super().request(self._recipes[pool_id], _MAKE_SECONDS)[1][0][1]
        except DeadlineExceeded:
            text = f"the manager {self.name!r} has not made its pool anew in {_MAKE_SECONDS:g} s"
            raise PoolTimeout(text) from None
        self._ids.pop(pool_id, None)
        if made != pool_id:  # another program has made it, which knows it by this id
            self._ids[pool_id] = made
        return True

    def translated(self, request: Request) -> Request:
        """A request as the present manager knows its pool."""
        ids = self._ids
        if request[0] == "close":  # from here on it is not made anew
            self._recipes.pop(request[1], None)
        if not ids or len(request) == 1:
            return request
        if request[0] == "call_beside":
            others = [(ids.get(pool_id, pool_id), lease_id) for pool_id, lease_id in request[3]]
            request = *request[:3], others, *request[4:]
        return request[0], ids.get(request[1], request[1]), *request[2:]

    def _try_to_send(self, request: Request) -> bool:
        return super()._try_to_send(self.translated(request))

    # -- the manager ----------------------------------------------------------------------------------

    def join(self) -> None:
        """Use the manager from now on."""
        self._keep(self._take(JOIN, None))
        self._uses += 1

    def leave(self) -> None:
        """End one use. After the last one the manager is used no more, until the next request."""
        self._uses -= 1
        if self._uses <= 0:
            super().leave()

    def stop(self) -> None:
        """End the manager, if there is one, for all programs. Returns when its objects are closed."""
        patience = time.monotonic() + RETURN_SECONDS
        while True:
            try:
                self._ask_to_end()
            except FileNotFoundError as error:
                if listens(self.address):
                    self._await_files(error, patience, None)
                    continue
            except CUT_OFF:
                pass  # it ends just now
            except ManagerLost as error:
                if not _is_gone(error):
                    raise
            return

    def open(self, request: Request, deadline: float | None) -> tuple[Connection, Any]:
        """As `Connector.open`. A manager that is needed, and is not there or is about to end, is started."""
        patience = time.monotonic() + _START_SECONDS
        while True:
            try:
                return self._enter(request, deadline)
            except FileNotFoundError as error:
                absence: Exception = error
            except ManagerLost as error:
                if not _is_gone(error):
                    raise
                absence = error
            if request[0] not in USES:
                text = f"the manager {self.name!r} has ended; the next acquire starts it anew"
                raise ManagerLost(text) from ConnectionRefusedError("nothing listens there")
            if deadline is not None and time.monotonic() > deadline:
                raise DeadlineExceeded from None
            if time.monotonic() > patience:
                text = f"the manager {self.name!r} is not there within {_START_SECONDS:g} s, though another "
                text += f"process holds {self._path!r}: {absence}"
                raise ManagerLost(text) from absence
            self._start()

    def _take(self, request: Request, deadline: float | None) -> ClientConnection:
        if self._told < self.linger:  # a new connection tells it so
            self.drop()
        return super()._take(request, deadline)

    def _enter(self, request: Request, deadline: float | None) -> tuple[Connection, Any]:
        linger = self.linger
        entered = super()._enter(request, deadline)
        self._told = linger
        return entered

    def _terms(self) -> dict[str, Any]:
        return {"linger": self.linger, "python": sys.version_info[:2]}

    def _connect(self, request: Request, deadline: float | None) -> Connection:  # noqa: ARG002
        while True:
            key = self._find_key()
            try:
                return connect(self.address, key, deadline)
            except ManagerLost:
                if key == self._find_key():
                    raise
                # Between the two steps another manager has come, and made a key of its own.

    def _find_key(self) -> Key:
        """The key that lies there now: that of a name, whichever manager has it."""
        with key_errors(self.address):
            key = Key(RuntimeDir(self._path).key())
        self.fingerprint = key.fingerprint
        return key

    def _start(self) -> None:
        """Start the manager, unless another process is about to, or it lives. `ManagerLost` if it fails.

        Where the platform does not tell who listens, one that lives and has lost its directory gets another
        beside it: it serves those that are connected, and ends after them.
        """
        try:
            if listens(self.address):
                raise BlockingIOError("a cleaner removed its files, which it puts back")
            with contextlib.closing(HeldDir.take(self._path)) as directory:
                self._start_in(directory)
        except BlockingIOError:
            time.sleep(_LOOK_SECONDS)
        except OSError as error:
            raise ManagerLost(f"no manager {self.name!r} can be started: {error}") from error

    def _start_in(self, directory: HeldDir) -> None:
        from mppool._system.detached import start_detached  # noqa: PLC0415  # with much of `multiprocessing`

        told = directory.fileno(), _START_SECONDS, self._path, self.linger
        try:
            start_detached(_MAIN, self.name, directory.log, *told)
        except OSError:
            directory.remove()
            raise


def _is_gone(error: ManagerLost) -> bool:
    """Whether no manager listens there, or it has hung up and ends just now. Else the text says why not."""
    cause = error.__cause__
    refused = isinstance(cause, ConnectionRefusedError) and cause.errno is not None  # by the kernel
    return refused or isinstance(cause, CUT_OFF)
