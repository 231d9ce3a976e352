"""What objects' processes on all nodes take of their machines."""

from __future__ import annotations

from collections.abc import Iterable

from mppool._system.processes import ProcessId
from mppool._system.usage import Usage, process_table

from .nodes import Nodes


class ClusterTable:
    """A look at some processes, of which each node has its own table."""

    def __init__(self, nodes: Nodes, homes: Iterable[ProcessId]) -> None:
        self._nodes = nodes
        self._far = nodes.usage([each for each in homes if each.elsewhere])
        self._here = process_table()

    def usage(self, home: ProcessId) -> Usage | None:
        """As `ProcessTable.usage`."""
        return self._far.get(home) if home.elsewhere else self._here.usage(home)

    def exact_memory(self, home: ProcessId) -> int:
        """As `ProcessTable.exact_memory`."""
        if not home.elsewhere:
            return self._here.exact_memory(home)
        return self._nodes.exact_memory(home) or self._far[home].memory
