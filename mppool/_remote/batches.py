"""One call for many callers, beside the object: `func(object, [items])`, and an answer for each of them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Sequence
from typing import Any

from mppool._wire.connection import Reducers

from .calls import Place, brought, called, error_of
from .errors import cannot_unpickle
from .opcodes import VALUE, Answer
from .references import RequestLost, WithReferences


def apply_batch(
    function: WithReferences, items: Sequence[WithReferences], place: Place
) -> list[WithReferences]:
    """Call the function with the items; returns the pickle of an answer for each. Raises nothing.

    An item that cannot be rebuilt here is not in the call, and a result that cannot go is an error of its own
    caller's.
    """
    answers: list[WithReferences | None] = [None] * len(items)
    values = []
    try:
        func = _rebuilt(function)
        for number, item in enumerate(items):
            try:
                values.append(_rebuilt(item))
            except RequestLost as error:
                answers[number] = _pickled(error_of(error, place))
        results = iter(_as_many(func, called(place, func, values), len(values)) if values else ())
        return [_answer(place, func, next(results)) if each is None else each for each in answers]
    except BaseException as error:
        failed = _pickled(error_of(error, place))
        return [failed if each is None else each for each in answers]


def _rebuilt(packed: WithReferences) -> Any:
    data, buffers = packed
    try:
        return pickle.loads(data, buffers=buffers)
    except BaseException as error:  # as for any request
        text = cannot_unpickle("the request cannot be rebuilt where the object lives", error)
        raise RequestLost(text) from error


def _as_many(func: object, results: Any, number: int) -> Iterable[Any]:
    """The results, one for each item. Raises `TypeError` or `ValueError` if they are not that."""
    is_row = hasattr(results, "__len__") and hasattr(results, "__iter__")
    if not is_row or isinstance(results, (str, bytes, bytearray, dict, set, frozenset)):
        what = type(results).__qualname__
        raise TypeError(
            f"{func!r} has to return a list or array of {number} results, and returned a {what!r}"
        )
    if len(results) != number:
        raise ValueError(f"{func!r} returned {len(results)} results for {number} items")
    return results  # type: ignore[no-any-return]


def _answer(place: Place, func: Any, result: object) -> WithReferences:
    if isinstance(result, BaseException):
        return _pickled(error_of(result, place))
    try:
        return brought(_pickled, place, func, result)
    except BaseException as error:
        return _pickled(error_of(error, place))


def _pickled(answer: Answer, reducers: Reducers | None = None) -> WithReferences:
    """An answer as a pickle; what is large is not copied. Raises what pickle raises."""
    file, buffers = io.BytesIO(), list[Any]()
    pickler = pickle.Pickler(file, 5, buffer_callback=buffers.append)
    if reducers is not None:
        pickler.dispatch_table = reducers
    pickler.dump(answer)
    return file.getvalue(), buffers


def result_as_answer(packed: WithReferences) -> Answer:
    """An answer around the pickle of another, with which large data passes without a copy."""
    data, buffers = packed
    return VALUE, (data, [pickle.PickleBuffer(each) for each in buffers])
