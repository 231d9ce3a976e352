"""Pickles with references in them, to what does not cross: objects at the one end, handles at the other."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from mppool._wire.connection import Reducers

WithReferences = tuple[bytes, Sequence[Any]]
"""A pickle, and the buffers that it leaves out: so data that is large is not copied into it."""


def dump(
    value: object,
    reference_to: Callable[[Any], object],
    reducers: Reducers | None = None,
    pickler: type[pickle.Pickler] = pickle.Pickler,
) -> WithReferences:
    """Pickle a value. `reference_to` is asked for each object in it: None, or what is to stand for it.

    Raises what pickle raises, and what the objects' own code raises.
    """

    class Pickler(pickler):  # type: ignore[valid-type, misc]
        def persistent_id(self, obj: Any) -> object:
            return reference_to(obj)

    file, buffers = io.BytesIO(), list[Any]()
    pickling = Pickler(file, 5, buffer_callback=buffers.append)
    if reducers is not None:
        pickling.dispatch_table = reducers
    pickling.dump(value)
    return file.getvalue(), buffers


def load(packed: WithReferences, resolve: Callable[..., Any]) -> Any:
    """Rebuild what `dump` pickled; `resolve` gives what a reference stands for."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, reference: Any) -> Any:
            return resolve(reference)

    data, buffers = packed
    return Unpickler(io.BytesIO(data), buffers=buffers).load()
