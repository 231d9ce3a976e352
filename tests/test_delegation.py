"""The two sides of a delegated lease: a token that the kernel gives to one of them, and a record.

Interrupts, and what the other side does meanwhile, come between any two instructions of a step.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import random
import select
import socket
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import Mock, patch

import psutil
import pytest
import standins
from actors import FORK, Interrupted, no_descriptors
from helpers import stress_seed, stress_times
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from standins import Clock
from wire import Connection, encode

from mppool._client import delegated, lease
from mppool._client.delegated import DelegatedLease, Parked
from mppool._client.lease import HeldLease
from mppool._server.delegations import Delegations
from mppool._system import cell
from mppool._system.cell import Cell
from mppool._wire import delegation
from mppool._wire.connection import OwningFrame
from mppool._wire.delegation import AVAILABLE, SLOTS, Arrivals, Granting, Page, Parking

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this platform has no such tokens")

MANY = 2**62


class Sides:
    """Both sides of one: each has mapped the page, and has a descriptor of the token."""

    def __init__(self, slot: int = 0, uses: int = MANY, granted_at: float = 0.0, until: float = inf) -> None:
        page, descriptor = Page.make()
        self.granting = Granting(page, slot)
        self.granting.begin(granted_at, uses, until)
        self.parking = Parking(Page(descriptor), slot, Cell(os.dup(self.granting.token.fileno())))
        os.close(descriptor)


class Between:
    """Something happens within a block: before that instruction of these modules, counted from 0."""

    def __init__(self, number: int, happen: Callable[[], object], *modules: Any) -> None:
        self.happened = False
        self._left = number
        self._happen = happen
        self._files = {module.__file__ for module in modules}

    def __enter__(self) -> Between:  # noqa: PYI034  # `Self` came with Python 3.11
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: Any, event: str, _: object) -> Any:
        callers = frame.f_code.co_name, frame.f_back.f_code.co_name
        if frame.f_code.co_filename not in self._files or "__del__" in callers:
            return None  # the collector may come at any time
        frame.f_trace_opcodes = True
        if event == "opcode":
            self._left -= 1
            if self._left == -1:
                self.happened = True
                self._happen()
        return self._trace


def interrupt() -> None:
    raise Interrupted


def apart(step: Callable[[], Any], between: Between) -> Any:
    """A step in which something happens; None if that was an interrupt.

    In a thread of its own: one between the instructions of an `except` block may leave its error in hand.
    """

    def do() -> Any:
        with suppress(Interrupted), between:
            return step()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(do).result()


# -- all that can happen to one, in any order ---------------------------------------------------------


class TokenModel(RuleBasedStateMachine):
    """A manager and holders in turn, which park and resume. Who has the object is written down beside it."""

    MODULES: ClassVar[Any] = (delegation, cell)

    @initialize()
    def start(self) -> None:
        self.clock = Clock()
        self._patched = patch("mppool._wire.delegation.time", SimpleNamespace(monotonic=self.clock))
        self._patched.start()
        self.page, descriptor = Page.make()
        self.other_page = Page(descriptor)
        os.close(descriptor)
        self.free = list(range(4))
        self.earlier: list[Any] = []
        self.begin(None, inf)

    def teardown(self) -> None:
        self._patched.stop()

    def pair(self) -> tuple[Any, Any]:
        """The manager's side and the holder's."""
        granting = Granting(self.page, self.free[0])
        token = Cell(os.dup(granting.token.fileno()))
        return granting, Parking(self.other_page, self.free[0], token)

    def begin(self, uses: int | None, seconds: float) -> None:
        self.granting, self.parking = self.pair()
        self.until = self.clock() + seconds
        self.granting.begin(self.clock(), MANY if uses is None else uses, self.until)
        self.uses_left = inf if uses is None else uses
        self.since: float | None = self.clock()
        self.holder = "has it"
        self.manager_has_it = self.is_recalled = False
        self.is_exact = True
        self.uses = 0
        self.holds: list[float] = []

    # -- the manager ----------------------------------------------------------------------------------

    @rule()
    def recall(self) -> None:
        got = self.granting.recall()
        self.is_recalled = True
        assert got == (self.manager_has_it or self.holder in ("parked", "left it parked"))
        self.manager_has_it = got
        if got:
            self.holder = {"parked": "parked once"}.get(self.holder, "gone")

    def recall_meanwhile(self) -> None:
        self.is_recalled = True
        self.manager_has_it = self.granting.recall()

    @precondition(lambda self: self.free)
    @rule(uses=st.none() | st.integers(1, 3), seconds=st.sampled_from([2.0, inf]), by_force=st.booleans())
    def next_lease(self, uses: int | None, seconds: float, by_force: bool) -> None:
        if not (self.manager_has_it or by_force):
            return
        self.granting.recall()
        if not self.granting.is_home:  # its holder may write to the slot: none gets it
            del self.free[0]
        self.earlier.append(self.parking)
        if self.free:
            self.begin(uses, seconds)
        else:
            self.holder = "gone"

    # -- the holder -----------------------------------------------------------------------------------

    def do(self, step: Callable[[], bool], what: str, when: int) -> bool | None:
        """A step in which something else happens; None if that was an interrupt."""
        happen = self.recall_meanwhile if what == "recall" else interrupt
        return apart(step, Between(MANY if what == "nothing" else when, happen, *self.MODULES))

    WHAT: ClassVar[Any] = st.sampled_from(["nothing", "recall", "interrupt"])
    WHEN: ClassVar[Any] = st.integers(0, 120)

    @precondition(lambda self: self.holder == "has it")
    @rule(what=WHAT, when=WHEN)
    def park(self, what: str, when: int) -> None:
        was_recalled = self.is_recalled
        parked = self.do(self.parking.park, what, when)
        if parked is None:
            self._interrupted()
        elif parked:
            assert not was_recalled
            assert self.uses_left > 0
            assert self.since is not None
            self.holds.append(self.clock() - self.since)
            self.since = None
            self.holder = "parked once" if self.manager_has_it else "parked"
        else:
            assert self.is_recalled or self.uses_left == 0
            assert not self.manager_has_it
            self._tell()

    @precondition(lambda self: self.holder in ("parked", "parked once"))
    @rule(what=WHAT, when=WHEN)
    def resume(self, what: str, when: int) -> None:
        was_recalled = self.is_recalled
        resumed = self.do(self.parking.resume, what, when)
        if resumed is None:
            self._interrupted()
        elif resumed:
            assert not was_recalled
            assert not self.manager_has_it
            assert self.clock() < self.until
            self.uses += 1
            self.uses_left -= 1
            self.since = self.clock()
            self.holder = "has it"
        else:
            assert self.is_recalled or self.clock() >= self.until
            self.holder = "parked once" if self.manager_has_it else "parked"

    def _interrupted(self) -> None:
        self.is_exact = False
        if self.parking.in_use:
            self._tell()
        else:
            self.holder = "parked once" if self.manager_has_it else "parked"
            assert self.granting.recall(), "neither side has it"
            self.recall()

    def _tell(self) -> None:
        self.granting.is_home = self.manager_has_it = True
        self.holder = "gone"

    @precondition(lambda self: self.holder in ("has it", "parked"))
    @rule()
    def die(self) -> None:
        self.holder = {"parked": "left it parked"}.get(self.holder, "gone")

    @precondition(lambda self: self.earlier)
    @rule(data=st.data())
    def an_earlier_holder_tries(self, data: st.DataObject) -> None:
        earlier = data.draw(st.sampled_from(self.earlier))
        if earlier is not self.parking:
            assert not earlier.resume()

    @rule(seconds=st.sampled_from([0.0, 0.05, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    # -- what always holds ----------------------------------------------------------------------------

    @invariant()
    def one_of_them_has_it(self) -> None:
        assert not (self.manager_has_it and self.holder in ("has it", "parked", "left it parked"))
        assert self.granting.is_home == self.manager_has_it

    @invariant()
    def the_record_is_right(self) -> None:
        if not self.is_exact:
            return
        assert self.granting.uses == self.uses
        counts, total, longest = self.granting.holds
        assert sum(counts) == len(self.holds)
        assert total == pytest.approx(sum(self.holds))
        assert longest == max(self.holds, default=0.0)
        assert self.granting.granted_at == self.since


class StandInModel(TokenModel):
    """The same holds of what stands in for both sides in tests of the pool."""

    MODULES: ClassVar[Any] = (standins,)

    def pair(self) -> tuple[Any, Any]:
        both = standins.Delegated(self.clock)
        return both, both

    def do(self, step: Callable[[], bool], what: str, when: int) -> bool | None:
        return super().do(step, "nothing" if what == "interrupt" else what, when)


# Longer runs: MPPOOL_EXAMPLES=5000
_SETTINGS = settings(
    max_examples=int(os.environ.get("MPPOOL_EXAMPLES", "60")), stateful_step_count=30, deadline=None
)
TokenModel.TestCase.settings = StandInModel.TestCase.settings = _SETTINGS
TestTokenModel = TokenModel.TestCase
TestStandInModel = StandInModel.TestCase


# -- interrupts, at each instruction ------------------------------------------------------------------


class Holder(Sides):
    """A process that has such a lease, and remembers what its manager was told."""

    def __init__(self) -> None:
        super().__init__(granted_at=time.monotonic())
        self.told: list[Any] = []
        self.parked = Parked()
        self.delegated = DelegatedLease(self.parking, lambda: True, lambda: self.told.append("it ended"))
        info: Any = SimpleNamespace(pool_id=1, name="db", lends_values=False, call_timeout=None)
        channel: Any = SimpleNamespace(
            generation=0, held={}, parked=self.parked, notify=self.told.append, notify_soon=self.told.append
        )
        self.lease = HeldLease(channel, None, Mock(), info, 7, self.delegated)

    def park(self) -> None:
        self.lease.release(False)

    def resume(self) -> None:
        self.resumed = self.parked.resume(1)

    def end(self) -> None:
        self.delegated.end()

    def forget(self) -> None:
        """What an interrupt has passed through has no lease any more, nor has what called that."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del self.lease, self.delegated
            self.resumed = None


