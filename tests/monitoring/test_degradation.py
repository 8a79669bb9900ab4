"""The alerts on predictions: quiet when nothing happens, loud when something does."""

from __future__ import annotations

import numpy as np
import pytest

from monitoring import degradation, importance
from monitoring.degradation import ALPHA, ALPHA_LASTING, MeanLaw
from monitoring.drift_yardstick import Scores

DAYS = 28


def scores(rng: np.random.Generator, spread: float) -> Scores:
    means = 1 / (1 + np.exp(-(-1.5 + rng.normal(0, spread, DAYS))))
    return Scores(means, 900.0, 0.2, 0.05)


def law_of(found: Scores) -> MeanLaw:
    law = degradation.mean_law(found)
    assert law is not None
    return law


def test_days_like_the_evaluation_weeks_keep_both_limits_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    single, lasting, days = 0, 0, 0
    for _ in range(300):
        law = law_of(scores(rng, 0.4))
        moving: float | None = None
        for _ in range(60):
            mean = float(1 / (1 + np.exp(-(-1.5 + rng.normal(0, 0.4)))))
            sigma = degradation.sigmas(law, mean, 900)
            moving = degradation.average(moving, sigma)
            single += abs(sigma) > degradation.sigma_limit(law)
            lasting += abs(moving) > degradation.average_limit(law)
            days += 1

    assert single / days <= 1.5 * ALPHA
    assert lasting / days <= 1.5 * ALPHA_LASTING


def test_two_standard_deviations_of_means_would_be_exceeded_every_few_weeks() -> None:
    rng = np.random.default_rng(0)
    law = law_of(scores(rng, 0.4))

    off = [abs(degradation.sigmas(law, float(1 / (1 + np.exp(1.5 - d))), 900)) > 2 for d in rng.normal(0, 0.4, 5000)]

    assert np.mean(off) > 0.03


def test_a_lasting_shift_is_found_sooner_by_the_moving_average() -> None:
    law = law_of(scores(np.random.default_rng(1), 0.4))
    mean = float(1 / (1 + np.exp(1.5 - 1.0)))
    sigma, moving, days = degradation.sigmas(law, mean, 900), None, 0

    while moving is None or moving <= degradation.average_limit(law):
        moving, days = degradation.average(moving if days else 0.0, sigma), days + 1

    assert sigma < degradation.sigma_limit(law)
    assert days <= 4


def test_a_small_window_has_a_wider_spread() -> None:
    law = law_of(scores(np.random.default_rng(2), 0.1))

    assert abs(degradation.sigmas(law, 0.3, 100)) < abs(degradation.sigmas(law, 0.3, 5000))


def test_a_shift_too_small_to_matter_is_no_alarm() -> None:
    known = Scores(np.full(DAYS, 0.2) + np.linspace(-1e-4, 1e-4, DAYS), 1e6, 0.2, 0.05)
    law = law_of(known)

    one, _ = degradation.mean_shift(known, law, 0.205, 1_000_000, 0.0)

    assert one.value is not None
    assert one.limit is not None
    assert one.value > one.limit
    assert one.outcome == "ok"


def test_too_few_days_give_no_law() -> None:
    assert degradation.mean_law(Scores(np.full(7, 0.2), 900, 0.2, 0.05)) is None


@pytest.mark.parametrize(
    ("usual", "share", "outcome"),
    [(0.05, 0.29, "ok"), (0.05, 0.33, "alarm"), (0.45, 0.48, "ok"), (0.45, 0.60, "alarm")],
)
def test_confidence_collapses_beyond_thirty_percent_and_beyond_what_is_usual(
    usual: float, share: float, outcome: str
) -> None:
    known = Scores(np.full(DAYS, 0.5), 900, 0.2, usual)

    assert degradation.low_confidence(known, 0.001, share, 900).outcome == outcome


def test_the_99th_percentile_counts_only_when_chance_cannot_have_made_it() -> None:
    slow = np.full(1000, 10.0)
    slow[:12], late = 80.0, np.full(1000, 10.0)
    late[:40] = 80.0

    assert degradation.latency(slow, 50, 100).outcome == "ok"
    assert degradation.latency(late, 50, 100).outcome == "alarm"
    assert degradation.latency(np.array([np.nan] * 500), 50, 100).outcome == "no data"


def test_a_business_figure_is_held_against_its_past() -> None:
    past = [100.0 + d % 5 for d in range(20)]

    assert degradation.business(103, past).outcome == "ok"
    assert degradation.business(60, past).outcome == "alarm"
    assert degradation.business(60, past[:5]).outcome == "no data"
    assert degradation.business(None, past).outcome == "no data"


def test_importance_is_the_same_order_or_not() -> None:
    before = {"a": 1.0, "b": 0.3, "c": 0.1}

    assert importance.agreement(before, {"a": 5.0, "b": 2.0, "c": 1.0}) == pytest.approx(1.0)
    assert importance.agreement(before, {"a": 0.1, "b": 0.2, "c": 3.0}) < importance.LIMIT
    assert importance.agreement({"a": 1.0}, {"a": 1.0}) == 1.0
