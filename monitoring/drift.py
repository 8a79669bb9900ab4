"""Has a feature moved away from what its model was trained on? Pure.

Rows of one day are alike: one front, one outage, one campaign moves them together. A test that takes them for
independent finds drift every day. Here the yardstick is how much the training sample's own days (or weeks) differ from
the whole of it, beyond what so few rows explain: a window is unusual when it is further off than they are. Days are
compared with the same day of the week, so that a Saturday is not drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BINS, FINE = 10, 50
# Categories rarer than this share one bin.
RARE = 0.005
# Fewer blocks of the sample say nothing about how blocks differ; smaller ones are left out.
LEAST_BLOCKS, LEAST_IN_BLOCK = 8, 5
# Standard errors that are added to the variance between blocks.
DOUBT = 1.0
_HALF = 0.5


@dataclass(frozen=True)
class Between:
    """How far blocks of the training sample are from the whole of it, beyond chance, as Pearson's phi-square.

    Attributes:
        mean, variance: over blocks.
        error: variance of the estimated mean.
        worst: the largest that one block certainly had (two standard errors below what was seen).
        blocks: how many there were.
        least: share of a block's rows with a value below which it was left out.
    """

    mean: float
    variance: float
    error: float
    worst: float
    blocks: int
    least: float


@dataclass(frozen=True)
class Bins:
    """Bins of one column.

    Attributes:
        is_category: whether bins are categories, the last one for all others.
        edges: inner edges of the fine bins; empty for categories.
        categories: those with a bin of their own.
        known: every category training had.
        coarse: for each fine bin the bin of the test.
    """

    name: str
    is_category: bool
    edges: Floats
    categories: tuple[str, ...]
    known: frozenset[str]
    coarse: Ints

    @property
    def width(self) -> int:
        """Bins of the test."""
        return int(self.coarse.max()) + 1

    def codes(self, values: pd.Series[Any]) -> Ints:
        """Return the fine bin of each value, -1 for null."""
        if self.is_category:
            where = {category: i for i, category in enumerate(self.categories)}
            found = values.map(where).fillna(len(self.categories)).to_numpy(dtype=np.int64)
            return np.where(values.isna().to_numpy(), -1, found)
        numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        return np.where(np.isnan(numbers), -1, np.searchsorted(self.edges, numbers, side="left"))

    def unseen(self, values: pd.Series[Any]) -> npt.NDArray[np.bool_]:
        """Whether each value is a category that training never had."""
        if not self.is_category:
            return np.zeros(len(values), dtype=bool)
        return (values.notna() & ~values.isin(self.known)).to_numpy(dtype=bool)

    def fold(self, table: Ints) -> Ints:
        """Add fine bins up to the bins of the test."""
        out = np.zeros((len(table), self.width), dtype=np.int64)
        for j, target in enumerate(self.coarse):
            out[:, target] += table[:, j]
        return out


@dataclass(frozen=True)
class Distances:
    """Windows against training, one entry per window.

    Attributes:
        psi: population stability index, half a count added to every bin.
        size: Kolmogorov-Smirnov distance at the fine bins' edges, for categories Cramer's V.
        phi: Pearson's phi-square.
        p_value: how often a block of training would be as far off.
        row_p: what the same would be if rows were independent (Kolmogorov-Smirnov, chi-square).
        limit: phi-square that ``alpha`` of training's blocks exceed, and none certainly did.
    """

    psi: Floats
    size: Floats
    phi: Floats
    p_value: Floats
    row_p: Floats
    limit: Floats


def number_bins(name: str, sample: pd.Series[Any]) -> Bins | None:
    """Bins by the sample's quantiles with open ends; None without a value."""
    known = sample.dropna().to_numpy(dtype=np.float64)
    if not len(known):
        return None
    # Quantiles that are values of the sample: an edge between two of them would leave a bin empty.
    fine, tens = (
        np.unique(np.quantile(known, np.linspace(0, 1, n + 1)[1:-1], method="inverted_cdf")) for n in (FINE, BINS)
    )
    # The largest value is no edge: nothing would lie above it.
    fine, tens = fine[fine < known.max()], tens[tens < known.max()]
    edges = np.union1d(fine, tens)
    coarse = np.append(np.searchsorted(tens, edges, side="left"), len(tens)).astype(np.int64)
    return Bins(name, False, edges, (), frozenset(), coarse)


