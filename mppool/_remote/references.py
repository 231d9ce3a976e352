"""Pickles with references in them, to what does not cross: objects at the one end, handles at the other."""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from mppool._wire.connection import Reducers
from mppool.errors import PoolClosed, RemoteError

WithReferences = tuple[bytes, Sequence[Any]]
"""A pickle, and the buffers that it leaves out: so data that is large is not copied into it."""


class DoesNotPickle(TypeError):
    """A request does not pickle; the cause says why. Nothing was sent."""


class RequestLost(RemoteError):
    """A request could not be rebuilt at the other end. Nothing of it has run."""


class PoolUnknown(PoolClosed):
    """A manager with a name does not know this pool. It may be one of the manager before: it is made anew."""


@functools.cache
def _asking(pickler: Any) -> Any:
    class AskingPickler(pickler):  # type: ignore[misc]
        reference_to: Callable[[Any], object]

        def persistent_id(self, obj: Any) -> object:
            return self.reference_to(obj)

    return AskingPickler


def dump(
    value: object,
    reference_to: Callable[[Any], object],
    reducers: Reducers | None,
    pickler: type[pickle.Pickler] = pickle.Pickler,
) -> WithReferences:
    """Pickle a value. `reference_to` is asked for each object in it: None, or what is to stand for it.

    Raises what pickle raises, and what the objects' own code raises.
    """
    file, buffers = io.BytesIO(), list[Any]()
    kind: Any = pickler  # for type checkers it does not hash
    asking = _asking(kind)(file, 5, buffer_callback=buffers.append)
    asking.reference_to = reference_to
    if reducers is not None:
        asking.dispatch_table = reducers
    asking.dump(value)
    return file.getvalue(), buffers


class _Unpickler(pickle.Unpickler):
    resolve: Callable[..., Any]

    def persistent_load(self, reference: Any) -> Any:
        return self.resolve(reference)


def load(packed: WithReferences, resolve: Callable[..., Any]) -> Any:
    """Rebuild what `dump` pickled; `resolve` gives what a reference stands for."""
    data, buffers = packed
    unpickler = _Unpickler(io.BytesIO(data), buffers=buffers)
    unpickler.resolve = resolve
    return unpickler.load()


def fails_again(attempt: Callable[[], object]) -> bool:
    """Whether to pickle or to rebuild something fails once more. If not, the error was a signal handler's."""
    try:
        attempt()
    except Exception:
        return True
    return False
