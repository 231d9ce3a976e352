"""The pool against a simple model of it, driven by Hypothesis.

The model knows who asked and in which order, who holds which object, and what became of each object; it
knows nothing of how the pool decides. Time stands still until a step moves it, and each build and
hook takes as long as Hypothesis likes: a step of its own ends it, well or badly. So do holders to which a
lease is delegated: anything may happen within what they do by themselves.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from enum import Enum, auto
from functools import partial
from typing import Any, cast
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from standins import (
    ApartRunner,
    AskedFence,
    Call,
    Clock,
    Delegated,
    Job,
    LocalPool,
    ManualThreads,
    SteppedRunner,
)

from mppool import FactoryError, LeaseError, LeaseLost, PoolClosed, PoolError, PoolTimeout, TooManyWaiting
from mppool._pool.entry import Lease
from mppool._pool.hooks import Task
from mppool._pool.pool import BUILDS_AT_ONCE
from mppool._pool.runner import NewLeftovers
from mppool._pool.waiters import Outcome, Waiter
from mppool._system.processes import ProcessId
from mppool.options import HOOK_BOUND

HOLDERS = [ProcessId(pid, None) for pid in (41, 42, 43)]
PATIENCE = 7.0
LIFETIME = 30.0
SOFT, HARD = 100, 1000


class Thing:
    """A pooled object, and what the model knows of it."""

    def __init__(self, made_at: float, generation: int) -> None:
        self.made_at = made_at
        self.generation = generation
        self.uses = 0
        self.closed = 0
        self.stray = False  # code that nothing waits for runs in it: it does not count any more
        self.littered = False  # calls of its last lease left something behind
        self.is_large = False


class Litter(list[object]):
    """What the calls of a lease left behind in a thing."""

    def __init__(self, thing: Thing) -> None:
        self._thing = thing

    def clear(self) -> None:
        self._thing.littered = False
        super().clear()


class Phase(Enum):
    """How far the holder of a delegated lease has come with what it does by itself."""

    USED = auto()
    LOOKED = auto()  # saw that it may park the object
    WRITTEN = auto()  # has written so, and still has the token
    PARKED = auto()
    TAKING = auto()  # saw that it may take the object again
    TAKEN = auto()  # has the token, and has not written so
    LEFT = auto()  # forgot a parked one: it cannot be taken again


BETWEEN = (Phase.LOOKED, Phase.WRITTEN, Phase.TAKING, Phase.TAKEN)


class Held:
    """A lease that lasts, or one that ended while a call was running."""

    def __init__(self, lease: Lease, since: float) -> None:
        self.lease = lease
        self.thing: Thing = lease.object
        self.since = since
        self.call: Call | None = None
        self.was_called = False
        self.delegated: Delegated | None = None
        self.phase = Phase.USED

    @property
    def may_park(self) -> bool:
        """Whether its holder has nothing to tell. That it is recalled is another question."""
        is_free = self.phase is Phase.USED and not (self.call or self.thing.littered)
        return self.delegated is not None and is_free


class Home(ApartRunner):
    """A process, which ends with what runs in it when it is killed; else that has ended before."""

    def __init__(self, model: PoolModel, is_far: bool, new_leftovers: NewLeftovers) -> None:
        super().__init__(new_leftovers)
        self._model = model
        if is_far:
            self.fence = self.gate = FarFence(self)

    def create(self, factory: Any) -> None:
        super().create(factory)
        assert self.process is not None
        self._model.homes[self.process] = self.object

    def kill_after(self, timeout: float) -> None:
        super().kill_after(timeout)
        if hasattr(self, "object"):  # else its build hangs
            self._model.code_ends(self.object, killed=not self.alive)

    def destroy(self, do: Any) -> None:
        self.object.closed += not self.alive
        assert self.process is not None
        del self._model.homes[self.process]
        super().destroy(do)

    def is_asked(self) -> None:
        """The pool asks whether a call of the last lease runs; there may be no answer."""
        if not (self.alive and hasattr(self, "object")):
            raise ChildProcessError("killed")
        if self._model.fail:
            raise TimeoutError("silent")


class FarFence(AskedFence):
    """That of a home which has to be asked."""

    def __init__(self, home: Home) -> None:
        super().__init__()
        self._home = home

    def revoke(self) -> bool:
        thing, idle = getattr(self._home, "object", None), False
        try:
            self._home.is_asked()
            idle = super().revoke()
        finally:
            if thing is not None:
                thing.stray |= not idle
        return idle


class Asker:
    """One who asked and has not been told yet."""

    def __init__(self, holder: ProcessId, since: float, takes: bool) -> None:
        self.holder = holder
        self.since = since
        self.deadline = float("inf")
        self.takes = takes  # False: has gone without a word, which the pool learns when it delivers
        self.waiter: Waiter | None = None


class DatedThreads(ManualThreads):
    """Knows which job was brought when, what kind it is, and which object it is about."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.since: list[float] = []
        self.hung: set[Job] = set()  # builds that took too long, and go on
        self.late = False  # it is one of these that is being done

    def submit(self, job: Job) -> None:
        super().submit(job)
        self.since.append(self._clock())

    def do(self, index: int = 0) -> None:
        self.since.pop(index)
        self.late = self.jobs[index] in self.hung
        self.hung.discard(self.jobs[index])
        super().do(index)

    def time_out_builds(self, seconds: float) -> int:
        """Those that have taken so long hang from now on; how many these are."""
        before = len(self.hung)
        for job, since in zip(self.jobs, self.since, strict=True):
            if cast(Task, job).do.__name__ == "build" and self._clock() - since >= seconds:
                self.hung.add(job)
        return len(self.hung) - before

    def pending(self) -> list[tuple[str, Thing | None, float]]:
        """All but builds that hang."""
        seen = []
        for job, since in zip(self.jobs, self.since, strict=True):
            if job not in self.hung:
                task = cast(Task, job)
                if task.do.__name__ == "<lambda>":  # a kill, of what has left already
                    continue
                seen.append((task.do.__name__, getattr(task.entry.runner, "object", None), since))
        return seen


