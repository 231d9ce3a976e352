"""Every error that mppool raises by itself. All are `PoolError` and pickle both ways."""

from __future__ import annotations

__all__ = [
    "CallTimeout",
    "FactoryError",
    "LeaseError",
    "LeaseLost",
    "ManagerLost",
    "PoolClosed",
    "PoolError",
    "PoolTimeout",
    "RemoteError",
    "RemoteTraceback",
    "TooManyWaiting",
]


class PoolError(Exception):
    """Base of all errors of the pool's own; its text names the pool and the numbers."""


class PoolTimeout(PoolError, TimeoutError):
    """No object came free in time.

    The text says how many objects are held, being built and waited for, who holds one longest,
    and the last failure to build.
    """


class TooManyWaiting(PoolError):
    """`max_waiting` others wait already; raised at once, nothing was queued."""


class PoolClosed(PoolError):
    """The pool was closed, or its manager has shut down."""


class FactoryError(PoolError):
    """The object could not be built; `__cause__` is the factory's own error."""


class LeaseError(PoolError):
    """Misuse of a lease: released twice, another pool's handle, used in another process."""


class LeaseLost(LeaseError):
    """The lease was taken back: it expired, was reclaimed, or its object is gone."""


class CallTimeout(PoolError, TimeoutError):
    """One call took longer than the pool's `call_timeout`; the lease is over, its object replaced."""


class ManagerLost(PoolError, ConnectionError):
    """The manager process died, froze, refused the key, or cannot be reached."""


class RemoteError(PoolError):
    """An error of the object that could not travel; the text is all that is left of it."""


class RemoteTraceback(Exception):
    """The traceback of an error where it happened, as text: the `__cause__` of what you caught."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


# One stable public name each, wherever the class is defined: it is what a pickle carries and what a
# log shows.
for _name in __all__:
    globals()[_name].__module__ = "mppool"
del _name
