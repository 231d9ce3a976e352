"""How a pool is made: what a client sent of it, and what that stands for in the manager."""

from __future__ import annotations

import inspect
import itertools
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from mppool._pool.entry import Item
from mppool._remote.errors import cannot_unpickle
from mppool._system.program import load_main
from mppool._system.recursion import without_managers
from mppool._validation import in_short, resolve
from mppool.errors import FactoryError
from mppool.options import ALL, PoolOptions, is_coroutine_function, options_for


@dataclass(frozen=True)
class Recipe:
    """As it came, pickled: what it names may be known elsewhere, and not pickle again here."""

    factory: bytes | None
    """None: the items themselves are lent."""
    options: bytes
    """Those that were given, by name."""
    each: tuple[bytes, ...] = ()
    """The items, each by itself."""
    main: str | None = None
    """Where the `__main__` lies that these name; None: they name none, or that of the manager's process."""

    @property
    def parts(self) -> tuple[object, ...]:
        """What makes it once more."""
        return self.factory, self.options, self.each, self.main

    def find_factory(self) -> Callable[..., Any] | None:
        """What makes an object, with items of the pickle of one. The first to be found."""
        _find_main(self.main)
        if self.factory is None:
            return None
        factory = _find_factory(self.factory)
        if not self.each:
            return factory
        _check_takes_item(factory)
        return partial(_make_of_in_loop if is_coroutine_function(factory) else _make_of, factory)

    def find_options(self) -> PoolOptions:
        """The options, checked."""
        return options_for(len(self.each), self._given())

    def find_items(self) -> list[Item]:
        """The items. `FactoryError` if one is not known here."""
        things = [_unpickled("item", each) for each in self.each]
        return [Item(*each) for each in zip(itertools.count(), self.each, map(in_short, things))]

    def travelling(self, options: PoolOptions) -> tuple[Callable[..., Any], PoolOptions]:
        """Factory and options for objects in processes of their own. What does not pickle goes on as it came.

        An import string is resolved there: what it stands for may not pickle.
        """
        changed: dict[str, Any] = {}
        if self.main is not None:  # it is known there with the first object, and these earlier
            changed["keep"] = [
                each if isinstance(each, str) else _import_string(each) for each in options.keep
            ]
        for name in ("check", "reset", "close"):
            try:
                pickle.dumps(getattr(options, name))
            except Exception:
                changed[name] = partial(_call_hook, self.options, name)
        assert self.factory is not None, "values have no place of their own"
        build = _build_in_loop if is_coroutine_function(_find_factory(self.factory)) else _build
        return partial(build, self.main, self.factory), replace(options, **changed)

    def difference(self, made: Recipe) -> str | None:
        """What a pool that was `made` has otherwise; None if nothing. An option left out here matches any."""
        if None not in (self.main, made.main) and self.main != made.main:
            return f"its __main__ is {made.main!r}, not {self.main!r}"
        ours: dict[str, Any] = {}
        theirs: dict[str, Any] = {}
        if self.factory != made.factory:
            ours["factory"], theirs["factory"] = (
                each and _find_factory(each) for each in (self.factory, made.factory)
            )
        if self.each != made.each:
            ours["each"], theirs["each"] = (
                [_unpickled("item", each) for each in recipe.each] for recipe in (self, made)
            )
        if self.options != made.options:
            ours |= self._given()
            theirs |= vars(made.find_options())
        for name, value in ours.items():
            form = _as_set if name in ("expose", "keep") else _form
            if not _alike(form(value), form(theirs[name])):
                return f"its {name} is {in_short(theirs[name])}, not {in_short(value)}"
        return None

    def _given(self) -> dict[str, Any]:
        return cast("dict[str, Any]", _unpickled("options", self.options))


def check_loop(has_loop: bool, options: PoolOptions) -> None:
    """Raise `TypeError` for a pool that needs event loops, and has none."""
    if has_loop and options.isolation == "none":
        raise TypeError(
            "the factory is a coroutine function: its objects need an event loop each, which takes "
            "isolation='thread' (one in the manager's process) or isolation='process' (a process of its own)"
        )
    for name in ("check", "reset", "close"):
        hook = getattr(options, name)
        if is_coroutine_function(hook) and not has_loop:
            raise TypeError(
                f"{name} is a coroutine function, and nothing awaits it: only objects whose factory is one "
                f"have an event loop. Give a plain function: {hook!r}"
            )


def resolved(target: Any) -> Any:
    """What a client named, perhaps by an import string."""
    try:
        return resolve(target)
    except ValueError:
        raise
    except BaseException as error:  # also what the module raises while it is imported
        text = f"the import string {target!r} leads nowhere in the manager: {error!r}"
        raise FactoryError(text) from error


def _import_string(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _alike(ours: Any, theirs: Any) -> bool:
    """Whether two parts of recipes, in the forms that tell it, say the same.

    What is known by its name is the same thing each time. Of what came by value no two are equal.
    """
    try:
        return bool(ours == theirs)
    except Exception:  # an array's, which has no one answer
        return False


def _as_set(value: Any) -> Any:
    return value if value is None or value == ALL else frozenset(value)


def _form(value: Any) -> Any:
    """What tells whether two values say the same: partials have no `==` of their own."""
    if isinstance(value, partial):
        keywords = {name: _form(each) for name, each in value.keywords.items()}
        return partial, _form(value.func), [_form(each) for each in value.args], keywords
    return value


@without_managers()
def _find_main(main: str | None) -> None:
    """Have it be the `__main__` of this process. `FactoryError` if that fails."""
    try:
        if main is not None:
            load_main(main)
    except BaseException as error:  # what it does when it is run is not for this process
        text = cannot_unpickle(f"the manager's process cannot have {main!r} as its __main__", error)
        raise FactoryError(f"{text}: define the factory in a module") from error


@without_managers()
def _find_factory(data: bytes) -> Callable[..., Any]:
    made = _unpickled("factory", data)
    factory = resolved(made)
    if not callable(factory):
        raise TypeError(f"factory must be callable: {made!r}")
    return cast("Callable[..., Any]", factory)


def _check_takes_item(factory: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # it does not tell
        return
    try:
        signature.bind(None)
    except TypeError as error:
        text = f"with each the factory is called with an item, but {factory!r} is not: {error}"
        raise TypeError(text) from None


def _make_of(factory: Callable[[Any], Any], item: bytes) -> Any:
    return factory(_unpickled("item", item))


async def _make_of_in_loop(factory: Callable[[Any], Any], item: bytes) -> Any:
    return await factory(_unpickled("item", item))


def _build(main: str | None, factory: bytes, *item: bytes) -> Any:
    """In an object's process: what the factory makes."""
    _find_main(main)
    return _find_factory(factory)(*(_unpickled("item", each) for each in item))


async def _build_in_loop(main: str | None, factory: bytes, *item: bytes) -> Any:
    return await _build(main, factory, *item)


def _call_hook(options: bytes, name: str, obj: Any) -> Any:
    """In an object's process: what a hook says of the object."""
    return _unpickled("options", options)[name](obj)


@without_managers()
def _unpickled(what: str, data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except BaseException as error:  # a SystemExit, too, is the factory's or an option's
        text = cannot_unpickle(f"the manager's process cannot find the {what}", error)
        advice = "An import string 'package.module:callable' does without a pickle"
        if isinstance(error, ModuleNotFoundError):
            advice = "Its import path is that of the process that started it"
        raise FactoryError(f"{text}. {advice}") from error
