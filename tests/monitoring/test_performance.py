"""Realized and estimated performance: known answers, honest intervals, and what raises a doubt."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from monitoring.calibration import Calibration, calibrate, changed, fit, log_odds
from monitoring.estimated import Reference, estimated, expected
from monitoring.gap import THRESHOLD, evidence, gap, persistence
from monitoring.realized import MEASURES, realized
from tests.monitoring.logs import START, sigmoid

DAY = timedelta(days=1)
FEATURES = ("x", "kind")
Rng = np.random.Generator


def answers(
    seed: int, days: int, a_day: int = 200, *, slope: float = 1.0, intercept: float = 0.0, mood: float = 0.0,
    start: datetime = START,
) -> pd.DataFrame:  # fmt: skip
    """Scores, and truths whose log-odds are ``intercept + slope * log-odds``; ``mood``: how much days differ."""
    rng = np.random.default_rng(seed)
    n, day = days * a_day, np.repeat(np.arange(days), a_day)
    odds = rng.normal(-1.0, 1.2, n)
    truth = rng.random(n) < sigmoid(intercept + slope * odds + mood * rng.normal(size=days)[day])
    at = pd.Timestamp(start) + pd.to_timedelta(day * 86400 + np.tile(np.arange(a_day), days) * 86400 / a_day, unit="s")
    return pd.DataFrame(
        {
            "at": at.as_unit("us"), "event_timestamp": at.as_unit("us"), "prediction": sigmoid(odds),
            "label": truth.astype(float), "x": rng.normal(size=n), "kind": rng.choice(["a", "b"], n), "window": day,
            "role": "primary", "model": "m",
        }
    )  # fmt: skip


def reference(**changes: Any) -> Reference:
    return Reference.of(answers(1, 60, **changes), FEATURES, DAY)


def calibration_of(found: Reference) -> Calibration:
    assert isinstance(found.calibration, Calibration)
    return found.calibration


def test_realized_measures_are_the_usual_ones() -> None:
    rows = answers(2, 1, 500)

    found = realized(rows).iloc[0]

    labels, scores = rows["label"], rows["prediction"]
    assert (found["rows"], found["labelled"], found["reason"]) == (500, 500, "")
    assert found["auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert found["log_loss"] == pytest.approx(log_loss(labels, scores))
    assert found["brier"] == pytest.approx(brier_score_loss(labels, scores))
    assert found["accuracy"] == pytest.approx(((scores >= 0.5) == labels).mean())


def test_realized_intervals_hold_the_truth_and_narrow_with_rows() -> None:
    few, many = (realized(answers(3, 60, n), ["window"]) for n in (150, 1500))
    truth = expected_auc()

    inside = [((f["auc_low"] <= truth) & (truth <= f["auc_high"])).mean() for f in (few, many)]
    width = [float((f["auc_high"] - f["auc_low"]).mean()) for f in (few, many)]

    assert min(inside) >= 0.9
    assert width[1] < width[0] / 2
    assert all(((many[m] >= many[f"{m}_low"]) & (many[m] <= many[f"{m}_high"])).all() for m in MEASURES)


def expected_auc() -> float:
    scores = np.sort(answers(4, 1, 50_000)["prediction"].to_numpy())
    return expected(scores, scores)["auc"]


@pytest.mark.parametrize(
    ("kept", "reason"),
    [(0, "0 labels, needs 100"), (80, "80 labels, needs 100"), (150, "75% of predictions have labels, needs 90%")],
)
def test_windows_with_few_labels_are_no_data(kept: int, reason: str) -> None:
    rows = answers(2, 1, 200)
    rows.loc[kept:, "label"] = np.nan

    found = realized(rows, complete=0.9).iloc[0]

    assert found["reason"] == reason
    assert found[list(MEASURES)].isna().all()


def test_one_outcome_alone_has_no_auc_and_no_crash() -> None:
    found = realized(answers(2, 1, 200).assign(label=1.0)).iloc[0]

    assert np.isnan(found["auc"])
    assert np.isnan(found["auc_low"])
    assert (found["rate"], found["reason"]) == (1.0, "")


def test_promotions_and_roles_in_one_window_are_measured_apart() -> None:
    rows = answers(2, 1, 600)
    rows.loc[300:, "model"] = "n"
    rows.loc[500:, "role"] = "fallback"

    found = realized(rows)

    assert list(zip(found["model"], found["role"], found["rows"], strict=True)) == [
        ("n", "fallback", 100), ("m", "primary", 300), ("n", "primary", 200),
    ]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.3, 0.7]), st.floats(0.01, 0.99)), min_size=2, max_size=30))
def test_the_expected_auc_is_the_one_counted_pair_by_pair(rows: list[tuple[float, float]]) -> None:
    rows = sorted(rows)
    scores, p = np.array([s for s, _ in rows]), np.array([q for _, q in rows])

    found = expected(scores, p)

    right = all_ = 0.0
    for i in range(len(p)):
        for j in range(len(p)):
            if i != j:
                chance = p[i] * (1 - p[j])
                all_ += chance
                right += chance * (float(scores[i] > scores[j]) + 0.5 * float(scores[i] == scores[j]))
    assert found["auc"] == pytest.approx(right / all_)


def test_the_estimate_meets_the_truth_where_nothing_changed_but_the_requests() -> None:
    # Other days, other mixture of requests: nearly all of them easy.
    rows = answers(5, 28, 1000)
    kept = rows[(rows["prediction"] < 0.1) | (rows["prediction"] > 0.5)].assign(window=0)

    guess, truth = estimated(kept, reference()).iloc[0], realized(kept, ["window"]).iloc[0]

    assert abs(guess["auc"] - truth["auc"]) <= 0.01
    assert guess["log_loss"] == pytest.approx(truth["log_loss"], abs=0.01)
    assert guess["brier"] == pytest.approx(truth["brier"], abs=0.005)
    assert guess["accuracy"] == pytest.approx(truth["accuracy"], abs=0.01)
    assert guess["rate"] == pytest.approx(kept["label"].mean(), abs=0.01)
    assert bool(guess["trusted"])


def test_scores_that_are_no_probabilities_are_calibrated_first() -> None:
    found = reference(slope=0.5, intercept=1.0)
    rows = answers(6, 28, 1000, slope=0.5, intercept=1.0).assign(window=0)

    guess, truth = estimated(rows, found).iloc[0], realized(rows, ["window"]).iloc[0]

    assert calibration_of(found).fit.theta == pytest.approx([1.0, 0.5], abs=0.06)
    assert abs(guess["auc"] - truth["auc"]) <= 0.01


def test_intervals_of_the_estimate_hold_the_truth_of_windows_that_differ() -> None:
    found = reference(mood=0.6)
    rows = answers(7, 200, 400, mood=0.6)

    guess, truth = estimated(rows, found), realized(rows, ["window"])

    inside = truth["log_loss"].between(guess["log_loss_low"], guess["log_loss_high"])
    assert 0.9 <= inside.mean() <= 0.99


def test_requests_unlike_the_reference_are_not_trusted() -> None:
    rows = answers(5, 1, 1000)
    rows.loc[:299, "kind"] = "new"

    found = estimated(rows, reference()).iloc[0]

    assert not found["trusted"]
    assert found["reason"] == "30% of requests have values the reference sample does not have (limit 5%)"


def test_a_feature_that_is_gone_is_not_trusted() -> None:
    gone, empty = answers(5, 1).drop(columns="x"), answers(5, 1).assign(x=np.nan)

    assert not estimated(gone, reference())["trusted"].any()
    assert not estimated(empty, reference())["trusted"].any()


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (pd.DataFrame(), "there is no reference sample; run `make train`"),
        (answers(1, 60).drop(columns="label"), "has no labels and out-of-sample predictions; run `make train`"),
        (answers(1, 60).assign(prediction=np.nan), "has 0 out-of-sample predictions of the rarer outcome, needs 30"),
        (answers(1, 3), "out-of-sample predictions span 4 blocks, needs 6"),
    ],
)
def test_a_reference_that_says_nothing_gives_no_estimate_and_says_why(sample: pd.DataFrame, reason: str) -> None:
    found = estimated(answers(5, 1), Reference.of(sample, FEATURES, DAY)).iloc[0]

    assert reason in found["reason"]
    assert np.isnan(found["auc"])
    assert not found["trusted"]


def test_few_predictions_give_no_estimate() -> None:
    assert estimated(answers(5, 1, 50), reference())["reason"].tolist() == ["50 predictions, needs 100"]


def test_another_calibration_is_told_from_the_days_that_differ() -> None:
    found = calibration_of(reference(mood=0.4))

    def p_value(slope: float) -> float | None:
        rows = answers(8, 28, 500, mood=0.4, slope=slope)
        return changed(found, fit(rows["label"].to_numpy(), rows["prediction"].to_numpy(), rows["window"].to_numpy()))

    same, other = p_value(1.0), p_value(0.6)
    assert same is not None
    assert other is not None
    assert same > 0.05
    assert other < 0.001


def test_days_as_units_widen_what_rows_alone_would_say() -> None:
    rows = answers(8, 60, 200, mood=0.6)
    found = fit(rows["label"].to_numpy(), rows["prediction"].to_numpy(), rows["window"].to_numpy())

    assert found.covariance is not None
    assert found.covariance[0, 0] > 5 * np.linalg.inv(found.information)[0, 0]


def gaps(rows: pd.DataFrame, found: Calibration) -> np.ndarray[Any, Any]:
    return np.array([gap(part, found) for _, part in rows.groupby("window")], dtype=np.float64)


def test_truth_that_leaves_the_estimate_is_found_and_not_before() -> None:
    found = calibration_of(reference(mood=0.3))
    before, after = answers(9, 60, 400, mood=0.3), answers(10, 60, 400, mood=0.3, slope=0.4, intercept=-0.8)

    path = evidence(np.vstack([gaps(before, found), gaps(after, found)]))

    assert path[:60].max() < THRESHOLD
    assert int(np.argmax(path >= THRESHOLD)) in range(61, 80)


def test_nothing_changing_seldom_gives_evidence() -> None:
    found = calibration_of(reference(mood=0.3))

    alarms = sum(evidence(gaps(answers(s, 50, 150, mood=0.3), found)).max() >= THRESHOLD for s in range(20, 40))

    assert alarms <= 2


def test_windows_without_labels_change_no_evidence() -> None:
    found = calibration_of(reference())
    rows = gaps(answers(9, 10, slope=0.3), found)

    path = evidence(np.vstack([rows[:5], np.full((3, 2), np.nan), rows[5:]]))

    assert path[7] == path[4]
    assert path[-1] == evidence(rows)[-1]
    assert gap(answers(9, 1, 50), found) is None


def test_days_that_follow_one_another_weaken_the_evidence() -> None:
    rows = np.tile([2.0, 1.0], (30, 1))

    assert evidence(rows, 0.6)[-1] < evidence(rows)[-1]
    assert persistence(np.column_stack([np.sin(np.arange(40) / 6), np.zeros(40)])) == 0.8
    assert persistence(np.empty((0, 2))) == 0.0


def test_calibration_keeps_the_order_of_scores() -> None:
    found = calibrate(answers(1, 60), answers(1, 60)["window"].to_numpy())
    scores = np.linspace(0, 1, 101)

    assert isinstance(found, Calibration)
    assert (np.diff(found.probabilities(scores)) > 0).all()
    assert np.isfinite(log_odds(np.array([0.0, 1.0]))).all()
