"""Measures of a probability against its labels. Pure."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

Array = npt.NDArray[np.float64]


def evaluate(labels: Array, scores: Array) -> dict[str, float]:
    """AUC, log loss, Brier score and expected calibration error.

    All four are NaN when a score is no probability or only one label occurs.

    Args:
        labels: 0 or 1.
        scores: probabilities of 1, same length.
    """
    known = {"rows": float(len(labels)), "rate": float(labels.mean())}
    if not ((scores >= 0) & (scores <= 1)).all() or np.ptp(labels) == 0:
        return {**dict.fromkeys(("auc", "log_loss", "brier", "ece"), math.nan), **known}
    return {
        "auc": float(roc_auc_score(labels, scores)),
        "log_loss": float(log_loss(labels, scores)),
        "brier": float(brier_score_loss(labels, scores)),
        "ece": calibration_error(labels, scores),
        **known,
    }


def calibration(labels: Array, scores: Array, bins: int = 10) -> list[dict[str, float]]:
    """Mean score and rate of positives in equally wide bins of the score.

    Empty bins are left out, and scores that are no probability.
    """
    usable = (scores >= 0) & (scores <= 1)
    labels, scores = labels[usable], scores[usable]
    place = np.minimum((scores * bins).astype(int), bins - 1)
    found = [(labels[place == b], scores[place == b]) for b in range(bins)]
    return [{"score": float(s.mean()), "rate": float(y.mean()), "rows": float(len(y))} for y, s in found if len(y)]


def calibration_error(labels: Array, scores: Array, bins: int = 10) -> float:
    """Expected calibration error: the mean gap between score and rate over the bins, weighted by rows."""
    parts = calibration(labels, scores, bins)
    return sum(abs(p["score"] - p["rate"]) * p["rows"] for p in parts) / len(labels)
