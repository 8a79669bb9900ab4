"""Distances from training, and what of them is chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.drift import Between, Bins, between, category_bins, compare, distances, number_bins, tabulate
from monitoring.statistics import ks

DAYS, A_DAY = 120, 40
Rng = np.random.Generator


def sample(rng: Rng, spread: float, days: int = DAYS, a_day: int = A_DAY) -> tuple[pd.Series, np.ndarray]:
    """Normal values whose days lie around zero with a standard deviation of their own."""
    day = np.repeat(np.arange(days), a_day)
    return pd.Series(rng.normal(0, 1, len(day)) + rng.normal(0, spread, days)[day]), day


def bins_of(values: pd.Series) -> Bins:
    found = number_bins("x", values)
    assert found is not None
    return found


def p_value(reference: pd.Series, days: np.ndarray, current: np.ndarray) -> float:
    """The p-value of one window."""
    bins = bins_of(reference)
    fine = bins.codes(reference)
    spread = between(bins.coarse[fine], days, bins.width)
    assert spread is not None
    table = tabulate(bins.codes(pd.Series(current)), np.zeros(len(current), dtype=np.int64), len(bins.coarse), 1)
    usual = np.bincount(fine, minlength=len(bins.coarse))[None, :]
    return float(distances(table, usual, bins, spread, 0.002).p_value[0])


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_days_like_those_of_training_are_rarely_unusual(spread: float) -> None:
    rng = np.random.default_rng(1)
    reference, days = sample(rng, spread)

    found = [p_value(reference, days, rng.normal(rng.normal(0, spread), 1, 900)) for _ in range(300)]

    assert np.mean(np.array(found) < 0.01) <= 0.02
    assert np.mean(found) > 0.3


def test_rows_taken_for_independent_would_raise_an_alarm_on_most_of_those_days() -> None:
    rng = np.random.default_rng(1)
    reference, _ = sample(rng, 0.3)

    found = [ks(reference.to_numpy(), rng.normal(rng.normal(0, 0.3), 1, 900))[1] for _ in range(100)]

    assert np.mean(np.array(found) < 0.01) > 0.5


@pytest.mark.parametrize(("spread", "shift"), [(0.0, 0.5), (0.3, 2.0)])
def test_a_day_further_off_than_training_s_days_is_unusual(spread: float, shift: float) -> None:
    rng = np.random.default_rng(2)
    reference, days = sample(rng, spread)

    assert p_value(reference, days, rng.normal(shift, 1, 900)) < 1e-4


def test_what_a_day_of_training_certainly_had_is_not_unusual() -> None:
    rng = np.random.default_rng(3)
    reference, days = sample(rng, 0.0)
    reference[days == 60] += 3

    assert p_value(reference, days, rng.normal(1.5, 1, 900)) == 1.0


def test_a_column_that_follows_the_week_is_compared_with_its_own_weekday() -> None:
    rng = np.random.default_rng(4)
    day = np.repeat(np.arange(210), 20)
    codes = np.where(day % 7 == 5, rng.integers(5, 10, len(day)), rng.integers(0, 5, len(day)))

    blind, aware = between(codes, day, 10), between(codes, day, 10, phases=7)

    assert blind is not None
    assert aware is not None
    assert aware.mean < 0.05 < blind.mean


def test_an_evenly_spread_sample_does_not_hide_how_days_differ() -> None:
    # Forty rows at fixed times of each day: days follow one of two schedules, rows hardly vary otherwise.
    rng = np.random.default_rng(5)
    hours = np.arange(40) % 20 // 2
    other = np.where(hours < 3, hours + 5, hours)
    odd = rng.random(270) < 0.3
    codes = np.where(odd[:, None], other, hours)
    shares = [np.bincount(day, minlength=10) / 40 for day in (hours, other)]
    usual = np.bincount(codes.ravel(), minlength=10) / codes.size
    truth = sum(w * ((q - usual) ** 2 / usual).sum() for w, q in zip((0.7, 0.3), shares, strict=True))

    found = between(codes.ravel(), np.repeat(np.arange(270), 40), 10)

    assert found is not None
    assert found.mean == pytest.approx(truth, rel=0.15)


def test_too_few_blocks_say_nothing() -> None:
    codes = np.random.default_rng(0).integers(0, 3, 70)

    assert between(codes, np.repeat(np.arange(7), 10), 3) is None
    assert between(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), 3) is None


def test_an_outlier_moves_neither_bins_nor_distance() -> None:
    rng = np.random.default_rng(6)
    reference, days = sample(rng, 0.0)
    current = rng.normal(0.7, 1, 900)

    clean = p_value(reference, days, current)
    dirty = p_value(reference, days, np.append(current, 1e6))

    assert clean < 1e-6
    assert dirty < 1e-6


@given(st.lists(st.integers(-3, 3) | st.floats(-5, 5), min_size=2, max_size=80))
def test_every_fine_bin_lies_in_one_bin_of_the_test_and_none_is_empty(values: list[float]) -> None:
    bins = bins_of(pd.Series(values, dtype=float))

    counts = np.bincount(bins.codes(pd.Series(values, dtype=float)), minlength=len(bins.coarse))

    assert counts.min() > 0
    assert counts.sum() == len(values)
    assert (np.diff(bins.coarse) >= 0).all()
    assert bins.width <= 10


def test_the_distance_of_two_samples_is_that_of_kolmogorov_and_smirnov() -> None:
    rng = np.random.default_rng(7)
    reference, days = sample(rng, 0.2)
    current = rng.normal(0.4, 1.2, 900)
    bins = bins_of(reference)
    spread = between(bins.coarse[bins.codes(reference)], days, bins.width)
    assert spread is not None
    table = np.bincount(bins.codes(pd.Series(current)), minlength=len(bins.coarse))[None, :]
    usual = np.bincount(bins.codes(reference), minlength=len(bins.coarse))[None, :]

    found = distances(table, usual, bins, spread, 0.002)

    assert found.size[0] == pytest.approx(ks(reference.to_numpy(), current)[0], abs=0.02)


def test_rare_categories_share_a_bin_and_new_ones_are_known_as_such() -> None:
    values = pd.Series(["a"] * 500 + ["b"] * 495 + ["c"] * 2 + [None] * 3, dtype=object)
    bins = category_bins("k", values, ("a", "b", "c", "d"))
    assert bins is not None

    served = pd.Series(["a", "c", "d", "z", None], dtype=object)

    assert bins.categories == ("a", "b")
    assert bins.codes(served).tolist() == [0, 2, 2, 2, -1]
    assert bins.unseen(served).tolist() == [False, False, False, True, False]


def test_a_column_without_a_value_has_no_bins() -> None:
    assert number_bins("x", pd.Series([None, None], dtype=float)) is None
    assert category_bins("k", pd.Series([None], dtype=object), ()) is None


def test_a_share_of_nulls_is_judged_by_how_days_differ() -> None:
    rng = np.random.default_rng(8)
    day = np.repeat(np.arange(200), 20)
    nulls = (rng.random(len(day)) < np.where(rng.random(200) < 0.5, 0.0, 0.4)[day]).astype(np.int64)
    spread = between(nulls, day, 2)
    assert spread is not None
    usual = np.bincount(nulls, minlength=2)[None, :]

    _, common, _ = compare(np.array([[600, 400]]), usual, spread, 0.002)
    _, gone, _ = compare(np.array([[0, 1000]]), usual, spread, 0.002)

    assert common[0] > 0.05
    assert gone[0] < 1e-4


def test_a_window_as_far_off_as_days_usually_are_is_in_the_middle() -> None:
    usual = np.full((1, 10), 5000)
    spread = Between(mean=0.4, variance=0.02, error=0.0, worst=0.0, blocks=100, least=0.1)
    window = np.array([[280, *[80] * 9]])

    phi, p_value, limit = compare(window, usual, spread, 0.002)

    assert phi[0] == pytest.approx(0.4, abs=0.05)
    assert 0.3 < p_value[0] < 0.7
    assert 0.8 < limit[0] < 1.2