@pytest.mark.parametrize("is_recalled", [False, True])
@pytest.mark.parametrize("step", ["park", "resume", "end"])
def test_after_an_interrupt_the_manager_is_told_or_has_it(step: str, is_recalled: bool) -> None:
    for number in itertools.count():
        holder = Holder()
        if step == "resume":
            holder.park()
            holder.delegated = holder.lease = Mock()
        holder.lease.ended = step == "end"
        if is_recalled:
            holder.granting.recall()
        between = Between(number, interrupt, delegation, delegated, lease, cell)
        apart(getattr(holder, step), between)
        holder.forget()
        if not between.happened:
            break
        holder.granting.is_home |= bool(holder.told)
        assert holder.granting.recall(), f"lost at {number}"
        assert not holder.parked.resume(1)
        assert not holder.parking.resume()
    assert number > 10


def test_an_interrupted_release_does_not_end_what_another_thread_has_taken_again() -> None:
    taken = 0
    for number in itertools.count():
        holder, others = Holder(), []

        def another_thread_is_faster(holder: Any = holder, others: Any = others) -> None:
            others.append(holder.parked.resume(1))
            raise Interrupted

        apart(holder.park, Between(number, another_thread_is_faster, delegated, lease, delegation))
        holder.forget()
        if not others:
            break
        taken += others[0] is not None
        assert others[0] is None or not holder.told
    assert taken


