"""The numbers a comparison rests on; pure functions of arrays.

Two models score the same requests, so every difference is paired by row. Rows close in time share what happened
then and are not independent; intervals treat the block of time as the unit (a cluster-robust variance with
Student's t over the blocks), which is the usual formula when every row is its own block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_TINY = 1e-15
_RESAMPLES = 400


@dataclass(frozen=True)
class Difference:
    """A paired difference, primary minus shadow, with its two-sided interval.

    Attributes:
        value: the estimate.
        low, high: bounds of the interval; None with fewer than two blocks.
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


def ece(labels: Floats, scores: Floats, bins: int = 10) -> float:
    """Expected calibration error over equal-width bins.

    Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.
    """
    where = _bin(scores, bins)
    gaps = np.bincount(where, weights=scores - labels, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def paired_mean(differences: Floats, blocks: Ints | None = None, confidence: float = 0.95) -> Difference:
    """Mean of per-row differences with a block-robust t interval.

    Raises:
        ValueError: when there are no rows.
    """
    _need(differences)
    mean = float(differences.mean())
    return _interval(mean, (differences - mean) / len(differences), blocks, confidence)


def paired_auc(
    labels: Floats, primary: Floats, shadow: Floats, blocks: Ints | None = None, confidence: float = 0.95
) -> Difference | None:
    """Difference of two AUCs on the same rows; None when only one class is present.

    DeLong's structural components (DeLong, DeLong and Clarke-Pearson, Biometrics 1988) by midranks (Sun and Xu,
    IEEE SPL 2014), summed within blocks (Obuchowski, Biometrics 1997).
    """
    first, second = _placements(labels, primary), _placements(labels, shadow)
    if first is None or second is None:
        return None
    positives = labels == 1
    delta = first - second
    value = float(delta[positives].mean())
    counts = np.where(positives, positives.sum(), (~positives).sum())
    return _interval(value, (delta - value) / counts, blocks, confidence)


def paired_ece(
    labels: Floats, primary: Floats, shadow: Floats, blocks: Ints, confidence: float = 0.95, bins: int = 10
) -> Difference:
    """Difference of two calibration errors with a percentile bootstrap over blocks (fixed seed)."""
    value = ece(labels, primary, bins) - ece(labels, shadow, bins)
    names, index = np.unique(blocks, return_inverse=True)
    if len(names) < 2:
        return Difference(value, None, None, len(labels), len(names))
    sizes = np.bincount(index).astype(np.float64)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=_RESAMPLES).astype(np.float64)
    total = weights @ sizes
    drawn = [np.abs(weights @ _gaps(labels, s, index, len(names), bins)).sum(axis=1) / total for s in (primary, shadow)]
    low, high = np.quantile(drawn[0] - drawn[1], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(value, float(low), float(high), len(labels), len(names))


def mcnemar(primary_right: npt.NDArray[np.bool_], shadow_right: npt.NDArray[np.bool_]) -> Discordance:
    """Exact McNemar test on which of two deciders was right, row by row."""
    first = int((primary_right & ~shadow_right).sum())
    second = int((~primary_right & shadow_right).sum())
    p_value = float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0
    return Discordance(first, second, p_value)


def running_mean(differences: Floats, blocks: Ints, confidence: float = 0.95) -> tuple[Ints, Floats, Floats, Floats]:
    """Mean of all rows up to the end of each block, with :func:`paired_mean`'s interval at that point.

    Returns:
        ``(block, mean, low, high)``, one entry per block in order; bounds are NaN for the first block.
    """
    names, index = np.unique(blocks, return_inverse=True)
    sums, sizes = np.bincount(index, weights=differences), np.bincount(index).astype(np.float64)
    n, g = np.cumsum(sizes), np.arange(1, len(names) + 1, dtype=np.float64)
    mean = np.cumsum(sums) / n
    squares = np.cumsum(sums**2) - 2 * mean * np.cumsum(sums * sizes) + mean**2 * np.cumsum(sizes**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        half = stats.t.ppf((1 + confidence) / 2, g - 1) * np.sqrt(np.maximum(squares, 0) * g / (g - 1)) / n
    return names, mean, mean - half, mean + half


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


def _placements(labels: Floats, scores: Floats) -> Floats | None:
    """Share of the other class each row is ranked on the right side of (ties count half)."""
    positives = labels == 1
    m, n = int(positives.sum()), int((~positives).sum())
    if not m or not n:
        return None
    out = np.empty(len(labels))
    ranks = stats.rankdata(scores)
    out[positives] = (ranks[positives] - stats.rankdata(scores[positives])) / n
    out[~positives] = 1 - (ranks[~positives] - stats.rankdata(scores[~positives])) / m
    return out


def _interval(value: float, influence: Floats, blocks: Ints | None, confidence: float) -> Difference:
    sums = influence if blocks is None else _sums(np.unique(blocks, return_inverse=True)[1], influence)
    g = len(sums)
    if g < 2:
        return Difference(value, None, None, len(influence), g)
    half = float(stats.t.ppf((1 + confidence) / 2, g - 1)) * math.sqrt(float((sums**2).sum()) * g / (g - 1))
    return Difference(value, value - half, value + half, len(influence), g)


def _gaps(labels: Floats, scores: Floats, index: Ints, blocks: int, bins: int) -> Floats:
    """Sum of score minus label per block and bin (blocks x bins)."""
    cell = index * bins + _bin(scores, bins)
    return _sums(cell, scores - labels, blocks * bins).reshape(blocks, bins)


def _sums(index: Ints, values: Floats, least: int = 0) -> Floats:
    return np.bincount(index, weights=values, minlength=least).astype(np.float64)


def _bin(scores: Floats, bins: int) -> Ints:
    return np.minimum((scores * bins).astype(np.int64), bins - 1)


def _need(*sides: Floats) -> None:
    if any(len(side) == 0 for side in sides):
        msg = "statistics need at least one row on each side; check for empty frames first"
        raise ValueError(msg)
