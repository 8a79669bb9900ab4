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
    assert s.paired_auc(one, one, one) is None


def test_calibration_error_by_hand() -> None:
    scores, labels = np.array([0.05, 0.05, 0.95, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])

    assert s.ece(labels, scores) == pytest.approx((abs(0.10 - 1) + abs(1.95 - 2)) / 4)


def test_paired_mean_with_rows_as_blocks_is_the_t_interval() -> None:
    x = np.random.default_rng(3).normal(0.2, 1, 200)

    found = s.paired_mean(x)

    expected = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_blocks_widen_the_interval_of_rows_that_repeat_each_other() -> None:
    day = np.random.default_rng(4).normal(0, 1, 30)
    rows, blocks = np.repeat(day, 100), np.repeat(np.arange(30), 100)

    naive, honest = s.paired_mean(rows), s.paired_mean(rows, blocks)
    exact = stats.ttest_1samp(day, 0).confidence_interval(0.95)

    assert naive.high is not None
    assert honest.high is not None
    assert honest.high == pytest.approx(exact.high)
    assert honest.high - honest.value > 9 * (naive.high - naive.value)


def test_one_block_gives_no_interval() -> None:
    found = s.paired_mean(np.arange(10.0), np.zeros(10, dtype=np.int64))

    assert (found.low, found.high, found.blocks) == (None, None, 1)


def test_delong_is_close_to_a_paired_bootstrap() -> None:
    labels, first, second = scored(1500)
    rng = np.random.default_rng(5)

    found = s.paired_auc(labels, first, second)

    drawn = []
    for _ in range(600):
        rows = rng.integers(0, 1500, 1500)
        drawn.append(roc_auc_score(labels[rows], first[rows]) - roc_auc_score(labels[rows], second[rows]))
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.value == pytest.approx(roc_auc_score(labels, first) - roc_auc_score(labels, second))
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(np.std(drawn), rel=0.12)


def test_delongs_variance_is_the_textbook_one() -> None:
    labels, first, second = scored(120, seed=6)

    found = s.paired_auc(labels, first, second)

    positive, negative = labels == 1, labels == 0

    def kernel(x: s.Floats) -> s.Floats:
        gap = x[positive][:, None] - x[negative][None, :]
        return np.asarray((gap > 0) + 0.5 * (gap == 0), dtype=np.float64)

    delta = kernel(first) - kernel(second)
    variance = delta.mean(axis=1).var() / positive.sum() + delta.mean(axis=0).var() / negative.sum()
    assert found is not None
    assert found.high is not None
    half = stats.t.ppf(0.975, 119) * math.sqrt(variance * 120 / 119)
    assert found.high - found.value == pytest.approx(half, rel=1e-9)


def test_calibration_difference_covers_its_value_and_repeats_exactly() -> None:
    labels, first, second = scored(3000)
    blocks = np.arange(3000) // 100

    found = s.paired_ece(labels, first, second, blocks)

    assert found.value == pytest.approx(s.ece(labels, first) - s.ece(labels, second))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert found == s.paired_ece(labels, first, second, blocks)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    first, second = np.array([True] * 3 + [False] * 12 + [True] * 50), np.array([False] * 3 + [True] * 62)

    found = s.mcnemar(first, second)

    assert (found.only_primary_right, found.only_shadow_right) == (3, 12)
    assert found.p_value == pytest.approx(2 * sum(math.comb(15, k) for k in range(4)) / 2**15)
    assert s.mcnemar(first, first).p_value == 1.0


def test_running_mean_is_paired_mean_at_every_point() -> None:
    rng = np.random.default_rng(8)
    x, blocks = rng.normal(size=400), np.sort(rng.integers(0, 12, 400))

    names, mean, low, high = s.running_mean(x, blocks)

    for k, name in enumerate(names):
        upto = blocks <= name
        expected = s.paired_mean(x[upto], blocks[upto])
        assert mean[k] == pytest.approx(expected.value)
        if expected.low is not None and expected.high is not None:
            assert (low[k], high[k]) == pytest.approx((expected.low, expected.high))
    assert np.isnan(low[0])


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


def test_blocks_keep_the_false_alarms_of_days_that_differ_near_five_percent() -> None:
    rng = np.random.default_rng(9)
    blocks = np.repeat(np.arange(14), 200)
    alarms = {"rows": 0, "blocks": 0}

    for _ in range(400):
        x = rng.normal(0, 0.2, 14)[blocks] + rng.normal(0, 1, len(blocks))
        for name, found in (("rows", s.paired_mean(x)), ("blocks", s.paired_mean(x, blocks))):
            assert found.low is not None
            assert found.high is not None
            alarms[name] += found.low > 0 or found.high < 0

    assert alarms["rows"] / 400 > 0.3
    assert alarms["blocks"] / 400 < 0.08