def test_a_holder_that_forgets_its_lease_tells() -> None:
    holder = Holder()
    holder.forget()
    assert holder.told


def test_one_that_is_parked_when_it_is_forgotten_is_the_managers_to_take() -> None:
    holder = Holder()
    holder.park()
    holder.forget()
    assert not holder.told
    assert holder.granting.recall()


def test_who_has_taken_it_finds_all_of_the_record() -> None:
    for number in itertools.count():
        sides, seen = Sides(granted_at=time.monotonic()), list[Any]()

        def recall(sides: Sides = sides, seen: list[Any] = seen) -> None:
            if sides.granting.recall():
                seen.append((sides.granting.granted_at, sum(sides.granting.holds[0])))

        with Between(number, recall, delegation) as between:
            sides.parking.park()
        assert seen in ([], [(None, 1)])
        if not between.happened:
            break
    assert number > 10


def test_it_is_not_taken_again_when_its_time_is_over() -> None:
    sides = Sides(granted_at=time.monotonic(), until=time.monotonic())
    assert sides.parking.park()
    assert not sides.parking.resume()
    assert not sides.parking.in_use
    assert sides.granting.recall()


# -- two processes ------------------------------------------------------------------------------------


class Witnessed:
    """An object of which each user looks whether another has it, too."""

    def __init__(self) -> None:
        self._user = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")

    def use(self, me: int) -> None:
        self._user[0] = me
        for _ in range(3):
            if self._user[0] != me:
                self._user[1] += 1

    @property
    def violations(self) -> int:
        return self._user[1]


