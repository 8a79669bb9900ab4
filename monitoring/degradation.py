"""Does the model still answer as it did in its evaluation weeks? Pure: means, confidence, latency, one business figure.

Three alerts, made so that they mean something. Two standard deviations of *single* predictions are never
exceeded by a mean, and two of the *means* are exceeded on one day in twenty by nothing at all. Here a mean is held
against the spread of whole days' means, with the limit of a t distribution for as few days as there were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from monitoring.drift import Floats
from monitoring.drift_yardstick import Scores

# Each rule may be wrong about so many windows in which nothing happened.
ALPHA = 0.002
# The moving average is what finds a lasting change early, so it may be wrong more often.
ALPHA_LASTING = 0.01
# A shift smaller than this share of a prediction's standard deviation changes no decision worth a page.
LEAST_SHIFT = 0.1
LOW_CONFIDENCE, LATE_SHARE = 0.30, 0.01
# Weight of the newest window in the moving average.
WEIGHT = 0.4
_LEAST_DAYS = 8

Rule = Literal["mean_shift", "mean_shift_lasting", "low_confidence", "latency", "domain", "importance", "business"]
Outcome = Literal["ok", "alarm", "no data"]


@dataclass(frozen=True)
class Check:
    """One rule in one window.

    Attributes:
        value, limit: in the rule's own unit; None without data.
        text: the finding in one sentence, or why there is none.
    """

    rule: Rule
    outcome: Outcome
    value: float | None
    limit: float | None
    text: str


@dataclass(frozen=True)
class MeanLaw:
    """How means of days spread, in log-odds, where they are nearly normal and a bad day is not a far outlier.

    Attributes:
        centre, spread: mean and standard deviation of a day's mean beyond what its rows explain.
        noise: variance one row adds.
        days: they rest on.
        persistence: correlation of one day with the next, 0 to 0.8.
    """

    centre: float
    spread: float
    noise: float
    days: int
    persistence: float


def mean_law(scores: Scores) -> MeanLaw | None:
    """Learn from the evaluation weeks how a day's mean varies; None with fewer than 8 days."""
    if len(scores.means) < _LEAST_DAYS:
        return None
    odds = log_odds(scores.means)
    middle = 1 / (1 + math.exp(-float(odds.mean())))
    noise = scores.std**2 / (middle * (1 - middle)) ** 2
    variance = max(float(odds.var(ddof=1)) - noise / max(scores.rows, 1), 0.0)
    around = odds - odds.mean()
    total = float((around**2).sum())
    persistence = float((around[1:] * around[:-1]).sum()) / total if total else 0.0
    return MeanLaw(float(odds.mean()), math.sqrt(variance), noise, len(odds), float(np.clip(persistence, 0, 0.8)))


def log_odds(share: Floats) -> Floats:
    """Log-odds of shares, kept away from 0 and 1."""
    kept = np.clip(share, 1e-4, 1 - 1e-4)
    return np.asarray(np.log(kept / (1 - kept)), dtype=np.float64)


def sigmas(law: MeanLaw, mean: float, rows: int) -> float:
    """How many standard deviations of a day's mean a window's mean is off."""
    odds = float(log_odds(np.asarray([mean]))[0])
    spread = math.sqrt(law.spread**2 + law.noise / max(rows, 1))
    return (odds - law.centre) / spread if spread else 0.0


def sigma_limit(law: MeanLaw, alpha: float = ALPHA) -> float:
    """Largest distance that chance explains, from so few days (prediction interval of a new normal value)."""
    return float(stats.t.isf(alpha / 2, law.days - 1)) * math.sqrt(1 + 1 / law.days)


def average(before: float | None, sigma: float) -> float:
    """The moving average after one more window (EWMA: Roberts, Technometrics 1959)."""
    return WEIGHT * sigma if before is None else (1 - WEIGHT) * before + WEIGHT * sigma


