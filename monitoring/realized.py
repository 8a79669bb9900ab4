"""How good predictions were, once their truth is known: per window, role and version, with intervals. Pure.

Intervals: block bootstrap (Künsch, Annals of Statistics 1989), since rows of one hour share what happened in it. A
window has 24 blocks and its interval is a t interval with the bootstrap's standard error. They say how surely the
number is known, not what the next window will bring.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from monitoring.statistics import Floats, Ints, auc, briers, ece, log_losses

MEASURES = ("auc", "log_loss", "brier", "accuracy", "ece")
LEAST_ROWS, LEAST_CLASS, LEAST_BLOCKS = 100, 10, 6
BLOCKS, DRAWS, CONFIDENCE = 24, 200, 0.95
_CELLS, _BINS, _HALF = 100, 10, 0.5


def realized(
    frame: pd.DataFrame, by: Sequence[str] = ("window", "role", "model"), complete: float = 0.0
) -> pd.DataFrame:
    """Measure every group of rows.

    Args:
        frame: one row per prediction: ``at``, ``prediction`` (a probability), ``label`` (NaN while unknown), and the
            columns of ``by``.
        complete: least share of a group's rows with a label; labels that come late are seldom like the others.

    Returns:
        Per group its keys, ``rows``, ``labelled``, ``rate`` (share of positives), ``mean`` (of the labelled
        predictions), every measure with ``<measure>_low`` and ``<measure>_high`` (NaN where it cannot be said), and
        ``reason`` ("" when there is data).
    """
    out = [
        {**dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True)), **_group(rows, complete)}
        for key, rows in frame.groupby(list(by), sort=True, dropna=False)
    ]
    measured = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    return pd.DataFrame(out, columns=[*by, "rows", "labelled", "rate", "mean", *measured, "reason"])


def _group(rows: pd.DataFrame, complete: float) -> dict[str, float | int | str]:
    labels = rows["label"].to_numpy(dtype=np.float64)
    scores = rows["prediction"].to_numpy(dtype=np.float64)
    known = np.isin(labels, (0.0, 1.0)) & (scores >= 0) & (scores <= 1)
    has = int(known.sum())
    head: dict[str, float | int | str] = {"rows": len(rows), "labelled": has}
    share = float(np.isin(labels, (0.0, 1.0)).mean())
    if has < LEAST_ROWS:
        return {**head, "reason": f"{has} labels, needs {LEAST_ROWS}"}
    if share < complete:
        return {**head, "reason": f"{share:.0%} of predictions have labels, needs {complete:.0%}"}
    labels, scores = labels[known], scores[known]
    return {
        **head, "rate": float(labels.mean()), "mean": float(scores.mean()),
        **measures(labels, scores, _blocks(rows["at"][known])), "reason": "",
    }  # fmt: skip


def measures(labels: Floats, scores: Floats, blocks: Ints) -> dict[str, float]:
    """Every measure of some rows with its interval; NaN where it cannot be said."""
    both = min((labels == 1).sum(), (labels == 0).sum()) >= LEAST_CLASS
    values = {
        "auc": (auc(labels, scores) if both else None) or np.nan,
        "log_loss": float(log_losses(labels, scores).mean()),
        "brier": float(briers(labels, scores).mean()),
        "accuracy": float(((scores >= _HALF) == (labels == 1)).mean()),
        "ece": ece(labels, scores),
    }
    spread = _bootstrap(labels, scores, blocks)
    out: dict[str, float] = {}
    for name, value in values.items():
        off = spread[name]
        low, high = value - off, value + off
        top = np.inf if name == "log_loss" else 1.0
        out |= {name: value, f"{name}_low": max(low, 0.0), f"{name}_high": min(high, top)}
        if np.isnan(off) or np.isnan(value):
            out |= {f"{name}_low": np.nan, f"{name}_high": np.nan}
    return out


def _blocks(at: pd.Series) -> Ints:
    """As many blocks of equal time as fit between the first row and the last."""
    times = at.to_numpy(dtype="datetime64[us]").astype(np.int64)
    span = max(int(np.ptp(times)), 1) + 1
    return np.asarray((times - times.min()) * BLOCKS // span, dtype=np.int64)


def _bootstrap(labels: Floats, scores: Floats, blocks: Ints) -> dict[str, float]:
    """Half the width of each measure's interval, from sums per block: no row is touched twice."""
    names, index = np.unique(blocks, return_inverse=True)
    count = len(names)
    if count < LEAST_BLOCKS:
        return dict.fromkeys(MEASURES, np.nan)
    # Seeded: the same rows give the same interval.
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), DRAWS).astype(np.float64)

    def total(cells: Ints, weights: Floats, many: int) -> Floats:
        flat = np.bincount(index * many + cells, weights=weights, minlength=count * many)
        return drawn @ flat.reshape(count, many)

    one = np.zeros(len(labels), dtype=np.int64)
    rows = total(one, np.ones(len(labels)), 1)[:, 0]
    means = {
        "log_loss": log_losses(labels, scores), "brier": briers(labels, scores),
        "accuracy": ((scores >= _HALF) == (labels == 1)).astype(np.float64),
    }  # fmt: skip
    found = {name: total(one, values, 1)[:, 0] / rows for name, values in means.items()}
    bins = np.minimum((scores * _BINS).astype(np.int64), _BINS - 1)
    found["ece"] = np.abs(total(bins, scores - labels, _BINS)).sum(axis=1) / rows
    # A hundredth of the rows in a cell: close enough for a spread.
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, _CELLS + 1)[1:-1]))
    cells = np.searchsorted(edges, scores, side="right")
    up, down = (total(cells, (labels == side).astype(np.float64), len(edges) + 1) for side in (1, 0))
    below = np.cumsum(down, axis=1) - down / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        found["auc"] = (up * below).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1))
    t = float(stats.t.isf((1 - CONFIDENCE) / 2, count - 1))
    return {name: t * _spread(values[np.isfinite(values)]) for name, values in found.items()}


def _spread(values: Floats) -> float:
    # A draw may hold one outcome only and so no AUC.
    return float(values.std(ddof=1)) if len(values) > 1 else np.nan
