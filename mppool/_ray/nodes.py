"""What a control learns of processes on the nodes of its cluster, and has done there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, cast

from mppool._system.processes import ProcessId, kill, kill_group_at_end
from mppool._system.usage import Usage

from . import cluster
from .watch import Watch

_PAUSE_SECONDS = 0.2
"""Before a watch is asked again that could not be reached, which proves nothing."""

_ANSWER_SECONDS = 5.0
"""For a node to say whether a process on it lives. One that is silent for so long cannot be reached."""

_FIGURES_SECONDS = 1.0
"""For figures: who asks for them waits little longer."""

_MAX_AWAITED = 100_000  # processes of a node whose ends are awaited


class Nodes:
    """Asks the watches of the nodes, which are started with the first question.

    A process has ended if the watch of its node has seen its end, or if Ray says that its node is dead. Of
    one that a watch cannot see, or that is on a node which Ray does not know, its connections alone tell.
    """

    def __init__(
        self,
        namespace: str,
        on_gone: Callable[[ProcessId], None],
        submit: Callable[[Callable[[], object]], None],
    ) -> None:
        self._namespace = namespace
        self._on_gone = on_gone
        self._submit = submit
        self._started: dict[ProcessId, float | None] = {}  # those that are watched, and when they started
        self._watches: dict[str, Any] = {}  # without the handle Ray ends one

    def watch(self, process: ProcessId, started: float | None) -> None:
        """Learn at once when a process on another node ends. It has started then, as it says itself."""
        if process not in self._started:
            self._started[process] = started
            self._submit(partial(self._ask_for_end, process))

    def _ask_for_end(self, process: ProcessId) -> None:
        try:
            watch = self._watch_of(process)
            asked = watch and cluster.future(watch.await_end.remote(process.pid, self._started[process]))
        except (ValueError, cluster.FAILED):  # the watch of this name is just dying
            self._ask_again(process)
            return
        if asked is not None:
            asked.add_done_callback(lambda told: self._submit(partial(self._on_word, process, told)))
        elif cluster.is_dead(str(process.node)):
            self._gone(process)
        else:
            self._started.pop(process, None)

    def _on_word(self, process: ProcessId, told: Future[bool]) -> None:
        if told.exception() is not None:  # the watch has died, and perhaps its node
            self._ask_again(process)
        elif told.result():
            self._gone(process)
        else:
            self._started.pop(process, None)

    def _ask_again(self, process: ProcessId) -> None:
        self._watches.pop(str(process.node), None)
        time.sleep(_PAUSE_SECONDS)
        self._submit(partial(self._ask_for_end, process))

    def _gone(self, process: ProcessId) -> None:
        self._started.pop(process, None)
        self._on_gone(process)

    def answers(self, process: ProcessId) -> bool:
        """Whether the node of a process gives a sign of life."""
        if not process.elsewhere:
            return True
        watch = self._watch_of(process)
        if watch is None:
            return False
        try:
            cluster.answer(watch.answer.remote(), _ANSWER_SECONDS)
        except cluster.TOO_LATE:
            return False
        except cluster.FAILED:  # it has died, and perhaps its node
            self._watches.pop(str(process.node), None)
            return cluster.is_alive(str(process.node))
        return True

    def usage(self, processes: Sequence[ProcessId]) -> dict[ProcessId, Usage]:
        """What these use, as far as their nodes tell it in time."""
        asked = {each: self._ask(each, "usage") for each in processes}
        return {each: Usage(*told) for each, ref in asked.items() if (told := _told(ref)) is not None}

    def exact_memory(self, process: ProcessId) -> int | None:
        """As `ProcessTable.exact_memory`; None if its node does not tell it in time."""
        return cast("int | None", _told(self._ask(process, "exact_memory")))

    def _ask(self, process: ProcessId, question: str) -> Any:
        watch = self._watch_of(process)
        return watch and getattr(watch, question).remote(process.pid, self._started.get(process))

    def kill(self, process: ProcessId) -> None:
        """Kill a process and all that descend from it, as soon as its node can be reached."""
        if not process.elsewhere:
            kill(process)
        else:
            self._ask(process, "kill")

    def kill_group(self, process: ProcessId) -> None:
        """Kill what is left of the group of a process that ends."""
        if not process.elsewhere:
            self._submit(partial(kill_group_at_end, process))
        else:
            self._ask(process, "kill_group")

    def _watch_of(self, process: ProcessId) -> Any:
        """The watch of the node of a process, started if there is none; None if that is not alive."""
        node = str(process.node)
        if node not in self._watches and cluster.is_alive(node):
            self._watches[node] = cluster.start(
                Watch,
                name=f"watch {node}",
                namespace=self._namespace,
                get_if_exists=True,
                num_cpus=0,
                max_concurrency=_MAX_AWAITED,
                scheduling_strategy=cluster.on_node(node, soft=False),
            )
        return self._watches.get(node)


def _told(ref: Any) -> Any:
    """What a watch answers to a question about figures; None if it does not."""
    try:
        return ref and cluster.answer(ref, _FIGURES_SECONDS)
    except cluster.FAILED:
        return None