def category_bins(name: str, sample: pd.Series[Any], known: Sequence[str]) -> Bins | None:
    """One bin per category that is not rare, and one for the others; None without a value."""
    values = sample.dropna().astype(str)
    if values.empty:
        return None
    shares = values.value_counts(normalize=True)
    kept = tuple(sorted(str(category) for category in shares[shares >= RARE].index))
    every = frozenset(known) | frozenset(str(category) for category in shares.index)
    return Bins(name, True, np.empty(0), kept, every, np.arange(len(kept) + 1, dtype=np.int64))


def between(codes: Ints, blocks: Ints, bins: int, phases: int = 1) -> Between | None:
    """Estimate how far blocks of the sample are from what is usual in their phase; None with too few blocks.

    Moments of phi-square: what sampling adds to mean and variance is taken off (Rao and Scott, Annals of Statistics
    1984, for the mean; variance of Pearson's statistic by Haldane, Biometrika 1937). A package's sample is spread
    evenly in time, which makes a block's shares less random than independent draws; by how much is seen from its
    alternate rows. The variance is at least that of equal random shifts in all bins, 2 mean^2 / (bins - 1).

    Args:
        codes: bin of each row of the sample, in order of time.
        blocks: block of each row.
        phases: a block is compared with those of its phase, its number modulo this.
    """
    if bins < 2 or not len(codes):
        return None
    names, inverse, sizes = np.unique(blocks, return_inverse=True, return_counts=True)
    odd = np.arange(len(codes)) % 2 == 1
    halves = [tabulate(np.where(odd == side, codes, -1), inverse, bins, len(names)) for side in (False, True)]
    table = halves[0] + halves[1]
    usual = tabulate(codes, blocks % phases, bins, phases)[names % phases]
    least = LEAST_IN_BLOCK / float(np.median(sizes))
    rows = table.sum(axis=1)
    # A block that is most of its phase is compared with itself.
    kept = (rows >= LEAST_IN_BLOCK) & (rows >= least * sizes) & (2 * rows < usual.sum(axis=1))
    if kept.sum() < LEAST_BLOCKS:
        return None
    table, usual, rows = table[kept], usual[kept], rows[kept]
    shares = _smooth(usual)
    phi = phi_square(table, shares) / (1 - rows / usual.sum(axis=1))
    design, doubt = _design([half[kept] for half in halves], shares)
    noise = design * (bins - 1) / rows
    mean = max(0.0, float((rows * (phi - noise)).sum() / rows.sum()))
    chance = (2 * (bins - 1) + ((1 / shares).sum(axis=1) - bins**2 - 2 * bins + 2) / rows) / rows**2
    chance = design**2 * np.maximum(chance, 0)
    beyond = (phi - noise - mean) ** 2 - chance - 4 * mean * design / rows
    # Days are as odd as the oddest of them: the variance is taken from the upper end of what it may be.
    variance = float(beyond.mean()) + DOUBT * float(beyond.std(ddof=1)) / float(np.sqrt(len(beyond)))
    certain = phi - noise - 2 * np.sqrt(chance + 4 * np.maximum(phi - noise, 0) * design / rows)
    error = float(phi.var(ddof=1)) / len(phi) + (doubt * float((bins - 1) / rows.mean())) ** 2
    return Between(
        mean, max(variance, 2 * mean**2 / (bins - 1)), error, max(0.0, float(certain.max())), len(phi), min(least, 1.0)
    )


def _design(halves: list[Ints], shares: Floats) -> tuple[float, float]:
    """How random a block's shares are, 1 for independent rows, and the standard error of that.

    The squared difference of two halves of a block is, for independent rows, chance alone.
    """
    n, m = (half.sum(axis=1) for half in halves)
    both = (n > 0) & (m > 0)
    if both.sum() < LEAST_BLOCKS:
        return 1.0, 0.0
    first, second = (half[both] / half[both].sum(axis=1, keepdims=True) for half in halves)
    expected = (shares.shape[1] - 1) * (1 / n[both] + 1 / m[both])
    found = ((first - second) ** 2 / shares[both]).sum(axis=1)
    design = float(found.sum() / expected.sum())
    doubt = float((found / expected).std(ddof=1)) / float(np.sqrt(both.sum()))
    return min(design, 1.0), doubt


def tabulate(codes: Ints, blocks: Ints, bins: int, rows: int) -> Ints:
    """Count codes per block: an array (blocks x bins); nulls (-1) are left out."""
    known = codes >= 0
    flat = np.bincount(blocks[known] * bins + codes[known], minlength=rows * bins)
    return flat.reshape(rows, bins).astype(np.int64)


