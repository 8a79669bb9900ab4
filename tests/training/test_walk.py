"""Predictions walk back through time and never see what they predict."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pandas as pd

from training.walk import STEPS, out_of_sample

AT = datetime(2020, 12, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
Predict = Callable[[pd.DataFrame], npt.NDArray[np.float64]]


def frame(days: int, label: int | None = None) -> pd.DataFrame:
    """Four rows a day up to ``AT``, each label known a day later."""
    hours = np.arange(days * 4)[::-1] * 6 + 25
    at = pd.Series(pd.Timestamp(AT) - pd.to_timedelta(hours, unit="h"))
    labels = np.arange(len(at)) % 2 if label is None else np.full(len(at), label)
    return pd.DataFrame({"event_timestamp": at, "label_known_at": at + timedelta(days=1), "label": labels})


def walked(rows: pd.DataFrame) -> tuple[pd.Series, list[tuple[pd.DataFrame, pd.DataFrame]]]:
    """Predictions that tell how many rows the model knew, and what each model knew and was asked."""
    seen: list[tuple[pd.DataFrame, pd.DataFrame]] = []

    def fit(known: pd.DataFrame) -> Predict:
        def predict(asked: pd.DataFrame) -> npt.NDArray[np.float64]:
            seen.append((known, asked))
            return np.full(len(asked), float(len(known)))

        return predict

    newest = rows.index[rows["event_timestamp"] >= pd.Timestamp(AT - WEEK)]
    return out_of_sample(rows, AT, WEEK, fit, pd.Series(-1.0, newest)), seen


def test_no_model_knew_anything_of_the_time_it_is_asked_about() -> None:
    _, seen = walked(frame(100))

    assert len(seen) == STEPS - 1
    assert all(known["label_known_at"].max() < asked["event_timestamp"].min() for known, asked in seen)


def test_every_row_of_the_steps_has_one_prediction_and_the_given_ones_stay() -> None:
    rows = frame(100)

    found, _ = walked(rows)

    asked = rows.index[rows["event_timestamp"] >= pd.Timestamp(AT - STEPS * WEEK)]
    assert sorted(found.index) == list(asked)
    assert (found == -1.0).sum() == (rows["event_timestamp"] >= pd.Timestamp(AT - WEEK)).sum()


def test_models_of_much_less_data_are_left_out() -> None:
    rows = frame(30)

    _, seen = walked(rows)

    assert 0 < len(seen) < STEPS - 1
    assert min(len(known) for known, _ in seen) >= len(rows) / 3


def test_one_outcome_alone_makes_no_model() -> None:
    found, seen = walked(frame(100, label=1))

    assert seen == []
    assert (found == -1.0).all()
