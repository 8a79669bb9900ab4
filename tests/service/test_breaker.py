"""The circuit breaker: each way such things go wrong, and a model of it driven by random calls."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.breaker import Breaker, Rules, Ticket

RULES = Rules(error_rate=0.1, slow_rate=0.5, slow_s=0.02, window_s=300, min_calls=10, sudden_s=5, open_s=60, probes=3)


@dataclass
class World:
    """A breaker on a hand-moved clock."""

    rules: Rules = RULES
    now: float = 1000.0
    states: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.breaker = Breaker(self.rules, lambda: self.now, self.states.append)

    def call(self, *, failed: bool = False, seconds: float = 0.001) -> bool:
        """Make one call; whether it was admitted."""
        ticket = self.breaker.admit()
        if ticket:
            ticket.settle(seconds, failed=failed)
        return ticket is not None

    def calls(self, count: int, *, failed: bool = False, seconds: float = 0.001) -> None:
        for _ in range(count):
            self.call(failed=failed, seconds=seconds)

    def ticket(self) -> Ticket:
        """Admit a call and leave it under way."""
        ticket = self.breaker.admit()
        assert ticket is not None
        return ticket

    def open(self) -> None:
        """Break it."""
        self.calls(20, failed=True)
        assert self.breaker.state == "open"


def test_few_calls_say_nothing() -> None:
    world = World()

    world.calls(9, failed=True)

    assert world.breaker.state == "closed"


def test_it_opens_above_the_error_rate_and_not_at_it() -> None:
    world = World()
    world.calls(90)
    world.calls(10, failed=True)
    assert world.breaker.state == "closed"

    world.call(failed=True)

    assert world.breaker.state == "open"
    assert not world.call()


def test_slow_answers_open_it_too() -> None:
    world = World()

    world.calls(10, seconds=0.02)

    assert world.breaker.state == "open"


def test_answers_just_below_the_slow_limit_do_not() -> None:
    world = World()

    world.calls(1000, seconds=0.0199)

    assert world.breaker.state == "closed"


def test_a_sudden_death_after_a_long_good_time_is_noticed_at_once() -> None:
    world = World()
    for _ in range(250):
        world.calls(100)
        world.now += 1
    world.now += 5

    world.calls(10, failed=True)

    assert world.breaker.state == "open"


def test_old_failures_are_forgotten_even_when_nothing_happened_since() -> None:
    world = World()
    world.calls(9, failed=True)
    world.now += 301
    assert world.breaker.counts == (0, 0, 0)

    world.call(failed=True)

    assert world.breaker.state == "closed"
    assert world.breaker.counts == (1, 1, 0)


def test_it_probes_by_itself_after_a_while_and_closes_with_an_empty_window() -> None:
    world = World()
    world.open()
    world.now += 59
    assert not world.call()
    world.now += 1

    world.calls(3)

    assert world.states == ["closed", "open", "half_open", "closed"]
    assert world.breaker.counts == (0, 0, 0)


def test_evidence_makes_it_probe_at_once() -> None:
    world = World()
    world.open()

    world.breaker.hint()

    assert world.call()
    assert world.breaker.state == "half_open"


def test_evidence_does_not_close_it_and_means_nothing_to_a_closed_one() -> None:
    world = World()
    world.breaker.hint()
    assert world.breaker.state == "closed"
    world.open()
    world.breaker.hint()

    world.call(failed=True)

    assert world.breaker.state == "open"


def test_no_more_probes_than_allowed_are_under_way() -> None:
    world = World()
    world.open()
    world.breaker.hint()

    admitted = [world.breaker.admit() for _ in range(10)]

    assert sum(ticket is not None for ticket in admitted) == 3


def test_a_cancelled_probe_frees_its_place() -> None:
    world = World()
    world.open()
    world.breaker.hint()
    tickets = [world.ticket() for _ in range(3)]

    for ticket in tickets:
        ticket.withdraw()
    world.calls(3)

    assert world.breaker.state == "closed"


def test_a_slow_probe_is_a_bad_one() -> None:
    world = World()
    world.open()
    world.breaker.hint()

    world.call(seconds=1.0)

    assert world.breaker.state == "open"


@pytest.mark.parametrize("failed", [True, False])
def test_a_call_admitted_while_closed_is_no_probe(failed: bool) -> None:
    world = World()
    old = [world.ticket() for _ in range(5)]
    world.open()
    world.breaker.hint()

    for ticket in old:
        ticket.settle(0.001, failed=failed)

    assert world.breaker.state == "half_open"
    world.calls(3)
    assert world.breaker.state == "closed"


def test_a_probe_of_an_earlier_half_open_time_does_not_count_in_a_later_one() -> None:
    world = World()
    world.open()
    world.breaker.hint()
    late = world.ticket()
    world.call(failed=True)
    world.breaker.hint()

    late.settle(0.001, failed=False)
    admitted = [world.breaker.admit() for _ in range(10)]

    assert sum(ticket is not None for ticket in admitted) == 3


def test_a_ticket_counts_once() -> None:
    world = World()
    ticket = world.ticket()

    ticket.settle(0.001, failed=True)
    ticket.settle(0.001, failed=True)
    ticket.withdraw()

    assert world.breaker.counts == (1, 1, 0)


def test_forced_open_admits_nothing_until_it_is_taken_back() -> None:
    world = World()

    world.breaker.operate("forced_open")
    world.now += 1000
    world.breaker.hint()
    refused = world.call()
    world.breaker.operate("auto")

    assert not refused
    assert world.call()
    assert "forced_open" in world.states


def test_disabled_admits_everything_and_counts_nothing() -> None:
    world = World()
    world.breaker.operate("disabled")

    world.calls(100, failed=True)
    state = world.breaker.state
    world.breaker.operate("auto")

    assert state == "disabled"
    assert world.breaker.counts == (0, 0, 0)
    assert world.breaker.state == "closed"


def test_taking_it_back_does_not_settle_calls_from_before() -> None:
    world = World()
    tickets = [world.ticket() for _ in range(50)]
    world.breaker.operate("disabled")
    world.breaker.operate("auto")

    for ticket in tickets:
        ticket.settle(0.001, failed=True)

    assert world.breaker.state == "closed"


def test_another_model_starts_with_a_clean_slate() -> None:
    world = World()
    world.open()

    world.breaker.reset()

    assert world.call()
    assert world.breaker.counts == (1, 0, 0)


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans(), st.booleans()), max_size=200))
@settings(max_examples=100, deadline=None)
def test_the_window_counts_what_a_list_would(steps: list[tuple[float, bool, bool]]) -> None:
    world = World(Rules(window_s=60, error_rate=1.0, slow_rate=1.0, sudden_rate=1.0, slow_s=0.02))
    seen: list[tuple[float, bool, bool]] = []

    for wait, failed, slow in steps:
        world.now += wait
        world.call(failed=failed, seconds=0.05 if slow else 0.001)
        seen.append((world.now, failed, slow))

    calls, failures, slows = world.breaker.counts
    # A slot is one second long: what lies on the window's edge may be in or out.
    for counted, some in ((calls, seen), (failures, [s for s in seen if s[1]]), (slows, [s for s in seen if s[2]])):
        surely = sum(world.now - at <= 58.9 for at, *_ in some)
        perhaps = sum(world.now - at <= 60.1 for at, *_ in some)
        assert surely <= counted <= perhaps


class Machine(RuleBasedStateMachine):
    """Random calls, waits, hints and hands on the breaker."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.under_way: list[Ticket] = []
        self.probes = 0

    @rule(failed=st.booleans(), seconds=st.sampled_from([0.001, 0.05]))
    def call(self, failed: bool, seconds: float) -> None:
        before = self.world.breaker.state
        admitted = self.world.call(failed=failed, seconds=seconds)
        if before in ("closed", "disabled"):
            assert admitted
        if before == "forced_open":
            assert not admitted

    @rule()
    def begin(self) -> None:
        ticket = self.world.breaker.admit()
        if ticket:
            self.under_way.append(ticket)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), failed=st.booleans(), cancelled=st.booleans())
    def end(self, data: st.DataObject, failed: bool, cancelled: bool) -> None:
        ticket = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        if cancelled:
            ticket.withdraw()
        else:
            ticket.settle(0.001, failed=failed)

    @rule(seconds=st.sampled_from([0.5, 10.0, 61.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    @rule()
    def hint(self) -> None:
        self.world.breaker.hint()

    @rule(mode=st.sampled_from(["auto", "auto", "forced_open", "disabled"]))
    def operate(self, mode: str) -> None:
        self.world.breaker.operate(mode)  # type: ignore[arg-type]  # drawn from the modes

    @invariant()
    def counts_make_sense(self) -> None:
        calls, failed, slow = self.world.breaker.counts
        assert 0 <= failed <= calls
        assert 0 <= slow <= calls

    @invariant()
    def it_always_comes_back(self) -> None:
        """Whatever happened: once every call has ended, time and good answers close it."""
        world = self.world
        if world.breaker.state != "open" or self.under_way:
            return
        world.now += 61
        world.calls(3)
        assert world.breaker.state == "closed"


TestMachine = Machine.TestCase
