"""The numbers a comparison rests on; pure functions of arrays. What may be looked at often is in ``sequential.py``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_TINY = 1e-15


@dataclass(frozen=True)
class Difference:
    """A paired difference, primary minus shadow, with a two-sided interval that holds at all times at once.

    Attributes:
        value: the estimate.
        low, high: bounds of the interval; None with too few blocks to say.
        rows: pairs it rests on.
        blocks: independent blocks of time among them.
    """

    value: float
    low: float | None
    high: float | None
    rows: int
    blocks: int


@dataclass(frozen=True)
class Discordance:
    """McNemar's table for two sets of decisions: rows only one of the two got right, and its exact p-value."""

    only_primary_right: int
    only_shadow_right: int
    p_value: float


def floats(column: pd.Series) -> Floats:
    """A column as numbers; null is NaN."""
    return column.to_numpy(dtype=np.float64)


def psi(reference: Floats, current: Floats, bins: int = 10) -> float:
    """Population stability index over the reference's quantile bins, with open ends.

    Edges come from the reference alone, so an outlier in ``current`` cannot stretch the bins; half a count is
    added to every bin, so an empty one does not make the index infinite.

    Raises:
        ValueError: when either side is empty.
    """
    _need(reference, current)
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1]))
    places = (np.searchsorted(edges, side, side="left") for side in (reference, current))
    return stability(*(np.bincount(place, minlength=len(edges) + 1) for place in places))


def stability(reference: Ints, current: Ints) -> float:
    """Population stability index of two sets of counts over the same bins or categories; half a count is added."""
    before, after = ((side + 0.5) / (side.sum() + len(side) / 2) for side in (reference, current))
    return float(np.sum((after - before) * np.log(after / before)))


def ks(reference: Floats, current: Floats) -> tuple[float, float]:
    """Two-sample Kolmogorov-Smirnov distance (0 to 1) and p-value.

    Raises:
        ValueError: when either side is empty.
    """
    _need(reference, current)
    result = stats.ks_2samp(reference, current, method="asymp")
    return float(result.statistic), float(result.pvalue)


def wasserstein(reference: Floats, current: Floats) -> float:
    """Wasserstein distance in standard deviations of the reference; 0 when the reference is constant.

    Raises:
        ValueError: when either side is empty.
    """
    _need(reference, current)
    spread = float(reference.std())
    return float(stats.wasserstein_distance(reference, current)) / spread if spread else 0.0


def rank_correlation(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation; 0 when either side is constant."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(stats.spearmanr(a, b).statistic)


def log_losses(labels: Floats, scores: Floats) -> Floats:
    """Per-row log loss in nats; scores are kept 1e-15 away from 0 and 1."""
    clipped = np.clip(scores, _TINY, 1 - _TINY)
    return np.asarray(-(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped)), dtype=np.float64)


def briers(labels: Floats, scores: Floats) -> Floats:
    """Per-row squared error of the probability."""
    return np.asarray((scores - labels) ** 2, dtype=np.float64)


def auc(labels: Floats, scores: Floats) -> float | None:
    """Area under the ROC curve by midranks; None when only one class is present."""
    positives = labels == 1
    m, n = int(positives.sum()), int((~positives).sum())
    if not m or not n:
        return None
    ranks = stats.rankdata(scores)
    return float((ranks[positives].sum() - m * (m + 1) / 2) / (m * n))


def placements(labels: Floats, scores: Floats) -> Floats:
    """Share of the other class each row is ranked on the right side of (ties count half); needs both classes.

    DeLong's structural components by midranks (Sun and Xu, IEEE Signal Processing Letters 2014).
    """
    positives = labels == 1
    m, n = int(positives.sum()), int((~positives).sum())
    out = np.empty(len(labels))
    ranks = stats.rankdata(scores)
    out[positives] = (ranks[positives] - stats.rankdata(scores[positives])) / n
    out[~positives] = 1 - (ranks[~positives] - stats.rankdata(scores[~positives])) / m
    return out


def ece(labels: Floats, scores: Floats, bins: int = 10) -> float:
    """Expected calibration error over equal-width bins.

    Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.
    """
    where = _bin(scores, bins)
    gaps = np.bincount(where, weights=scores - labels, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def mcnemar(primary_right: npt.NDArray[np.bool_], shadow_right: npt.NDArray[np.bool_]) -> Discordance:
    """Exact McNemar test on which of two deciders was right, row by row."""
    first = int((primary_right & ~shadow_right).sum())
    second = int((~primary_right & shadow_right).sum())
    p_value = float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0
    return Discordance(first, second, p_value)


def standardized_shift(a: Floats, b: Floats) -> tuple[float, float]:
    """Absolute difference of two means in pooled standard deviations (Cohen's d), and its standard error.

    Raises:
        ValueError: when either side is empty.
    """
    _need(a, b)
    m, n = len(a), len(b)
    spread = math.sqrt((m * float(a.var()) + n * float(b.var())) / (m + n))
    d = abs(float(a.mean()) - float(b.mean())) / spread if spread else 0.0
    return d, math.sqrt((m + n) / (m * n) + d * d / (2 * (m + n)))


def _bin(scores: Floats, bins: int) -> Ints:
    return np.minimum((scores * bins).astype(np.int64), bins - 1)


def _need(*sides: Floats) -> None:
    if any(len(side) == 0 for side in sides):
        msg = "statistics need at least one row on each side; check for empty frames first"
        raise ValueError(msg)
