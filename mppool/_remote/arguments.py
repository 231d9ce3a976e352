"""Arguments on their way to an object, where a plain pickle of them does not do.

Handles go back as what they stand for, wherever they are in the arguments. Functions and classes that pickle
refuses, or by which the other side would find something else, go by value, where cloudpickle is installed.
"""

from __future__ import annotations

import copyreg
import functools
import io
import pickle
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any, NoReturn, TypeVar

from mppool.errors import RemoteError

from .errors import lend_type
from .forms import Reduce, form_of
from .opcodes import APPLY, PACKED, Answer
from .references import DoesNotPickle, RequestLost, WithReferences, dump, fails_again
from .steps import Steps

_T = TypeVar("_T")

_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]

ReferenceTo = Callable[[Any], object]
"""What stands for an object among the arguments; None if it travels. What it raises is the caller's."""


def has_no_file() -> bool:
    """Whether this is a notebook or the like: others know what it defines as it was before, or not."""
    return not hasattr(sys.modules.get("__main__"), "__file__")


def send_packed(
    send: Callable[[str, _Args], Steps[Answer]],
    op: str,
    args: _Args,
    kwargs: _Kwargs,
    reference_to: ReferenceTo,
    problem: Exception | None = None,
) -> Steps[Answer]:
    """Send a call with handles in its arguments, or of which a plain pickle was tried: `problem` tells how.

    Raises `TypeError` for what does not pickle, `RemoteError` for what cannot be rebuilt, and what `send` and
    `reference_to` raise.
    """

    def send_one(packed: WithReferences) -> Steps[Answer]:
        return send(PACKED, (op, *packed))

    refusal = functools.partial(_refusal, op, args, kwargs, reference_to)
    return (yield from _send_somehow(send_one, ((args, kwargs),), reference_to, refusal, problem))


def send_apart(
    send: Callable[[WithReferences, WithReferences], Steps[_T]],
    func: Callable[..., Any],
    item: object,
    reference_to: ReferenceTo,
) -> Steps[_T]:
    """Send a function and its argument, a pickle each. Raises as `send_packed`."""
    problem: Exception | None = None
    if not has_no_file():
        try:
            packed = [_attempt(functools.partial(_dumped_apart, each)) for each in (func, item)]
            return (yield from send(*packed))
        except (DoesNotPickle, RequestLost) as error:
            problem = error
    refusal = functools.partial(_refusal, APPLY, (func, (item,), {}), {}, reference_to)
    return (yield from _send_somehow(send, (func, item), reference_to, refusal, problem))


def _dumped_apart(value: object) -> WithReferences:
    buffers: list[Any] = []
    return pickle.dumps(value, 5, buffer_callback=buffers.append), buffers


def _send_somehow(
    send: Callable[..., Steps[_T]],
    values: tuple[object, ...],
    reference_to: ReferenceTo,
    refusal: Callable[[Exception | None], TypeError],
    problem: Exception | None,
) -> Steps[_T]:
    """Send the pickles of some values, in one form after the other, until they can be rebuilt there."""
    for pickler in _picklers(problem):
        try:
            packed = [_pack(pickler, each, reference_to) for each in values]
        except DoesNotPickle as error:
            problem = error
            continue
        if any(_finds_others(pickler, data) for data, _ in packed):
            continue
        try:
            return (yield from send(*packed))
        except RequestLost as error:
            problem = error
    if isinstance(problem, RequestLost):
        advice = ", or install cloudpickle" if "__main__" in str(problem) and not by_value_pickler() else ""
        raise RemoteError(f"{problem}{advice}") from problem.__cause__
    raise refusal(problem) from problem and problem.__cause__


def _picklers(problem: Exception | None) -> Iterator[type[pickle.Pickler]]:
    """Those to be tried, one after the other."""
    if not isinstance(problem, RequestLost):
        yield pickle.Pickler
    by_value = by_value_pickler()
    if by_value is not None:
        yield by_value


def _finds_others(pickler: type[pickle.Pickler], data: bytes) -> bool:
    """Whether a pickle names what only this process has in its `__main__`, and it can go by value instead."""
    by_name = pickler is pickle.Pickler and b"__main__" in data
    return by_name and has_no_file() and by_value_pickler() is not None


def by_value_pickler() -> type[pickle.Pickler] | None:
    """That of cloudpickle, if it is installed. To import it takes longer than all else."""
    try:
        import cloudpickle  # noqa: PLC0415
    except ImportError:
        return None
    return _with_forms(cloudpickle.Pickler)