class Threads:
    """A process with two threads, which resume and park whatever they find, until no token comes."""

    def __init__(self, manager: socket.socket, page_file: int, witnessed: Witnessed) -> None:
        sys.setswitchinterval(1e-4)
        self._manager = manager
        self._witnessed = witnessed
        self._parked = deque[Parking]()
        self._is_over = threading.Event()
        self._uses, self._holds = [0, 0], [0, 0, 0]  # of each thread
        page = Page(page_file)
        threads = [threading.Thread(target=self._work, args=(me,)) for me in range(2)]
        for thread in threads:
            thread.start()
        while token := socket.recv_fds(manager, 1, 1)[1]:
            self._use(Parking(page, 0, Cell(*token)), 2)
        self._is_over.set()
        for thread in threads:
            thread.join()
        manager.send(json.dumps([sum(self._uses), sum(self._holds)]).encode())

    def _work(self, me: int) -> None:
        while not self._is_over.is_set():
            try:
                parking = self._parked.pop()
            except IndexError:
                os.sched_yield()
                continue
            if parking.resume():
                self._uses[me] += 1
                self._use(parking, me)

    def _use(self, parking: Parking, me: int) -> None:
        self._witnessed.use(me)
        if parking.park():
            self._holds[me] += 1
            self._parked.append(parking)
        else:
            self._manager.send(b"t")


def test_two_processes_never_have_it_at_once() -> None:
    dice, rounds = random.Random(stress_seed()), 500 + stress_times(20_000)
    witnessed, uses, holds = Witnessed(), 0, 0
    page, page_file = Page.make()
    here, there = socket.socketpair()
    process = FORK.Process(target=Threads, args=(there, page_file, witnessed), daemon=True)
    process.start()
    there.close()
    for _ in range(rounds):
        granting = Granting(page, 0)
        granting.begin(time.monotonic(), MANY, inf)
        socket.send_fds(here, [b"g"], [granting.token.fileno()])
        wanted, deadline = dice.randrange(30), time.monotonic() + 10
        while granting.uses < wanted:
            assert time.monotonic() < deadline, "it is not taken again"
        while not granting.recall():
            readable, _, _ = select.select([granting.token, here], [], [], 10)
            assert readable, "it does not come home"
            if here in readable:
                assert here.recv(1) == b"t"
                granting.is_home = True
        witnessed.use(3)
        uses += granting.uses
        holds += sum(granting.holds[0])
        granting.token.close()
    here.send(b"e")
    told_uses, told_holds = json.loads(here.recv(1000))
    here.close()
    process.join(10)
    os.close(page_file)
    assert witnessed.violations == 0
    assert (uses, holds) == (told_uses, told_holds)
    assert uses > 10 * rounds


# -- descriptors --------------------------------------------------------------------------------------


class Wire:
    """A connection of which one end makes delegations, as a manager does, and the other gets them."""

    def __init__(self) -> None:
        here, there = socket.socketpair()
        self.manager, self.client = Connection(here, "here"), Connection(there, "here")
        self.delegations = Delegations(Mock())
        self.client.accept_descriptors()
        self.arrivals = Arrivals()

    def send(self, delegation: Any) -> OwningFrame:
        """What tells of a grant. It is the test's to send."""
        frame = self.delegations.framed(delegation, encode)
        assert isinstance(frame, OwningFrame)
        return frame

    def arrive(self, frame: OwningFrame) -> Parking | None:
        self.manager.send_frame(frame)
        return self.arrivals.open(*self.client.recv(), self.client.take_descriptors())

    def grant(self) -> tuple[Any, Parking | None]:
        delegation = self.delegations.make()
        return delegation, self.arrive(self.send(delegation))


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.manager.close()
    wire.client.close()


def lose(frame: OwningFrame, kept: int) -> None:
    """All but so many of the descriptors that go along with it, as an end does that has no room for them."""
    for each in frame.descriptors[kept:]:
        os.close(each)
    frame.descriptors = frame.descriptors[:kept]


def work_together(delegation: Any, parking: Parking | None) -> bool:
    if parking is None:
        return False
    delegation.begin(time.monotonic(), MANY, inf)
    return parking.park() and parking.resume() and parking.park() and delegation.recall()


def test_the_page_comes_with_the_first_and_a_token_with_each(wire: Wire) -> None:
    made = [wire.delegations.make() for _ in range(2)]
    frames = [wire.send(each) for each in made]
    assert [len(each.descriptors) for each in frames] == [2, 1]
    assert all(work_together(each, wire.arrive(frame)) for each, frame in zip(made, frames, strict=True))


def test_one_record_is_beside_the_other(wire: Wire) -> None:
    pairs = [wire.grant() for _ in range(SLOTS)]
    for number, (each, parking) in enumerate(pairs):
        each.begin(time.monotonic(), number + 1, inf)
        assert parking
        assert parking.park()
        assert parking.resume()
    assert all(each.uses == 1 and sum(each.holds[0]) == 1 for each, _ in pairs)
    parked = [parking is not None and parking.park() for _, parking in pairs]
    assert parked == [False, *[True] * (SLOTS - 1)]  # the first was to be taken once


