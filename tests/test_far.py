"""Objects whose processes share no memory with their manager: it asks them, and they end by themselves."""

from __future__ import annotations

from actors import Tool
from far import FarManager


def test_a_far_object_is_lent_as_any() -> None:
    with FarManager(watch_interval=60.0) as manager:
        pool = manager.create_pool(Tool, isolation="process", max_size=2)
        with pool.lease() as tool:
            assert tool.echo([1]) == [1]
            home = tool.pid()
        assert pool.apply(Tool.pid) == home
        assert [(each.pid, each.state) for each in pool.objects()] == [(home, "idle")]
