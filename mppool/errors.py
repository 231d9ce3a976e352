"""The errors of mppool's own: all are `PoolError`, name the pool, and pickle both ways.

`RemoteTraceback` is none of them: it is never raised, and is the cause of errors that come from an object.
"""

from __future__ import annotations


class PoolError(Exception):
    """Base of all errors of mppool's own; its text names the pool and the numbers.

    Raised itself where a manager is not running, is wanted where none may be started (in a daemonic process,
    in a module that a manager imports), or has no pool of the name that `get_pool` asks for; and in a forked
    child by the iterator of its parent's `map`.

    What an object's own code raises keeps its type and arrives as it is.
    """


class PoolTimeout(PoolError, TimeoutError):
    """No object came free in time.

    The text says how many objects are held, being built and waited for, who holds one longest,
    the last failure to build, and whether the asker itself holds what it waits for. Its place in the queue is
    gone.

    Also where `wait` does not see `min_size` objects, or a `map` a result, in time, and where an import hangs
    in a manager that is asked for a pool.
    """


class TooManyWaiting(PoolError):
    """`max_waiting` others wait already. Raised at once; nothing was queued."""


class PoolClosed(PoolError):
    """The pool was closed, or its manager has shut down."""


class FactoryError(PoolError):
    """The object could not be built; `__cause__` is the factory's own error, or a `TimeoutError`.

    Raised at once to the acquire that the object was built for; the pool goes on. With
    `isolation="process"` also when the factory ended its process: the text names the signal or the exit code.
    With a `TimeoutError` when the build took longer than `build_timeout`. Without a cause, at once, while as
    many builds as `max_size` (two at least) took longer and still run in threads: no other begins then.
    """


class LeaseError(PoolError):
    """Misuse of a lease: released twice, another pool's, or used in another process (a forked one, say).

    Also where a value is released that this process does not hold.
    """


class LeaseLost(LeaseError):
    """The lease was taken back: it expired (`max_hold`), was reclaimed, or its object is gone.

    The object is gone when its own process died (the text names the signal), was killed for what it held
    (`max_memory_hard`; the text says how much that was), or when its manager died and has a successor.
    A stale handle always gets this, and never reaches the object that another holder has now.
    """


class CallTimeout(PoolError, TimeoutError):
    """One call took longer than the pool's `call_timeout`; the lease is over, its object replaced."""


class ManagerLost(PoolError, ConnectionError):
    """The manager process died, froze, refused the key, has no room for this client, or cannot be reached.

    Raised also to those who wait for an object, and where the manager, or what lies in the place of its
    socket and key, is another user's: the text names both users. A frozen manager is one that gives no sign
    of life for two bounds of 5 seconds; a call that merely takes long goes on.
    """


class Unreachable(ManagerLost):
    """A process on another machine, or the machine, gives no sign of life: the call may have run, or run on.

    Only in a cluster. The object is replaced.
    """


class RemoteError(PoolError):
    """An error of which only the text, the traceback and the attributes are left.

    It stands for an error of the object whose type is not known here, nor any of its bases but `Exception`,
    and says that a call's arguments, a value that is lent or the options of a pool could not be rebuilt on
    the other side, or that a message found no memory there.
    """


class RemoteTraceback(Exception):
    """The traceback of an error where it happened, as text: the `__cause__` of what was caught.

    Args:
        text: the traceback, as the other process would have printed it.
    """

    text: str

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"
