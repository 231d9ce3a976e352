"""What runs in an object's own process: its main thread, in which the object is made, called and closed.

    the manager  -- control --> `create`, then `run` (check, reset), `revoke`, `destroy`
    the holder   -- calls ----> served if the fence says that its lease lasts

One loop serves both, so nothing ever overlaps. Besides it there is a thread that accepts connections while a
call runs, and one that ends the process when the manager is gone. An object that is asynchronous has a third,
with its event loop, in which it is made, called and closed.

A process that is far from its manager comes to be in another way, and calls `serve_far` in its main thread.
When its manager is gone, its object is closed there all the same.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from mppool._pool.runner import Do, Gate, InlineRunner
from mppool._remote.batches import apply_batch
from mppool._remote.calls import ObjectTable, Place, perform
from mppool._remote.errors import cannot_unpickle, failure, pack_error
from mppool._remote.interface import Interface
from mppool._remote.opcodes import VALUE
from mppool._remote.references import RequestLost
from mppool._system.exit import exit_now, on_sigterm
from mppool._system.fork import keep_from_children
from mppool._system.inherited import reset_inherited_state
from mppool._system.open_files import allow_open_files
from mppool._system.output import print_to_descriptors
from mppool._system.processes import ProcessId, await_end, kill_children, lead_a_group
from mppool._system.runtime_dir import belong_to
from mppool._wire.connection import Address, Connection, PayloadLost, Pickle, TruncatedMessage, encode
from mppool._wire.handshake import hash_sample
from mppool._wire.listener import Listener, address_of, listen
from mppool.errors import LeaseLost, PoolError, RemoteError
from mppool.options import HOOK_BOUND, Exposed

from .far import Floor
from .fence import LeaseFence
from .info import ManagerInfo

log = logging.getLogger("mppool")

_SPIN_SECONDS = 30e-6
"""Seconds for which the loop looks for the next call before it sleeps: to be woken would take about as long.
It gives way to other processes that need the processor, first of all to the caller."""

_give_way = getattr(os, "sched_yield", partial(time.sleep, 0))


@dataclass(frozen=True)
class ObjectAddress:
    """Where an object takes calls, and what it offers: stands for it in the manager."""

    address: Address
    interface: Interface


def main(
    control: socket.socket,
    fence: LeaseFence,
    info: ManagerInfo,
    pool: str,
    exposed: Exposed,
    keep: Collection[type | str],
    has_loop: bool,
) -> NoReturn:
    """The main function of the process."""
    lead_a_group()
    reset_inherited_state()
    on_sigterm(lambda *_: None)  # the manager decides, which may get it together with us
    print_to_descriptors()
    allow_open_files(info.open_files)  # `select` takes no descriptor above 1023
    keep_from_children(control)
    belong_to(info.runtime_dir)
    runner = _runner_for(pool, exposed, keep, has_loop, fence)
    ObjectServer(Connection(control, ""), runner, info, pool).serve()
    _leave(info)


def serve_far(
    control: Connection,
    side: Connection,
    info: ManagerInfo,
    pool: str,
    exposed: Exposed,
    keep: Collection[type | str],
    has_loop: bool,
) -> None:
    """Serve an object in this thread, its process's main one, until it is closed or its manager is gone.

    The manager's orders come by `control`, what it asks while a call runs by `side`. `info` says where to
    listen, and the key that holders have.
    """
    floor = Floor()
    runner = _runner_for(pool, exposed, keep, has_loop, floor)
    FarObjectServer(control, side, floor, runner, info, pool).serve()


def _runner_for(
    pool: str, exposed: Exposed, keep: Collection[type | str], has_loop: bool, gate: Gate
) -> InlineRunner:
    new_table = partial(ObjectTable, expose=exposed, keep=keep)
    if not has_loop:
        return InlineRunner(new_table, gate)
    from mppool._pool.loop_runner import LoopRunner  # noqa: PLC0415  # with asyncio, which takes its time

    return LoopRunner(f"mppool object of {pool}", new_table, gate)


class _Caller:
    """A connection, and the lease that was last named on it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.lease_id = 0

    def answer(self, frame: bytes) -> None:
        """Answer a call that goes on, from another thread."""
        with contextlib.suppress(OSError):  # it has hung up, as the next look at the connection shows
            self.connection.send_frame(frame)


