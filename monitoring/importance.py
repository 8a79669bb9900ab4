"""Do features still matter as much as they did in training? Contributions from the model's own library; pure otherwise.

Ranking by normalized discounted cumulative gain (Jarvelin and Kekalainen, ACM TOIS 2002), as Amazon SageMaker Clarify
does it, alarm below 0.9 included: order by today's importance, gains by training's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import ndcg_score

from monitoring.degradation import Check
from monitoring.drift import Floats
from monitoring.drift_yardstick import Yardstick
from service.package import Encoder

LIMIT = 0.9
# TreeSHAP takes milliseconds a row; a mean over some dozens ranks features well enough.
ROWS, LEAST_ROWS = 32, 24
# A direction counts as turned when the correlation is this large, no accident, and the feature matters.
_TURNED, _TURNED_P, _MATTERS = 0.3, 0.001, 0.02

Explain = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Importance:
    """Mean absolute contribution per feature, today, and features whose direction turned."""

    mean_abs: dict[str, float]
    turned: tuple[str, ...]


def explainer(yardstick: Yardstick) -> Explain | None:
    """Return a function from encoded rows to contributions (rows x features); None where the library has none."""
    kind, width = yardstick.signature.format, len(yardstick.signature.features)
    if kind == "lightgbm":
        import lightgbm

        booster = lightgbm.Booster(model_str=yardstick.model.decode())
        return lambda x: np.asarray(booster.predict(x, pred_contrib=True), dtype=np.float64)[:, :width]
    if kind == "xgboost":
        import xgboost

        trees = xgboost.Booster()
        trees.load_model(bytearray(yardstick.model))
        return lambda x: np.asarray(
            trees.predict(xgboost.DMatrix(x), pred_contribs=True, validate_features=False), dtype=np.float64
        )[:, :width]
    return None


def encoded(yardstick: Yardstick, frame: pd.DataFrame) -> Floats:
    """Return rows as the numbers the model takes; a feature the frame lacks is null."""
    names = list(yardstick.signature.features)
    plain = frame.reindex(columns=names).astype(object)
    rows: list[Any] = plain.mask(plain.isna(), None).to_dict("records")
    return Encoder(names, yardstick.signature.categories).matrix(rows)


def explain(yardstick: Yardstick, run: Explain, frame: pd.DataFrame) -> Importance:
    """Explain at most ``ROWS`` rows, spread evenly, and compare directions with training's."""
    rows = frame.iloc[np.linspace(0, len(frame) - 1, min(len(frame), ROWS)).astype(int)]
    x = encoded(yardstick, rows)
    added = run(x)
    names = yardstick.signature.features
    sizes = np.abs(added).mean(axis=0)
    share = sizes / max(float(sizes.sum()), 1e-12)
    turned = [
        name
        for j, name in enumerate(names)
        if name not in yardstick.signature.categories
        and share[j] >= _MATTERS
        and _turned(x[:, j], added[:, j], yardstick.directions.get(name, 0))
    ]
    return Importance({name: float(sizes[j]) for j, name in enumerate(names)}, tuple(turned))


def agreement(before: dict[str, float], now: dict[str, float]) -> float:
    """Return the nDCG of today's order by training's importance; 1 when it is the same."""
    names = [name for name in before if name in now]
    if len(names) < 2:
        return 1.0
    return float(ndcg_score([[before[name] for name in names]], [[now[name] for name in names]]))


def judge(yardstick: Yardstick, run: Explain | None, frame: pd.DataFrame) -> tuple[Check, Importance | None]:
    """Judge a stretch of requests."""
    if not yardstick.importance:
        return _none("the package's baseline has no importance"), None
    if run is None:
        return _none(f"models of format {yardstick.signature.format} give no contributions per row"), None
    if len(frame) < LEAST_ROWS:
        return _none(f"{len(frame)} requests, needs {LEAST_ROWS}"), None
    found = explain(yardstick, run, frame)
    value = agreement(dict(yardstick.importance), found.mean_abs)
    top = sorted(found.mean_abs, key=lambda name: -found.mean_abs[name])[:3]
    text = f"nDCG {value:.3f} (limit {LIMIT}); most important now: {', '.join(top)}"
    text += f"; direction turned: {', '.join(found.turned)}" if found.turned else ""
    return Check("importance", "alarm" if value < LIMIT else "ok", value, LIMIT, text), found


def _turned(values: Floats, added: Floats, before: int) -> bool:
    known = ~np.isnan(values)
    if not before or known.sum() < LEAST_ROWS or np.ptp(values[known]) == 0 or np.ptp(added[known]) == 0:
        return False
    found = stats.pearsonr(values[known], added[known])
    return bool(found.statistic * before <= -_TURNED and found.pvalue < _TURNED_P)


def _none(why: str) -> Check:
    return Check("importance", "no data", None, LIMIT, why)
