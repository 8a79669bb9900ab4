"""Looking often never inflates the error: games that are fair, intervals that hold at all times."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from monitoring.performance import gain_path
from monitoring.plan import Plan
from monitoring.sequential import (
    Units,
    discordant_log_e,
    e_bh,
    interval,
    interval_sequence,
    log_e_values,
    sample_ratio_log_e,
    scales,
)
from monitoring.units import mean_units
from tests.monitoring.logs import Floats

sizes = st.floats(0.01, 100)
days = st.lists(st.tuples(sizes, st.floats(1, 1000), st.one_of(st.floats(0.01, 100), st.just(math.nan))),
                min_size=1, max_size=8)  # fmt: skip


def flipped(drawn: list[tuple[float, float, float]]) -> list[Floats]:
    """The path of log e-values for every pattern of signs of some days' sums."""
    size, weights, noise = (np.array(column) for column in zip(*drawn, strict=True))
    signs = itertools.product((-1.0, 1.0), repeat=len(drawn))
    return [log_e_values(Units(np.array(s) * size, weights, noise)) for s in signs]


@given(days)
def test_a_game_on_coin_flips_is_fair_whatever_the_days_look_like(drawn: list[tuple[float, float, float]]) -> None:
    paths = np.exp(flipped(drawn))

    assert paths.mean(axis=0) == pytest.approx(np.ones(len(drawn)))


@given(days, st.floats(1.1, 40))
def test_however_often_one_looks_a_fair_game_seldom_pays(
    drawn: list[tuple[float, float, float]], once_in: float
) -> None:
    best = np.exp(np.max(flipped(drawn), axis=1))

    assert (best >= once_in).mean() <= 1 / once_in


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0])
def test_no_gain_promotes_in_at_most_five_percent_of_campaigns_even_when_days_differ(spread: float) -> None:
    rng = np.random.default_rng(3)
    blocks = np.repeat(np.arange(40), 50)
    promoted = 0

    for _ in range(400):
        x = rng.normal(0, spread, 40)[blocks] + rng.normal(0, 1, len(blocks))
        promoted += log_e_values(mean_units(x, blocks)).max() >= math.log(20)

    assert promoted / 400 <= 0.05


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_intervals_hold_at_all_times_at_once(spread: float) -> None:
    rng = np.random.default_rng(4)
    blocks = np.repeat(np.arange(30), 40)
    missed = 0

    for _ in range(150):
        x = 0.2 + rng.normal(0, spread, 30)[blocks] + rng.normal(0, 1, len(blocks))
        found = interval_sequence(mean_units(x, blocks))
        missed += any(low is not None and high is not None and not low <= 0.2 <= high for _, _, low, high in found)

    assert missed / 150 <= 0.05


def test_a_gain_is_found_in_the_end() -> None:
    rng = np.random.default_rng(5)
    blocks = np.repeat(np.arange(60), 100)
    units = mean_units(rng.normal(0.08, 1, len(blocks)), blocks)

    low, high = interval(units)

    assert log_e_values(units)[-1] > math.log(20)
    assert low is not None
    assert high is not None
    assert 0 < low < units.value < high


def test_an_interval_ends_where_the_game_says_enough() -> None:
    units = mean_units(np.random.default_rng(6).normal(0, 1, 600), np.arange(600) // 40)

    low, high = interval(units, 0.9)

    assert low is not None
    assert high is not None
    assert log_e_values(units, low)[-1] == pytest.approx(math.log(20), abs=1e-6)
    assert log_e_values(units, high, above=False)[-1] == pytest.approx(math.log(20), abs=1e-6)


@given(st.floats(-5, 5), st.integers(0, 20))
def test_an_interval_moves_with_the_data(shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, blocks = rng.normal(0, 1, 300), np.sort(rng.integers(0, 12, 300))

    here, there = interval(mean_units(x, blocks)), interval(mean_units(x + shift, blocks))

    for a, b in zip(here, there, strict=True):
        assert a is not None
        assert b == pytest.approx(a + shift, abs=1e-6)


def test_too_few_days_say_nothing_however_clear_they_are() -> None:
    units = mean_units(np.random.default_rng(0).normal(5, 0.1, 500), np.arange(500) // 100)

    assert interval(units) == (None, None)
    assert log_e_values(units)[-1] <= 5 * math.log(2) + 1e-9


def test_equal_models_leave_the_stake_as_it_is() -> None:
    units = mean_units(np.zeros(100), np.arange(100) // 10)

    assert log_e_values(units) == pytest.approx(np.zeros(10))
    assert interval(units) == (None, None)


def test_days_that_differ_are_bet_on_with_care() -> None:
    rng = np.random.default_rng(7)
    blocks = np.repeat(np.arange(40), 100)
    rows = rng.normal(0, 1, len(blocks))

    alike, unlike = scales(mean_units(rows, blocks)), scales(mean_units(rows + rng.normal(0, 1, 40)[blocks], blocks))

    assert alike[-1] == pytest.approx(10, rel=0.2)
    assert unlike[-1] > 5 * alike[-1]


def test_the_two_tests_of_a_gain_share_one_error_budget() -> None:
    silent, loud = mean_units(np.zeros(90), np.arange(90) // 9), mean_units(np.ones(90), np.arange(90) // 9)
    noisy = Units(loud.sums, loud.weights, np.ones(10))

    path = gain_path(noisy, silent, Plan(decisions_stake=0.85))

    assert np.exp(path) == pytest.approx(0.85 * np.exp(log_e_values(noisy)) + 0.15)


@pytest.mark.parametrize("n", [1, 7, 40])
def test_the_row_level_test_is_fair_for_independent_rows(n: int) -> None:
    wins = np.arange(n + 1.0)

    e = np.exp(discordant_log_e(wins, n - wins))

    assert (stats.binom.pmf(wins, n, 0.5) * e).sum() == pytest.approx(1)
    assert (stats.binom.pmf(wins, n, 0.4) * e).sum() < 1


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1)])
def test_the_sample_ratio_test_is_fair_and_finds_a_skew(shares: tuple[float, float]) -> None:
    wins = range(31)

    e = [math.exp(sample_ratio_log_e((k, 30 - k), shares)) for k in wins]

    assert (stats.binom.pmf(list(wins), 30, shares[0]) * e).sum() == pytest.approx(1)
    assert sample_ratio_log_e((5300, 4700), (0.5, 0.5)) > math.log(1000)
    assert sample_ratio_log_e((5050, 4950), (0.5, 0.5)) < 0


def test_a_row_in_an_arm_that_should_be_empty_refutes_the_split() -> None:
    assert sample_ratio_log_e((100, 1), (1.0, 0.0)) == math.inf
    assert sample_ratio_log_e((100, 0), (1.0, 0.0)) == pytest.approx(0)


def test_shares_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="not a distribution over 2 arms"):
        sample_ratio_log_e((1, 2), (0.5, 0.6))


@given(st.lists(st.floats(-5, 15), max_size=8), st.floats(0.01, 0.2))
def test_discoveries_are_those_of_the_definition(log_e: list[float], alpha: float) -> None:
    found = e_bh(np.array(log_e), alpha)

    best = sorted(log_e, reverse=True)
    enough = [k for k in range(1, len(best) + 1) if best[k - 1] >= math.log(len(best) / (alpha * k))]
    assert found.sum() == max(enough, default=0)
    assert all(a >= b for a in np.array(log_e)[found] for b in np.array(log_e)[~found])
