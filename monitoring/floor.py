"""How much the primary differs from itself: the floor below which a difference between two models is noise. Pure.

Asked the same twice, a model should answer the same. Where it does not (threads that add up in another order, a value
lost on the way), a shadow must not be blamed for that much. The idea is Diffy's, which asks the old version twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

AGAIN = "prediction_again"


@dataclass(frozen=True)
class NoiseFloor:
    """The primary against itself on the same vectors.

    Attributes:
        rows: requests it was asked twice.
        same: of them answered with exactly the same score.
        largest: the largest difference of two scores.
        mean: the mean difference, without sign.
    """

    rows: int
    same: int
    largest: float
    mean: float


def noise_floor(both: pd.DataFrame) -> NoiseFloor | None:
    """Measure the floor where a log has a second answer (column ``prediction_again``); None where it has none."""
    twice = _twice(both)
    if twice.empty:
        return None
    apart = np.abs((twice["prediction"] - twice[AGAIN]).to_numpy(dtype=np.float64))
    return NoiseFloor(len(twice), int((apart == 0).sum()), float(apart.max()), float(apart.mean()))


def changed_decisions(both: pd.DataFrame, threshold: float) -> float | None:
    """Share of requests the primary decides otherwise when asked again; None when it never was."""
    twice = _twice(both)
    if twice.empty:
        return None
    return float(((twice["prediction"] >= threshold) != (twice[AGAIN] >= threshold)).mean())


def _twice(both: pd.DataFrame) -> pd.DataFrame:
    return both[both[AGAIN].notna()] if AGAIN in both else both.iloc[:0]