def sums(table: Ints, span: int) -> Ints:
    """Sums over each row and the ``span - 1`` before it."""
    total = np.cumsum(table, axis=0)
    out = total.copy()
    out[span:] -= total[:-span]
    return out


def without_oddest(single: Ints, usual: Ints, bins: Bins, span: int) -> Ints:
    """Sums over each window and the ``span - 1`` before it, without the one of them that is furthest off.

    Args:
        single: values per window and fine bin.
        usual: values of the sample per fine bin, one row.
    """
    weight = phi_square(bins.fold(single), _smooth(bins.fold(usual))) * single.sum(axis=1)
    padded = np.concatenate([np.full(span - 1, -1.0), weight])
    oddest = np.lib.stride_tricks.sliding_window_view(padded, span).argmax(axis=1) + np.arange(len(single)) - span + 1
    return np.asarray(sums(single, span) - single[oddest], dtype=np.int64)


def phi_square(table: Ints, shares: Floats) -> Floats:
    """Pearson's chi-square per row, divided by its number of values; 0 for a row without one."""
    rows = np.maximum(table.sum(axis=1, keepdims=True), 1)
    found = ((table / rows - shares) ** 2 / shares).sum(axis=1)
    return np.asarray(np.where(table.sum(axis=1) > 0, found, 0.0), dtype=np.float64)


def compare(table: Ints, usual: Ints, spread: Between, alpha: float) -> tuple[Floats, Floats, Floats]:
    """Return for windows their phi-square, its p-value, and the limit that ``alpha`` of training's blocks exceed.

    The p-value is that of a gamma distribution with the mean and variance of a block's phi-square: how blocks differ,
    how few rows window and sample have, how well the mean is known. It is 1 for what a block of training certainly
    had, however the fit came out.

    Args:
        table: values per window and bin.
        usual: values of the sample in the same phase, per window and bin.
    """
    bins = table.shape[1]
    phi = phi_square(table, _smooth(usual))
    chance = 1 / np.maximum(table.sum(axis=1), 1) + 1 / np.maximum(usual.sum(axis=1), 1)
    mean = spread.mean + (bins - 1) * chance
    variance = spread.variance + spread.error + 2 * (bins - 1) * chance**2 + 4 * spread.mean * chance
    law = stats.gamma(mean**2 / variance, scale=variance / mean)
    p_value = np.where(phi <= spread.worst, 1.0, law.sf(phi))
    return phi, np.asarray(p_value, dtype=np.float64), np.maximum(law.isf(alpha), spread.worst)


def distances(table: Ints, usual: Ints, bins: Bins, spread: Between, alpha: float) -> Distances:
    """Compare windows with training.

    Args:
        table: values per window and fine bin.
        usual: values of the sample in the same phase, per window and fine bin.
        spread: how blocks of a window's length differ in training.
        alpha: share of blocks that exceed the limit.
    """
    now, before = bins.fold(table), bins.fold(usual)
    phi, p_value, limit = compare(now, before, spread, alpha)
    old, new = _smooth(before), _smooth(now)
    psi = ((new - old) * np.log(new / old)).sum(axis=1)
    if bins.is_category:
        size, row_p = _contingency(now, before)
    else:
        size, row_p = _kolmogorov(table, usual)
    return Distances(psi, size, phi, p_value, row_p, limit)


def _kolmogorov(table: Ints, usual: Ints) -> tuple[Floats, Floats]:
    n, m = table.sum(axis=1), usual.sum(axis=1)
    steps = np.cumsum(table, axis=1) / np.maximum(n, 1)[:, None] - np.cumsum(usual, axis=1) / np.maximum(m, 1)[:, None]
    size = np.abs(steps).max(axis=1)
    p_value = stats.kstwobign.sf(size * np.sqrt(n * m / np.maximum(n + m, 1)))
    return size, np.asarray(p_value, dtype=np.float64)


def _contingency(table: Ints, usual: Ints) -> tuple[Floats, Floats]:
    out = np.zeros((2, len(table)))
    for i, sides in enumerate(np.stack([table, usual], axis=1)):
        both = sides[:, sides.sum(axis=0) > 0]
        if not both.sum(axis=1).all() or both.shape[1] < 2:
            out[:, i] = 0.0, 1.0
            continue
        found = stats.chi2_contingency(both)
        out[:, i] = np.sqrt(found.statistic / both.sum()), found.pvalue
    return out[0], out[1]


def _smooth(table: Ints) -> Floats:
    return np.asarray((table + _HALF) / (table.sum(axis=1, keepdims=True) + _HALF * table.shape[1]), dtype=np.float64)
