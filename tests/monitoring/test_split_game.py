"""The game on the arms' draws: fair to the last digit, and an interval that holds at every look."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.split_game import Toss, effect, log_wealth, two_sided
from monitoring.statistics import Floats


def tossed(rng: np.random.Generator, share: Floats, outcome: Floats) -> Toss:
    """Units drawn with their shares."""
    return Toss(rng.random(len(share)) < share, share, outcome)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=10, max_size=10),
    st.lists(st.floats(0.01, 0.99), min_size=10, max_size=10),
    st.sampled_from([1.0, -1.0]),
)
def test_whatever_the_outcomes_the_mean_wealth_over_all_draws_is_exactly_one(
    outcomes: list[float], chances: list[float], better: float
) -> None:
    # Twenty units before them, so that there is something to guess from.
    known = np.linspace(-1, 1, 20)
    y, p = np.concatenate([known, outcomes]), np.concatenate([np.full(20, 0.5), chances])
    first = np.arange(20) % 2 == 0
    total = 0.0
    for arms in itertools.product([False, True], repeat=10):
        drawn = np.array(arms)
        likely = float(np.prod(np.where(drawn, p[20:], 1 - p[20:])))
        total += likely * math.exp(log_wealth(Toss(np.concatenate([first, drawn]), p, y), better=better)[-1])

    start = math.exp(log_wealth(Toss(first, p[:20], known), better=better)[-1])
    assert total == pytest.approx(start, rel=1e-9)


def test_what_was_won_does_not_change_when_more_units_come() -> None:
    rng = np.random.default_rng(1)
    toss = tossed(rng, np.full(1000, 0.3), rng.normal(5, 2, 1000))

    whole, part = log_wealth(toss), log_wealth(toss.of(slice(0, 400)))

    assert whole[:400] == pytest.approx(part, abs=1e-9)


def test_a_gain_is_found_in_its_own_direction_only() -> None:
    rng = np.random.default_rng(2)
    treated = rng.random(8000) < 0.5
    toss = Toss(treated, np.full(8000, 0.5), rng.normal(0, 1, 8000) + 0.15 * treated)

    assert log_wealth(toss)[-1] > math.log(20)
    assert log_wealth(toss, better=-1)[-1] < 0
    assert two_sided(toss) > math.log(20)


def test_one_huge_outcome_decides_nothing() -> None:
    rng = np.random.default_rng(3)
    y = rng.normal(0, 1, 500)
    treated = rng.random(500) < 0.5
    y[300], treated[300] = 1e9, True

    assert log_wealth(Toss(treated, np.full(500, 0.5), y))[-1] < math.log(20)


def test_one_huge_outcome_of_the_control_takes_little_of_what_was_won() -> None:
    rng = np.random.default_rng(3)
    treated = rng.random(4000) < 0.5
    treated[-1] = False
    y = rng.normal(0, 1, 4000) + 0.3 * treated
    y[-1] = 1e9

    wealth = log_wealth(Toss(treated, np.full(4000, 0.5), y))

    assert wealth[-2] - wealth[-1] < 2
    assert wealth[-1] > math.log(20)


def test_outcomes_that_are_all_alike_say_nothing() -> None:
    rng = np.random.default_rng(4)

    assert log_wealth(tossed(rng, np.full(500, 0.5), np.full(500, 7.0))) == pytest.approx(0, abs=1e-12)


def test_a_ramp_beside_a_trend_is_no_effect_though_the_pooled_means_differ() -> None:
    rng = np.random.default_rng(5)
    share = np.repeat([0.01, 0.05, 0.25, 0.5], 3000)
    toss = tossed(rng, share, (rng.random(12_000) < np.repeat([0.1, 0.2, 0.3, 0.4], 3000)).astype(float))

    found = effect(toss)

    pooled = toss.outcome[toss.treated].mean() - toss.outcome[~toss.treated].mean()
    assert pooled > 0.08
    assert abs(found.value[-1]) < 0.03
    assert found.low[-1] < 0 < found.high[-1]
    assert max(log_wealth(toss)) < math.log(20)


def test_the_interval_finds_the_effect_and_waits_for_thirty_of_each_arm() -> None:
    rng = np.random.default_rng(6)
    treated = rng.random(20_000) < 0.25
    toss = Toss(treated, np.full(20_000, 0.25), rng.normal(100, 3, 20_000) + 0.5 * treated)

    found = effect(toss)

    first = int(np.flatnonzero(np.isfinite(found.low))[0])
    assert treated[: first + 1].sum() == 30
    assert 0.3 < found.low[-1] < 0.5 < found.high[-1] < 0.7


def test_without_units_nothing_is_said() -> None:
    nothing = Toss(np.zeros(0, bool), np.zeros(0), np.zeros(0))

    assert (len(log_wealth(nothing)), two_sided(nothing), len(effect(nothing).value)) == (0, 0.0, 0)
