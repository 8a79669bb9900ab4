"""Predictions for times the model had not seen, walking back through the data in steps of the evaluation weeks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt
import pandas as pd

# One stretch of weeks is one season, and how well probabilities fit changes from month to month; half a year of them
# says how much. Each step costs about one fit.
STEPS = 6
# A model of much less data is another model: what it gets wrong says little about the one that will answer.
LEAST_SHARE = 1 / 3

Fit = Callable[[pd.DataFrame], Callable[[pd.DataFrame], npt.NDArray[np.float64]]]


def out_of_sample(
    frame: pd.DataFrame, at: datetime, step: timedelta, fit: Fit, known: pd.Series[float]
) -> pd.Series[float]:
    """Predict each step's rows by a model of what was known before it began.

    Args:
        frame: every row known at ``at``: features, ``label``, ``event_timestamp``, ``label_known_at``.
        step: length of a step; the first is the evaluation weeks.
        fit: makes a model of rows and returns how it predicts.
        known: predictions for the first step, made already.

    Returns:
        Predictions by the index of ``frame``; rows older than the last step have none.
    """
    found = [known]
    for number in range(1, STEPS):
        start, end = (pd.Timestamp(at - step * n) for n in (number + 1, number))
        before = frame[frame["label_known_at"] < start]
        rows = frame[(frame["event_timestamp"] >= start) & (frame["event_timestamp"] < end)]
        if len(before) < LEAST_SHARE * len(frame) or before["label"].nunique() < 2:
            break
        if len(rows):
            found.append(pd.Series(fit(before)(rows), rows.index, dtype="float64"))
    return pd.concat(found)
