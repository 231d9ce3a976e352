"""Where an object lives: in whatever thread needs it, or in one of its own.

Everything that touches an object, from its factory to its `close`, is done by its runner. One whose object
has a process of its own is in `_process/runner.py`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, NoReturn, Protocol, TypeVar, cast

from mppool._system.fork import Step, at_fork
from mppool._system.processes import ProcessId
from mppool.errors import LeaseLost
from mppool.options import refuse_awaitable

log = logging.getLogger("mppool")

R = TypeVar("R")
A = TypeVar("A")

Invoke = Callable[..., Any]
"""Calls a function of the user's with the arguments that follow it, in the way that fits the object."""
Do = Callable[[Invoke, Any], R]
"""Does something with an object, the functions of the user's by the `Invoke`. It pickles."""


class Leftovers(Protocol):
    """What calls leave behind for later calls of the same lease, such as cursors. It ends with the lease."""

    def __bool__(self) -> bool:
        """Whether there is anything."""

    def clear(self) -> None:
        """Drop everything."""


NewLeftovers = Callable[..., Leftovers]
"""Makes what the first call of a lease on an object finds; `invoke=` is how that is called on its loop."""


class Gate(Protocol):
    """What every call passes, where the object lives. Calls of one lease never overlap."""

    def enter(self, lease_id: int) -> bool:
        """Begin a call, after the one that runs; False if the lease is over."""

    def leave(self, leftovers: object) -> None:
        """End a call. `leftovers`: true if the calls of the lease left anything behind."""

    def end(self) -> bool:
        """No lease may call any more; False if a call is still running. Never waits; may be asked again."""


class Fence(Protocol):
    """Which lease may call an object now, as the pool sees it, which begins and ends leases.

    A lease ends at once, whether a call is running or not, and no call begins after its end. Where the
    object's process shares no memory with the pool it has to be asked for the end, and has ended the lease
    when it has answered.
    """

    has_leftovers: bool = False
    """Whether the calls of the lease that ended left anything behind."""

    @property
    def called(self) -> bool:
        """Whether a call of the present lease has come: its holder knows of it. May wait as `revoke` does."""

    def begin(self, lease_id: int) -> None:
        """The lease with this id may call. The one before it has ended without a running call."""

    def end(self) -> bool | None:
        """No lease may call any more; False if a call is still running. Never waits; may be asked again.

        None: that is for `revoke` to bring about. Only where the object has a process for itself.
        """

    def revoke(self) -> bool:
        """`end`, where the object's process has to be asked. Waits for the answer, but not for ever.

        `ChildProcessError` if that process has ended, `TimeoutError` if it does not answer.
        """
        raise AssertionError("its end can be told at once")


class ThreadFence(Fence, Gate):
    """For callers in threads of one process: a lock for each lease.

    A call of an earlier lease may be late. With one lock for all it would hold that of the present lease for
    a moment, and an end in that moment would take this for a running call.
    """

    called = False

    def __init__(self) -> None:
        self._lease_id = 0
        self._calling = threading.Lock()

    def begin(self, lease_id: int) -> None:
        self.called = self.has_leftovers = False
        self._calling = threading.Lock()
        self._lease_id = lease_id  # last: who sees this id has read this lock or an earlier one

    def end(self) -> bool:
        self._lease_id = 0  # first: a call that enters from here on sees it
        return not self._calling.locked()

    def enter(self, lease_id: int) -> bool:
        calling = self._calling
        if self._lease_id != lease_id:
            return False
        calling.acquire()
        if self._lease_id == lease_id:
            self.called = True
            return True
        calling.release()
        return False

    def leave(self, leftovers: object) -> None:
        self.has_leftovers = bool(leftovers)
        self._calling.release()  # of the same lease: no other begins while a call is running


class Runner(Protocol):
    """Where one object can be touched, and by which lease."""

    object: Any
    """The object, or what stands for it here. There is none before `create` and after `destroy`."""
    process: ProcessId | None = None
    """The process that the object has for itself; None if it has none."""
    stoppable: bool = False
    """Whether code that runs there can be ended from outside: it has a process for itself, or will have."""
    has_loop: bool = False
    """Whether an event loop runs where the object lives."""
    fence: Fence
    """Which lease may call it."""
    offer: Any = None
    """What holders are told of the object, once one was told."""
    will: Do[object] | None = None
    """What an object that outlives its pool, without a word from it, is to do at last."""
    waits_for: str = ""
    """What the object's making waits for before it begins, for people."""

    @property
    def alive(self) -> bool:
        """Whether the object can still be used: a process can die."""

    def exit_reason(self, timeout: float = 0.0) -> str | None:  # noqa: ARG002
        """How its process ended, for people; None if it is alive, and stays so for `timeout` seconds."""
        return None

    def is_reachable(self) -> bool:
        """Whether the machine of its process gives a sign of life. If not, the process counts as ended."""
        return True

    def create(self, factory: Callable[[], Any]) -> None:
        """Have the object made. Raises what `factory` raises; then nothing is left of the runner."""

    def call(self, lease_id: int, do: Callable[[Any], R]) -> R:  # noqa: ARG002
        """Do something for the holder of a lease; `do` gets this runner. `LeaseLost` if the lease is over.

        Not for an object with a process of its own.
        """
        raise AssertionError("an object with a process of its own is called there")

    def run(self, do: Do[R]) -> R:
        """Do something with the object between two leases, after dropping what the last one left behind.

        Raises what `do` raises, and `ChildProcessError` if a process of its own has ended.
        """

    def destroy(self, do: Do[object]) -> None:
        """Do something last with the object, which raises nothing, and drop it.

        Raises what keeps it from being done, as `run` does; nothing is left of the runner then, too.
        """

    def kill_after(self, timeout: float) -> None:  # noqa: ARG002
        """Have the code that runs in the object's own process end in `timeout` seconds, kill it else.

        With 0 also while that process is still being started: it is killed when it is there.
        """
        raise AssertionError("a thread cannot be stopped")

    def cancel_after(self, timeout: float) -> None:  # noqa: ARG002
        """Have what runs on the object's event loop, if it has one, cancelled in `timeout` seconds."""
        return


