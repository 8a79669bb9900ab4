"""How a model's scores become probabilities that held out of sample, and how far single windows stray from that. Pure.

Cox's recalibration (Biometrika 1958): the log-odds of the truth are ``intercept + slope * log-odds of the score``. Two
numbers, because what is left to learn is months, not rows: a curve of twenty numbers fits the months it has seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from monitoring.statistics import Floats, Ints

# Fewer of either class say nothing about a slope; fewer stretches of time nothing about how stretches differ.
LEAST_CLASS, LEAST_BLOCKS = 30, 6
_EDGE = 1e-6


@dataclass(frozen=True)
class Fit:
    """One recalibration.

    Attributes:
        theta: intercept and slope; 0 and 1 for scores that are probabilities.
        information: Fisher information of the rows, as if they were independent.
        covariance: of ``theta`` with blocks of time as units; None with too few of them.
        blocks: blocks of time.
    """

    theta: Floats
    information: Floats
    covariance: Floats | None
    blocks: int


@dataclass(frozen=True)
class Calibration:
    """What a package's out-of-sample predictions say.

    Attributes:
        fit: over all of them.
        between: covariance of one block's own ``theta`` around it, beyond what its rows explain.
        rows: predictions it rests on.
    """

    fit: Fit
    between: Floats
    rows: int

    def probabilities(self, scores: Floats, off: Floats | None = None) -> Floats:
        """Calibrated probabilities; ``off`` is added to intercept and slope."""
        intercept, slope = self.fit.theta + (0.0 if off is None else off)
        return np.asarray(expit(intercept + slope * log_odds(scores)), dtype=np.float64)

    def spread(self, information: Floats, blocks: float) -> Floats:
        """Covariance of a new window's own ``theta`` around this one: reference, blocks of time, rows."""
        own = np.linalg.pinv(information)
        return np.asarray(self.reference + self.between / max(blocks, 1e-9) + own, dtype=np.float64)

    @property
    def reference(self) -> Floats:
        """Covariance of the reference's ``theta``."""
        known = self.fit.covariance if self.fit.covariance is not None else np.linalg.pinv(self.fit.information)
        return np.asarray(known, dtype=np.float64)

    @property
    def freedom(self) -> int:
        """Degrees of freedom of its covariance."""
        return max(self.fit.blocks - 2, 1)


def log_odds(scores: Floats) -> Floats:
    """Log-odds of scores, which are kept a millionth away from 0 and 1."""
    clipped = np.clip(scores, _EDGE, 1 - _EDGE)
    return np.asarray(np.log(clipped) - np.log1p(-clipped), dtype=np.float64)


def calibrate(sample: pd.DataFrame, blocks: Ints) -> Calibration | str:
    """Learn from a reference sample; the reason when it cannot be done.

    Args:
        sample: ``label`` and out-of-sample ``prediction``; rows without either are left out.
        blocks: number of the block of time of each row.
    """
    if not {"label", "prediction"} <= set(sample):
        return "the reference sample has no labels and out-of-sample predictions; run `make train`"
    labels, scores = (sample[name].to_numpy(dtype=np.float64) for name in ("label", "prediction"))
    known = np.isin(labels, (0.0, 1.0)) & (scores >= 0) & (scores <= 1)
    labels, scores, blocks = labels[known], scores[known], blocks[known]
    least = int(min((labels == 1).sum(), (labels == 0).sum()))
    if least < LEAST_CLASS:
        return f"the reference sample has {least} out-of-sample predictions of the rarer outcome, needs {LEAST_CLASS}"
    found = fit(labels, scores, blocks)
    if found.covariance is None:
        return f"the reference sample's out-of-sample predictions span {found.blocks} blocks, needs {LEAST_BLOCKS}"
    beyond = found.covariance - np.linalg.pinv(found.information)
    return Calibration(found, _positive(beyond) * found.blocks, len(labels))


def fit(labels: Floats, scores: Floats, blocks: Ints) -> Fit:
    """Recalibrate scores to labels of both classes.

    The covariance takes blocks of time as units (Liang and Zeger, Biometrika 1986).
    """
    odds = log_odds(scores)
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=200).fit(odds[:, None], labels)
    theta = np.array([model.intercept_[0], model.coef_[0, 0]])
    p = expit(theta[0] + theta[1] * odds)
    design = np.column_stack([np.ones(len(odds)), odds])
    information = (design * (p * (1 - p))[:, None]).T @ design
    names, index = np.unique(blocks, return_inverse=True)
    count = len(names)
    if count < LEAST_BLOCKS:
        return Fit(theta, information, None, count)
    residual = (labels - p)[:, None] * design
    sums = np.column_stack([np.bincount(index, weights=column, minlength=count) for column in residual.T])
    inverse = np.linalg.pinv(information)
    return Fit(theta, information, inverse @ (sums.T @ sums) @ inverse * count / (count - 1), count)


def changed(reference: Calibration, now: Fit) -> float | None:
    """p-value of "this window is calibrated as the reference was", blocks of time as units; None with too few."""
    if now.covariance is None:
        return None
    off = now.theta - reference.fit.theta
    wald = float(off @ np.linalg.pinv(reference.reference + now.covariance) @ off)
    freedom = min(now.blocks, reference.fit.blocks) - 1
    # Hotelling's T-squared with as many observations as there are blocks on the shorter side.
    return float(stats.f.sf(wald * (freedom - 1) / (2 * freedom), 2, freedom - 1))


def _positive(matrix: Floats) -> Floats:
    """The nearest covariance: what chance made negative is 0."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray((vectors * np.maximum(values, 0)) @ vectors.T, dtype=np.float64)