def pickled(value: object, by_value: bool) -> bytes:
    """A pickle of a function, or of what has functions in it. Raises `DoesNotPickle`.

    `by_value`: the other side could not find what is named in a plain pickle.
    """
    problem: Exception = RequestLost() if by_value else DoesNotPickle()
    for pickler in _picklers(problem):
        try:
            data = _attempt(functools.partial(_dumps, pickler, value))
        except DoesNotPickle as error:
            problem = error
            continue
        if not _finds_others(pickler, data):
            return data
    try:
        raise problem
    finally:
        del problem  # with this frame, which its traceback knows, it would keep all that was called


def pickled_by_name(value: object) -> bytes:
    """A pickle that names functions and classes, for programs other than this one. Raises `DoesNotPickle`."""
    return _attempt(functools.partial(_dumps, pickle.Pickler, value))


def _dumps(pickler: type[pickle.Pickler], value: object) -> bytes:
    file = io.BytesIO()
    pickler(file, 5).dump(value)
    return file.getvalue()


def _attempt(attempt: Callable[[], _T]) -> _T:
    """What pickles something. Raises `DoesNotPickle` from its error, and a signal handler's as it is."""
    try:
        return attempt()
    except Exception as error:
        if fails_again(attempt):
            raise DoesNotPickle(str(error)) from error
        raise


class _RefusedError(BaseException):
    """What `reference_to` raised, on its way through a pickler: no error of pickle's."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _pack(pickler: type[pickle.Pickler], value: object, reference_to: ReferenceTo) -> WithReferences:
    """Raises `DoesNotPickle`, and what `reference_to` raises."""

    def ask(obj: Any) -> object:
        try:
            return reference_to(obj)
        except RecursionError:  # as deep as this the pickler itself came
            raise
        except Exception as error:
            raise _RefusedError(error) from None

    forms = _FORMS if pickler is pickle.Pickler else None
    try:
        return _attempt(functools.partial(dump, value, ask, forms, pickler))
    except _RefusedError as refused:
        raise refused.error from None


class _Forms(dict[type, Reduce]):
    """A dispatch table: what is registered, and what only looks as if it did not pickle."""

    def __init__(self, registered: Mapping[type, Reduce]) -> None:
        self._registered = registered

    def __missing__(self, kind: type) -> Reduce:
        if kind is io.TextIOWrapper:
            return _refuse_file
        return form_of(kind) or self._registered[kind]


def _refuse_file(file: io.TextIOWrapper) -> NoReturn:
    """For cloudpickle an open file is a copy of its text: what the object did to it would be lost."""
    raise TypeError(f"cannot pickle {type(file).__name__!r} object")


_FORMS = _Forms(copyreg.dispatch_table)


@functools.cache
def _with_forms(pickler: Any) -> type[pickle.Pickler]:
    class Pickler(pickler):  # type: ignore[misc]
        dispatch_table = _Forms(pickler.dispatch_table)

        def reducer_override(self, obj: Any) -> Any:
            if issubclass(type(obj), type) and issubclass(obj, BaseException):
                lend_type(obj)
            return super().reducer_override(obj)

    return Pickler


# -- what does not travel ----------------------------------------------------------------------------------


def _refusal(
    op: str, args: _Args, kwargs: _Kwargs, reference_to: ReferenceTo, error: Exception | None
) -> TypeError:
    """The `TypeError` that names the argument, and says what to do."""
    names = {"the function": args[0]} if op == APPLY else {}
    if op == APPLY:
        _, args, kwargs = args
    names |= {f"argument {number}": arg for number, arg in enumerate(args, 1)}
    names |= {f"argument {name!r}": arg for name, arg in kwargs.items()}
    pickler = by_value_pickler() or pickle.Pickler
    for name, arg in names.items():
        try:
            _pack(pickler, arg, reference_to)
        except DoesNotPickle:
            what = f"{name}, of type {type(arg).__qualname__!r}"
            text = f"an argument does not pickle, so it cannot get to the object: {what}: {error}"
            return TypeError(f"{text}. {_advice(arg)}")
    return TypeError(f"an argument does not pickle, so it cannot get to the object: {error}")


def _advice(arg: Any) -> str:
    kind = type(arg)
    if issubclass(kind, io.IOBase):
        return "Pass its path, or its content as bytes"
    if issubclass(kind, Iterator):
        return "Pass a list of its items"
    if issubclass(kind, Awaitable):
        return "Await it first"
    if issubclass(kind, (FunctionType, MethodType, type)) or "<locals>" in kind.__qualname__:
        what = "Define it at the top level of a module"
        return what if by_value_pickler() else f"{what}, or install cloudpickle"
    beside = "beside the object, with apply() and a function at the top level of a module"
    if kind.__module__.partition(".")[0] in ("_thread", "threading", "multiprocessing"):
        return f"It works where it was made: make one {beside}"
    return f"Pass data, or make it {beside}"
