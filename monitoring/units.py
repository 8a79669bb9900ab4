"""Turns labelled rows into one paired statistic per block of time, the units of :mod:`monitoring.sequential`. Pure."""

from __future__ import annotations

import numpy as np

from monitoring.sequential import Units
from monitoring.statistics import Floats, Ints, ece, placements

_CERTAIN = 1e-4


def mean_units(values: Floats, blocks: Ints) -> Units:
    """Units of a mean of per-row differences."""
    index, count = _index(blocks)
    rows = np.bincount(index, minlength=count).astype(np.float64)
    sums = _totals(index, values, count)
    spread = _totals(index, (values - (sums / rows)[index]) ** 2, count)
    return Units(sums, rows, spread * rows / np.maximum(rows - 1, 1))


def auc_units(labels: Floats, primary: Floats, shadow: Floats, blocks: Ints) -> tuple[Units, Units, Units]:
    """Units of the difference of the two AUCs within a block, then of each role's own.

    Weighted by the block's harmonic number of rows of both classes; a block of one class has weight 0. The noise is
    DeLong's variance (DeLong, DeLong and Clarke-Pearson, Biometrics 1988).
    """
    index, count = _index(blocks)
    found = np.zeros((4, count))
    for block, rows in enumerate(_rows(index, count)):
        truth = labels[rows] == 1
        m, n = int(truth.sum()), int((~truth).sum())
        if not m or not n:
            continue
        first, second = placements(labels[rows], primary[rows]), placements(labels[rows], shadow[rows])
        delta, size = first - second, m * n / (m + n)
        spread = delta[truth].var() / m + delta[~truth].var() / n
        found[:, block] = size, size * first[truth].mean(), size * second[truth].mean(), size**2 * spread
    weight, one, two, noise = (np.asarray(line, dtype=np.float64) for line in found)
    alone = np.full(count, np.nan)
    return Units(one - two, weight, noise), Units(one, weight, alone), Units(two, weight, alone)


def ece_units(labels: Floats, primary: Floats, shadow: Floats, blocks: Ints) -> tuple[Units, Units, Units]:
    """Units of the difference of the two calibration errors within a block, then of each role's own.

    An error over few rows is too large by chance, for both models alike: their difference is not.
    """
    index, count = _index(blocks)
    rows = _rows(index, count)
    size = np.array([len(r) for r in rows], dtype=np.float64)
    one, two = (np.array([ece(labels[r], s[r]) for r in rows]) * size for s in (primary, shadow))
    unknown = np.full(count, np.nan)
    return Units(one - two, size, unknown), Units(one, size, unknown), Units(two, size, unknown)


def overconfidence_units(labels: Floats, scores: Floats, blocks: Ints) -> Units:
    """Units of how much too extreme scores are: 0 when calibrated, positive when overconfident.

    Score test and one Newton step of the calibration slope (Cox, Biometrika 1958): 1 minus the slope. For a
    calibrated model ``(score - label) * f(score)`` has mean 0 whatever ``f``; here ``f`` is the log-odds.
    """
    index, count = _index(blocks)
    clipped = np.clip(scores, _CERTAIN, 1 - _CERTAIN)
    odds = np.log(clipped / (1 - clipped))
    odds -= odds.mean()
    slack = _totals(index, clipped * (1 - clipped) * odds**2, count)
    return Units(_totals(index, (scores - labels) * odds, count), slack, slack)


def _index(blocks: Ints) -> tuple[Ints, int]:
    names, index = np.unique(blocks, return_inverse=True)
    return np.asarray(index, dtype=np.int64), len(names)


def _totals(index: Ints, values: Floats, count: int) -> Floats:
    return np.asarray(np.bincount(index, weights=values, minlength=count), dtype=np.float64)


def _rows(index: Ints, count: int) -> list[Ints]:
    order = np.argsort(index, kind="stable")
    return np.split(order, np.cumsum(np.bincount(index, minlength=count))[:-1])
