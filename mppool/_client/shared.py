"""The way to the manager with a name. Where there is none, the next use of a pool starts it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any, ClassVar

from mppool._remote.references import PoolUnknown
from mppool._system.runtime_dir import HeldDir, RuntimeDir
from mppool._wire.connection import Connection, DeadlineExceeded
from mppool._wire.handshake import Key, connect, listens
from mppool.errors import ManagerLost, PoolTimeout

from .channel import Channel
from .connect import CUT_OFF, Request, key_errors

_MAIN = "mppool._server.shared"
"""The module whose `main` is the manager's process."""

_START_SECONDS = 60.0
"""For a manager to be there: this program's, or that of another one which came first, or is about to end."""

_LOOK_SECONDS = 0.02

_MAKE_SECONDS = 60.0
"""For a manager to make a pool that the one before it had, imports included."""

JOIN: Request = ("join",)
"""What a program asks that comes to use a manager, and has no request yet."""

_USES = {"join", "create_pool", "acquire", "apply", "wait"}
"""The requests for which a manager is started. Others are about what has ended with it."""


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
        self.linger = 0.0
        self._told = 0.0  # for how long it is to linger

    @classmethod
    def named(cls, runtime_dir: str, linger: float) -> SharedChannel:
        """The one to the manager with this directory."""
        channel = cls._named.setdefault(runtime_dir, cls(runtime_dir))
        channel.linger = max(channel.linger, linger)
        channel._be_known()
        return channel

    @property
    def name(self) -> str:
        """The manager's."""
        return os.path.basename(self._path).partition("-")[2]

    # -- pools ----------------------------------------------------------------------------------------

    def remember(self, pool_id: int, name: str, recipe: Recipe | None) -> None:
        """A pool is made of this anew, when its manager is another one."""
        if recipe is not None:
            self._recipes[pool_id] = "create_pool", name, True, pool_id, *recipe

    def to_pickle(self, pool_id: int) -> tuple[str, float, Recipe | None]:
        """What another process has to know of the manager and of one pool."""
        request = self._recipes.get(pool_id)
        return self._path, self.linger, None if request is None else request[4:]

    def request(self, request: Request, timeout: float | None = None) -> tuple[int, Any]:
        """As `Channel.request`. A manager that does not know the pool gets its recipe first."""
        try:
            return super().request(self._translated(request), timeout)
        except PoolUnknown:
            pool_id = request[1]
            if pool_id not in self._recipes:
                raise
        self._make(pool_id)
        return super().request(self._translated(request), timeout)

    def _make(self, pool_id: int) -> None:
        try:
            made = super().request(self._recipes[pool_id], _MAKE_SECONDS)[1][1]
        except DeadlineExceeded:
            text = f"the manager {self.name!r} has not made its pool anew in {_MAKE_SECONDS:g} s"
            raise PoolTimeout(text) from None
        self._ids.pop(pool_id, None)
        if made != pool_id:  # another program has made it, which knows it by this id
            self._ids[pool_id] = made

    def _translated(self, request: Request) -> Request:
        if self._ids and len(request) > 1 and request[1] in self._ids:
            return request[0], self._ids[request[1]], *request[2:]
        return request

    def _try_to_send(self, request: Request) -> bool:
        return super()._try_to_send(self._translated(request))

    # -- the manager ----------------------------------------------------------------------------------

    def join(self) -> None:
        """Use the manager from now on."""
        before = None
        if self._told < self.linger:  # it is told so with another lifeline
            before, self._lifeline = self._lifeline, None
            vars(self).pop("_idle", None)
        self._keep(self._take(JOIN, None))
        if before is not None:
            before.close()

    def leave(self) -> None:
        """Use it no more, until the next request."""
        lifeline, self._lifeline = self._lifeline, None
        vars(self).pop("_idle", None)  # the next request, of whichever thread, comes with a new lifeline
        if lifeline is not None:
            lifeline.close()

    def stop(self) -> None:
        """End the manager, if there is one, for all programs. Returns when its objects are closed."""
        gone = (ManagerLost, EOFError, OSError)  # it is not there, or ends just now
        with contextlib.suppress(*gone), contextlib.closing(self._connect(JOIN, None)) as connection:
            connection.send((None, "shutdown", (), {}))  # as clients of `multiprocessing.managers` do
            connection.await_reply()
            connection.recv()

    def open(self, request: Request, deadline: float | None) -> tuple[Connection, Any]:
        """As `Connector.open`. A manager that is needed, and is not there or is about to end, is started."""
        patience = time.monotonic() + _START_SECONDS
        while True:
            try:
                return self._enter(request, deadline)
            except FileNotFoundError as error:
                absence: Exception = error
            except ManagerLost as error:
                if not isinstance(error.__cause__, CUT_OFF) and not _nothing_listened(error):
                    raise
                absence = error
            if request[0] not in _USES:
                text = f"the manager {self.name!r} has ended; the next acquire starts it anew"
                raise ManagerLost(text) from ConnectionRefusedError("nothing listens there")
            if deadline is not None and time.monotonic() > deadline:
                raise DeadlineExceeded from None
            if time.monotonic() > patience:
                text = f"the manager {self.name!r} is not there within {_START_SECONDS:g} s, though another "
                text += f"process holds {self._path!r}: {absence}"
                raise ManagerLost(text) from absence
            self._start()

    def _terms(self) -> dict[str, Any]:
        self._told = self.linger
        return {"linger": self.linger, "python": sys.version_info[:2]}

    def _connect(self, request: Request, deadline: float | None) -> Connection:  # noqa: ARG002
        return connect(self.address, self._find_key(), deadline)

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


def _nothing_listened(error: ManagerLost) -> bool:
    """Whether the kernel refused the connection: else another one listens there, as the text says."""
    return isinstance(error.__cause__, ConnectionRefusedError) and error.__cause__.errno is not None
