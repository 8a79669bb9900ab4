"""What training saw, small enough to travel with the model: the yardstick of monitoring. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from service.contract import Contract, FieldSpec
from training.evaluate import calibration

QUANTILES = (0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99)
DIGITS = 10


def baseline(
    contract: Contract, frame: pd.DataFrame, labels: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """Describe training inputs and out-of-sample predictions.

    Args:
        frame: the training rows' features.
        labels, scores: of the evaluation weeks, which the scoring model had not seen.
    """
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
        },
    }


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
