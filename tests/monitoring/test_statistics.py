"""The numbers, against brute force, known values and other implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from monitoring import statistics as s


def scored(n: int, seed: int = 0) -> tuple[s.Floats, s.Floats, s.Floats]:
    """Labels and two correlated scores, the second the better one."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(-1, 1.3, n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(float)
    first, second = (1 / (1 + np.exp(-(odds + rng.normal(0, noise, n)))) for noise in (1.0, 0.5))
    return labels, first, second


def test_psi_of_equal_samples_is_zero_and_of_a_known_shift_is_known() -> None:
    x = np.arange(1000, dtype=float)

    assert s.psi(x, x) == pytest.approx(0)
    # Shares go from 1/2, 1/2 to 1/4, 3/4: (1/4 - 1/2) ln(1/2) + (3/4 - 1/2) ln(3/2) = 1/4 ln 3.
    two = s.psi(np.array([0.0] * 500 + [1.0] * 500), np.array([0.0] * 250 + [1.0] * 750), bins=2)
    assert two == pytest.approx(0.25 * math.log(3), abs=0.01)


def test_psi_does_not_lose_a_shift_behind_one_outlier() -> None:
    rng = np.random.default_rng(1)
    reference, current = rng.normal(0, 1, 5000), rng.normal(0.7, 1, 5000)

    assert s.psi(reference, np.append(current, 1e6)) == pytest.approx(s.psi(reference, current), rel=0.01)
    assert s.psi(reference, current) > 0.3


def test_psi_stays_finite_when_a_bin_is_empty() -> None:
    assert math.isfinite(s.psi(np.arange(100.0), np.full(50, 1e9)))


def test_ks_is_scipys() -> None:
    a, b = np.random.default_rng(2).normal(size=(2, 300))

    assert s.ks(a, b)[0] == pytest.approx(stats.ks_2samp(a, b).statistic)


def test_wasserstein_of_a_shift_is_the_shift_in_standard_deviations() -> None:
    x = np.random.default_rng(2).normal(3, 2, 500)

    assert s.wasserstein(x, x + 1) == pytest.approx(1 / x.std())
    assert s.wasserstein(np.ones(3), np.zeros(3)) == 0


def test_losses_auc_and_brier_are_sklearns() -> None:
    labels, first, _ = scored(500)

    assert s.log_losses(labels, first).mean() == pytest.approx(log_loss(labels, first))
    assert s.briers(labels, first).mean() == pytest.approx(brier_score_loss(labels, first))
    assert s.auc(labels, first) == pytest.approx(roc_auc_score(labels, first))
    assert s.auc(labels, np.round(first, 1)) == pytest.approx(roc_auc_score(labels, np.round(first, 1)))


def test_log_loss_of_a_certain_mistake_is_finite() -> None:
    assert np.isfinite(s.log_losses(np.array([1.0, 0.0]), np.array([0.0, 1.0]))).all()


def test_auc_of_one_class_is_not_a_number_but_none() -> None:
    one = np.ones(5)

    assert s.auc(one, np.linspace(0, 1, 5)) is None


def test_calibration_error_by_hand() -> None:
    scores, labels = np.array([0.05, 0.05, 0.95, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])

    assert s.ece(labels, scores) == pytest.approx((abs(0.10 - 1) + abs(1.95 - 2)) / 4)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    first, second = np.array([True] * 3 + [False] * 12 + [True] * 50), np.array([False] * 3 + [True] * 62)

    found = s.mcnemar(first, second)

    assert (found.only_primary_right, found.only_shadow_right) == (3, 12)
    assert found.p_value == pytest.approx(2 * sum(math.comb(15, k) for k in range(4)) / 2**15)
    assert s.mcnemar(first, first).p_value == 1.0


def test_rank_correlation_of_a_constant_is_zero() -> None:
    assert s.rank_correlation(np.ones(5), np.arange(5.0)) == 0.0
    assert s.rank_correlation(np.arange(5.0), np.arange(5.0) ** 3) == pytest.approx(1)


def test_empty_input_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        s.psi(np.array([]), np.array([1.0]))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_psi_is_never_negative(a: list[float], b: list[float]) -> None:
    assert s.psi(np.array(a), np.array(b)) >= 0


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.2, 0.5, 0.9])), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[bool, float]]) -> None:
    positives, negatives = [x for y, x in rows if y], [x for y, x in rows if not y]

    found = s.auc(np.array([float(y) for y, _ in rows]), np.array([x for _, x in rows]))

    pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    assert found == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)