class ObjectServer:
    """The object, and all that talk to it."""

    def __init__(self, control: Connection, runner: InlineRunner, info: ManagerInfo, pool: str) -> None:
        self._control = control
        self._runner = runner
        self._info = info
        self._pool = pool
        self._over = False
        self._arrivals: deque[Connection] = deque()
        self._wakeup_r, self._wakeup_w = socket.socketpair()
        # Not epoll: what it wakes is often moved to another processor, and it is for thousands.
        self._selector = selectors.PollSelector()
        self._selector.register(control, selectors.EVENT_READ, self._on_order)
        self._selector.register(self._wakeup_r, selectors.EVENT_READ, self._on_connect)
        self._orders: dict[str, Callable[..., Any]] = {
            "create": self._create,
            "run": runner.run,
            "revoke": runner.gate.end,
            "destroy": self._destroy,
        }

    def serve(self) -> None:
        """Serve until the manager says that it is the end, or is gone itself."""
        while not self._over:
            try:
                for key, _ in self._select():
                    key.data()
            except Exception:  # between calls: a signal handler of the object's has raised
                log.exception("pool %r: an object's process was interrupted", self._pool)

    def _select(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for the next message."""
        if self._runner.latest_caller:  # a holder that calls will call again
            deadline = time.perf_counter() + _SPIN_SECONDS
            while time.perf_counter() < deadline:
                ready = self._selector.select(0)
                if ready:
                    return ready
                _give_way()
        return self._selector.select()

    # -- the manager ---------------------------------------------------------------------------------

    def _on_order(self) -> None:
        try:
            self._control.send(self._obey(*self._control.recv_pickle()))
        except (EOFError, OSError):
            self._over = True

    def _obey(self, data: Pickle, buffers: Sequence[memoryview]) -> tuple[bool, object]:
        try:
            order, *arguments = pickle.loads(data, buffers=buffers)
            return True, self._orders[order](*arguments)
        except BaseException as error:  # the factory's, or of what is not known here
            return False, pack_error(error)

    def _create(self, factory: Callable[[], object], will: bytes) -> ObjectAddress:
        self._will = will
        threading.Thread(target=self._end_with_manager, name="mppool lifeline", daemon=True).start()
        sock = listen(self._info.address)  # first: it fails if the manager is about to end
        listener = Listener(sock)
        threading.Thread(target=self._accept, args=(listener,), name="mppool listener", daemon=True).start()
        if self._info.initializer is not None:
            self._info.initializer()
        self._runner.create(factory)
        return ObjectAddress(self._told_address(address_of(sock)), self._runner.leftovers.interface)

    def _told_address(self, address: Address) -> Address:
        """As holders need it, who know where the manager is."""
        return address if isinstance(address, str) else ("", address[1])

    def _end_with_manager(self) -> None:
        """On a thread of its own."""
        assert self._info.creator_pid is not None, "the manager's"
        await_end(ProcessId.of(self._info.creator_pid))
        _leave(self._info)

    def _destroy(self, do: Do[object]) -> None:
        self._over = True
        self._runner.destroy(do)

    # -- holders -------------------------------------------------------------------------------------

    def _accept(self, listener: Listener) -> None:
        """On a thread of its own: a holder may connect while a call runs."""
        for connection in listener.accept(self._info.key):
            self._arrivals.append(connection)
            self._wakeup_w.send(b"!")

    def _on_connect(self) -> None:
        self._wakeup_r.recv(1)
        caller = _Caller(self._arrivals.popleft())
        caller.connection.on_stall(partial(self._on_stall, caller))
        self._selector.register(caller.connection, selectors.EVENT_READ, partial(self._on_request, caller))

    def _on_request(self, caller: _Caller) -> None:
        connection = caller.connection
        try:
            try:
                reply = self._reply(caller, *connection.recv_pickle())
            except PayloadLost as error:
                reply = failure(RemoteError(str(error)))
            if reply is not None:
                connection.send_frame(reply)
        except Exception as error:  # whatever one holder does, the object lives on
            if not isinstance(error, (EOFError, OSError)):
                log.exception("pool %r: an object's process failed to answer a caller", self._pool)
            self._selector.unregister(connection)
            connection.close()

    def _on_stall(self, caller: _Caller) -> None:
        """A caller stops within a message. It may while its lease lasts: no other caller waits then."""
        try:
            self._runner.call(caller.lease_id, bool)
        except LeaseLost:
            raise TruncatedMessage from None

    def _reply(self, caller: _Caller, data: Pickle, buffers: Sequence[memoryview]) -> bytes | None:
        connection = caller.connection
        try:
            name, *arguments = pickle.loads(data, buffers=buffers)
        except BaseException as error:  # whatever an argument's own code raises, the object lives on
            text = cannot_unpickle("the request cannot be rebuilt where the object lives", error)
            return failure(RequestLost(text))
        if name == "call":
            _, caller.lease_id, *call = arguments  # the pool's id: there is one object here
            return self._call(caller.lease_id, partial(perform, connection.encode, caller.answer, *call))
        if name == "apply_batch":
            caller.lease_id, *batch = arguments
            return self._call(caller.lease_id, partial(_frame_of_batch, connection.encode, *batch))
        if name == "share_memory":
            connection.share_memory()
            return encode((VALUE, None))
        if name is None:  # the first words, as a manager gets them
            return encode(("#RETURN", (self._info.runtime_dir, connection.can_share, hash_sample())))
        return failure(PoolError(f"an object's process serves no {name!r}"))

    def _call(self, lease_id: int, do: Callable[[Place], bytes | None]) -> bytes | None:
        try:
            return self._runner.call(lease_id, do)
        except LeaseLost as error:  # a call's own error is in its reply
            return failure(LeaseLost(f"pool {self._pool!r}: {error}"))


class FarObjectServer(ObjectServer):
    """An object whose manager is known by two connections only."""

    def __init__(
        self,
        control: Connection,
        side: Connection,
        floor: Floor,
        runner: InlineRunner,
        info: ManagerInfo,
        pool: str,
    ) -> None:
        super().__init__(control, runner, info, pool)
        self._side = side
        self._floor = floor
        self._done = threading.Event()
        control.on_silence = side.on_silence = None  # between two orders there is silence

    def serve(self) -> None:
        """Serve until the end, and close what the manager, which is gone, has left."""
        super().serve()
        try:
            if hasattr(self._runner, "object"):
                self._runner.destroy(pickle.loads(self._will))
        except Exception:  # the hook is not known here
            log.exception("pool %r: an object whose manager is gone could not be closed", self._pool)
        self._done.set()

    def _told_address(self, address: Address) -> Address:
        return address

    def _end_with_manager(self) -> None:
        """Answer the manager. At its end the object is closed within a bound, unless a call runs."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, *question = self._side.recv()
                self._side.send((number, self._floor.answer(*question)))
        if not (self._floor.end() and self._done.wait(HOOK_BOUND)):
            _leave(self._info)


def _frame_of_batch(encode_for: Callable[..., bytes], *batch: Any) -> bytes:
    try:
        return encode_for((VALUE, apply_batch(*batch)))
    except BaseException as error:  # no memory is left for the answers
        return failure(error)


def _leave(info: ManagerInfo) -> NoReturn:
    if isinstance(info.address, str):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(info.address)
    kill_children()
    exit_now()
