"""Calls on an object that has an event loop: what of it is asynchronous goes by the names of what is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import AsyncGeneratorType
from typing import Any

from .interface import CURSOR, OF_GENERATORS

Invoke = Callable[..., Any]
"""Calls a function, with the arguments that follow it, on the event loop, which awaits what it gives."""


def awaited_method(obj: Any, name: str) -> Callable[..., Any]:
    """The method that is offered under a name."""
    if type(obj) is AsyncGeneratorType:
        name = OF_GENERATORS.get(name, name)
    return getattr(obj, name)  # type: ignore[no-any-return]


def items_of(obj: Any, kind: str, invoke: Invoke) -> Iterator[Any]:
    """What gives the next items of an object of a kind of `Interface.iterator`."""
    if hasattr(type(obj), "__anext__") or hasattr(type(obj), "__next__"):
        return _Items(partial(invoke, _next, obj))
    if kind == CURSOR:
        return iter(partial(invoke, obj.fetchone), None)
    return _Items(partial(invoke, _next, invoke(_iter, obj)))


class _Items(Iterator[Any]):
    """An iterator for one that is asynchronous."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask = ask

    def __next__(self) -> Any:
        try:
            return self._ask()
        except StopAsyncIteration as stop:
            raise StopIteration(*stop.args) from None


# Where an object has both, the asynchronous one is meant for it. Looked up on the type, as Python does.


def _iter(obj: Any) -> Any:
    return aiter(obj) if hasattr(type(obj), "__aiter__") else iter(obj)


def _next(obj: Any) -> Any:
    return anext(obj) if hasattr(type(obj), "__anext__") else next(obj)


def _enter(obj: Any) -> Any:
    kind: Any = type(obj)
    return kind.__aenter__(obj) if hasattr(kind, "__aenter__") else kind.__enter__(obj)


def _exit(obj: Any, kind: Any, error: Any, trace: None) -> Any:
    own: Any = type(obj)
    leave = own.__aexit__ if hasattr(own, "__aexit__") else own.__exit__
    return leave(obj, kind if error is None else type(error), error, trace)


ENTRANCES: dict[str, Callable[..., Any]] = {
    "__iter__": _iter,
    "__next__": _next,
    "__enter__": _enter,
    "__exit__": _exit,
}
"""What performs the protocols that may be asynchronous, by the names under which they are offered."""
