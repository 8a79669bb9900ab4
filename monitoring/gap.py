"""Does the truth, once it arrives, keep to what was estimated? A gap that lasts is concept drift. Pure.

Of every window two gaps: positives that came against positives expected, and realized against expected log loss. Each
is divided by what such windows strayed in the reference, and bet on: the wealth of a bettor who starts anew whenever
he is broke is an e-detector (Shin, Ramdas and Rinaldo, New England J. Stat. Data Sci. 2024), which reaches ``N`` once
in ``N`` windows at most while nothing changes. Assumed: a gap up is as likely as one down.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from monitoring.calibration import Calibration, log_odds
from monitoring.sequential import BETS
from monitoring.statistics import Floats

# Windows to a false alarm, at least.
THRESHOLD = 500.0
LEAST_ROWS = 100


def gap(rows: pd.DataFrame, calibration: Calibration, least: int = LEAST_ROWS) -> tuple[float, float] | None:
    """The two gaps of one window, in standard deviations; None with too few labels.

    Args:
        rows: answers of one model: ``prediction``, ``label`` (NaN while unknown).
        least: fewer labels say nothing.
    """
    labels, scores = (rows[name].to_numpy(dtype=np.float64) for name in ("label", "prediction"))
    known = np.isin(labels, (0.0, 1.0)) & (scores >= 0) & (scores <= 1)
    if known.sum() < least:
        return None
    labels, scores = labels[known], scores[known]
    p = calibration.probabilities(scores)
    design = np.column_stack([np.ones(len(scores)), -log_odds(scores)])
    mirrored = np.array([[1.0, -1.0], [-1.0, 1.0]])
    information = (design * (p * (1 - p))[:, None]).T @ design
    strays = mirrored * (calibration.reference + calibration.between)
    spread = np.sqrt(np.diag(information @ strays @ information + information))
    positives, loss = ((labels - p) @ design) / spread
    return float(positives), float(loss)


def evidence(gaps: Floats, persistence: float = 0.0) -> Floats:
    """Evidence after each window that estimates no longer hold; alarming from ``THRESHOLD`` on.

    Args:
        gaps: windows in order of time x the two gaps; NaN without data, which changes nothing.
        persistence: correlation of one window's gap with the next one's in the reference, 0 to 0.8.
    """
    weakened = gaps / np.sqrt((1 + persistence) / (1 - persistence))
    bets = np.array([[sign * bet] for sign in (1, -1) for bet in BETS])
    wealth, out = np.zeros(2 * len(bets)), []
    for step in weakened:
        if not np.isnan(step).any():
            # The log of 2 / (1 + exp(-2 z x)): fair when up and down are equally likely.
            wealth = np.maximum(wealth, 0.0) + np.log(2) - np.logaddexp(0.0, -2 * (bets * step).ravel())
        out.append(float(np.exp(np.minimum(wealth, 500.0)).mean()))
    return np.asarray(out, dtype=np.float64)


def persistence(gaps: Floats) -> float:
    """Correlation of one window's first gap with the next one's, 0 to 0.8."""
    known = gaps[~np.isnan(gaps).any(axis=1), 0] if len(gaps) else np.empty(0)
    if len(known) < 8 or np.ptp(known) == 0:
        return 0.0
    return float(np.clip(np.corrcoef(known[:-1], known[1:])[0, 1], 0.0, 0.8))
