"""One statistic per block of time: what it is, and that swapping the models swaps its sign."""

from __future__ import annotations

import numpy as np
import pytest

from monitoring.statistics import Floats, auc, ece
from monitoring.units import auc_units, ece_units, mean_units, overconfidence_units
from tests.monitoring.test_statistics import scored


def test_a_means_units_add_up_to_it() -> None:
    x, blocks = np.array([1.0, 3.0, 5.0, 9.0]), np.array([4, 4, 4, 9])

    units = mean_units(x, blocks)

    assert (units.sums.tolist(), units.weights.tolist()) == ([9, 9], [3, 1])
    assert units.noise.tolist() == pytest.approx([3 * np.var([1, 3, 5], ddof=1), 0])
    assert units.value == 4.5


def test_auc_is_compared_within_blocks_and_a_block_of_one_class_has_no_say() -> None:
    labels, first, second = scored(400)
    blocks = np.arange(400) // 100
    labels[:100] = 0

    units, one, two = auc_units(labels, first, second, blocks)

    assert units.weights[0] == 0
    for b in range(1, 4):
        rows = blocks == b
        expected = auc(labels[rows], first[rows]), auc(labels[rows], second[rows])
        assert one.sums[b] / one.weights[b] == pytest.approx(expected[0])
        assert two.sums[b] / two.weights[b] == pytest.approx(expected[1])
        assert units.sums[b] == pytest.approx(one.sums[b] - two.sums[b])


def test_the_auc_differences_noise_is_delongs_variance() -> None:
    labels, first, second = scored(120, seed=6)

    units, _, _ = auc_units(labels, first, second, np.zeros(120, dtype=np.int64))

    positive, negative = labels == 1, labels == 0

    def kernel(x: Floats) -> Floats:
        gap = x[positive][:, None] - x[negative][None, :]
        return np.asarray((gap > 0) + 0.5 * (gap == 0), dtype=np.float64)

    delta = kernel(first) - kernel(second)
    variance = delta.mean(axis=1).var() / positive.sum() + delta.mean(axis=0).var() / negative.sum()
    assert units.noise[0] / units.weights[0] ** 2 == pytest.approx(variance)


def test_calibration_errors_are_those_of_each_block() -> None:
    labels, first, second = scored(300)
    blocks = np.arange(300) // 150

    units, one, _ = ece_units(labels, first, second, blocks)

    rows = blocks == 1
    assert one.sums[1] / one.weights[1] == pytest.approx(ece(labels[rows], first[rows]))
    assert units.value == pytest.approx(one.value - ece_units(labels, first, second, blocks)[2].value)


@pytest.mark.parametrize(("factor", "low", "high"), [(1.0, -0.1, 0.1), (2.0, 0.3, 2.0), (0.5, -2.0, -0.3)])
def test_overconfidence_is_zero_when_calibrated_and_has_the_sign_of_its_fault(
    factor: float, low: float, high: float
) -> None:
    rng = np.random.default_rng(2)
    odds = rng.normal(0, 1.2, 8000)
    labels = (rng.random(8000) < 1 / (1 + np.exp(-odds))).astype(float)

    units = overconfidence_units(labels, 1 / (1 + np.exp(-factor * odds)), np.arange(8000) // 400)

    assert low < units.value < high


def test_swapping_the_models_swaps_every_sign_and_nothing_else() -> None:
    labels, first, second = scored(500)
    blocks = np.arange(500) // 100

    for there, back in (
        (mean_units(first - second, blocks), mean_units(second - first, blocks)),
        (auc_units(labels, first, second, blocks)[0], auc_units(labels, second, first, blocks)[0]),
        (ece_units(labels, first, second, blocks)[0], ece_units(labels, second, first, blocks)[0]),
    ):
        assert there.sums == pytest.approx(-back.sums)
        assert there.weights == pytest.approx(back.weights)
        assert there.noise == pytest.approx(back.noise, nan_ok=True)
