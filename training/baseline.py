"""What training saw, small enough to travel with the model: the yardstick of monitoring. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from service.contract import Contract, FieldSpec
from training.evaluate import calibration

Array = npt.NDArray[np.float64]

QUANTILES = (0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99)
DIGITS = 10


def baseline(
    contract: Contract, frame: pd.DataFrame, holdout: pd.DataFrame, scores: Array, importance: dict[str, Any]
) -> dict[str, Any]:
    """Describe training inputs, out-of-sample predictions and what the model goes by.

    Args:
        frame: the training rows' features.
        holdout: ``label`` and ``event_timestamp`` of the evaluation weeks, which the scoring model had not seen.
        scores: its predictions for them.
        importance: what :func:`importance` returns.
    """
    labels = holdout["label"].to_numpy(dtype=float)
    counts, edges = np.histogram(scores, bins=20, range=(0.0, 1.0))
    return {
        "rows": len(frame),
        "features": {spec.name: _describe(spec, frame[spec.name]) for spec in contract.fields},
        "predictions": {
            "rows": len(scores),
            "mean": _round(scores.mean()),
            "std": _round(scores.std()),
            "median": _round(np.median(scores)),
            "edges": [_round(e) for e in edges],
            "counts": counts.tolist(),
            "calibration": [{k: _round(v) for k, v in part.items()} for part in calibration(labels, scores)],
            "windows": windows(holdout["event_timestamp"], scores),
        },
        "importance": importance,
    }


def windows(times: pd.Series[Any], scores: Array) -> dict[str, Any]:
    """Means of the predictions per day and per hour (UTC), and how much such means vary from one to the next.

    That spread, not the one of single predictions, tells whether a later window's mean is unusual: within a window
    predictions rise and fall together. An hour is compared with the same hour of other days. A window with less than
    half the usual rows (cut by the edge of the data, say) is left out.

    Returns:
        ``day``: ``windows`` (number), ``rows`` (median in one), ``mean``, ``std`` (null below two) and ``means`` by
        date; ``hour``: the same without ``means`` for each hour of the day, "00" to "23".
    """
    found = pd.DataFrame({"time": times.to_numpy(), "score": scores})
    days = found.groupby(found["time"].dt.floor("D"))["score"].agg(["mean", "size"])
    hours = found.groupby(found["time"].dt.floor("h"))["score"].agg(["mean", "size"])
    kept = _usual(days)["mean"]
    return {
        "day": {**_spread(days), "means": {f"{day:%Y-%m-%d}": _round(mean) for day, mean in kept.items()}},
        "hour": {f"{hour:02d}": _spread(part) for hour, part in hours.groupby(pd.DatetimeIndex(hours.index).hour)},
    }


def _usual(means: pd.DataFrame) -> pd.DataFrame:
    return means[means["size"] >= means["size"].median() / 2]


def _spread(means: pd.DataFrame) -> dict[str, Any]:
    kept = _usual(means)
    std = _round(kept["mean"].std()) if len(kept) > 1 else None
    return {
        "windows": len(kept),
        "rows": _round(kept["size"].median()),
        "mean": _round(kept["mean"].mean()),
        "std": std,
    }


def importance(contract: Contract, frame: pd.DataFrame, contributions: Array, method: str) -> dict[str, Any]:
    """Rank the features by how much they move the model's log-odds.

    Args:
        frame: the explained rows' features.
        contributions: per row and feature what the feature adds (SHAP values).
        method: how they were found, see ``estimators.Trained``.

    Returns:
        ``ranking``: per feature the mean absolute contribution and its ``direction``: 1 when a larger value goes with
        a larger contribution, -1 the other way, 0 neither, null for a category.
    """
    ranking: list[dict[str, Any]] = [
        {
            "feature": spec.name,
            "mean_abs": _round(np.abs(contributions[:, j]).mean()),
            "direction": None if spec.is_category else _direction(frame[spec.name], contributions[:, j]),
        }
        for j, spec in enumerate(contract.fields)
    ]
    ranking.sort(key=lambda entry: (-entry["mean_abs"], entry["feature"]))
    return {"method": method, "unit": "log-odds", "rows": len(frame), "ranking": ranking}


def _direction(values: pd.Series[Any], added: Array) -> int:
    numbers = values.to_numpy(dtype=float, na_value=np.nan)
    known = ~np.isnan(numbers)
    if known.sum() < 2 or np.ptp(numbers[known]) == 0 or np.ptp(added[known]) == 0:
        return 0
    return int(np.sign(_round(np.corrcoef(numbers[known], added[known])[0, 1])))


def _describe(spec: FieldSpec, values: pd.Series[Any]) -> dict[str, Any]:
    known = values.dropna()
    common = {"null_rate": _round(values.isna().mean())}
    if spec.is_category:
        shares = known.astype(str).value_counts(normalize=True).sort_index()
        return {**common, "shares": {str(k): _round(v) for k, v in shares.items()}}
    if known.empty:
        return common
    numbers = known.astype(float)
    quantiles = {f"{q:g}": _round(v) for q, v in zip(QUANTILES, numbers.quantile(list(QUANTILES)), strict=True)}
    summary = {"mean": numbers.mean(), "std": numbers.std(), "min": numbers.min(), "max": numbers.max()}
    return {**common, **{k: _round(v) for k, v in summary.items()}, "quantiles": quantiles}


def _round(value: Any) -> float:
    # Ten digits: what the last bits hold depends on the machine's summation order, not on the data.
    return float(f"{float(value):.{DIGITS}g}")
