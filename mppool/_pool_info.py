"""What a client has to know of a pool, to use it."""

import os
from typing import TYPE_CHECKING, NamedTuple

from . import _version

if TYPE_CHECKING:
    from .options import PoolOptions


class PoolInfo(NamedTuple):
    """What a client has to know of a pool.

    It travels as `tuple(info)`, plain values with the version first, so that another version of mppool
    can read that much before it looks at the rest.
    """

    version: str
    """Of mppool, in the manager's process."""
    pool_id: int
    name: str
    timeout: float | None
    """Seconds that `acquire` waits when the call says nothing."""
    records_caller: bool
    """Whether a lease records the file and line that acquired it."""
    call_timeout: float | None
    isolation: str
    """Where each object lives."""
    lends_values: bool
    """Whether it lends the items themselves, as they are."""
    asynchronous: bool = False
    """Whether its objects have event loops."""

    @classmethod
    def of(
        cls, pool_id: int, name: str, options: "PoolOptions", lends_values: bool, asynchronous: bool = False
    ) -> "PoolInfo":
        """What is to be known of a pool with these options."""
        of_options = (options.timeout, options.records_caller, options.call_timeout, options.isolation)
        return cls(_version.__version__, pool_id, name, *of_options, lends_values, asynchronous)


def new_pool_id() -> int:
    """The id of a new pool: a pool of an earlier manager is never mistaken for it."""
    return int.from_bytes(os.urandom(7), "big")
