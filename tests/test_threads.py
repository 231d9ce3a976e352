"""The threads for slow work."""

from __future__ import annotations

import threading
from functools import partial
from queue import Empty, SimpleQueue

import pytest
from helpers import wait_until
from standins import Job

from mppool._pool import threads
from mppool._pool.threads import ThreadCache


def test_jobs_run_side_by_side_in_threads_that_hold_up_no_exit() -> None:
    cache = ThreadCache("side by side")
    together = threading.Barrier(4)
    daemons: list[bool] = []

    def job() -> None:
        daemons.append(threading.current_thread().daemon)
        together.wait(10)

    for _ in range(3):
        cache.submit(job)
    together.wait(10)
    wait_until(lambda: len(daemons) == 3)
    assert all(daemons)


def test_a_thread_does_not_end_when_a_job_has_just_been_left_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    done_one, left = threading.Event(), threading.Event()

    class Late(SimpleQueue[Job]):
        """Its reader, once it has done a job, gives up at the very moment that another is left for it."""

        def get(self, block: bool = True, timeout: float | None = None) -> Job:
            if done_one.is_set() and not left.is_set():
                left.wait(10)
                raise Empty
            return super().get(block, timeout)

    monkeypatch.setattr(threads, "SimpleQueue", Late)
    cache = ThreadCache("just in time")
    cache.submit(done_one.set)
    wait_until(lambda: cache.free == 1)
    done = threading.Event()
    cache.submit(done.set)
    left.set()
    assert done.wait(10)


def test_a_thread_that_is_free_takes_the_next_job() -> None:
    cache = ThreadCache("free one")
    seen: list[int] = []
    for number in range(20):
        done = threading.Event()

        def job(done: threading.Event = done) -> None:
            seen.append(threading.get_ident())
            done.set()

        cache.submit(job)
        assert done.wait(10)
        wait_until(lambda: cache.free == 1)
        assert len(seen) == number + 1
    assert len(set(seen)) == 1


@pytest.mark.bounds(idle_thread=0.01)
def test_threads_with_nothing_to_do_end() -> None:
    cache = ThreadCache("short-lived")
    workers: list[threading.Thread] = []
    for number in range(5):
        cache.submit(lambda: workers.append(threading.current_thread()))
        wait_until(lambda number=number: len(workers) > number)  # type: ignore[misc]
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()
    assert (cache.size, cache.free) == (0, 0)
    cache.submit(lambda: workers.append(threading.current_thread()))
    wait_until(lambda: len(workers) == 6)


def test_a_job_that_raises_is_logged_and_its_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    cache = ThreadCache("careless")
    cache.submit(partial(int, "no number"))
    wait_until(lambda: cache.free == 1)
    assert "no number" in caplog.text
    done = threading.Event()
    cache.submit(done.set)
    assert done.wait(10)
    assert cache.size == 1


def no_more_threads(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_where_no_thread_can_be_had_the_job_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    cache = ThreadCache("none")
    ran_in: list[int] = []
    cache.submit(lambda: ran_in.append(threading.get_ident()))
    assert ran_in == [threading.get_ident()]
    assert (cache.size, cache.free) == (0, 0)


def test_where_no_further_thread_can_be_had_a_job_waits_for_the_one_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = ThreadCache("last one")
    go_on, done = threading.Event(), threading.Event()
    order: list[int] = []
    cache.submit(partial(go_on.wait, 10))
    monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    for number in range(3):
        cache.submit(partial(order.append, number))
    cache.submit(done.set)
    assert not order
    go_on.set()
    assert done.wait(10)
    wait_until(lambda: cache.free == 1)
    assert order == [0, 1, 2]
    assert cache.size == 1


def test_when_threads_can_be_had_again_what_waited_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ThreadCache("more hands")
    go_on, done = threading.Event(), threading.Event()
    order: list[int] = []
    cache.submit(partial(go_on.wait, 10))  # the only thread has something to do
    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", no_more_threads)
        for number in range(3):
            cache.submit(partial(order.append, number))
    assert cache.free == -3
    cache.submit(lambda: (order.append(3), done.set()))
    wait_until(lambda: order)  # by a thread that was hired, though the first is still at it
    assert order[0] == 0
    go_on.set()
    assert done.wait(10)
    wait_until(lambda: (cache.size, cache.free) == (2, 2))
    assert sorted(order) == [0, 1, 2, 3]
