"""Everything that happens at a fork, in the order in which it happens.

`Step` is the whole list. A module with something to do hands in the function for its step with `at_fork`;
a step of a module that was never imported is left out.
"""

from __future__ import annotations

import enum
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol


class Step(enum.Enum):
    """What is done at a fork, first to last."""

    # Before the fork, in the thread that forks.

    BLOCK_SIGTERM = enum.auto()
    """Python drops a signal that reaches a child before the child is set up. A process that is started
    and told to end at once would run on: SIGTERM stays pending until `UNBLOCK_SIGTERM` in the child."""

    DETACH_WINDOWS = enum.auto()
    """Arrays that look into memory files get private pages: what parent or child writes, the other one and
    the sender do not see."""

    # After the fork, in the parent.

    UNBLOCK_SIGTERM_IN_PARENT = enum.auto()

    # After the fork, in the child, before it runs anything else.

    CLOSE_SOCKETS = enum.auto()
    """Those of `keep_from_children`, and first of all: as long as one is open, a peer believes that the
    parent lives."""

    FORGET_MEMORY_FILES = enum.auto()
    """They belong to the parent's connections. Locks of theirs, which a thread may have held, are new."""

    FORGET_CONNECTIONS = enum.auto()
    """A client's connections to its managers: the child makes its own."""

    COUNT_FORK = enum.auto()
    """An object's code sees by the count that it has forked."""

    UNBLOCK_SIGTERM = enum.auto()
    """SIGTERM has its default meaning again, and a pending one is delivered: last, as it ends the child."""


_BEFORE = (Step.BLOCK_SIGTERM, Step.DETACH_WINDOWS)
_IN_PARENT = (Step.UNBLOCK_SIGTERM_IN_PARENT,)
_IN_CHILD = tuple(each for each in Step if each not in (*_BEFORE, *_IN_PARENT))

Action = Callable[[], object]

actions: dict[Step, Action] = {}


def at_fork(step: Step) -> Callable[[Action], Action]:
    """Make the decorated function the one for this step."""

    def hand_in(action: Action) -> Action:
        assert step not in actions, f"{step} is taken"
        actions[step] = action
        return action

    return hand_in


def _run(steps: Iterable[Step]) -> None:
    for step in steps:
        try:
            actions.get(step, bool)()
        except BaseException as error:  # a signal handler's, too: the other steps are needed all the same
            # Not logged: another thread may have held a lock of the log when this child was forked.
            os.write(2, f"mppool: {step.name} failed at a fork: {error!r}\n".encode())


os.register_at_fork(
    before=partial(_run, _BEFORE),
    after_in_parent=partial(_run, _IN_PARENT),
    after_in_child=partial(_run, _IN_CHILD),
)


# -- sockets ------------------------------------------------------------------------------------------


class _Closeable(Protocol):
    def close(self) -> object: ...


_private: weakref.WeakKeyDictionary[_Closeable, int | None] = weakref.WeakKeyDictionary()


def keep_from_children(sock: _Closeable, *, except_of: int | None = None) -> None:
    """Have forked children close this socket, except those that the thread `except_of` forks.

    A manager's end shows by its sockets: a child that is no manager must not hold them open.
    """
    _private[sock] = except_of


@at_fork(Step.CLOSE_SOCKETS)
def _close_sockets() -> None:
    for sock, thread in list(_private.items()):
        if thread != threading.get_ident():
            sock.close()
