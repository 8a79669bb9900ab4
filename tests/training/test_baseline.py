"""What travels with a model: the spread of window means, what the model goes by, a sample that is always the same."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from service.contract import Contract, FieldSpec
from training.baseline import baseline, importance, windows
from training.reference import ROWS, reference

CONTRACT = Contract(
    "toy", (), (), (), (),
    (FieldSpec("x", "float", nullable=True), FieldSpec("n", "int", nullable=True), FieldSpec("c", "str")),
)  # fmt: skip


def frame(rows: int) -> pd.DataFrame:
    """Rows one minute apart, in disorder, with gaps."""
    rng = np.random.default_rng(1)
    times = pd.date_range("2020-01-01", periods=rows, freq="min", tz="UTC")
    made = pd.DataFrame(
        {
            "event_timestamp": times,
            "x": np.where(rng.random(rows) < 0.1, np.nan, np.arange(rows)),
            "n": np.where(rng.random(rows) < 0.1, np.nan, rng.integers(0, 9, rows)),
            "c": rng.choice(["a", "b"], rows),
            "label": rng.integers(0, 2, rows),
        }
    )
    return made.sample(frac=1, random_state=1)


def test_the_spread_is_that_of_window_means_not_of_single_predictions() -> None:
    """Days whose means are 0.2, 0.4 and 0.6; within a day predictions are 0.2 apart, every other hour."""
    times = pd.date_range("2020-01-01", periods=72 * 10, freq="6min", tz="UTC")
    swing = np.where(times.hour % 2 == 0, 0.1, -0.1)
    scores = np.repeat([0.2, 0.4, 0.6], 240) + swing

    found = windows(pd.Series(times), scores)

    day = found["day"]
    assert (day["windows"], day["rows"], day["mean"], day["std"]) == (3, 240, 0.4, 0.2)
    assert day["means"] == {"2020-01-01": 0.2, "2020-01-02": 0.4, "2020-01-03": 0.6}
    assert sorted(found["hour"]) == [f"{hour:02d}" for hour in range(24)]
    assert found["hour"]["06"] == {"windows": 3, "rows": 10, "mean": 0.5, "std": 0.2}
    assert found["hour"]["07"]["mean"] == 0.3


def test_a_day_cut_by_the_edge_of_the_data_is_no_window() -> None:
    times = pd.date_range("2020-01-01", "2020-01-03 06:00", freq="h", tz="UTC")
    scores = np.where(times < pd.Timestamp("2020-01-03", tz="UTC"), 0.2, 0.9)

    found = windows(pd.Series(times), scores)["day"]

    assert (found["windows"], found["std"]) == (2, 0)
    assert "2020-01-03" not in found["means"]


def test_one_window_has_no_spread() -> None:
    found = windows(pd.Series(pd.date_range("2020-01-01", periods=5, freq="min", tz="UTC")), np.full(5, 0.3))

    assert (found["day"]["windows"], found["day"]["std"]) == (1, None)


def test_importance_ranks_by_size_and_tells_the_direction_of_numbers() -> None:
    rows = frame(500)
    x, n = (rows[name].fillna(0).to_numpy() for name in ("x", "n"))
    added = np.column_stack([x / 500 - 0.5, -3 * n, np.where(rows["c"] == "a", 0.01, -0.01)])

    found = importance(CONTRACT, rows, added, "tree_shap")

    assert [(e["feature"], e["direction"]) for e in found["ranking"]] == [("n", -1), ("x", 1), ("c", None)]
    assert found["ranking"][2]["mean_abs"] == 0.01
    assert (found["method"], found["unit"], found["rows"]) == ("tree_shap", "log-odds", 500)


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [np.nan, np.nan, 2.0]])
def test_a_feature_that_does_not_vary_has_no_direction(values: list[float]) -> None:
    rows = pd.DataFrame({"x": values, "n": [1, 2, 3], "c": ["a", "a", "b"]})

    found = importance(CONTRACT, rows, np.column_stack([[1.0, 2.0, 3.0], np.zeros(3), np.zeros(3)]), "linear")

    assert {e["feature"]: e["direction"] for e in found["ranking"]} == {"x": 0, "n": 0, "c": None}


def test_a_baseline_is_json_and_holds_every_yardstick() -> None:
    rows = frame(3000)
    holdout = rows.tail(1000)
    scores = np.random.default_rng(2).random(1000)
    ranked = importance(CONTRACT, holdout, np.ones((1000, 3)), "linear")

    found = baseline(CONTRACT, rows, holdout, scores, ranked)

    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"rows", "features", "predictions", "importance"}
    assert {"mean", "std", "median", "edges", "counts", "calibration", "windows"} <= set(found["predictions"])
    assert {"null_rate", "quantiles", "mean", "std", "min", "max"} == set(found["features"]["x"])
    assert set(found["features"]["c"]) == {"null_rate", "shares"}


def test_the_sample_holds_features_in_contract_order_and_what_was_predicted() -> None:
    rows = frame(300)
    predictions = pd.Series(np.linspace(0.1, 0.9, 100), rows.index[:100])

    table = pq.read_table(io.BytesIO(reference(CONTRACT, rows, predictions))).to_pandas()

    assert list(table) == ["x", "n", "c", "event_timestamp", "label", "prediction"]
    ordered = rows.sort_values("event_timestamp")
    assert table["event_timestamp"].tolist() == ordered["event_timestamp"].tolist()
    np.testing.assert_array_equal(table["x"], ordered["x"])
    np.testing.assert_array_equal(table["prediction"], predictions.reindex(ordered.index))
    assert table["prediction"].notna().sum() == 100


def test_the_sample_is_spread_evenly_over_the_time() -> None:
    rows = frame(4 * ROWS)

    times = pq.read_table(io.BytesIO(reference(CONTRACT, rows, pd.Series(dtype=float)))).to_pandas()["event_timestamp"]

    assert len(times) == ROWS
    assert (times.iloc[0], times.iloc[-1]) == (rows["event_timestamp"].min(), rows["event_timestamp"].max())
    assert times.diff().dropna().between(pd.Timedelta("4min"), pd.Timedelta("5min")).all()


def test_the_same_rows_give_the_same_sample_whatever_their_order() -> None:
    rows = frame(800)
    shuffled: Any = rows.sample(frac=1, random_state=9)

    assert reference(CONTRACT, rows, pd.Series(dtype=float)) == reference(CONTRACT, shuffled, pd.Series(dtype=float))
