"""How good predictions probably are, before their truth is known: confidence-based performance estimation. Pure.

Were every score the probability it claims to be, the scores alone would say how often the model is right: a row of
0.8 is a positive in eight cases of ten. Scores are first recalibrated on out-of-sample predictions of the model's
package (:mod:`monitoring.calibration`). Idea: Garg et al., "Leveraging unlabeled data to predict out-of-distribution
performance" (ICLR 2022); NannyML's CBPE.

What it cannot see: that the *same* requests now have another truth (concept drift). Where requests are unlike any of
the reference it guesses, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import pandas as pd
from scipy import stats

from monitoring.calibration import Calibration, calibrate, log_odds
from monitoring.gap import gap, persistence
from monitoring.statistics import Floats, Ints, log_losses

MEASURES = ("auc", "log_loss", "brier", "accuracy")
LEAST_ROWS, CONFIDENCE, ALPHA = 100, 0.95, 0.002
# Fewer rows unlike the reference than the first change no estimate by much; more than the second are guesswork, however
# usual that was in training.
LEAST_OUTSIDE, MOST_OUTSIDE = 0.05, 0.2
_HALF, _STEP, _LEAST_IN_BLOCK, _STRETCHES = 0.5, 1e-3, 20, 26
# Of nulls the sample knows too little when it has fewer than this share of them.
_RARE = 0.001


@dataclass(frozen=True)
class Range:
    """What the reference has of a feature: numbers from ``low`` to ``high``, or ``known`` categories; nulls or not."""

    low: float = -np.inf
    high: float = np.inf
    known: frozenset[str] | None = None
    nulls: bool = True


@dataclass(frozen=True)
class Reference:
    """What estimates rest on.

    Attributes:
        calibration: of the package's out-of-sample predictions, or why there is none.
        ranges: what the sample has of each feature.
        usual: share of rows outside, for each stretch of the sample held against the rest of it.
        length: of a window.
        persistence: how much one window's gap between truth and estimate says of the next one's, 0 to 0.8.
    """

    calibration: Calibration | str
    ranges: dict[str, Range] = field(default_factory=dict)
    usual: Floats = field(default_factory=lambda: np.empty(0))
    length: timedelta = timedelta(days=1)
    persistence: float = 0.0

    @classmethod
    def of(cls, sample: pd.DataFrame, features: tuple[str, ...], length: timedelta) -> Reference:
        """Learn from a package's reference sample: ``event_timestamp``, ``label``, ``prediction`` and the features."""
        if sample.empty or "event_timestamp" not in sample:
            return cls("there is no reference sample; run `make train`", length=length)
        micros = sample["event_timestamp"].to_numpy(dtype="datetime64[us]").astype(np.int64)
        blocks = np.asarray(micros // (length // timedelta(microseconds=1)), dtype=np.int64)
        names = [name for name in features if name in sample]
        found = calibrate(sample, blocks)
        keeps = 0.0 if isinstance(found, str) else _persistence(sample, blocks, found)
        return cls(found, _ranges(sample, names), _usual(sample, names, blocks), length, keeps)

    def unlike(self, frame: pd.DataFrame) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which rows have a value, category or null that the reference sample does not have."""
        return _outside(frame, self.ranges)

    @property
    def limit(self) -> float:
        """Share of rows outside that one stretch of the reference in 500 exceeds; 5 % at least, 20 % at most."""
        if len(self.usual) < 2:
            return LEAST_OUTSIDE
        spread = float(self.usual.std(ddof=1)) * float(np.sqrt(1 + 1 / len(self.usual)))
        most = float(self.usual.mean()) + float(stats.t.isf(ALPHA, len(self.usual) - 1)) * spread
        return float(np.clip(most, LEAST_OUTSIDE, MOST_OUTSIDE))


def estimated(frame: pd.DataFrame, reference: Reference, by: str = "window") -> pd.DataFrame:
    """Estimate every group's performance from its scores.

    Args:
        frame: answers of one model: ``at``, ``prediction``, and the features under their names or as ``vector.<name>``,
            or ``outside``, what :meth:`Reference.unlike` says of them.
        by: column to group by.

    Returns:
        Per group its key, ``rows``, every measure with its interval (95 %: where the realized value of such a window
        should lie), ``rate`` (expected share of positives), ``outside`` (share of rows with a value the reference
        does not have), ``trusted``, and ``reason``: why it is not to be trusted, or why there is no data.
    """
    measured = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    unlike = frame["outside"] if "outside" in frame else reference.unlike(frame)
    out = frame[[by, "at", "prediction"]].assign(outside=unlike).groupby(by, sort=True)
    found = [{by: key, "rows": len(rows), **_group(rows, reference)} for key, rows in out]
    return pd.DataFrame(found, columns=[by, "rows", "rate", *measured, "outside", "trusted", "reason"])


def _group(rows: pd.DataFrame, reference: Reference) -> dict[str, float | bool | str]:
    scores = rows["prediction"].to_numpy(dtype=np.float64)
    scores = np.sort(scores[(scores >= 0) & (scores <= 1)])
    share = float(rows["outside"].mean())
    if isinstance(reference.calibration, str):
        return {"outside": share, "trusted": False, "reason": reference.calibration}
    if len(scores) < LEAST_ROWS:
        return {"outside": share, "trusted": False, "reason": f"{len(scores)} predictions, needs {LEAST_ROWS}"}
    span = (rows["at"].max() - rows["at"].min()) / reference.length
    reason = ""
    if share > reference.limit:
        reason = f"{share:.0%} of requests have values the reference sample does not have (limit {reference.limit:.0%})"
    return {**_expected(scores, reference.calibration, span), "outside": share, "trusted": not reason, "reason": reason}


def _expected(scores: Floats, calibration: Calibration, blocks: float) -> dict[str, float]:
    p = calibration.probabilities(scores)
    values = expected(scores, p)
    design = np.column_stack([np.ones(len(scores)), log_odds(scores)])
    spread = calibration.spread((design * (p * (1 - p))[:, None]).T @ design, max(blocks, 1.0))
    slopes = [
        expected(scores, calibration.probabilities(scores, step * _STEP))
        for step in (np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    ]
    t = float(stats.t.isf((1 - CONFIDENCE) / 2, calibration.freedom))
    out = {"rate": float(p.mean())}
    for name, value in values.items():
        slope = np.array([(one[name] - value) / _STEP for one in slopes])
        off = t * float(np.sqrt(max(slope @ spread @ slope, 0.0)))
        top = np.inf if name == "log_loss" else 1.0
        out |= {name: value, f"{name}_low": max(value - off, 0.0), f"{name}_high": min(value + off, top)}
    return out


def expected(scores: Floats, p: Floats) -> dict[str, float]:
    """Expected measures of scores in rising order whose rows are positive with probability ``p``."""
    q = 1 - p
    # Whole runs of equal scores; ties count half, a row is not compared with itself.
    starts = np.flatnonzero(np.concatenate([[True], scores[1:] > scores[:-1]]))
    up, down, own = (np.add.reduceat(values, starts) for values in (p, q, p * q))
    below = np.cumsum(down) - down
    pairs = float(p.sum() * q.sum() - own.sum())
    right = scores >= _HALF
    return {
        "auc": float((up * below + (up * down - own) / 2).sum() / pairs) if pairs > 0 else np.nan,
        "log_loss": float((p * log_losses(np.ones(1), scores) + q * log_losses(np.zeros(1), scores)).mean()),
        "brier": float((p * (1 - scores) ** 2 + q * scores**2).mean()),
        "accuracy": float(np.where(right, p, q).mean()),
    }


def _ranges(sample: pd.DataFrame, names: list[str]) -> dict[str, Range]:
    out = {}
    for name in names:
        column = sample[name]
        known, nulls = column.dropna(), float(column.isna().mean()) >= _RARE
        if column.dtype == object:
            out[name] = Range(known=frozenset(map(str, known)), nulls=nulls)
        elif len(known):
            numbers = known.to_numpy(dtype=np.float64)
            out[name] = Range(float(numbers.min()), float(numbers.max()), nulls=nulls)
    return out


def _outside(frame: pd.DataFrame, ranges: dict[str, Range]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows have a value that the ranges do not."""
    out = np.zeros(len(frame), dtype=bool)
    for name, limits in ranges.items():
        column = frame.get(f"vector.{name}", frame.get(name))
        if column is None:
            return np.ones(len(frame), dtype=bool)
        null = column.isna().to_numpy(dtype=bool)
        if limits.known is not None:
            out |= ~null & ~column.astype(object).astype(str).isin(limits.known).to_numpy(dtype=bool)
        else:
            numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
            out |= (numbers < limits.low) | (numbers > limits.high)
        if not limits.nulls:
            out |= null
    return out


def _usual(sample: pd.DataFrame, names: list[str], blocks: Ints) -> Floats:
    """Share outside for stretches of the sample held against the rest; at most 26 of them."""
    numbers = np.unique(blocks)
    many = min(_STRETCHES, max(len(numbers) // 7, 1))
    if many < 2:
        return np.empty(0)
    place = np.searchsorted(numbers, blocks) * many // len(numbers)
    out = np.zeros(len(sample), dtype=bool)
    for name in names:
        column = sample[name]
        codes, _ = pd.factorize(column)
        null = codes < 0
        if column.dtype == object:
            seen = np.zeros((many, int(codes.max(initial=0)) + 1), dtype=bool)
            seen[place[~null], codes[~null]] = True
            # What only its own stretch has, the rest has not.
            out |= ~null & (seen.sum(axis=0) == 1)[np.maximum(codes, 0)]
        else:
            values = column.to_numpy(dtype=np.float64, na_value=np.nan)
            out |= (values < _of_others(values, place, many, np.fmin)[place]) | (
                values > _of_others(values, place, many, np.fmax)[place]
            )
        nulls, rows = np.bincount(place[null], minlength=many), np.bincount(place, minlength=many)
        rest = (nulls.sum() - nulls) / (rows.sum() - rows)
        out |= null & (rest < _RARE)[place]
    return np.bincount(place, weights=out, minlength=many) / np.bincount(place, minlength=many)


def _of_others(values: Floats, place: Ints, many: int, smaller: np.ufunc) -> Floats:
    """Smallest (largest) value of all stretches but each one."""
    own = np.full(many, np.nan)
    smaller.at(own, place, values)
    return np.array([smaller.reduce(np.delete(own, one)) for one in range(many)])


def _persistence(sample: pd.DataFrame, blocks: Ints, found: Calibration) -> float:
    gaps = [gap(rows, found, _LEAST_IN_BLOCK) for _, rows in sample.groupby(blocks)]
    return persistence(np.array([one for one in gaps if one is not None]).reshape(-1, 2))
