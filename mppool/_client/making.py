"""What a client says of a pool that is to be made: it checks what it can itself, and pickles the rest."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from types import NoneType
from typing import Any, TypeVar

from mppool._remote.arguments import by_value_pickler, pickled, pickled_by_name
from mppool._remote.references import DoesNotPickle
from mppool._system.program import main_of_program
from mppool._system.recursion import may_start_manager
from mppool._validation import expect, in_short
from mppool.errors import FactoryError
from mppool.options import PoolOptions, options_for, refuse_for_values, refuse_unknown

from .shared import Recipe

R = TypeVar("R")

HANGS = "has not found the factory {!r}, a hook or an item: an import hangs there"


def checked(
    factory: Any, name: Any, each: Any, exist_ok: Any, options: dict[str, Any]
) -> tuple[list[Any], PoolOptions]:
    """The items of a pool, and its options as they are to be. Raises `TypeError` and `ValueError`."""
    if factory is None and each is not None:
        refuse_for_values(options)
    else:
        fine = callable(factory) or isinstance(factory, str)
        expect(fine, "factory", "callable or an import string (given things go into each)", factory)
    expect(isinstance(name, (str, NoneType)), "name", "a string or None", name)
    expect(isinstance(exist_ok, bool), "exist_ok", "True or False", exist_ok)
    if exist_ok and name is None:
        raise ValueError("exist_ok=True: a pool without a name is always a new one")
    refuse_unknown(options)
    items = [] if each is None else _read(each)
    return items, options_for(len(items), options)


def by_name_or_value(ask: Callable[[bool], R], factory: Any, items: list[Any]) -> R:
    """Ask for a pool by pickles that name things, and, where these are not found there, by value."""
    try:
        return ask(False)
    except FactoryError:
        if (isinstance(factory, str) and not items) or not by_value_pickler():
            raise
    return ask(True)


def pickled_recipe(factory: Any, options: dict[str, Any], items: list[Any], by_value: bool) -> Recipe:
    """What a manager makes a pool of. `TypeError` says what does not pickle."""
    for hook in ("check", "reset", "close"):
        _pickled(hook, options.get(hook))
    return (
        None if factory is None else _pickled("factory", factory, by_value),
        _pickled("options", options, by_value),
        tuple(_pickled_items(items, by_value)),
    )


def named_recipe(factory: Any, options: dict[str, Any], items: list[Any]) -> Recipe:
    """The same of what all programs can import. `TypeError` says what they cannot."""
    for hook in ("check", "reset", "close"):
        _named(hook, options.get(hook))
    recipe = (
        None if factory is None else _named("factory", factory),
        _named("options", options),
        tuple(_named("item", each) for each in items),
    )
    return (*recipe, main_of_program() if names_main(recipe) else None)


def names_main(pickles: Any) -> bool:
    """Whether something in these is found in a `__main__`."""
    return any(name in pickle.dumps(pickles) for name in (b"__main__", b"__mp_main__"))


def _named(what: str, value: object) -> bytes:
    try:
        data = pickled_by_name(value)
    except DoesNotPickle as error:
        raise TypeError(
            f"{what} {value!r} does not pickle ({error}), and a pool for all programs is made of what they "
            "all can import: a function at the top level of a module, a functools.partial of one, or an "
            "import string 'package.module:callable'"
        ) from error.__cause__
    # In a manager that has a program's `__main__` run there is none yet.
    if main_of_program() is None and names_main(data) and may_start_manager():
        raise TypeError(
            f"{what} {value!r} is defined in a notebook or was typed in, and a pool for all programs is made "
            "of what they all can import: put it into a module"
        )
    return data


def _pickled(what: str, value: object, by_value: bool = False) -> bytes:
    try:
        return pickled(value, by_value)
    except DoesNotPickle as error:
        raise TypeError(
            f"{what} {value!r} does not pickle, so it cannot get to the manager's process ({error}). Use a "
            "function at the top level of a module, a functools.partial of one, or, for the factory, an "
            "import string 'package.module:callable'; or install cloudpickle"
        ) from error.__cause__


def _read(each: Any) -> list[Any]:
    """The items of `each`."""
    fine = isinstance(each, Iterable) and not isinstance(each, (str, bytes, bytearray))
    expect(fine, "each", "an iterable of items, which a string is not", each)
    items = list(each)
    if not items:
        raise ValueError(f"each={each!r}: there is no item in it")
    return items


def _pickled_items(items: Iterable[Any], by_value: bool) -> Iterator[bytes]:
    for number, item in enumerate(items):
        try:
            yield pickled(item, by_value)
        except DoesNotPickle as error:
            raise TypeError(
                f"item {number} of each, {in_short(item)}, does not pickle, so it cannot get to the "
                f"manager's process ({error}). Give what the factory can make it of: a number or a path"
            ) from error.__cause__