@pytest.mark.parametrize("kept", [0, 1])
def test_what_did_not_arrive_is_done_without(wire: Wire, kept: int) -> None:
    before = psutil.Process().num_fds()
    first = wire.delegations.make()
    frame = wire.send(first)
    lose(frame, kept)
    assert wire.arrive(frame) is None
    assert wire.grant()[1] is None  # there is no page
    del frame
    assert first
    first.token.close()
    assert psutil.Process().num_fds() <= before + 1  # with its mapping the page keeps one


def test_a_token_that_did_not_arrive_is_that_of_one_lease(wire: Wire) -> None:
    assert work_together(*wire.grant())
    frame = wire.send(wire.delegations.make())
    lose(frame, 0)
    assert wire.arrive(frame) is None
    assert work_together(*wire.grant())


def test_a_client_without_descriptors_does_without(wire: Wire) -> None:
    assert work_together(*wire.grant())
    frame = wire.send(wire.delegations.make())
    with no_descriptors():
        assert wire.arrive(frame) is None
    assert work_together(*wire.grant())


def test_a_manager_without_descriptors_makes_none_and_loses_no_slot(wire: Wire) -> None:
    with no_descriptors():
        assert all(wire.delegations.make() is None for _ in range(2 * SLOTS))
    made = [wire.delegations.make() for _ in range(SLOTS)]
    with no_descriptors():
        frame = wire.delegations.framed(made[0], encode)
    assert frame == encode(None)  # else what comes with the next grant is taken for that
    assert not isinstance(frame, OwningFrame)
    assert all(work_together(each, wire.arrive(wire.send(each))) for each in made[1:])


def test_a_slot_is_used_again_when_its_lease_has_ended_at_home(wire: Wire) -> None:
    made = [wire.delegations.make() for _ in range(SLOTS - 1)]
    by_force, at_home, *_ = made
    assert by_force
    assert at_home
    by_force.close()  # its holder may still write there
    at_home.is_home = True
    at_home.close()
    slots = [each.slot for each in (wire.delegations.make() for _ in range(2)) if each]
    assert at_home.slot in slots
    assert by_force.slot not in slots


def test_what_is_left_of_a_lease_is_nothing_to_the_one_that_has_its_slot_now(wire: Wire) -> None:
    delegation, parking = wire.grant()
    left, other = [
        parking,
        wire.arrivals.open(0, delegation.slot, False, [os.dup(delegation.token.fileno())]),
    ]
    assert left
    assert other
    delegation.begin(time.monotonic(), MANY, inf)
    assert left.park()
    delegation.is_home = True  # as if its holder had said so: the token lies there
    delegation.close()
    delegation.sheet.free[:] = [delegation.slot]
    again, parking = wire.grant()
    assert again.slot == delegation.slot
    assert not left.resume()
    assert not other.park()
    assert work_together(again, parking)


def test_a_page_that_is_full_is_followed_by_another(wire: Wire) -> None:
    pairs = [wire.grant() for _ in range(2 * SLOTS + 1)]
    assert all(work_together(*each) for each in pairs)


def test_what_was_made_on_a_full_page_may_be_told_after_what_is_on_the_next(wire: Wire) -> None:
    wire.grant()
    made = [wire.delegations.make() for _ in range(SLOTS)]
    last, first_of_next = made[-2:]
    assert first_of_next
    assert (first_of_next.sheet.number, first_of_next.slot) == (1, SLOTS - 1)
    for each in first_of_next, last:
        assert work_together(each, wire.arrive(wire.send(each)))


@pytest.mark.parametrize("kept", [0, 1])
def test_a_further_page_that_is_lost_is_not_taken_for_the_one_before(wire: Wire, kept: int) -> None:
    pairs = [wire.grant() for _ in range(SLOTS)]
    frame = wire.send(wire.delegations.make())
    assert len(frame.descriptors) == 2
    lose(frame, kept)
    assert wire.arrive(frame) is None
    assert wire.grant()[1] is None
    assert all(work_together(*each) for each in pairs)


def test_a_page_cannot_be_made_shorter_under_the_manager() -> None:
    page, descriptor = Page.make()
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    with pytest.raises(PermissionError):
        os.truncate(f"/proc/self/fd/{descriptor}", 1)
    os.close(descriptor)
    assert page.record(SLOTS - 1)[0][0] == 0