def average_limit(law: MeanLaw, alpha: float = ALPHA_LASTING) -> float:
    """Largest moving average that chance explains when days follow one another with ``law.persistence``.

    Variance of an EWMA of a first-order autoregressive series: Schmid, Statistical Papers 1997.
    """
    keep, r = 1 - WEIGHT, law.persistence
    variance = WEIGHT / (2 - WEIGHT) * (1 + r * keep) / (1 - r * keep)
    return float(stats.t.isf(alpha / 2, law.days - 1)) * math.sqrt(variance + 1 / law.days)


def mean_shift(scores: Scores, law: MeanLaw, mean: float, rows: int, moving: float) -> tuple[Check, Check]:
    """Judge one window's mean prediction, and the moving average up to it."""
    usual = 1 / (1 + math.exp(-law.centre))
    size = abs(mean - usual) / scores.std if scores.std else 0.0
    sigma, limit, lasting = sigmas(law, mean, rows), sigma_limit(law), average_limit(law)
    words = f"mean prediction {mean:.3f}, in the evaluation weeks {usual:.3f}"
    one = Check(
        "mean_shift", _alarm(abs(sigma) > limit and size >= LEAST_SHIFT), sigma, limit,
        f"{words}: {sigma:+.1f} standard deviations of a day (limit {limit:.1f})",
    )  # fmt: skip
    # A moving average lags: it may still be out when the window itself is back.
    two = Check(
        "mean_shift_lasting", _alarm(abs(moving) > lasting and size >= LEAST_SHIFT), moving, lasting,
        f"{words}; moving average {moving:+.1f} standard deviations (limit {lasting:.1f})",
    )  # fmt: skip
    return one, two


def low_confidence(scores: Scores, law_rho: float, share: float, rows: int) -> Check:
    """Judge the share of predictions between 0.4 and 0.6.

    Above 30 % *and* above what the evaluation weeks and so few rows explain, so that a model whose scores have always
    been in the middle does not raise it for ever.

    Args:
        law_rho: how alike rows of one window are (intra-class correlation), 0 to 1.
    """
    p = min(max(scores.low, 1e-6), 1 - 1e-6)
    spread = math.sqrt(p * (1 - p) * (law_rho + (1 - law_rho) / max(rows, 1)))
    limit = max(LOW_CONFIDENCE, p + float(stats.norm.isf(ALPHA)) * spread)
    return Check(
        "low_confidence", _alarm(share > limit), share, limit,
        f"{share:.1%} of predictions lie between 0.4 and 0.6, in the evaluation weeks {scores.low:.1%} "
        f"(limit {limit:.0%})",
    )  # fmt: skip


def latency(milliseconds: Floats, agreed: float, least: int) -> Check:
    """Judge whether more than 1 % of answers took longer than agreed, beyond what chance explains in so few."""
    known = milliseconds[~np.isnan(milliseconds)]
    if len(known) < least:
        return Check("latency", "no data", None, agreed, f"{len(known)} timed answers, needs {least}")
    late = int((known > agreed).sum())
    p99 = float(np.quantile(known, 0.99))
    chance = float(stats.binom.sf(late - 1, len(known), LATE_SHARE)) if late else 1.0
    return Check(
        "latency", _alarm(p99 > agreed and chance < ALPHA), p99, agreed,
        f"p99 {p99:.1f} ms, agreed {agreed:g} ms: {late:,} of {len(known):,} answers were later",
    )  # fmt: skip


def business(value: float | None, before: Sequence[float], least: int = 14) -> Check:
    """Judge one window's business figure against the windows before it (at most the last 56)."""
    if value is None:
        return Check("business", "no data", None, None, "no value in this window")
    past = np.asarray(before[-56:], dtype=np.float64)
    if len(past) < least or not float(past.std()):
        return Check("business", "no data", value, None, f"{len(past)} earlier windows, needs {least} that differ")
    spread = float(past.std(ddof=1))
    limit = float(stats.t.isf(ALPHA / 2, len(past) - 1)) * math.sqrt(1 + 1 / len(past)) * spread
    off = value - float(past.mean())
    return Check(
        "business", _alarm(abs(off) > limit), value, limit,
        f"{value:g}, in the {len(past)} windows before {past.mean():g} (limit {limit:g} either way)",
    )  # fmt: skip


def _alarm(raised: bool) -> Outcome:
    return "alarm" if raised else "ok"