class InlineRunner(Runner):
    """In the thread that comes. Calls do not overlap, but may come from another thread each time."""

    alive = True

    def __init__(self, new_leftovers: NewLeftovers, gate: Gate | None = None) -> None:
        if gate is None:  # else the pool, which has the fence, is in another process
            self.fence = gate = ThreadFence()
        self.gate = gate
        self._new_leftovers = new_leftovers
        self._leftovers: Leftovers | None = None
        self.latest_caller = 0
        """The lease that called last; 0 if the pool has used the object since."""

    def create(self, factory: Callable[[], Any]) -> None:
        self._perform(self._create, factory)

    def run(self, do: Do[R]) -> R:
        return self._perform(self._run, do)

    def destroy(self, do: Do[object]) -> None:
        self._perform(self._destroy, do)

    def call(self, lease_id: int, do: Callable[[Any], R]) -> R:
        if not self.gate.enter(lease_id):
            raise LeaseLost(f"lease {lease_id} is over: it was released or taken back")
        try:
            self.latest_caller = lease_id
            return self._perform(do, self)
        finally:
            self.gate.leave(self._leftovers)

    def invoke(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the user's: the factory, a hook, or what `apply` brought."""
        return function(*args, **kwargs)

    @property
    def leftovers(self) -> Any:
        """What the calls of the present lease left behind; for a call.

        Of the lease before it is empty: else it was dropped when that had ended.
        """
        if self._leftovers is None:
            self._leftovers = self._new_leftovers(self.object)
        return self._leftovers

    def _perform(self, do: Callable[[A], R], argument: A) -> R:
        """The one way to the object: in this thread. Raises what `do` raises."""
        forks = _forks
        try:
            return do(argument)
        finally:
            if forks != _forks:
                end_child()

    def _create(self, factory: Callable[[], Any]) -> None:
        made = self.invoke(factory)
        refuse_awaitable(made, "it gave")
        self.object = made

    def _run(self, do: Do[R]) -> R:
        self._drop_leftovers()
        return do(self.invoke, self.object)

    def _destroy(self, do: Do[object]) -> None:
        self._drop_leftovers()
        do(self.invoke, self.object)
        del self.object  # a destructor can be slow, too, and must run where the object lived

    def _drop_leftovers(self) -> None:
        self.latest_caller = 0
        leftovers, self._leftovers = self._leftovers, None
        try:
            if leftovers is not None:
                leftovers.clear()
        except BaseException:
            log.exception("mppool: dropping what a lease left behind failed")


_forks = 0  # that lie between the first process and this one


@at_fork(Step.COUNT_FORK)
def _count_fork() -> None:
    global _forks
    _forks += 1


def end_child() -> NoReturn:
    """End a child that the object forked: it must not go on here, in the place of its parent."""
    text = f"mppool: an object's code forked, and the child (pid {os.getpid()}) returned: it ends here\n"
    os.write(2, text.encode())  # not logged: another thread may have held a lock of the log at the fork
    os._exit(1)


_WorkItem = tuple[list[Callable[[], Any]], SimpleQueue[tuple[Any, BaseException | None]]]
"""Something to be done, which is taken out of the list, and where to put what came of it."""


def _perform(item: _WorkItem) -> None:
    work, outcome = item
    try:
        result = work.pop()()  # what that refers to belongs to this thread, and ends in it
    except BaseException as error:
        outcome.put((None, error))
    else:
        outcome.put((result, None))


class ThreadRunner(InlineRunner):
    """One daemon thread, for objects that refuse to be touched by any other than the one that made them.

    It begins with the factory's call, ends with `destroy`, and does one thing after the other. What hangs
    there costs this thread only. `create` raises `RuntimeError` if no thread can be had.
    """

    def __init__(self, name: str, new_leftovers: NewLeftovers, gate: Gate | None = None) -> None:
        super().__init__(new_leftovers, gate)
        self._name = name
        self._items: SimpleQueue[_WorkItem] = SimpleQueue()

    def create(self, factory: Callable[[], Any]) -> None:
        threading.Thread(target=self._work, name=self._name, daemon=True).start()
        super().create(factory)

    def _perform(self, do: Callable[[A], R], argument: A) -> R:
        outcome: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._put(([partial(do, argument)], outcome))
        del do, argument
        result, error = outcome.get()
        if error is None:
            return cast(R, result)
        try:
            raise error
        finally:
            del error  # which knows this frame

    def _put(self, item: _WorkItem) -> None:
        self._items.put(item)

    def _get(self) -> _WorkItem:
        return self._items.get()

    def _work(self) -> None:
        while True:
            item = self._get()
            super()._perform(_perform, item)
            del item
            if not hasattr(self, "object"):  # it could not be made, or was destroyed
                return
