"""Inference that may be looked at after every label: e-values and intervals that hold at all times at once. Pure.

An e-value is the wealth of a fair game under the null hypothesis: it reaches ``1 / alpha`` with a chance of at most
``alpha``, at whatever moment one looks and stops (Ville 1939). An interval that holds at all times is the set of
values no such game has refuted.

The units of the games for means are blocks of time (days), not rows: rows of one day share what happened that day.
Each day bets on the sign of its paired difference. The only assumption is that on any day, given the past, swapping
the two models' names would not change the law of their differences under the null hypothesis; then the sign is a
fair coin given the size, whatever the dependence within the day and however heavy the tails, and the pay-off
``2 / (1 + exp(-2 z x))`` is fair for every ``z``. This is the tight form of the self-normalised bound for symmetric
differences (de la Peña, Annals of Probability 1999, lemma 6.1; Howard, Ramdas, McAuliffe and Sekhon, Probability
Surveys 2020), mixed over ``z`` (Robbins, Annals of Mathematical Statistics 1970). A day is worth at most a factor 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import betaln, gammaln, logsumexp
from scipy.stats import beta

Floats = npt.NDArray[np.float64]

# Bets on the day's mean difference in standard deviations of a day, and the share of the stake on each. The larger
# one is what a gain that can be seen within a month looks like; the smaller keeps lesser gains within reach.
BETS = (0.25, 0.65)
STAKES = (0.1, 0.9)
# The variance between days starts as that of independent rows, with the weight of this many days.
CAUTION = 7.0
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Units:
    """One paired statistic per block of time, in order.

    Attributes:
        sums: its sum over the block; the statistic is ``sum(sums) / sum(weights)``.
        weights: what the sums are divided by, for a mean the number of rows.
        noise: variance of each sum were the block's rows independent; NaN where there is no formula for it.
    """

    sums: Floats
    weights: Floats
    noise: Floats

    @property
    def value(self) -> float:
        """The estimate over all blocks."""
        return float(self.sums.sum() / self.weights.sum()) if self.weights.sum() else 0.0

    def upto(self, blocks: int) -> Units:
        """The first so many blocks."""
        return Units(self.sums[:blocks], self.weights[:blocks], self.noise[:blocks])


def scales(units: Units) -> Floats:
    """The standard deviation of a day's sum each day bets with; infinite where nothing is known (no bet).

    From the rows of the days so far, spread between whole days taken into account: what the past days varied more
    than independent rows would have. It does not change when the models swap names or a constant is added to every
    difference, so bets stay fair and intervals are intervals.
    """
    n = np.arange(1, len(units.sums) + 1, dtype=np.float64)
    weights, sums = np.cumsum(units.weights), np.cumsum(units.sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.nan_to_num(sums / weights)
        squares = np.cumsum(units.sums**2) - 2 * mean * np.cumsum(units.sums * units.weights)
        squares = np.maximum(squares + mean**2 * np.cumsum(units.weights**2), 0.0)
        # Differences that are all alike leave rounding, which is no spread.
        squares[squares <= _ROUNDING * np.cumsum(units.sums**2)] = 0.0
        if np.isnan(units.noise).any():
            variance = np.append([np.nan, np.nan], (squares / (n - 1))[1:-1])[: len(n)]
        else:
            rows = np.cumsum(units.noise)
            inflation = np.nan_to_num((CAUTION * rows + squares * n) / (rows * (CAUTION + n - 1)), posinf=1.0)
            variance = rows / n * np.append([1.0, 1.0], np.maximum(inflation, 1.0)[1:-1])[: len(n)]
        out = np.sqrt(variance)
    out[~(out > 0)] = np.inf
    return np.asarray(out, dtype=np.float64)


def log_e_values(units: Units, null: float = 0.0, *, above: bool = True) -> Floats:
    """Log e-value after each block against "the mean difference is at most ``null``" (at least, unless ``above``)."""
    sign = 1.0 if above else -1.0
    return _log_wealth(sign * (units.sums - null * units.weights) / scales(units))


def interval(units: Units, confidence: float = 0.95) -> tuple[float | None, float | None]:
    """Bounds of the mean difference that hold at all times at once; None while there are too few blocks to say."""
    spread = scales(units)
    target = math.log(2 / (1 - confidence))
    return _bound(units, spread, target, above=True), _bound(units, spread, target, above=False)


def interval_sequence(
    units: Units, confidence: float = 0.95, points: int = 100
) -> list[tuple[int, float, float | None, float | None]]:
    """The interval as it stood after earlier blocks: ``(blocks, value, low, high)``, at most ``points`` of them."""
    ends = np.unique(np.linspace(1, len(units.sums), min(points, len(units.sums))).round().astype(np.int64))
    parts = [(int(end), units.upto(int(end))) for end in ends]
    return [(end, part.value, *interval(part, confidence)) for end, part in parts]


def discordant_log_e(wins: Floats, losses: Floats, prior: tuple[float, float] = (30.0, 30.0)) -> Floats:
    """Log e-value of counts so far against "a discordant pair is won with a chance of at most one half".

    One-sided mixture of likelihood ratios over Beta(``prior``) cut to above one half. Fair only when rows are
    independent: days that differ make it promote without a gain. Reported beside the verdict, not decided by.
    """
    a, b = prior
    up = betaln(a + wins, b + losses) + beta.logsf(0.5, a + wins, b + losses)
    return np.asarray(up - betaln(a, b) - beta.logsf(0.5, a, b) + (wins + losses) * math.log(2), dtype=np.float64)


def sample_ratio_log_e(counts: Sequence[int], expected: Sequence[float], strength: float = 100.0) -> float:
    """Log e-value of counts so far against "each row falls in arm i with chance ``expected[i]``".

    Dirichlet-multinomial mixture around the expected shares (Lindon and Malek, NeurIPS 2022). A count in an arm that
    should be empty refutes the split at once (infinite).

    Raises:
        ValueError: when the shares are not a distribution over the counts' arms.
    """
    n, p = np.asarray(counts, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if n.shape != p.shape or (p < 0).any() or abs(float(p.sum()) - 1) > 1e-9:
        msg = f"expected shares {list(expected)} are not a distribution over {len(counts)} arms"
        raise ValueError(msg)
    if (n[p == 0] > 0).any():
        return math.inf
    n, a = n[p > 0], strength * p[p > 0]
    mixed = gammaln(strength) - gammaln(strength + n.sum()) + (gammaln(a + n) - gammaln(a)).sum()
    return float(mixed - (n * np.log(p[p > 0])).sum())


def e_bh(log_e: Floats, alpha: float = 0.05) -> npt.NDArray[np.bool_]:
    """Which of several hypotheses to reject with a false discovery rate of at most ``alpha``, however dependent.

    Wang and Ramdas, "False discovery rate control with e-values", JRSS B 2022.
    """
    order = np.argsort(-log_e, kind="stable")
    ranks = np.arange(1, len(log_e) + 1)
    enough = np.flatnonzero(log_e[order] >= np.log(len(log_e) / (alpha * ranks))) if len(log_e) else ranks
    out = np.zeros(len(log_e), dtype=np.bool_)
    out[order[: enough[-1] + 1 if len(enough) else 0]] = True
    return out


def _log_wealth(x: Floats) -> Floats:
    """Log wealth after each day of games on standardised differences, the last axis being days."""
    paths = [np.cumsum(math.log(2) - np.logaddexp(0.0, -2 * z * x), axis=-1) + math.log(s) for z, s in _GAMES]
    return np.asarray(logsumexp(paths, axis=0), dtype=np.float64)


def _bound(units: Units, spread: Floats, target: float, *, above: bool) -> float | None:
    """The value at which the game against "at most (at least) this" reaches the target."""
    known = np.isfinite(spread) & (units.weights > 0)
    if known.sum() * math.log(2) + math.log(max(STAKES)) <= target:
        return None
    sums, weights, spread = units.sums[known], units.weights[known], spread[known]
    sign = 1.0 if above else -1.0

    def beyond(null: float) -> float:
        return float(_log_wealth(sign * (sums - null * weights) / spread)[-1]) - target

    start = float(sums.sum() / weights.sum())
    step = float(np.mean(spread) / np.mean(weights))
    while beyond(start - sign * step) < 0:
        step *= 2
    far = start - sign * step
    near = start
    while beyond(near) > 0:
        near += sign * step
    return float(brentq(beyond, *sorted((far, near)), xtol=1e-10, rtol=1e-10))


_GAMES = tuple(zip(BETS, STAKES, strict=True))
