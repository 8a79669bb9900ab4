"""A second opinion on drift, over all features at once: can a classifier tell a stretch of requests from training?

Lopez-Paz and Oquab, "Revisiting classifier two-sample tests" (ICLR 2017). Rows of one window are alike, so folds leave
out whole windows; and nearly any week can be told from a year, so the answer is held against the one for stretches of
the training sample itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import lightgbm
import numpy as np
import pandas as pd
from scipy import stats

from monitoring.degradation import ALPHA, Check
from monitoring.drift import Floats, Ints
from monitoring.drift_yardstick import Yardstick
from monitoring.importance import encoded
from monitoring.statistics import auc

FOLDS, TREES, ROWS = 3, 20, 1000
# Rows of the sample it learns from: more of them tell weeks apart no better, and take longer.
_SAMPLED = 5000
# Below this the classifier tells nothing that matters.
LEAST_AUC = 0.6
_LEAST_ROWS, _LEAST_STRETCHES, _MOST_STRETCHES = 60, 8, 16
_PARAMETERS = {
    "objective": "binary", "num_leaves": 8, "learning_rate": 0.2, "min_data_in_leaf": 10, "max_bin": 31,
    "num_threads": 1, "deterministic": True, "force_row_wise": True, "verbosity": -1, "seed": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Domain:
    """The training sample as a classifier sees it, and what it says of the sample's own stretches.

    Attributes:
        x: encoded rows.
        windows: window of each row.
        usual: area under the curve for each of the sample's stretches against all others.
    """

    x: Floats
    windows: Ints
    usual: Floats


def domain(yardstick: Yardstick, windows: Ints, span: int) -> Domain | None:
    """Learn what is usual; None when the sample has too few stretches.

    Args:
        windows: window of each row of the sample.
        span: windows in a stretch.
    """
    few = np.linspace(0, len(yardstick.sample) - 1, min(len(yardstick.sample), _SAMPLED)).astype(int)
    x, windows = encoded(yardstick, yardstick.sample.iloc[few]), windows[few]
    stretches = windows // span
    names, sizes = np.unique(stretches, return_counts=True)
    names = names[sizes >= _LEAST_ROWS]
    if len(names) < _LEAST_STRETCHES:
        return None
    chosen = names[np.linspace(0, len(names) - 1, min(len(names), _MOST_STRETCHES)).astype(int)]
    found = [
        separation(x[stretches != one], windows[stretches != one], x[stretches == one], windows[stretches == one])
        for one in chosen
    ]
    return Domain(x, windows, np.asarray([value for value in found if value is not None]))


def separation(reference: Floats, reference_windows: Ints, current: Floats, current_windows: Ints) -> float | None:
    """Cross-validated area under the curve; None with fewer windows than folds.

    Folds leave out windows of both sides, never single rows.
    """
    here, there = (_fold(side) for side in (current_windows, reference_windows))
    if here.max(initial=-1) < FOLDS - 1 or there.max(initial=-1) < FOLDS - 1:
        return None
    labels, scores = [], []
    for fold in range(FOLDS):
        train = np.vstack([reference[there != fold], current[here != fold]])
        target = np.repeat([0.0, 1.0], [int((there != fold).sum()), int((here != fold).sum())])
        weight = np.where(target == 1, (target == 0).sum() / max((target == 1).sum(), 1), 1.0)
        data = lightgbm.Dataset(train, target, weight=weight, free_raw_data=True)
        model = lightgbm.train(_PARAMETERS, data, TREES)
        tested = np.vstack([reference[there == fold], current[here == fold]])
        labels.append(np.repeat([0.0, 1.0], [int((there == fold).sum()), int((here == fold).sum())]))
        scores.append(np.asarray(model.predict(tested, num_threads=1), dtype=np.float64))
    return auc(np.concatenate(labels), np.concatenate(scores))


def judge(known: Domain | None, yardstick: Yardstick, frame: pd.DataFrame, windows: Ints) -> Check:
    """Judge a stretch of requests."""
    if known is None or len(known.usual) < _LEAST_STRETCHES:
        return _none("the reference sample has too few stretches of this length")
    if len(frame) < _LEAST_ROWS:
        return _none(f"{len(frame)} requests, needs {_LEAST_ROWS}")
    # As many rows as a stretch of the sample has, or the classifier would know the stretch better than those.
    wanted = int(np.clip(len(known.x) / max(len(known.usual), 1), _LEAST_ROWS, ROWS))
    rows = np.linspace(0, len(frame) - 1, min(len(frame), wanted)).astype(int)
    value = separation(known.x, known.windows, encoded(yardstick, frame.iloc[rows]), windows[rows])
    if value is None:
        return _none(f"requests in fewer than {FOLDS} windows")
    # As a normal quantile, where areas near 1 are not squeezed together.
    usual, n = stats.norm.ppf(np.clip(known.usual, 0.01, 0.999)), len(known.usual)
    spread = float(usual.std(ddof=1)) * math.sqrt(1 + 1 / n) * float(stats.t.isf(ALPHA, n - 1))
    limit = max(LEAST_AUC, float(stats.norm.cdf(float(usual.mean()) + spread)))
    return Check(
        "domain", "alarm" if value > limit else "ok", value, limit,
        f"a classifier tells these requests from training with AUC {value:.2f}, stretches of training from the rest "
        f"with {known.usual.mean():.2f} on average (limit {limit:.2f})",
    )  # fmt: skip


def _fold(windows: Ints) -> Ints:
    _, order = np.unique(windows, return_inverse=True)
    return np.asarray(order % FOLDS, dtype=np.int64)


def _none(why: str) -> Check:
    return Check("domain", "no data", None, None, why)