class PoolModel(RuleBasedStateMachine):
    """Each rule is one thing that can happen to a pool."""

    @initialize(
        sizes=st.tuples(st.integers(0, 3), st.integers(1, 4)).filter(lambda each: each[0] <= each[1]),
        hooks=st.sets(st.sampled_from(["check", "reset"])),
        place=st.sampled_from(["here", "apart", "far", "far"]),
        options=st.fixed_dictionaries(
            {
                "max_waiting": st.none() | st.integers(0, 3),
                "max_uses": st.none() | st.integers(1, 3),
                "max_lifetime": st.none() | st.just(LIFETIME),
                "max_hold": st.none() | st.just(20.0),
                "max_idle": st.none() | st.just(15.0),
                "build_timeout": st.none() | st.sampled_from([6.0, 25.0]),
                "order": st.sampled_from(["lifo", "fifo"]),
                "on_reclaim": st.sampled_from(["close", "reset"]),
            }
        ),
        regulars=st.lists(st.integers(0, 8), max_size=3),
    )
    def start(
        self,
        sizes: tuple[int, int],
        hooks: set[str],
        place: str,
        options: dict[str, Any],
        regulars: list[int],
    ) -> None:
        logging.disable()  # each run would log a page of builds and hooks that fail as they are told to
        if regulars:
            hooks, options = set(), {**options, "order": "lifo", "max_hold": None}
        self.may_delegate = options["order"] == "lifo" and not (hooks or options["max_hold"])
        self.clock = Clock()
        self.threads = DatedThreads(self.clock)
        self.things: list[Thing] = []
        self.queue: list[Asker] = []
        self.held: dict[int, Held] = {}
        self.away: list[Held] = []  # of which the record says that they are parked
        self.running: list[Held] = []  # leases that are over, with a call that still runs
        self.ended: list[Held] = []
        self.counted: Counter[str] = Counter()
        self.waited = self.held_for = 0.0
        self.generation = 0
        self.fail = False  # what the factory or hook does that runs now
        self.builds_time_out = False  # as the time passes that passes now
        self.is_closed = False
        self.wrong: list[str] = []  # seen where the pool would catch an error
        self.last_size = 0
        self.last_building, self.too_many_hung = 0, False
        self.min_size, self.max_size = sizes
        self.options = options
        self.homes: dict[ProcessId, Thing] = {}  # processes of objects
        self.is_far = place == "far"
        apart = {"isolation": "process", "max_memory": SOFT, "max_memory_hard": HARD}
        self.has_check = "check" in hooks
        self.pool = LocalPool(
            self._make,
            name="model",
            clock=self.clock,
            threads=self.threads,
            min_size=self.min_size,
            max_size=self.max_size,
            timeout=PATIENCE,
            check=self._check if "check" in hooks else None,
            reset=self._reset if "reset" in hooks else None,
            close=self._close,
            new_leftovers=Litter,
            runner=SteppedRunner if place == "here" else partial(Home, self, self.is_far),
            **({} if place == "here" else apart),
            **options,
        )
        for holder, steps in zip(HOLDERS, regulars, strict=False):
            self._becomes_a_regular(holder, steps)

    # -- what the pool calls ------------------------------------------------------------------------

    def _must(self, true: object, text: str) -> None:
        if not true:
            self.wrong.append(text)

    def _make(self) -> Thing:
        late = self.threads.late  # it has failed already
        self.counted["failed_builds" if self.fail else "built"] += not late
        if self.fail:
            raise OSError("not today")
        self.things.append(Thing(self.clock(), self.generation))
        self.things[-1].stray = late
        return self.things[-1]

    def _check(self, thing: Thing) -> bool:
        self._is_unused(thing)
        return not self.fail

    def _reset(self, thing: Thing) -> None:
        self._is_unused(thing)
        if self.fail:
            raise OSError("dirty")

    def _close(self, thing: Thing) -> None:
        self._is_unused(thing)
        thing.closed += 1
        if self.fail:
            raise OSError("gone already")

    def _is_unused(self, thing: Thing) -> None:
        in_use = [each.thing for each in (*self.held.values(), *self.running, *self._had())]
        self._must(thing not in in_use, "a hook runs on an object that is in use")
        self._must(not thing.closed, "a hook runs on an object that was closed")
        self._must(not thing.littered, "used again with what a lease left behind")

    def _deliver(self, asker: Asker, outcome: Outcome) -> bool:
        if asker not in self.queue:
            self.wrong.append(f"told one who does not wait: {outcome!r}")
        elif isinstance(outcome, Lease):
            self._must(asker is self.queue[0], "somebody was overtaken")
            self.queue.remove(asker)
            self.waited += self.clock() - asker.since
            self._granted(outcome)
            if not asker.takes:
                self.ended.append(self.held.pop(outcome.id))
        else:
            self.queue.remove(asker)
            self._is_due(asker, outcome)
        return asker.takes

    def _is_due(self, asker: Asker, error: PoolError) -> None:
        if isinstance(error, PoolTimeout):
            self.counted["timeouts"] += 1
            self._must(asker.deadline <= self.clock(), "timed out too early")
        elif isinstance(error, FactoryError):
            self._must(
                self.fail or self.builds_time_out or self._too_many_hang(), "a build is said to have failed"
            )
        else:
            self._must(isinstance(error, PoolClosed) and self.is_closed, f"unexpected: {error!r}")

    def _too_many_hang(self) -> bool:
        return len(self.threads.hung) >= max(2, self.max_size)

    def _granted(self, lease: Lease) -> None:
        held = Held(lease, self.clock())
        self._lasting()
        self._is_taken(held.thing)
        for old in self.ended:
            is_other = old.thing is not held.thing
            self._must(is_other or not _may_call(old), "an old handle still reaches the object")
        self._counts_as_used(held)

    def _is_taken(self, thing: Thing) -> None:
        """It is lent, or its holder has just taken it again."""
        self._is_unused(thing)
        self._must(not self.is_closed, "a closed pool lends")
        self._must(not thing.stray, "lent in spite of what still runs in it")
        self._must(thing.generation == self.generation, "lent in spite of refresh()")
        self._must(not thing.is_large, "lent in spite of what it holds")
        if self.options["max_lifetime"] is not None:
            self._must(self.clock() - thing.made_at < LIFETIME, "lent beyond its lifetime")

    def _counts_as_used(self, held: Held) -> None:
        thing = held.thing
        self.counted["acquired"] += 1
        self.counted["reused"] += bool(thing.uses)
        thing.uses += 1
        self._must(thing.uses <= (self.options["max_uses"] or thing.uses), "lent too often")
        self.held[held.lease.id] = held

    def _end(self, held: Held) -> None:
        """The pool is about to end this lease."""
        del self.held[held.lease.id]
        self.held_for += self.clock() - held.since
        self.ended.append(held)
        if held.call:
            held.thing.stray |= not self.is_far  # else that is to be asked for
            self.running.append(held)

    # -- what holders have to themselves ------------------------------------------------------------

    def _lasting(self) -> list[Held]:
        """Those of parked objects; some may be over by now."""
        for held in [each for each in self.away if each.lease.over]:
            self.away.remove(held)
            self.ended.append(held)
            assert held.delegated
            had = held.phase in (Phase.WRITTEN, Phase.TAKEN)
            self._must(held.delegated.is_home != had, "a slot is used again, or not, against the rule")
        return self.away

    def _had(self) -> list[Held]:
        """Those of which the holder has the object, whatever the record says."""
        return [each for each in self._lasting() if each.phase in (Phase.WRITTEN, Phase.TAKEN)]

    def _out(self) -> list[Held]:
        """These, and those that were recalled and put back, of which the pool does not know yet."""
        had = self._had()
        back = [each for each in self._lasting() if each.delegated and each.delegated.is_recalled]
        return [*had, *(each for each in back if each not in had)]

    def _go_on(self, held: Held) -> None:
        """Its holder does the next step."""
        delegated = held.delegated
        assert delegated
        phase = held.phase
        if phase is Phase.USED and not delegated.may_park:
            self._tell(held)
        elif phase is Phase.USED:
            held.phase = Phase.LOOKED
        elif phase is Phase.LOOKED:
            delegated.record_parked()
            held.phase = Phase.WRITTEN
            self.held_for += self.clock() - held.since
            self.away.append(self.held.pop(held.lease.id))
        elif phase is Phase.WRITTEN:
            delegated.put()
            held.phase = Phase.PARKED
        elif phase is Phase.PARKED:
            held.phase = Phase.TAKING if delegated.may_resume else Phase.LEFT
        elif phase is Phase.TAKING:
            held.phase = Phase.TAKEN if delegated.take() else Phase.LEFT
            if held.phase is Phase.TAKEN:
                held.phase = Phase.LEFT  # for a moment, so that it can be seen that no other has it
                assert not self.queue
                assert not held.lease.over
                self._is_taken(held.thing)
                held.phase = Phase.TAKEN
        elif phase is Phase.TAKEN:
            delegated.record_resumed()
            held.phase, held.since = Phase.USED, self.clock()
            self.away.remove(held)
            self._counts_as_used(held)

    def _tell(self, held: Held) -> None:
        """Its holder ends it: it is told to, or was interrupted within a step."""
        if held.lease.id in self.held:
            self._end(held)
        else:
            self.away.remove(held)
            self.ended.append(held)
        self.pool.release(held.lease)
        self._is_stale(held.lease)
        assert held.delegated
        assert held.delegated.is_home

    @precondition(lambda self: any(_is_new(each) for each in self.held.values()))
    @rule(data=st.data())
    def delegate(self, data: st.DataObject) -> None:
        self._delegate(data.draw(st.sampled_from([each for each in self.held.values() if _is_new(each)])))

    def _delegate(self, held: Held) -> None:
        delegated, thing = Delegated(self.clock), held.thing
        if self.pool.delegate(held.lease, delegated):
            held.delegated = delegated
            assert self.may_delegate
            assert not any([self.queue, self.is_closed, thing.is_large, thing.stray])
            assert thing.generation == self.generation
        else:
            held.was_called = True

    @precondition(lambda self: self.may_delegate and not (self.queue or self.is_closed))
    @rule(holder=st.sampled_from(HOLDERS), steps=st.integers(0, 8))
    def a_holder_becomes_a_regular(self, holder: ProcessId, steps: int) -> None:
        self._becomes_a_regular(holder, steps)

    def _becomes_a_regular(self, holder: ProcessId, steps: int) -> None:
        """It takes the same object again at once, and may park it and so on."""
        self.acquire_for(holder, None)
        self.threads.do_all()
        self._time_passes(0.5)
        free = [each for each in self.held.values() if not (each.call or each.delegated)]
        mine = [each for each in free if each.lease.holder == holder]
        if not mine:
            return
        self._release(mine[-1], discard=False)
        self.threads.do_all()
        self.acquire_for(holder, None)
        for held in filter(_is_new, list(self.held.values()) if steps else ()):  # else later
            self._delegate(held)
            for _ in range(steps):
                if held.delegated and not held.lease.over and (held.may_park or held.phase is not Phase.USED):
                    self._go_on(held)

    @precondition(lambda self: any(each.may_park for each in self.held.values()))
    @rule(data=st.data(), steps=st.integers(1, 3))
    def park(self, data: st.DataObject, steps: int) -> None:
        held = data.draw(st.sampled_from([each for each in self.held.values() if each.may_park]))
        for _ in range(steps):
            if not held.lease.over:
                self._go_on(held)

    @precondition(lambda self: any(each.phase is Phase.PARKED for each in self.away))
    @rule(data=st.data(), steps=st.integers(1, 3))
    def resume(self, data: st.DataObject, steps: int) -> None:
        held = data.draw(st.sampled_from([each for each in self.away if each.phase is Phase.PARKED]))
        for _ in range(steps):
            if held.phase is not Phase.LEFT:
                self._go_on(held)

    @precondition(lambda self: self._between())
    @rule(data=st.data(), is_interrupted=st.booleans())
    def a_holder_goes_on(self, data: st.DataObject, is_interrupted: bool) -> None:
        held = data.draw(st.sampled_from(self._between()))
        if is_interrupted:
            self._tell(held)
        while held.phase in BETWEEN and not held.lease.over:
            self._go_on(held)

    def _between(self) -> list[Held]:
        return [each for each in (*self.held.values(), *self.away) if each.phase in BETWEEN]

    @precondition(lambda self: self._awaited())
    @rule(data=st.data())
    def it_is_noticed_that_one_may_be_home(self, data: st.DataObject) -> None:
        self._notice(data.draw(st.sampled_from(self._awaited())))

    def _awaited(self) -> list[Held]:
        all_held = (*self.held.values(), *self.away)
        return [each for each in all_held if each.delegated and each.delegated.come_home]

    def _notice(self, held: Held) -> None:
        assert held.delegated
        assert held.delegated.come_home
        is_there = held.delegated.has_token
        held.delegated.come_home()
        assert held.lease.over == is_there

    # -- what happens -------------------------------------------------------------------------------

    @rule(
        holder=st.sampled_from(HOLDERS),
        timeout=st.sampled_from([0, 3.0, 12.0, None]),
        takes=st.sampled_from([True, True, True, False]),
    )
    def acquire(self, holder: ProcessId, timeout: float | None, takes: bool) -> None:
        self.acquire_for(holder, timeout, takes)

    def acquire_for(self, holder: ProcessId, timeout: float | None, takes: bool = True) -> None:
        asker = Asker(holder, self.clock(), takes)
        asker.deadline = self.clock() + (timeout or PATIENCE) if timeout is not None else float("inf")
        idle = self.pool.stats().idle - len(self._out())
        is_asked_for = self.is_far and bool(self._lasting())
        self.queue.append(asker)
        try:
            got = self.pool.request(holder, partial(self._deliver, asker), timeout)
        except PoolError as error:
            self._must(type(error) is self._refusal(timeout), f"refused: {error!r}")
            self.counted["timeouts"] += isinstance(error, PoolTimeout)
            self.queue.remove(asker)
            return
        if asker not in self.queue:
            return  # it was told at once that too many builds hang
        assert self._refusal(timeout) is None
        if isinstance(got, Lease):
            self.queue.remove(asker)
            assert not self.queue
            self._granted(got)
        else:
            unfit = self.options["max_lifetime"] or any(each.is_large for each in self.things)
            unfit = unfit or is_asked_for
            assert not idle or self.has_check or self.queue[0] is not asker or unfit
            asker.waiter = got

    def _refusal(self, timeout: float | None) -> type[PoolError] | None:
        if self.is_closed:
            return PoolClosed
        without = len(self.queue) - max(0, self.max_size - len(self.held) - len(self._out()))
        if timeout == 0:
            without += self.pool.stuck()  # when the pool learns of these is its own affair
        if without <= 0:
            return None
        self.counted["exhausted"] += 1
        if timeout == 0:
            return PoolTimeout
        limit = self.options["max_waiting"]
        if limit is None or without <= limit:
            return None
        self.counted["rejected"] += 1
        return TooManyWaiting

    @precondition(lambda self: any(map(_is_used, self.held.values())))
    @rule(data=st.data(), discard=st.booleans())
    def release(self, data: st.DataObject, discard: bool) -> None:
        self._release(data.draw(st.sampled_from(list(filter(_is_used, self.held.values())))), discard)

    def _release(self, held: Held, discard: bool) -> None:
        self._end(held)
        self.pool.release(held.lease, discard=discard)
        assert held.lease.over
        self._is_stale(held.lease)

    def _is_stale(self, lease: Lease) -> None:
        with pytest.raises(LeaseError):
            self.pool.release(lease)
        with pytest.raises(LeaseLost):
            self.pool.held(lease.id)
        self.counted["late_releases"] += 1

    @precondition(lambda self: any(_is_used(each) and not each.call for each in self.held.values()))
    @rule(data=st.data())
    def call_begins(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from([e for e in self.held.values() if _is_used(e) and not e.call]))
        held.call, held.was_called = Call(held.lease), True

    @precondition(lambda self: self._revoked_now())
    @rule(data=st.data())
    def call_of_an_old_handle_begins(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self._revoked_now()))
        held.call = Call(held.lease)
        self.running.append(held)

    def _revoked_now(self) -> list[Held]:
        """Leases that are over, of which the objects have not been told yet; without a call."""
        asked = [thing for kind, thing, _ in self.threads.pending() if kind == "revoke"]
        latest = {each.thing: each for each in self.ended if each.thing in asked and not each.thing.stray}
        return [each for each in latest.values() if not each.call]

    @precondition(lambda self: self.running or any(each.call for each in self.held.values()))
    @rule(data=st.data(), leaves=st.booleans())
    def call_ends(self, data: st.DataObject, leaves: bool) -> None:
        calling = [*self.running, *(each for each in self.held.values() if each.call)]
        self._call_ends(data.draw(st.sampled_from(calling)), leaves)

    def _call_ends(self, held: Held, leaves: bool = False) -> None:
        assert held.call is not None
        held.thing.littered |= leaves
        held.call.end(leaves="cursor" if leaves else None)
        held.call = None
        if held.lease.over:
            self.running.remove(held)
            self.pool.call_ended(held.lease)

    @rule(holder=st.sampled_from(HOLDERS))
    def die(self, holder: ProcessId) -> None:
        self.queue = [each for each in self.queue if each.holder != holder]
        lost = [each for each in self.held.values() if each.lease.holder == holder]
        for held in lost:
            self._end(held)
        lost += [each for each in self._had() if each.lease.holder == holder]
        assert self.pool.reclaim(holder) == len(lost)
        assert not any(each.lease.holder == holder for each in self._lasting())
        self.counted["reclaimed"] += len(lost)
        for held in lost:
            self._is_stale(held.lease)

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        asker = data.draw(st.sampled_from(self.queue))
        self.queue.remove(asker)
        assert asker.waiter
        assert self.pool.cancel(asker.waiter)
        assert not self.pool.cancel(asker.waiter)

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def run_out_of_patience(self, data: st.DataObject) -> None:
        asker = data.draw(st.sampled_from(self.queue))
        asker.deadline = self.clock()
        assert asker.waiter
        self.pool.expire(asker.waiter)
        assert asker not in self.queue

    @precondition(lambda self: self.homes)
    @rule(data=st.data(), memory=st.sampled_from([SOFT // 2, 2 * SOFT, 2 * HARD]))
    def an_object_is_measured(self, data: st.DataObject, memory: int) -> None:
        home = data.draw(st.sampled_from(list(self.homes)))
        thing, lost = self.homes[home], None
        thing.is_large = memory > SOFT
        if memory > HARD:
            lost = next((each for each in self.held.values() if each.thing is thing), None)
            if lost is not None:
                self._end(lost)
            in_hook = {kind for kind, other, _ in self.threads.pending() if other is thing}
            is_parked = any(each.thing is thing for each in self._lasting())
            thing.stray |= lost is not None or is_parked
            thing.stray |= not in_hook.isdisjoint({"check", "revoke", "reset"})
        self.pool.measured({home: memory})
        if lost is not None:
            self._is_stale(lost.lease)

    def code_ends(self, thing: Thing, killed: bool) -> None:
        """What ran in it when its lease ended has ended, or was killed."""
        for held in [each for each in self.running if each.thing is thing]:
            self.running.remove(held)
            if not killed and held.call is not None:
                held.call.end()

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0, HOOK_BOUND, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self._time_passes(seconds)

    def _time_passes(self, seconds: float) -> None:
        self.clock.now += seconds
        limit = self.options["max_hold"]
        overdue = [h for h in self.held.values() if limit is not None and self.clock() - h.since >= limit]
        for held in overdue:
            self._end(held)
        for _, thing, since in self.threads.pending():
            if thing is not None and self.clock() - since >= HOOK_BOUND:
                thing.stray = True
        build_timeout = self.options["build_timeout"] or float("inf")
        hung = self.threads.time_out_builds(build_timeout)
        self.counted["failed_builds"] += hung
        self.builds_time_out = hung > 0
        due = self.pool.tend()
        self.builds_time_out = False
        for held in overdue:
            self._is_stale(held.lease)
        assert all(each.deadline > self.clock() for each in self.queue)
        deadlines = [each.waiter.deadline for each in self.queue if each.waiter]
        deadlines += [since + build_timeout for kind, _, since in self.threads.pending() if kind == "build"]
        assert (float("inf") if due is None else due) == min(deadlines, default=float("inf"))

    @precondition(lambda self: self.threads.jobs)
    @rule(data=st.data(), well=st.sampled_from([True, True, False]))
    def a_build_or_hook_ends(self, data: st.DataObject, well: bool) -> None:
        self.fail = not well
        self.threads.do(data.draw(st.integers(0, len(self.threads.jobs) - 1)))
        self.fail = False

    @rule(min_size=st.none() | st.integers(0, 3), max_size=st.none() | st.integers(1, 5))
    def resize(self, min_size: int | None, max_size: int | None) -> None:
        after = (
            self.min_size if min_size is None else min_size,
            self.max_size if max_size is None else max_size,
        )
        if after[0] > after[1]:
            with pytest.raises(ValueError, match="min_size"):
                self.pool.resize(min_size, max_size)
        else:
            self.min_size, self.max_size = after
            self.pool.resize(min_size, max_size)

    @rule()
    def refresh(self) -> None:
        self.generation += 1
        self.pool.refresh()

    @rule(really=st.sampled_from([True, *[False] * 9]))  # else most runs would end early
    def close(self, really: bool) -> None:
        if really:
            self.is_closed = True
            lost = list(self.held.values())
            for held in lost:
                self._end(held)
            with patch("mppool._pool.pool.HOOK_BOUND", 0):
                self.pool.close(0)
            assert all(held.lease.over for held in lost)
            assert not self._lasting()
            assert not self.queue

    # -- what always holds --------------------------------------------------------------------------

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert not self.wrong

    @invariant()
    def each_holder_has_an_object_of_its_own(self) -> None:
        seen = self.pool.leases()
        assert {each.lease_id for each in seen} == set(self.held)
        assert [self.clock() - each.age for each in seen] == sorted(h.since for h in self.held.values())
        assert all(self.clock() - each.age == self.held[each.lease_id].since for each in seen)
        assert all(self.pool.held(number) is held.lease for number, held in self.held.items())
        things = [each.thing for each in (*self.held.values(), *self._had())]
        assert len(set(things)) == len(things)
        assert not any(thing.closed for thing in things)

    @invariant()
    def while_one_waits_all_are_recalled(self) -> None:
        delegated = [each.delegated for each in (*self.held.values(), *self._lasting()) if each.delegated]
        if self.queue:
            assert all(each.is_recalled for each in delegated)

    @invariant()
    def what_is_to_leave_or_lies_unused_is_recalled(self) -> None:
        for held in [each for each in (*self.held.values(), *self._lasting()) if each.delegated]:
            assert held.delegated
            is_unused = held.delegated.granted_at is None and self.clock() - held.delegated.parked_at >= 1.0
            is_old = held.thing.generation != self.generation
            assert held.delegated.is_recalled or not (is_unused or is_old or held.thing.is_large)

    @invariant()
    def objects_are_told_as_they_are(self) -> None:
        seen = [each for each in self.pool.objects() if each.state in ("idle", "leased")]
        assert sum(each.state == "idle" for each in seen) == self.pool.stats().idle
        in_jobs = [thing for _, thing, _ in self.threads.pending()]
        there = [e for e in self.things if not (e.closed or e.stray or e in in_jobs)]
        assert sorted(each.uses for each in seen) == sorted(each.uses for each in there)

    @invariant()
    def sizes_add_up_and_keep_their_bounds(self) -> None:
        stats = self.pool.stats()
        pending = self.threads.pending()
        assert stats.building == sum(kind == "build" for kind, _, _ in pending)
        assert stats.size == stats.building + sum(not (each.closed or each.stray) for each in self.things)
        in_hooks = sum(thing is not None and not thing.stray for _, thing, _ in pending)
        assert stats.idle == stats.size - stats.building - stats.leased - in_hooks
        assert stats.size <= max(self.max_size, self.last_size)
        self.last_size = stats.size

    @invariant()
    def no_build_begins_while_too_many_hang(self) -> None:
        building, too_many = self.pool.stats().building, self._too_many_hang()
        assert building <= self.last_building or not (too_many and self.too_many_hung)
        self.last_building, self.too_many_hung = building, too_many

    @invariant()
    def nobody_waits_without_need(self) -> None:
        stats = self.pool.stats()
        assert stats.waiting == len(self.queue)
        checking = sum(
            kind in {"check", "revoke"} and thing is not None and not thing.stray
            for kind, thing, _ in self.threads.pending()
        )
        if stats.idle > len(self._out()):
            assert stats.waiting <= checking
        if stats.waiting > stats.building + checking:
            assert stats.size >= self.max_size or stats.building >= BUILDS_AT_ONCE

    @invariant()
    def the_least_size_is_kept_up(self) -> None:
        stats = self.pool.stats()
        if not (self.is_closed or stats.failed_builds):
            assert stats.size >= self.min_size or stats.building >= BUILDS_AT_ONCE

    @invariant()
    def what_left_was_closed_once(self) -> None:
        stats = self.pool.stats()
        assert all(each.closed <= 1 for each in self.things)
        in_use = stats.idle + stats.leased
        in_use += sum(
            kind in {"check", "revoke", "reset"} and thing is not None and not thing.stray
            for kind, thing, _ in self.threads.pending()
        )
        assert sum(stats.retired.values()) == stats.built - in_use
        if self.is_closed:
            assert (stats.idle, stats.leased, stats.waiting) == (0, 0, 0)

    @invariant()
    def figures_are_right(self) -> None:
        stats = self.pool.stats()
        names = "built acquired reused timeouts rejected exhausted reclaimed failed_builds late_releases"
        for name in names.split():
            assert getattr(stats, name) == self.counted[name], name
        assert stats.hold.count == stats.acquired - stats.leased
        assert stats.wait_seconds == pytest.approx(self.waited)
        assert stats.hold_seconds == pytest.approx(self.held_for)
        holders = {each.lease.holder for each in (*self.held.values(), *self._lasting())}
        assert self.pool.processes() == holders | {each.holder for each in self.queue} | {*self.homes}

    def teardown(self) -> None:
        logging.disable(logging.NOTSET)
        if not hasattr(self, "pool"):
            return  # it could not even be made
        for held in self._between():
            self._tell(held)
        for held in self._awaited():
            self._notice(held)
        for held in [*self.running, *(each for each in self.held.values() if each.call)]:
            self._call_ends(held)
        self.threads.do_all()
        while self.queue:  # give back one after the other, and everybody has his turn
            assert self.held, "somebody waits for nothing"
            held = next(iter(self.held.values()))
            self._end(held)
            self.pool.release(held.lease)
            self.threads.do_all()
        for held in list(self.held.values()):
            self._end(held)
        self.is_closed = True
        with patch("mppool._pool.pool.HOOK_BOUND", 0):
            self.pool.close(0)
        self.threads.do_all()
        self.pool.close(None)  # nothing is left to wait for
        assert all(each.closed == 1 for each in self.things)
        assert (self.pool.stats().size, self.pool.stats().leased) == (0, 0)
        assert not self.wrong


def _is_used(held: Held) -> bool:
    return held.phase is Phase.USED


def _is_new(held: Held) -> bool:
    """Whether it may be delegated, as its holder is told of it."""
    return held.lease.is_delegable and not (held.delegated or held.was_called)


def _may_call(held: Held) -> bool:
    runner = held.lease.entry.runner
    assert isinstance(runner, SteppedRunner)
    entered = runner.fence.enter(held.lease.id)
    if entered:
        runner.fence.leave(None)
    return entered


# Longer runs: MPPOOL_EXAMPLES=5000
PoolModel.TestCase.settings = settings(
    max_examples=int(os.environ.get("MPPOOL_EXAMPLES", "100")), stateful_step_count=50, deadline=None
)
TestPoolModel = PoolModel.TestCase
