"""The program in this process: told from one that replaces it by exec, and its `__main__` found elsewhere."""

from __future__ import annotations

import functools
import os
import sys
import threading
import types

_loading = threading.RLock()  # held while a `__main__` is run here


def token() -> str:
    """What it calls itself. A forked child and a program that follows by exec have another one."""
    return _token_of(os.getpid())


@functools.lru_cache(maxsize=1)
def _token_of(pid: int) -> str:  # noqa: ARG001  # a forked child gets one of its own
    return os.urandom(8).hex()


def main_of_program() -> str | None:
    """Where the `__main__` of this program lies: a module's name, or a path, as for spawn.

    None if other processes cannot run it: that of a notebook.
    """
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name)
    return None if file is None else os.path.abspath(file)


def load_main(main: str) -> None:
    """Have what lies there be the `__main__` of this program, which has none of its own, as spawn does.

    Raises what it raises; `ImportError` if this program has another one.
    """
    with _loading:
        present = main_of_program()
        if present == main:
            return
        if present is not None:
            raise ImportError(f"this process has that of {present!r}")
        import runpy  # noqa: PLC0415  # in a manager, for few pools

        module = types.ModuleType("__mp_main__")
        run = runpy.run_path if os.path.isabs(main) else functools.partial(runpy.run_module, alter_sys=True)
        vars(module).update(run(main, run_name=module.__name__))
        sys.modules["__main__"] = sys.modules[module.__name__] = module
